"""Where a request may go."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from runner.errors import SourceRefused
from workers.addresses import (
    PublicResolver,
    Resolver,
    check_literal,
    is_public,
    next_hop,
    same_origin,
    same_place,
    shown,
)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_these_are_the_internets(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",  # noqa: S104 - an address to refuse, not to listen at
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a00:1::1",
    ],
)
def test_these_are_not(address: str) -> None:
    assert not is_public(address)


def test_a_literal_private_address_is_refused_and_names_are_left_to_the_resolver() -> None:
    for private in ("http://127.0.0.1:1/", "http://[::1]/", "https://169.254.169.254/latest/meta-data"):
        with pytest.raises(SourceRefused, match="private, loopback or reserved"):
            check_literal(URL(private))
    check_literal(URL("https://1.1.1.1/"))
    check_literal(URL("https://api.example.com/"))


@pytest.mark.parametrize("name", ["localhost", "2130706433", "0x7f.1", "127.1"])
def test_a_name_of_this_machine_is_refused_whatever_its_spelling(name: str) -> None:
    async def main() -> None:
        resolver = PublicResolver()
        try:
            await resolver.resolve(name, 80, socket.AF_UNSPEC)
        finally:
            await resolver.close()

    with pytest.raises(SourceRefused, match=f"{name}: a private"):
        asyncio.run(main())


@pytest.mark.parametrize("kind", [Resolver, PublicResolver])
@pytest.mark.parametrize("name", ["a..b", "...", "a" * 70, "a" * 70 + ".com"])
def test_a_name_that_no_host_can_have_is_unknown_like_any_other(kind: type[Resolver], name: str) -> None:
    async def main() -> None:
        resolver = kind()
        try:
            await resolver.resolve(name, 80, socket.AF_UNSPEC)
        finally:
            await resolver.close()

    with pytest.raises(socket.gaierror, match="no host can have"):
        asyncio.run(main())


@pytest.mark.parametrize("host", ["xn--", "xn--a.com", "xn--zzzzzz-.com"])
def test_a_name_that_cannot_be_decoded_needs_no_decoding(host: str) -> None:
    url = next_hop(URL("https://api.example.com/a"), f"https://{host}/b")
    check_literal(url)
    assert shown(url) == f"https://{host}/b"
    assert same_origin(url, URL(f"https://{host}/c"))


class Answering(AbstractResolver):
    """A name server's answers, of which a test cannot have real ones."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        return [
            {"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}
            for address in self.hosts
        ]

    async def close(self) -> None: ...


def test_public_answers_pass_and_one_private_among_them_refuses_the_name() -> None:
    async def main(*hosts: str) -> list[str]:
        return [entry["host"] for entry in await PublicResolver(Answering(*hosts)).resolve("api.example.com")]

    assert asyncio.run(main("1.1.1.1", "8.8.8.8")) == ["1.1.1.1", "8.8.8.8"]
    with pytest.raises(SourceRefused, match=r"api\.example\.com"):
        asyncio.run(main("1.1.1.1", "10.0.0.1"))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://other.example.com/x?y=1", "https://other.example.com/x?y=1"),
        ("/b", "https://api.example.com/b"),
        ("c?z=2", "https://api.example.com/a/c?z=2"),
        ("//cdn.example.com/d", "https://cdn.example.com/d"),
        ("https://user:secret@other.example.com/#top", "https://other.example.com/"),
    ],
)
def test_a_redirect_is_followed_relative_and_without_users(location: str, target: str) -> None:
    assert str(next_hop(URL("https://api.example.com/a/b"), location)) == target


@pytest.mark.parametrize(
    "location", ["http://api.example.com/", "ftp://api.example.com/", "file:///etc/passwd", "http://["]
)
def test_a_redirect_elsewhere_is_refused_and_never_shows_the_query(location: str) -> None:
    with pytest.raises(SourceRefused) as caught:
        next_hop(URL("https://api.example.com/a?token=hush"), location)
    assert "hush" not in str(caught.value)
    assert "https://api.example.com/a" in str(caught.value)


def test_headers_stay_with_the_host_and_port_they_were_meant_for() -> None:
    here = URL("https://api.example.com/a")
    assert same_origin(here, URL("https://api.example.com/b"))
    assert same_origin(URL("http://api.example.com/a"), here)
    assert not same_origin(here, URL("https://api.example.com:8443/a"))
    assert not same_origin(here, URL("https://cdn.example.com/a"))


def test_another_port_is_another_place() -> None:
    here = URL("http://10.0.0.1:8080/a")
    assert same_place(here, URL("http://10.0.0.1:8080/b?c"))
    assert not same_place(here, URL("http://10.0.0.1:6379/a"))
    assert not same_place(here, URL("http://10.0.0.1/a"))
    assert not same_place(here, URL("http://10.0.0.2:8080/a"))
    assert not same_place(URL("http://10.0.0.1/"), URL("https://10.0.0.1/"))


def test_what_is_shown_has_neither_query_nor_user() -> None:
    assert shown(URL("https://me:hush@api.example.com:8443/a/b?token=hush#hush")) == "https://api.example.com:8443/a/b"
