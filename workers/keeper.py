"""`python -m workers.keeper`: keep one worker running, start it again after a fault, end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from runner.process import HEALTHY_AFTER_S, POLL_S, backoff_s

# What a worker ends with when it cannot run as it is set up: RunnerError, wrong options.
SETUP_CODES = (1, 2)


class Keeper:
    """Keeps a command running until it ends by itself in good order or is told to.

    The command's standard input is a pipe to this process: its end tells the command that the keeper is gone, however
    it went.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._orders = 0

    def run(self) -> int:
        """Returns the exit code: 0, or why the command never started, or 128 + the signal it died of."""
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(name) is not signal.SIG_IGN:  # what is ignored stays so: nohup means it
                signal.signal(name, self._on_signal)
        starts, failures = 0, 0
        while True:
            began = time.monotonic()
            code = self._once()
            starts += 1
            if code == 0 or self._orders or (starts == 1 and code in SETUP_CODES):
                return code if code >= 0 else 128 - code
            failures = 1 if time.monotonic() - began > HEALTHY_AFTER_S else failures + 1
            if not self._pause(code, backoff_s(failures)):
                return 0

    def _once(self) -> int:
        """Run the command once, pass every order on, and leave nothing of it behind."""
        # In a session of its own: a terminal's Ctrl-C reaches the keeper alone, which passes it on once.
        with subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True) as process:
            passed_on = 0
            while process.poll() is None:
                if passed_on < self._orders:
                    passed_on += 1
                    process.terminate()
                time.sleep(POLL_S)
            with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
                os.killpg(process.pid, signal.SIGKILL)
            return process.returncode

    def _pause(self, code: int, wait_s: float) -> bool:
        """Wait before the next start; False when told to stop meanwhile."""
        sys.stderr.write(f"runner worker: the worker ended with exit code {code}; it starts again in {wait_s:g} s\n")
        ends = time.monotonic() + wait_s
        while not self._orders and time.monotonic() < ends:
            time.sleep(POLL_S)
        return not self._orders

    def _on_signal(self, *_: object) -> None:
        self._orders += 1


def main(argv: Sequence[str] | None = None) -> int:
    """Keep `python -m workers` running with the same options."""
    options = sys.argv[1:] if argv is None else list(argv)
    return Keeper([sys.executable, "-m", "workers", "--kept", *options]).run()


if __name__ == "__main__":
    sys.exit(main())
