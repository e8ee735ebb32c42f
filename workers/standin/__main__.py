"""``python -m workers.standin --port 0`` prints {"url": ...} as one line and serves until its standard input closes."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading

from aiohttp import web

from workers.standin import make_app

HOST = "127.0.0.1"
# Answers under way get this long at the end.
SHUTDOWN_S = 1.0


async def serve(port: int) -> None:
    """Serve on loopback until standard input closes, SIGTERM or SIGINT."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(make_app(), access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        sys.stdout.write(json.dumps({"url": f"http://{HOST}:{runner.addresses[0][1]}"}) + "\n")
        sys.stdout.flush()
        threading.Thread(target=_wait_for_end_of_input, args=(loop, stop), daemon=True).start()
        await stop.wait()
    finally:
        await runner.cleanup()


def _wait_for_end_of_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # Not sys.stdin: a daemon thread inside it would hold its lock while the interpreter ends.
    while os.read(0, 4096):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m workers.standin", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    asyncio.run(serve(parser.parse_args().port))
