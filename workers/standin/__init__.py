"""A server that speaks the providers' own formats and keeps their limits: for tests and for the demo, on loopback."""

from __future__ import annotations

from aiohttp import web

from workers.standin.crypto import add_routes as add_crypto
from workers.standin.others import add_routes as add_others
from workers.standin.prices import Prices

__all__ = ["Prices", "make_app"]


def make_app(prices: Prices | None = None) -> web.Application:
    """The application, a provider a route prefix: ``base_url`` of source "binance" is ``http://127.0.0.1:PORT/binance``.

    Args:
        prices: the data to serve; None is `Prices()`.
    """
    app, served = web.Application(), prices or Prices()
    add_crypto(app, served)
    add_others(app, served)
    return app
