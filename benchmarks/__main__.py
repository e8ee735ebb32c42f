"""`python -m benchmarks`: every claim, measured here and now; exits with 1 when one is missed."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from benchmarks import cache, codec, fetch_again, http_client, imports, measure, memory, peers, small_jobs, speedup


def main() -> int:
    """Print the table."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(measure.machine())
    rows = [imports.measure()]
    with measure.deployment() as client:
        rows.append(speedup.measure(client))
        rows.extend(peers.measure(client))
        rows.append(small_jobs.measure(client))
    with measure.deployment() as client:
        rows.append(memory.measure(client))
    rows += [http_client.measure_throughput(), http_client.measure_adaptive(), *cache.measure(), codec.measure()]
    with measure.deployment(fetch=True) as client:
        rows.append(fetch_again.measure(client))
    table = Table(title="median (lowest-highest)", title_justify="left")
    for heading in ("claim", "measured", "aim", "", "made of"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.claim, row.figure, row.target, "yes" if row.reached else "MISSED", row.made_of)
    console.print(table)
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
