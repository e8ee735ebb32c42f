"""compose.yaml without a Docker engine: its schema, and each service's command and health check as local processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from runner import valkey
from tests.processes import family, wait_gone
from tests.support import ROOT, wait_until

FILLED_IN = {name: f"{name.lower()}-filled-in" for name in ("RUNNER_SECRET", "VALKEY_PASSWORD", "FLOWER_PASSWORD")}
REFERENCE = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:-|:\?)([^}]*))?\})")
# The wheel brings the server without its client. Like the client: the password comes from REDISCLI_AUTH.
VALKEY_CLI = """#!{python}
import os, redis
with redis.Redis(port={port}, password=os.environ["REDISCLI_AUTH"]) as server:
    print("PONG" if server.ping() else "")
"""


def resolved(value: Any, variables: Mapping[str, str]) -> Any:
    """The file's content after Compose has put the variables in."""
    if isinstance(value, dict):
        return {key: resolved(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [resolved(item, variables) for item in value]
    return REFERENCE.sub(lambda found: one(found, variables), value) if isinstance(value, str) else value


def one(found: re.Match[str], variables: Mapping[str, str]) -> str:
    dollar, name, kind, text = found.groups()
    if dollar:
        return "$"
    if kind == ":-":
        return variables.get(name) or text
    if not variables.get(name):
        raise KeyError(f"{name}: {text}")
    return variables[name]


def compose(variables: Mapping[str, str]) -> dict[str, Any]:
    return dict(resolved(yaml.safe_load((ROOT / "compose.yaml").read_text()), variables))


def test_the_file_is_valid_by_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_example_of_the_env_file_names_every_variable_and_holds_no_value() -> None:
    example = (ROOT / ".env.example").read_text()
    required = re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE)
    assert {name for name, _ in required} == set(FILLED_IN)
    assert {value for _, value in required} == {""}
    defaults = dict(re.findall(r"^# (\w+)=(.+)$", example, re.MULTILINE))
    used = {found[2]: found[4] for found in REFERENCE.finditer((ROOT / "compose.yaml").read_text()) if found[3] == ":-"}
    assert used == defaults
    ignored = (ROOT / ".gitignore").read_text().split()
    assert ".env" in ignored


@pytest.mark.parametrize("missing", sorted(FILLED_IN))
def test_without_a_secret_nothing_starts(missing: str) -> None:
    with pytest.raises(KeyError, match=r"copy \.env\.example to \.env"):
        compose({**FILLED_IN, missing: ""})


def test_every_service_restarts_is_bounded_and_has_a_health_check() -> None:
    services = compose(FILLED_IN)["services"]
    assert services.keys() == {"valkey", "worker", "fetcher", "flower", "metrics"}
    for name, service in services.items():
        assert {"healthcheck", "mem_limit", "restart", "stop_grace_period", "logging"} <= service.keys(), name
        assert not [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")], name
    assert not services["worker"].keys() & {"container_name", "ports"}  # or --scale worker=8 would fail


def test_secrets_are_on_no_command_line() -> None:
    for name, service in compose(FILLED_IN)["services"].items():
        words = " ".join([*service["command"], *service["healthcheck"]["test"]])
        assert not [value for value in FILLED_IN.values() if value in words], name


def test_the_image_is_built_from_files_that_are_there_and_let_through() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.partition(".")[0] for package in packages} <= copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_through
    assert "USER runner" in lines


@dataclass(frozen=True)
class Service:
    """A service of the file as local processes: same commands, same environment; hosts, ports and folders replaced."""

    command: list[str]
    environment: dict[str, str]
    health: list[str]
    grace_s: float
    log: Path

    def healthy(self) -> bool:
        """Whether its own health check says so."""
        return subprocess.run(self.health, env=self.environment, capture_output=True, check=False).returncode == 0

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with (
            self.log.open("wb") as log,
            subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, cwd=self.log.parent
            ) as process,
        ):
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()


@pytest.fixture
def service(tmp_path: Path) -> Callable[[str], Service]:
    server_port, flower_port, metrics_port = (valkey.free_port() for _ in range(3))
    described = compose(FILLED_IN)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "valkey-server").symlink_to(valkey.find_server())
    (bin_folder / "valkey-cli").write_text(VALKEY_CLI.format(python=sys.executable, port=server_port))
    (bin_folder / "valkey-cli").chmod(0o755)
    config = described["configs"]["valkey"]["content"]
    replaced = {"port 6379": f"port {server_port}", "dir /data": f'dir "{tmp_path}"'}
    assert all(config.count(text) == 1 for text in replaced)
    for text, other in replaced.items():
        config = config.replace(text, other)
    (tmp_path / "valkey.conf").write_text(config)
    here = {
        "/etc/valkey/valkey.conf": str(tmp_path / "valkey.conf"),
        "@valkey:6379/": f"@127.0.0.1:{server_port}/",
        "0.0.0.0": "127.0.0.1",  # noqa: S104 -- what the container says
        "5555": str(flower_port),
        "9464": str(metrics_port),
        "/var/lib/runner": str(tmp_path / "state"),
    }

    def local(text: str) -> str:
        for there, other in here.items():
            text = text.replace(there, other)
        return text

    def one(name: str) -> Service:
        found = described["services"][name]
        kind, *check = found["healthcheck"]["test"]
        return Service(
            command=[local(word) for word in found["command"]],
            environment={
                "PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.defpath}",
                "HOME": str(tmp_path),
                **{key: local(value) for key, value in found["environment"].items() if value is not None},
            },
            health=["/bin/sh", "-c", *check] if kind == "CMD-SHELL" else [local(word) for word in check],
            grace_s=float(found["stop_grace_period"].removesuffix("s")),
            log=tmp_path / f"{name}.log",
        )

    return one


def test_every_service_becomes_healthy_and_stops_within_its_grace(service: Callable[[str], Service]) -> None:
    everything: list[psutil.Process] = []
    server, *others = (service(name) for name in ("valkey", "worker", "fetcher", "flower", "metrics"))
    with ExitStack() as stack:
        assert not server.healthy()
        processes = [stack.enter_context(server.running())]
        wait_until(server.healthy, "valkey is healthy", log=server.log, process=processes[0])
        assert not any(one.healthy() for one in others)
        processes += [stack.enter_context(one.running()) for one in others]
        for one, process in zip(others, processes[1:], strict=True):
            wait_until(one.healthy, f"{one.log.stem} is healthy", timeout_s=60, log=one.log, process=process)
        everything = [member for process in processes for member in family(process.pid)]
        for one, process in zip([*others, server], [*processes[1:], processes[0]], strict=True):
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=one.grace_s) == 0, one.log.read_text()
    wait_gone(everything)
