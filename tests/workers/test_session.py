"""The pooled HTTP client: answers, faults, redirects and the cache."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

import runner
from runner.errors import BadAnswer, FetchError, SourceRefused, SourceUnavailable
from tests.clients import Server, fetch, running, with_client
from tests.misbehaving import (
    Fault,
    dropped,
    gzip_bomb,
    html,
    large_error,
    redirect,
    retry_after,
    retry_at,
    serving,
    slow_body,
    slow_headers,
    status,
    truncated,
)
from workers.session import HttpClient, Limits, Rate, Request, Response


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def test_a_good_answer_has_url_status_headers_and_body(server: Server) -> None:
    async def use(client: HttpClient) -> Response:
        return await client.get(f"{server.base}/x?token=hush", params={"b": "2 &"}, private=True)

    response = with_client(use)
    assert (response.url, response.status, response.from_cache, response.attempts) == (
        f"{server.base}/x",
        200,
        False,
        1,
    )
    assert response.headers["CONTENT-type"].startswith("application/json")
    assert response.body == b'{"path": "/x", "query": {"token": "hush", "b": "2 &"}}'
    assert "hush" not in repr(response)


def test_it_says_who_it_is_and_sends_no_cookies(server: Server) -> None:
    server.plan(status(200, Set_Cookie="a=b"))

    async def main() -> None:
        client = HttpClient(contact="me@example.com")
        for _ in range(2):
            await fetch(server, client, headers={"X-Mine": "1"})
        await client.close()

    asyncio.run(main())
    headers = server.trouble.seen["/x"][1].headers
    assert headers["User-Agent"] == f"backtest-runner/{runner.__version__} (+me@example.com)"
    assert headers["X-Mine"] == "1"
    assert "Cookie" not in headers


@pytest.mark.parametrize("code", [304, 400, 401, 403, 404, 410, 422])
def test_a_final_answer_is_the_callers_to_read_and_counts_as_success(server: Server, code: int) -> None:
    server.plan(status(code, b"" if code == 304 else b"why"))

    async def use(client: HttpClient) -> tuple[Response, dict[str, int]]:
        return await fetch(server, client), client.stats()

    response, stats = with_client(use)
    assert response.status == code
    assert response.body == (b"" if code == 304 else b"why")
    assert server.calls == stats["http_requests_ok"] == stats["http_attempts_ok"] == 1


@pytest.mark.parametrize(
    "fault",
    [
        *(status(code) for code in (408, 425, 429, 500, 502, 503, 504)),
        large_error(),
        retry_after(0.05, 503),
        retry_after(0.05),
        retry_at(1),
        truncated(),
        status(200, b"not gzip at all", Content_Encoding="gzip"),
    ],
)
def test_after_a_passing_fault_comes_the_right_answer(server: Server, fault: Fault) -> None:
    server.plan(fault)

    async def use(client: HttpClient) -> tuple[Response, dict[str, int]]:
        return await fetch(server, client), client.stats()

    response, stats = with_client(use)
    assert response.status == 200
    assert b'"path": "/x"' in response.body
    assert response.attempts == server.calls == stats["http_attempts"] == 2
    assert (
        stats["http_attempts_ok"] == stats["http_requests"] == stats["http_requests_ok"] == stats["http_retries"] == 1
    )


def test_attempts_that_aiohttp_makes_by_itself_are_counted(server: Server) -> None:
    server.plan(None, dropped())

    async def use(client: HttpClient) -> dict[str, int]:
        for _ in range(2):
            await fetch(server, client)
        return client.stats()

    stats = with_client(use)
    assert server.calls == stats["http_attempts"] == 3
    assert stats["http_attempts_ok"] == stats["http_requests_ok"] == 2
    assert stats["http_retries"] == 0


def test_a_lasting_fault_ends_after_three_retries_in_one_error_without_secrets(server: Server) -> None:
    server.plan(*[status(503)] * 9)

    async def use(client: HttpClient) -> dict[str, int]:
        with pytest.raises(SourceUnavailable) as caught:
            await fetch(server, client, params={"token": "hush"}, headers={"Authorization": "hush"})
        assert str(caught.value) == f"{server.base}/x: HTTP 503; after 4 attempts."
        return client.stats()

    stats = with_client(use)
    assert server.calls == stats["http_attempts"] == 4
    assert stats["http_requests"] == 1
    assert stats["http_requests_ok"] == stats["http_attempts_ok"] == 0


def test_another_server_error_is_not_retried(server: Server) -> None:
    server.plan(status(501))

    async def use(client: HttpClient) -> None:
        with pytest.raises(SourceUnavailable, match="HTTP 501"):
            await fetch(server, client)

    with_client(use)
    assert server.calls == 1


def test_nobody_there_is_unavailable_and_counted() -> None:
    async def use(client: HttpClient) -> dict[str, int]:
        with pytest.raises(SourceUnavailable, match=r"http://127\.0\.0\.1:9/y: no connection: .*after 4 attempts"):
            await client.get("http://127.0.0.1:9/y?token=hush", private=True)
        return client.stats()

    stats = with_client(use)
    assert stats["http_attempts"] == 4
    assert stats["http_attempts_ok"] == 0


@pytest.mark.parametrize("fault", [slow_headers(30), slow_body(30), slow_headers(30, status(503))])
def test_the_deadline_ends_whatever_is_slow(server: Server, fault: Fault) -> None:
    server.plan(*[fault] * 9)

    async def use(client: HttpClient) -> None:
        with pytest.raises(SourceUnavailable, match=r"time-out; the deadline of 0\.2 s is over"):
            await fetch(server, client, deadline_s=0.2)

    with_client(use)


def test_a_retry_after_beyond_the_deadline_fails_at_once_instead_of_waiting(server: Server) -> None:
    server.plan(retry_after(3600))

    async def use(client: HttpClient) -> dict[str, int]:
        # After a wait it would say that the deadline is over.
        with pytest.raises(
            SourceUnavailable, match=r"HTTP 429; the next attempt would come in 3600\.\d s, the deadline"
        ):
            await fetch(server, client, deadline_s=20.0)
        return client.stats()

    assert with_client(use)["http_retries"] == 0
    assert server.calls == 1


ABSURD = ["1e300", "1e308", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 99999999999999999999 00:00:00 GMT"]


@pytest.mark.parametrize("header", ABSURD)
def test_an_absurd_retry_after_is_a_retry_after_of_reasonable_length(server: Server, header: str) -> None:
    server.plan(status(429, Retry_After=header))
    rate = Rate("absurd", weight_per_period=10, period_s=3600.0, burst=10)

    async def use(client: HttpClient) -> list[Response | FetchError]:
        request = Request(f"{server.base}/x", private=True, cache_ttl_s=0, rate=rate, deadline_s=1.0)
        return await client.get_many([request]) + await client.get_many([request])

    first, second = with_client(use, Limits(retries=0))
    assert str(first) == f"{server.base}/x: HTTP 429; after 1 attempts."
    room = re.search(r"leaves room in ([0-9.]+) s", str(second))
    assert room is not None
    assert 0.0 < float(room[1]) <= 3600.0


@pytest.mark.parametrize("header", ["Cache-Control", "X-Used"])
def test_a_number_of_thousands_of_digits_fails_no_request(server: Server, header: str) -> None:
    digits = "9" * 5000
    server.plan(status(200, b"data", **{header: f"max-age={digits}" if header == "Cache-Control" else digits}))
    rate = Rate("digits", weight_per_period=10, period_s=1.0, burst=10, used_header="X-Used")

    async def use(client: HttpClient) -> list[Response | FetchError]:
        return await client.get_many([Request(f"{server.base}/x", private=True, rate=rate)])

    (answer,) = with_client(use)
    assert isinstance(answer, Response)
    assert answer.body == b"data"


def test_a_stalled_connection_is_given_up_for_another(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.wire.STALL_S", 0.1)
    server.plan(slow_headers(30), slow_body(30))

    async def use(client: HttpClient) -> Response:
        return await fetch(server, client, deadline_s=20.0)

    assert with_client(use).attempts == 3


@pytest.mark.parametrize("fault", [large_error(), truncated(promised=3_000_000), retry_after(0.05, 503)])
@pytest.mark.parametrize("connections", [1, 4])
def test_a_full_pool_never_waits_for_its_own_failed_answers(server: Server, fault: Fault, connections: int) -> None:
    server.plan(*[fault] * 4)

    async def use(client: HttpClient) -> list[Response]:
        return await asyncio.gather(*(fetch(server, client) for _ in range(8)))

    # Whoever kept its connection while it waits for another one would wait until the deadline.
    limits = Limits(at_once=connections, start_at_once=connections, backoff_s=0.005, retries=8)
    assert [response.status for response in with_client(use, limits)] == [200] * 8
    assert server.calls == 12


def test_a_small_error_body_keeps_its_connection_and_a_large_one_gives_it_up(server: Server) -> None:
    server.plan(status(503, b"x" * 1000), None, large_error())

    async def use(client: HttpClient) -> None:
        for _ in range(2):
            await fetch(server, client)

    with_client(use)
    assert server.ports[0] == server.ports[1] == server.ports[2] != server.ports[3]


def test_a_body_beyond_max_bytes_is_refused_also_if_it_grows_after_decompression(server: Server) -> None:
    server.plan(status(200, bytes(2_000_000)), gzip_bomb(200_000_000))

    async def use(client: HttpClient) -> None:
        for _ in range(2):
            with pytest.raises(BadAnswer, match="more than 1,000,000 bytes"):
                await fetch(server, client, max_bytes=1_000_000)

    with_client(use)
    assert server.calls == 2


def test_a_body_of_many_pieces_is_whole(server: Server) -> None:
    body = bytes(range(256)) * 20_000
    server.plan(status(200, body))

    async def use(client: HttpClient) -> Response:
        return await fetch(server, client)

    assert with_client(use).body == body


# --- redirects and addresses


def test_redirects_are_followed_five_times(server: Server) -> None:
    for hop in range(6):
        server.plan(redirect(f"/r{hop + 1}", 307), redirect(f"/r{hop + 1}"), path=f"/r{hop}")

    async def use(client: HttpClient) -> Response:
        response = await client.get(f"{server.base}/r1", private=True, cache_ttl_s=0)
        with pytest.raises(SourceRefused, match="/r0: more than 5 redirects"):
            await client.get(f"{server.base}/r0", private=True, cache_ttl_s=0)
        return response

    response = with_client(use)
    assert response.url == f"{server.base}/r6"
    assert response.attempts == 6


@pytest.mark.parametrize(
    "target", ["http://10.0.0.1/", "http://localhost:{port}/x", "http://[::1]:{port}/", "http://169.254.169.254/"]
)
def test_a_redirect_to_another_private_address_is_refused(server: Server, target: str) -> None:
    port = server.base.rpartition(":")[2]
    server.plan(redirect(target.format(port=port)))

    async def use(client: HttpClient) -> None:
        with pytest.raises(SourceRefused, match="private, loopback or reserved"):
            await fetch(server, client)

    with_client(use)
    assert server.calls == 1


def test_a_redirect_to_another_port_of_the_private_host_is_refused(server: Server) -> None:
    other = Server()
    with serving(other.app) as other.base:
        server.plan(redirect(f"{other.base}/x"))

        async def use(client: HttpClient) -> None:
            with pytest.raises(SourceRefused, match="name it, with this port, as the base_url"):
                await fetch(server, client)

        with_client(use)
    assert (server.calls, other.calls) == (1, 0)


NO_NAMES = ["a..b", "a" * 70, "xn--", "xn--a.com"]


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_no_host_can_have_is_unknown(name: str, *, private: bool) -> None:
    async def use(client: HttpClient) -> list[Response | FetchError]:
        return await client.get_many([Request(f"http://{name}/x", private=private)])

    (error,) = with_client(use)
    assert isinstance(error, SourceUnavailable)
    assert str(error).startswith(f"http://{name}/x: its name is not known to the DNS")


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_redirect_to_such_a_name_is_unknown(server: Server, name: str) -> None:
    server.plan(*[redirect(f"http://{name}/x")] * 4)

    async def use(client: HttpClient) -> list[Response | FetchError]:
        return await client.get_many([Request(f"{server.base}/x", private=True)])

    (error,) = with_client(use)
    assert isinstance(error, SourceUnavailable)
    assert "its name is not known to the DNS" in str(error)


def test_a_private_address_has_to_be_meant_each_time(server: Server) -> None:
    named = server.base.replace("127.0.0.1", "localhost")

    async def use(client: HttpClient) -> None:
        for base in (server.base, named):
            assert (await client.get(f"{base}/x", private=True)).status == 200
            with pytest.raises(SourceRefused, match="private, loopback or reserved"):
                await client.get(f"{base}/x")  # neither the DNS cache nor the answer's lets it through

    with_client(use)
    assert server.calls == 2


def test_the_callers_headers_do_not_go_to_another_host(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Loopback has no public address: here alone, all addresses are.
    monkeypatch.setattr("workers.addresses._is_private_literal", lambda host: False)
    other = Server()
    with serving(other.app) as other.base:
        server.plan(redirect("/near"), path="/x")
        server.plan(redirect(f"{other.base}/far"), path="/near")

        async def use(client: HttpClient) -> None:
            headers = {"Authorization": "hush", "APCA-API-KEY-ID": "hush", "X-Mine": "hush"}
            assert (await fetch(server, client, headers=headers)).url == f"{other.base}/far"

        with_client(use)
    assert server.trouble.seen["/near"][0].headers["Authorization"] == "hush"
    assert "hush" not in str(other.trouble.seen["/far"][0].headers)


@pytest.mark.parametrize("url", ["ftp://host/x?token=hush", "host/x?token=hush", "", "http:///x", "http://[::1/"])
def test_what_is_no_web_address_is_refused_before_anything_is_sent(url: str) -> None:
    async def use(client: HttpClient) -> dict[str, int]:
        with pytest.raises(SourceRefused) as caught:
            await client.get(url)
        assert "hush" not in str(caught.value)
        return client.stats()

    assert with_client(use)["http_attempts"] == 0


# --- the cache


def test_an_answer_is_served_again_without_asking(server: Server) -> None:
    async def use(client: HttpClient) -> dict[str, int]:
        first, second = [await fetch(server, client, cache_ttl_s=None) for _ in range(2)]
        assert (first.from_cache, second.from_cache) == (False, True)
        assert second.body == first.body
        assert second.attempts == 0
        await fetch(server, client, cache_ttl_s=None, headers={"Authorization": "another"})
        await fetch(server, client)
        return client.stats()

    stats = with_client(use)
    assert server.calls == 3
    assert (stats["http_cache_hits"], stats["http_cache_misses"], stats["http_requests"]) == (1, 2, 3)


@pytest.mark.parametrize("validator", ["etag", "last_modified"])
def test_a_stale_answer_is_asked_about_and_a_304_makes_it_fresh_again(server: Server, validator: str) -> None:
    told = {"ETag": '"v1"'} if validator == "etag" else {"Last_Modified": "Wed, 21 Oct 2026 07:28:00 GMT"}
    server.plan(status(200, b"data", **told), status(304), status(304), status(200, b"new"))

    async def use(client: HttpClient) -> dict[str, int]:
        first = await fetch(server, client, cache_ttl_s=1e-9)
        again = await fetch(server, client, cache_ttl_s=1e-9)
        assert (again.status, again.body, again.from_cache, again.attempts) == (200, b"data", True, 1)
        assert again.headers == first.headers
        await fetch(server, client, cache_ttl_s=300)
        assert (await fetch(server, client, cache_ttl_s=300)).attempts == 0
        return client.stats()

    stats = with_client(use)
    name, value = ("If-None-Match", '"v1"') if validator == "etag" else ("If-Modified-Since", told["Last_Modified"])
    assert [request.headers.get(name) for request in server.trouble.seen["/x"]] == [None, value, value]
    assert stats["http_revalidated"] == 2
    assert stats["http_requests_ok"] == 3


def test_the_callers_own_validators_go_out_and_the_304_comes_back(server: Server) -> None:
    server.plan(status(200, b"data", ETag='"v2"'), status(304))

    async def use(client: HttpClient) -> Response:
        await fetch(server, client, cache_ttl_s=300)
        return await fetch(server, client, cache_ttl_s=300, etag='"v1"', last_modified="Wed, 21 Oct 2026 07:28:00 GMT")

    assert with_client(use).status == 304
    headers = server.trouble.seen["/x"][1].headers
    assert (headers["If-None-Match"], headers["If-Modified-Since"]) == ('"v1"', "Wed, 21 Oct 2026 07:28:00 GMT")


def test_nothing_wrong_is_kept(server: Server) -> None:
    server.plan(html(), status(404), status(200, b"secret", Cache_Control="no-store"))

    async def use(client: HttpClient) -> list[int]:
        return [(await fetch(server, client, cache_ttl_s=300)).attempts for _ in range(5)]

    assert with_client(use) == [1, 1, 1, 1, 0]
