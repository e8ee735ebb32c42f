"""A price file at any http or https address."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from yarl import URL

from runner.errors import SourceRefused, SymbolUnknown
from workers.addresses import shown
from workers.session import HttpClient, Request
from workers.sources import tables
from workers.sources.parse import answers, status_error, table, where
from workers.sources.protocol import Ask, Kind, Table, Unchanged, Unit, Usual

DEADLINE_S = 300.0  # 256 MiB at 10 Mbit/s


class Url(Usual):
    """One symbol's prices; the symbol is the file's address, CSV or Parquet, gzipped or not (see `tables.columns_of`).

    ``private=True`` allows an address of your own network, ``time_unit`` says what numeric times count.
    """

    name = "url"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = tables.INTERVALS
    options: tuple[str, ...] = ("private", "time_unit")
    ttl_s: float | None = 0.0  # a conditional request; without validators the whole file

    def unit(self, interval: str) -> Unit:  # noqa: ARG002 - the protocol's
        """A file comes whole."""
        return "all"

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """See `Source`. The cache's validators are sent; a 304 raises Unchanged."""
        address = _address(ask)
        label = where(self.name, replace(ask, symbol=shown(address)))
        request = Request(
            ask.symbol,
            deadline_s=DEADLINE_S,
            max_bytes=tables.MOST_BYTES,
            etag=ask.etag or None,
            last_modified=ask.last_modified or None,
            private=ask.options.get("private") is True,
        )
        [response] = await answers(http, [request], label)
        if response.status == 304 and (ask.etag or ask.last_modified):
            raise Unchanged
        if response.status in (404, 410):
            raise SymbolUnknown(f"{label}: nothing is there (HTTP {response.status}). Check the address.")
        if response.status != 200:
            raise status_error(response, label)
        # Reading a large file takes seconds, in which the loop has other answers to look after.
        time, columns = await asyncio.to_thread(tables.columns_of, response.body, ask.interval, ask.options, label)
        return table(
            ask,
            time,
            columns,
            label,
            etag=response.headers.get("ETag", ""),
            last_modified=response.headers.get("Last-Modified", ""),
        )


def _address(ask: Ask) -> URL:
    try:
        address = URL(ask.symbol)
    except ValueError:
        address = URL()
    if address.scheme not in ("http", "https") or not address.host:
        raise SymbolUnknown("url: the symbol is no address: expected one that begins with https:// or http://.")
    if address.user or address.password:
        raise SourceRefused(
            f"url: {shown(address)}: user and password in an address would be kept with it. "
            "Download the file yourself and use the source file."
        )
    return address
