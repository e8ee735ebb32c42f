"""Health: the deployment's shares of what went well, and what waits, as one look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from runner.app import QUEUES
from runner.health import calls_saved, shares

if TYPE_CHECKING:
    import pandas as pd

    from runner.store import Ledger


@dataclass(frozen=True, slots=True, eq=False)
class Health:
    """How well a deployment does.

    Attributes:
        frame: one row for all workers together since the server began ("all") and one for each live worker; a column
            for each share (0 to 1, NaN of nothing; what they are stands at `runner.health.shares`), and
            ``upstream_calls_saved``.
        targets: the share to exceed, by column; only those that have one.
        queues: messages that wait and slots that do them, a row a queue.
        missed: the names of the shares of "all" that are below their target.
    """

    frame: pd.DataFrame
    targets: dict[str, float]
    queues: pd.DataFrame
    missed: tuple[str, ...]

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """Ask the ledger."""
        import pandas as pd

        total, each = ledger.health()
        rows = {
            name: {**{share.name: share.value for share in shares(counts)}, "upstream_calls_saved": calls_saved(counts)}
            for name, counts in {"all": total, **each}.items()
        }
        queues = {queue: {"messages": ledger.waiting(queue), "slots": ledger.slots(queue)} for queue in QUEUES}
        return cls(
            frame=pd.DataFrame.from_dict(rows, orient="index").rename_axis("worker"),
            targets={share.name: share.target for share in shares({}) if share.target is not None},
            queues=pd.DataFrame.from_dict(queues, orient="index").rename_axis("queue"),
            missed=tuple(share.name for share in shares(total) if share.reached is False),
        )

    @property
    def ok(self) -> bool:
        """Whether no share is below its target; one of which nothing was counted is not."""
        return not self.missed

    def __repr__(self) -> str:
        verdict = "every target is reached" if self.ok else f"below target: {', '.join(self.missed)}"
        wanted = ", ".join(f"{name} > {target:.0%}" for name, target in self.targets.items())
        return f"{self.frame.to_string(float_format='{:.3f}'.format)}\n\n{self.queues}\n\n{verdict} ({wanted})"
