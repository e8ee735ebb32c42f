"""A whole run of `runner up` with secrets that can be recognised, and a look at all that it left and showed."""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis

import runner
from runner import signing, stack, store
from runner.app import make_app
from runner.errors import RunnerError
from tests.faults.hostile import generated
from tests.misbehaving import serving
from tests.processes import family, wait_gone
from tests.support import KEY, ROOT, wait_until
from workers.standin import make_app as make_standin

ORDER = "columns[0][data]=name&order[0][column]=0&order[0][dir]=asc"
TABLE = f"/tasks/datatable?draw=1&start=0&length=10&search[value]=&{ORDER}"
PAGES = (
    "/", "/workers", "/tasks", TABLE, "/broker", "/api/workers?refresh=1", "/api/tasks", "/api/task/types",
    "/api/queues/length", "/metrics", "/healthcheck",
)  # fmt: skip


@dataclass
class Run:
    """What a run of everything showed.

    Attributes:
        info: of the stack.
        home: its folder.
        words: what must be shown nowhere, by what it is.
        shown: what was shown, by where.
        processes: the stack's.
    """

    info: stack.StackInfo
    home: Path
    words: dict[str, str]
    processes: list[psutil.Process]
    shown: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home, secret = tmp_path_factory.mktemp("secrets") / "home", f"canary-{secrets.token_urlsafe(24)}"
    keys = {"RUNNER_TIINGO_KEY": KEY, "RUNNER_FRED_KEY": f"fred{secrets.token_hex(14)}"}
    environment = {"RUNNER_HOME": str(home), "RUNNER_SECRET": secret, **keys}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        home.mkdir(mode=0o700)
        with up(home) as process:
            info = stack.running(home)
            assert info is not None
            words = {"secret": secret, "server's password": urlsplit(info.url).password or "?", **keys}
            found = Run(info, home, {**words, "Flower's password": info.flower_password}, family(process.pid))
            with every_command_line(process.pid, found):
                use(found)
            yield found
        wait_gone(found.processes)


@contextmanager
def up(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "runner", "up", "--workers", "1"]
    with (
        (home.parent / "up.txt").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT) as process,
    ):
        try:
            wait_until(
                lambda: stack.running(home) is not None,
                "it is up",
                timeout_s=60,
                log=home.parent / "up.txt",
                process=process,
            )
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            process.kill()


@contextmanager
def every_command_line(pid: int, run: Run) -> Iterator[None]:
    """Command lines of the whole family, again and again meanwhile: children come and go."""
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            with suppress(psutil.NoSuchProcess):
                for process in family(pid):
                    with suppress(psutil.NoSuchProcess):
                        seen.add(" ".join(process.cmdline()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        run.shown["command lines"] = "\n".join(seen)


def failing(bars: Any, n: int) -> Any:
    if n % 5 == 0:
        raise ValueError(f"point {n} of {bars.symbol}")
    return bars.close > bars.sma(n)


def use(run: Run) -> None:
    """Everything that could say too much: runs that fail, fetches that fail, refusals, pages, commands, a crash."""
    with runner.connect() as client, make_app(run.info.url) as app:
        sweep = client.sweep(failing, runner.sample_data("SP500"), runner.grid(n=range(2, 60)))
        result = sweep.result(timeout=60, progress=False)
        run.shown["the table and its tracebacks"] = result.errors.to_csv() + repr(result) + sweep._repr_html_()
        fetch(run, client)
        for message in generated(200, 1):
            client._ledger.server.lpush("backtest", message)
        wait_until(lambda: not client._ledger.waiting("backtest"), "all are refused")
        [child] = [process for process in family(run.info.supervisor.pid) if is_child(process)]
        child.kill()
        client.sweep(failing, runner.sample_data("SP500"), runner.grid(n=range(2, 9))).result(
            timeout=60, progress=False
        )
        run.shown["reprs"] = repr([client, sweep, run.info, client.health(), client.workers()])
        for kind in ("conf", "stats", "registered", "active", "reserved", "active_queues"):
            run.shown[f"inspect {kind}"] = json.dumps(getattr(app.control.inspect(timeout=0.5), kind)())
    wait_until(lambda: sweep.id in page(run, "/api/tasks"), "Flower shows the tasks")
    task = json.loads(page(run, "/api/tasks")).popitem()[0]
    for path in (*PAGES, f"/task/{task}", f"/api/task/info/{task}", f"/worker/{next(iter(workers(run)))}"):
        run.shown[f"Flower {path}"] = page(run, path)
    commands(run)
    run.shown["the server"] = dump(run.info.url)


def fetch(run: Run, client: runner.Client) -> None:
    with serving(make_standin()) as url:
        options: dict[str, Any] = {"start": "2010-01-01", "end": "2012-01-01", "progress": False}
        bars = client.fetch("AAPL", source="tiingo", base_url=f"{url}/tiingo", **options)
        assert len(bars)  # the key was needed, and used
        for source, base in (("tiingo", f"{url}/nowhere"), ("tiingo", "http://127.0.0.1:1"), ("fred", f"{url}/fred")):
            try:
                client.fetch("NOSUCH", source=source, base_url=base, **options)
            except RunnerError as error:
                run.shown[f"fetch {source} {base}"] = repr(error) + str(error)


def is_child(process: psutil.Process) -> bool:
    """A worker process of the queue backtest."""
    return "spawn_main" in " ".join(process.cmdline())


def commands(run: Run) -> None:
    """What the command line says, in good order and in the middle of an error, with its traceback."""
    password = run.words["server's password"]
    wrong = f"redis://:{password}@127.0.0.1:1/0"
    refused = run.info.url.replace(password, "x" + password)
    asked: list[tuple[list[str], dict[str, str]]] = [
        (["status"], {}),
        (["check", "worker"], {}),
        (["check", "flower"], {}),
        (["status"], {"RUNNER_URL": wrong, "RUNNER_DEBUG": "1"}),
        (["status"], {"RUNNER_URL": refused, "RUNNER_DEBUG": "1"}),
        (["worker"], {"RUNNER_URL": wrong}),
        (["status"], {"RUNNER_URL": run.info.url, "RUNNER_SECRET": run.words["secret"] + "x", "RUNNER_DEBUG": "1"}),
        (["up"], {"RUNNER_DEBUG": "1"}),
    ]

    def said(words: list[str], variables: dict[str, str]) -> str:
        command, environment = [sys.executable, "-m", "runner", *words], {**os.environ, **variables}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
        )
        return done.stdout + done.stderr

    with ThreadPoolExecutor() as pool:
        outputs = pool.map(lambda question: said(*question), asked)
        for number, ((words, _), text) in enumerate(zip(asked, outputs, strict=True)):
            run.shown[f"command {number} {words}"] = text


def workers(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page(run, "/api/workers?refresh=1"))
    return found


def page(run: Run, path: str, *, login: bool = True, method: str = "GET") -> str:
    """A page of Flower's, or the status with which it was refused."""
    user = f"{run.info.flower_user}:{run.info.flower_password}"
    headers = {"Authorization": f"Basic {b64encode(user.encode()).decode()}"} if login else {}
    request = urllib.request.Request(f"{run.info.flower_url}{path}", headers=headers, method=method)  # noqa: S310 -- ours
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 -- our own, on loopback
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.code)


def dump(url: str) -> str:
    """Every key and value on the server."""
    read = {
        b"string": lambda server, key: server.get(key),
        b"hash": lambda server, key: server.hgetall(key),
        b"list": lambda server, key: server.lrange(key, 0, -1),
        b"set": lambda server, key: server.smembers(key),
        b"zset": lambda server, key: server.zrange(key, 0, -1),
        b"stream": lambda server, key: server.xrange(key),
    }
    with store.connect(url) as server:
        keys = list(server.scan_iter())
        assert len(keys) > 10
        return "\n".join(f"{key!r} {read[server.type(key)](server, key)!r}" for key in keys)


def disguises(word: str) -> set[str]:
    """The word itself, and as base64 has it, wherever in a longer text it begins."""
    shifted = (b64encode(b"x" * shift + word.encode()).decode().rstrip("=") for shift in range(3))
    return {word, *(text[4:-4] for text in shifted)}


def found_in(run: Run, text: str, *, but: tuple[str, ...] = ()) -> list[str]:
    """Which secrets the text shows."""
    return [
        what for what, word in run.words.items() if what not in but and any(form in text for form in disguises(word))
    ]


# What was shown


def test_the_search_finds_a_secret_where_there_is_one(run: Run) -> None:
    state = (run.home / stack.STATE_FILE).read_text()
    assert set(found_in(run, state)) == {"secret", "server's password", "Flower's password"}
    login = b64encode(f"runner:{run.words['secret']}".encode()).decode()
    assert found_in(run, login) == ["secret"]
    environment = repr(psutil.Process(run.info.supervisor.pid).environ())  # which the system shows to the owner alone
    assert set(found_in(run, environment)) == {"secret", "RUNNER_TIINGO_KEY", "RUNNER_FRED_KEY"}


def test_nothing_that_a_run_shows_holds_a_secret(run: Run) -> None:
    assert len(run.shown) > 25
    assert all(run.shown.values())
    assert "broker_url" in run.shown["inspect conf"]
    assert {where: found for where, text in run.shown.items() if (found := found_in(run, text))} == {
        "command 0 ['status']": ["Flower's password"]  # whoever starts or looks at a stack is told how to log in
    }


def test_no_log_holds_a_secret(run: Run) -> None:
    logs = {path.name: path.read_text(errors="replace") for path in run.home.rglob("*.log")}
    assert {"server.log", "worker.log", "fetcher.log", "flower.log"} <= logs.keys()
    assert "refused" in logs["worker.log"]  # it does say what happened
    assert {name: found for name, text in logs.items() if (found := found_in(run, text))} == {}


def test_on_disk_secrets_are_in_files_that_the_owner_alone_can_read_and_in_no_others(run: Run) -> None:
    may = {stack.STATE_FILE, "valkey.conf"}
    files = [path for path in run.home.rglob("*") if path.is_file()]
    holding = {path.name for path in files if found_in(run, path.read_bytes().decode(errors="replace"))}
    assert holding <= may
    assert [path for path in (run.home, *run.home.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_the_servers_append_only_file_holds_no_secret(run: Run) -> None:
    files = [path for path in run.home.rglob("appendonly*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 10_000
    assert {path: found for path in files if (found := found_in(run, path.read_bytes().decode(errors="replace")))} == {}


def test_the_fingerprint_on_the_server_does_not_tell_the_secret(run: Run) -> None:
    with store.connect(run.info.url) as server:
        told = server.get("runner:secret").decode()
    assert told == signing.fingerprints(run.words["secret"])[0]


# Who answers on the network


def listening(run: Run) -> set[tuple[str, int]]:
    found = set()
    for process in family(run.info.supervisor.pid):
        with suppress(psutil.NoSuchProcess):
            found |= {
                (connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
    return found


def test_a_stack_listens_on_loopback_only_and_on_nothing_but_the_servers_and_flowers_ports(run: Run) -> None:
    wanted = {urlsplit(run.info.url).port, urlsplit(run.info.flower_url or "").port}
    assert {port for _, port in listening(run)} == wanted
    assert {address for address, _ in listening(run)} == {"127.0.0.1"}


def test_nothing_answers_from_another_address_of_this_machine(run: Run) -> None:
    others = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    for other in others:
        for _, port in listening(run):
            with closing(socket.socket()) as probe:
                probe.settimeout(5)
                assert probe.connect_ex((other, port)) != 0


def test_the_server_answers_nothing_without_the_password(run: Run) -> None:
    port = urlsplit(run.info.url).port or 0
    for line in (
        b"PING",
        b"INFO",
        b"KEYS *",
        b"GET runner:secret",
        b"CONFIG GET *",
        b"CLIENT LIST",
        b"EVAL 'return 1' 0",
    ):
        with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as stranger:
            stranger.sendall(line + b"\r\n")
            assert stranger.recv(4096).startswith(b"-NOAUTH")
    with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as browser:
        browser.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nCONFIG SET dir /\r\n")
        assert b"OK" not in browser.recv(4096)  # it hangs up on a browser that was led here
    with store.connect(run.info.url) as server:
        assert server.ping()


def test_flower_answers_nothing_without_the_login(run: Run) -> None:
    posts = ("/api/worker/shutdown/x", "/api/task/async-apply/tasks.backtest.run_chunk", "/api/task/send-task/x")
    assert {page(run, path, login=False) for path in PAGES} == {"401"}
    assert {page(run, path, login=False, method="POST") for path in posts} <= {"401", "403"}


def test_with_the_login_flower_shows_and_does_not_control(run: Run) -> None:
    worker = next(iter(workers(run)))
    for path in (f"/api/worker/shutdown/{worker}", f"/api/worker/pool/shrink/{worker}", "/api/task/revoke/x"):
        assert page(run, path, method="POST") in {"403", "405"}
    with runner.connect(run.info.url, secret=run.words["secret"]) as client:
        assert len(client.workers()) == 2


def test_events_of_any_shape_do_not_end_flower(run: Run) -> None:
    with redis.Redis.from_url(run.info.url) as server:
        for message in generated(300, 2):
            server.publish("/0.celeryev/task.sent", message)
    with runner.connect(run.info.url, secret=run.words["secret"]) as client:

        def shows_the_next() -> bool:
            """Of what happens while it connects again it knows nothing."""
            sweep = client.sweep(failing, runner.sample_data("SP500"), runner.grid(n=[2, 3]))
            sweep.result(timeout=60, progress=False)
            return sweep.id in page(run, "/api/tasks")

        wait_until(shows_the_next, "Flower shows what happens")
