from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import redis

import runner
from runner import monitor, settings, signing, stack, store, supervisor, valkey
from runner.errors import SettingsError, StackError
from runner.process import ProcessId
from runner.stack import LocalStack, StackInfo
from tests.processes import family, wait_gone
from tests.support import SECRET, wait_until

StartServer = Callable[[], AbstractContextManager[str]]

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name must be quoted in the server's configuration."""
    return tmp_path_factory.mktemp("stack") / 'state of "me" \\ mine'


@pytest.fixture(scope="module")
def local(home: Path) -> Iterator[LocalStack]:
    with LocalStack(workers=1, home=home) as started:
        everything = family(started.info.supervisor.pid)
        yield started
    wait_gone(everything)


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """A supervisor's server alone, in this process."""

    @contextmanager
    def start() -> Iterator[str]:
        wanted = supervisor.options(workers=1, fetch=False, flower=False, port=0, home=tmp_path)
        alone = supervisor.Supervisor(wanted, supervisor.Signals(None))
        try:
            yield alone._start_server()
        finally:
            for child in alone._children:
                child.stop()

    return start


def page(info: StackInfo, path: str, *, password: str | None = None, method: str = "GET") -> int:
    headers = {"Authorization": "Basic " + b64encode(f"{info.flower_user}:{password}".encode()).decode()}
    with closing(http.client.HTTPConnection(urlsplit(info.flower_url or "").netloc, timeout=10)) as flower:
        flower.request(method, path, headers=headers if password is not None else {})
        return flower.getresponse().status


def test_when_it_is_there_everything_answers(local: LocalStack) -> None:
    info = local.info
    with runner.Client(info.url, info.secret) as client:
        workers = client.workers()
        assert {tuple(queues) for queues in workers["queues"]} == {("backtest",), ("fetch",)}
        assert sorted(workers["concurrency"]) == [1, supervisor.FETCH_THREADS]
    assert {process.name for process in info.processes} == {"server", "worker", "fetcher", "flower"}
    assert info.versions.keys() == {"runner", "python", "server"}


def test_another_process_finds_it_by_its_folder(local: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_HOME", str(local.home))
    assert stack.running() == local.info
    assert stack.deployment() == (local.info.url, local.info.secret)
    with runner.connect() as client:
        assert client.url == settings.starred(local.info.url)


def test_its_files_are_for_the_owner_alone(local: LocalStack) -> None:
    files = [local.home, *local.home.rglob("*")]
    assert {"stack.json", "secret", "valkey.conf", "appendonlydir"} <= {file.name for file in files}
    assert [file for file in files if stat.S_IMODE(file.stat().st_mode) & 0o077] == []


def test_no_command_line_shows_a_secret(local: LocalStack) -> None:
    info = local.info
    password = urlsplit(info.url).password
    assert password
    lines = [" ".join(process.cmdline()) for process in family(info.supervisor.pid)]
    assert len(lines) >= 4
    assert not [line for line in lines for word in (password, info.secret, info.flower_password) if word in line]


def test_no_repr_or_log_shows_a_secret(local: LocalStack) -> None:
    info = local.info
    shown = repr(local) + repr(info) + "".join(log.read_text() for log in local.home.glob("*.log"))
    password = urlsplit(info.url).password or ""
    assert not [word for word in (password, info.secret, info.flower_password) if word in shown]


def test_passwords_are_derived_from_the_secret_and_never_are_it(local: LocalStack) -> None:
    info = local.info
    passwords = {urlsplit(info.url).password, info.flower_password}
    assert passwords == {signing.derive(info.secret, "server"), signing.derive(info.secret, "flower")}
    assert info.secret == (local.home / "secret").read_text()


def test_the_server_is_reached_from_this_machine_with_the_password_only(local: LocalStack) -> None:
    server = next(process for process in local.info.processes if process.name == "server")
    addresses = {
        listening.laddr.ip for listening in psutil.Process(server.pid).net_connections() if listening.status == "LISTEN"
    }
    assert addresses == {"127.0.0.1"}
    port = urlsplit(local.info.url).port
    with valkey.connection(f"redis://127.0.0.1:{port}/0") as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_flower_is_closed_without_the_password(local: LocalStack) -> None:
    info = local.info
    for path in ("/", "/workers", "/tasks", "/api/workers", "/api/tasks"):
        assert page(info, path) == 401, path
        assert page(info, path, password="wrong") == 401, path
        assert page(info, path, password=info.flower_password) == 200, path
    assert page(info, "/api/worker/shutdown/x", method="POST") == 401
    flower = next(process for process in info.processes if process.name == "flower")
    addresses = {
        listening.laddr.ip for listening in psutil.Process(flower.pid).net_connections() if listening.status == "LISTEN"
    }
    assert addresses == {"127.0.0.1"}


def test_flower_controls_no_worker_even_with_the_password(local: LocalStack) -> None:
    with store.connect(local.info.url) as server:
        name = store.Ledger(server).workers()[0]["name"]
    assert page(local.info, f"/api/worker/shutdown/{name}", password=local.info.flower_password, method="POST") == 403


def test_a_second_stack_in_one_folder_says_how_to_use_or_stop_the_first(local: LocalStack) -> None:
    with pytest.raises(StackError, match=r"already runs.*runner\.connect\(\).*runner status.*runner down"):
        LocalStack(workers=1, home=local.home)
    assert stack.running(local.home) == local.info


def test_a_taken_port_is_named(local: LocalStack, tmp_path: Path) -> None:
    port = urlsplit(local.info.url).port
    assert port
    with pytest.raises(StackError, match=f"port {port} is taken"):
        LocalStack(port=port, home=tmp_path)


@pytest.mark.parametrize(("name", "queue"), [("worker", "backtest"), ("fetcher", "fetch")])
def test_a_worker_that_dies_is_started_again(local: LocalStack, name: str, queue: str) -> None:
    info = stack.running(local.home)
    assert info is not None
    before = next(process for process in info.processes if process.name == name)
    os.kill(before.pid, signal.SIGKILL)
    ledger = store.Ledger(store.connect(local.info.url))

    def another() -> bool:
        return any(row["pid"] != before.pid and row["queues"] == [queue] for row in ledger.workers())

    wait_until(another, "another worker is alive")
    info = stack.running(local.home)
    assert info is not None
    assert before not in info.processes
    assert {process.name for process in info.processes} == {"server", "worker", "fetcher", "flower"}
    ledger.server.close()


def test_a_server_that_dies_comes_back_with_its_data(local: LocalStack) -> None:
    before = next(process for process in local.info.processes if process.name == "server")
    with valkey.connection(local.info.url) as server:
        server.set("kept", "yes")
        wait_until(lambda: server.info("persistence")["aof_pending_bio_fsync"] == 0, "the write is on disk")
        os.kill(before.pid, signal.SIGKILL)

        def is_back() -> bool:
            try:
                return int(server.info("server")["process_id"]) != before.pid and server.ping() is True
            except redis.RedisError:
                return False

        wait_until(is_back, "the server is back")
        assert server.get("kept") == b"yes"


@linux
def test_a_killed_supervisor_leaves_no_process_and_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    local = LocalStack(workers=1, flower=False, home=tmp_path)
    everything = family(local.info.supervisor.pid)
    assert len(everything) >= 4
    os.kill(local.info.supervisor.pid, signal.SIGKILL)
    wait_gone(everything)
    assert stack.running(tmp_path) is None
    local.stop()
    assert stack.stop(tmp_path) is False
    with stack.only_one(tmp_path):
        assert not (tmp_path / "stack.json").exists()


@pytest.mark.parametrize("ignored", [True, False])
def test_a_hangup_is_heeded_unless_nohup_said_otherwise(*, ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    signals = supervisor.Signals(None)
    try:
        with signals.handled():
            signal.raise_signal(signal.SIGHUP)
            assert signals.stopping() is not ignored
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_killed_supervisor_left_is_cleared_up_where_the_system_does_not(tmp_path: Path) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as leftover,
        subprocess.Popen([sys.executable, "-c", ""]) as gone,
    ):
        known = ProcessId.of("worker", leftover.pid)
        gone.wait()
        dead = ProcessId("supervisor", gone.pid, 1.0)
        info = StackInfo("redis://:x@127.0.0.1:1/0", "s", None, "u", "p", 1, dead, (known,), {}, 0.0, ready=True)
        info.save(tmp_path)
        assert stack.running(tmp_path) is None
        assert stack.stop(tmp_path) is False
        assert not psutil.pid_exists(leftover.pid)
    assert not (tmp_path / "stack.json").exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path, end: signal.Signals) -> None:
    code = f"""
import time
from runner.stack import LocalStack
stack = LocalStack(workers=1, flower=False, home={str(tmp_path)!r})
print("up", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as notebook:
        assert notebook.stdout is not None
        assert notebook.stdout.readline() == b"up\n"
        info = stack.running(tmp_path)
        assert info is not None
        everything = family(info.supervisor.pid)
        notebook.send_signal(end)
        wait_gone(everything)
    assert not (tmp_path / "stack.json").exists()


def test_it_ends_though_a_fork_of_the_killed_notebook_holds_the_pipe(tmp_path: Path) -> None:
    code = f"""
import os, time
from runner.stack import LocalStack
stack = LocalStack(workers=1, flower=False, home={str(tmp_path)!r})
fork = os.fork()
if fork:
    print(fork, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as notebook:
        assert notebook.stdout is not None
        fork = psutil.Process(int(notebook.stdout.readline()))
        info = stack.running(tmp_path)
        assert info is not None
        everything = family(info.supervisor.pid)
        notebook.kill()
        wait_gone(everything)
        assert fork.is_running()
        fork.kill()


def test_what_was_in_the_server_is_there_next_time_unless_the_secret_is_another(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    for secret in (None, SECRET, None):
        monkeypatch.setenv("RUNNER_SECRET", secret) if secret else monkeypatch.delenv("RUNNER_SECRET", raising=False)
        with start_server() as url, valkey.connection(url) as server:
            kept.append(server.get("mine"))
            server.set("mine", "yes")
    assert kept == [None, None, b"yes"]


def test_a_named_server_is_used_and_left_alone(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_URL", url)
    with pytest.raises(SettingsError, match="RUNNER_SECRET is not"):
        stack.deployment()
    monkeypatch.setenv("RUNNER_SECRET", SECRET)
    with LocalStack(workers=1, flower=False, home=tmp_path) as local:
        assert local.info.url == url
        assert [process.name for process in local.info.processes] == ["worker", "fetcher"]
    with redis.Redis.from_url(url) as server:
        assert server.ping()


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\necho no memory left\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(StackError, match=r"(?s)server ended with exit code 3.*no memory left"):
        LocalStack(workers=1, home=tmp_path / "home")
    assert not (tmp_path / "home" / "stack.json").exists()
    with stack.only_one(tmp_path / "home"):
        pass  # the failed supervisor holds it no more


def test_a_port_that_another_program_takes_first_is_given_up(
    local: LocalStack, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = valkey.free_port()
    ports = iter([urlsplit(local.info.url).port, free])
    monkeypatch.setattr(valkey, "free_port", lambda: next(ports))
    with start_server() as url:
        assert urlsplit(url).port == free


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"workers": 5000}, {"port": -1}, {"port": 70_000}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(StackError, match="expected 1 to"):
        LocalStack(home=tmp_path, **numbers)  # type: ignore[arg-type]  # mypy: flower is no number


def test_a_folder_that_cannot_be_made_is_named_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match="set RUNNER_HOME"):
        LocalStack(home=tmp_path / "file" / "below")


def test_windows_is_told_what_works_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(StackError, match=r"WSL.*RUNNER_URL.*runner\.sweep"):
        LocalStack()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"url": 1}', json.dumps({"supervisor": {}, "processes": []})]
)
def test_a_damaged_state_file_is_no_stack(tmp_path: Path, text: str) -> None:
    (tmp_path / "stack.json").write_text(text)
    assert stack.running(tmp_path) is None
    assert stack.stop(tmp_path) is False


def test_flowers_environment_is_ours_but_for_a_given_login() -> None:
    users = {"FLOWER_UNAUTHENTICATED_API": "true", "FLOWER_PORT": "1", "PATH": "p", "FLOWER_BASIC_AUTH": "a:b"}
    made = monitor.environment(users, url="u", secret="s", address="127.0.0.1", port=2, folder=Path("f"))
    assert "FLOWER_UNAUTHENTICATED_API" not in made
    assert (made["FLOWER_PORT"], made["PATH"], made["FLOWER_BASIC_AUTH"]) == ("2", "p", "a:b")
    del users["FLOWER_BASIC_AUTH"]
    made = monitor.environment(users, url="u", secret="s", address="127.0.0.1", port=2, folder=Path("f"))
    assert made["FLOWER_BASIC_AUTH"] == f"runner:{monitor.password('s')}"
