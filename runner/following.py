"""Following a batch: what has landed since the last look, and whether more will come."""

from __future__ import annotations

from runner.store import Ledger, Progress

# How long one wait on the event stream lasts: the beat at which a bar moves when nothing lands, and Ctrl-C is heard.
BEAT_S = 0.5


class Follower:
    """Follows one batch by its event stream; it never asks for single tasks.

    Attributes:
        seen: where the batch stood at the last look.
        complete: it has ended, and every outcome has been handed out.
    """

    def __init__(self, ledger: Ledger, batch: str, total: int) -> None:
        self._ledger = ledger
        self._batch = batch
        self._after = b"0"
        self.seen = Progress("running", total, 0, 0, 0.0)
        self.complete = False

    def look(self, wait_s: float) -> list[bytes]:
        """The outcomes that landed since the last look, waiting at most ``wait_s`` for the first."""
        if self.complete:
            return []
        events = self._ledger.events(self._batch, self._after, wait_s)
        blobs = self._ledger.outcomes(self._batch, [event.start for event in events if event.start is not None])
        if events:
            self._after = events[-1].id
        # Its last event, and not a count: a chunk that a restarted server forgot is committed, and counted, twice.
        self.complete = any(event.state in ("done", "cancelled") for event in events)
        self.refresh()
        return blobs

    def refresh(self) -> Progress:
        """Where it stands now: one question to the server."""
        self.seen = self._ledger.progress(self._batch)
        return self.seen
