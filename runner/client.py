"""The notebook's side: connect to a deployment, submit sweeps, watch them, collect their results."""

from __future__ import annotations

import json
import re
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from runner import fetching, settings, store
from runner.app import PRIORITIES, QUEUE_BACKTEST, QUEUE_FETCH, make_app, publish_chunk
from runner.bars import Bars, DataRef
from runner.errors import BrokerError, BrokerUnreachable, InputError, SettingsError, SweepNotFound, VersionMismatch
from runner.handle import SweepHandle
from runner.plan import Plan, make_plan
from runner.pulse import Health
from runner.signing import sign_code, sign_spec, verify_code, verify_spec
from runner.source import Adjust, Option, Source
from runner.spec import RUN_TIMEOUT_S, Execution, Sweep
from runner.store import Work, feeding
from runner.strategy import PYTHON, Strategy, StrategyRef, resolve, ship

if TYPE_CHECKING:
    import pandas as pd

    from runner.plan import Data
    from runner.single import Backtest
    from runner.source import Moment
    from runner.space import Space
    from runner.stack import LocalStack

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


def connect(url: str | None = None, *, secret: str | None = None, start: bool = False) -> Client:
    """A client of the deployment at ``url``, else at RUNNER_URL, else of the stack that `runner up` started here.

    Args:
        url: ``redis://:PASSWORD@HOST:PORT/0``, also rediss:// and unix://.
        secret: the deployment's; RUNNER_SECRET when not given.
        start: when no server is named and none runs here, start a local stack that ends with this process.

    Raises:
        BrokerUnreachable: no server answers.
        BrokerRefused: wrong password, or a server that would lose jobs.
        SecretMismatch: the deployment has another secret.
        SettingsError: no secret, or a malformed URL.
    """
    found = settings.load()
    stack = None
    if secret is None and found.secret is not None:
        secret = found.secret.get_secret_value()
    if url is None and found.url is not None:
        url = found.url.get_secret_value()
    if url is None:
        url, secret, stack = _local_stack(start=start)
    if secret is None:
        raise SettingsError("no secret: pass secret=, or set RUNNER_SECRET to the one that the workers have.")
    return Client(settings.check_url(url), settings.check_secret(secret), stack=stack)


def attach(name: str, *, url: str | None = None, secret: str | None = None) -> SweepHandle:
    """The sweep of that name, submitted from another notebook or on another day. Raises SweepNotFound."""
    return connect(url, secret=secret).attach(name)


def _local_stack(*, start: bool) -> tuple[str, str, LocalStack | None]:
    from runner import stack

    running = stack.running()
    if running is not None:
        return running.url, running.secret, None
    if not start:
        raise BrokerUnreachable(
            "no server to connect to: start one here with `runner up` or runner.connect(start=True), "
            "or set RUNNER_URL and RUNNER_SECRET to those of your deployment."
        )
    started = stack.LocalStack()
    return started.info.url, started.info.secret, started


class Client:
    """One deployment: a server, and the workers that listen to it.

    Attributes:
        url: where it is connected, the password starred.
    """

    def __init__(self, url: str, secret: str, *, stack: LocalStack | None = None) -> None:
        self.url = settings.starred(url)
        self._secret = secret
        self._stack = stack  # held: a stack started for this client ends with it
        self._ledger = store.Ledger(store.connect(url))
        for warning in self._ledger.check(url, secret):
            warnings.warn(warning, stacklevel=3)
        self._app = make_app(url)

    def __repr__(self) -> str:
        return f"<runner.Client {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections, and stop the local stack that was started for it. Sweeps on other workers go on."""
        self._app.close()
        self._ledger.server.close()
        if self._stack is not None:
            self._stack.stop()

    def sweep(
        self,
        strategy: Strategy | str,
        data: Data | Source,
        space: Space,
        *,
        execution: Execution | None = None,
        name: str | None = None,
        priority: str = "normal",
        run_timeout_s: float = RUN_TIMEOUT_S,
    ) -> SweepHandle:
        """Every point of ``space`` on every symbol of ``data``, on the workers. Returns as soon as it is submitted.

        Args:
            strategy: ``(bars, **parameters)`` → target position for each bar: bool, or a fraction of equity.
            data: one symbol's prices, {symbol: prices}, or a `runner.Source`: then workers fetch them, and a symbol's
                runs begin as its prices land, whatever becomes of this process.
            space: `runner.grid` or `runner.sample`.
            execution: costs, fills and stops; by default none, filled at the next bar's open.
            name: to attach by; made of strategy and symbol when not given.
            priority: high, normal or low; can be changed while it runs.
            run_timeout_s: longest that one run may take; then it is an error row.

        Raises:
            StrategyError, BarsError, SpaceError, SettingsError: what was passed in cannot be run.
            SweepExists: ``name`` is taken.
            VersionMismatch: a worker's Python cannot load this strategy's code.
        """
        plan = make_plan(strategy, data.ending(time.time_ns()) if isinstance(data, Source) else data, space, execution)
        if priority not in PRIORITIES:
            raise InputError(f"priority={priority!r}: expected {', '.join(PRIORITIES)}.")
        ref, code = ship(plan.strategy)
        self._check_workers(ref)
        sweep = Sweep(
            strategy=ref,
            data=tuple(bars.ref for bars in plan.bars.values())
            if plan.source is None
            else tuple(DataRef(symbol, "", 0) for symbol in plan.source.symbols),
            space=space,
            execution=plan.execution,
            run_timeout_s=run_timeout_s,
            source=plan.source,
        )
        batch = _checked_name(name) if name is not None else _made_name(ref.name, plan.symbols)
        self._submit(batch, sweep, plan, code, priority)
        return self._handle(batch, sweep, plan.backtest if plan.source is None else None)

    def fetch(
        self,
        symbols: str | Iterable[str],
        *,
        source: str,
        interval: str = "1d",
        start: Moment | None = None,
        end: Moment | None = None,
        adjust: Adjust = "all",
        progress: bool = True,
        timeout: float | None = None,
        **options: Option,
    ) -> Any:
        """Prices, or a series of alternative data, from a provider: by the fetch workers, through the shared cache.

        Only what no cache has is asked of the provider.

        Args:
            symbols: one, or many: a thousand are one call.
            source: the provider: binance, coinbase, kraken, fred, ...; docs/data.md shows each.
            interval: length of a bar, such as "1m" or "1d".
            start: first moment, as a date or time; UTC when it says nothing else.
            end: moment at which it ends, itself left out; now when not given.
            adjust: "all", "splits" or "none": how raw prices of shares are corrected, see `runner.Source`.
            progress: show a bar, driven from this thread.
            timeout: seconds to wait; None waits as long as it takes.
            options: further options of the provider.

        Returns:
            Of one symbol its Bars, or from a provider of alternative data a Series indexed by time; of many a
            `Fetched` {symbol: either}, with those that failed in its ``errors``.

        Raises:
            SettingsError: a value that cannot be right.
            SymbolUnknown, NoData, SourceRefused, SourceUnavailable, BadAnswer: the one symbol could not be had.
            SweepTimeout: not done within ``timeout``.
        """
        wanted = Source(source, symbols, interval=interval, start=start, end=end, adjust=adjust, **options)
        wanted = wanted.ending(time.time_ns())
        batch = _made_name(f"fetch-{source}", wanted.symbols)
        self._ledger.reserve(batch)
        try:
            spec = sign_spec(self._secret, batch, json.dumps(wanted.to_wire()))
            self._ledger.activate(batch, _fetch_work(wanted, spec, "normal"))
            self._fill_window(batch, QUEUE_FETCH, "normal")
            fetched = fetching.collect(self._ledger, batch, wanted, progress=progress, timeout_s=timeout)
        finally:
            self._ledger.turn(batch, "cancelled")
            self._ledger.remove(batch)
        if isinstance(symbols, str) and fetched.errors:
            raise fetched.errors[symbols]
        for words in fetching.complaints(fetched, wanted):
            warnings.warn(words, stacklevel=2)
        return fetched[symbols] if isinstance(symbols, str) else fetched

    def attach(self, name: str) -> SweepHandle:
        """The sweep of that name, submitted from another notebook or on another day. Raises SweepNotFound."""
        if self._ledger.route(name)[0] != QUEUE_BACKTEST:
            raise SweepNotFound(f"{name!r} is a fetch, which ends with the client that made it: no sweep.")
        handle = self._handle(name, Sweep.from_json(verify_spec(self._secret, name, self._ledger.spec(name))), None)
        handle.progress()
        return handle

    def workers(self) -> pd.DataFrame:
        """Live workers, one a row: host, queues, children, Python, seconds since the last heartbeat."""
        import pandas as pd

        columns = ["name", "host", "pid", "queues", "concurrency", "python", "version", "age_s"]
        return pd.DataFrame(self._ledger.workers(), columns=columns).set_index("name")

    def health(self) -> Health:
        """Hit rates, success rates and queues against their targets; of each live worker and of all together."""
        return Health.of(self._ledger)

    def _submit(self, batch: str, sweep: Sweep, plan: Plan, code: bytes | None, priority: str) -> None:
        self._ledger.reserve(batch)
        try:
            if code is not None:
                self._ledger.put("code", sweep.strategy.digest, sign_code(self._secret, code), batch)
            for bars in plan.bars.values():
                if not self._ledger.has("data", bars.digest, batch):
                    self._ledger.put("data", bars.digest, bars.to_bytes(), batch)
            feeder = None
            if plan.source is not None:
                fetch = sign_spec(self._secret, feeding(batch), json.dumps(plan.source.to_wire()))
                feeder = _fetch_work(plan.source, fetch, priority, feeds=batch, points=len(plan.space))
            spec = sign_spec(self._secret, batch, sweep.to_json())
            self._ledger.activate(batch, _sweep_work(sweep, spec, priority), feeder)
        except BaseException:
            self._ledger.remove(batch)
            raise
        if plan.source is not None:
            self._fill_window(feeding(batch), QUEUE_FETCH, priority)
        self._fill_window(batch, QUEUE_BACKTEST, priority)

    def _fill_window(self, batch: str, queue: str, priority: str) -> None:
        """Publish the first chunks. Should this fail half-way, the workers' reconciler publishes the rest."""
        slots = self._ledger.slots(queue)
        if not slots:
            warnings.warn(
                f"no live worker on the queue {queue!r}: {batch} waits for one (`runner worker --queues {queue}`).",
                stacklevel=4,
            )
        for start in self._ledger.top_up(batch, slots):
            publish_chunk(self._app, self._secret, batch, start, queue=queue, priority=priority)

    def _check_workers(self, ref: StrategyRef) -> None:
        if ref.path is not None:
            return
        for worker in self._ledger.workers():
            if QUEUE_BACKTEST in worker["queues"] and worker["python"] != PYTHON:
                raise VersionMismatch(
                    f"strategy {ref.name!r} travels as code of Python {PYTHON}, but worker {worker['name']} runs "
                    f"Python {worker['python']}: use the same minor version on both, or put the strategy into "
                    "an installed package."
                )

    def _handle(self, batch: str, sweep: Sweep, rerun: Callable[[str, dict[str, Any]], Backtest] | None) -> SweepHandle:
        """``rerun`` makes a run again here; None takes code and prices from the server."""
        return SweepHandle(
            batch,
            sweep,
            self._ledger,
            rerun or (lambda symbol, params: self._rerun(batch, sweep, symbol, params)),
            lambda: self._fill_window(batch, *self._ledger.route(batch)),
        )

    def _rerun(self, batch: str, sweep: Sweep, symbol: str, params: dict[str, Any]) -> Backtest:
        from runner.single import backtest

        ref = sweep.strategy
        signed = self._ledger.get("code", ref.digest) if ref.path is None else None
        strategy = resolve(ref, verify_code(self._secret, signed) if signed is not None else None)
        item = next(i for i, data in enumerate(sweep.data) if data.symbol == symbol)
        landed: dict[str, Any] = {"digest": sweep.data[item].digest}
        if sweep.source is not None:
            landed = json.loads(self._ledger.landed(batch, item) or b"{}")
        if "error" in landed:
            raise fetching.error_of(landed["error"])
        blob = self._ledger.get("data", landed.get("digest", ""))
        if blob is None:
            raise BrokerError(
                f"the prices of {symbol!r} are no longer on the server: pass them to runner.backtest instead."
            )
        return backtest(strategy, Bars.from_bytes(blob).with_symbol(symbol), params, execution=sweep.execution)


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"name={name!r}: expected up to 80 lower-case letters, digits, dots, hyphens, underscores.")
    return name


def _sweep_work(sweep: Sweep, spec: str, priority: str) -> Work:
    return Work(
        spec=spec,
        total=len(sweep),
        queue=QUEUE_BACKTEST,
        limit_s=store.CHUNK_BUDGET_S + sweep.run_timeout_s + 2 * store.HARD_LIMIT_GRACE_S,
        priority=priority,
        fed=sweep.source is not None,
    )


def _fetch_work(source: Source, spec: str, priority: str, *, feeds: str = "", points: int = 0) -> Work:
    return Work(
        spec=spec,
        total=len(source),
        queue=QUEUE_FETCH,
        limit_s=store.CHUNK_BUDGET_S + store.SYMBOL_TIMEOUT_S + 2 * store.HARD_LIMIT_GRACE_S,
        priority=priority,
        feeds=feeds,
        points=points,
        one_by_one=bool(feeds),
        retention_s=store.RETENTION_S if feeds else store.FETCH_RETENTION_S,
    )


def _made_name(strategy: str, symbols: Sequence[str]) -> str:
    """sma-cross-btcusdt-7f3a: readable, and unlike any other."""
    # Of an address without its query, which may hold a key: Flower shows the name.
    what = symbols[0].partition("?")[0] if len(symbols) == 1 else f"{len(symbols)}-symbols"
    words = re.sub(r"[^a-z0-9]+", "-", f"{strategy}-{what}".lower()).strip("-")
    return f"{words[:60] or 'sweep'}-{secrets.token_hex(4)}"
