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
        self._landed = 0
        self.seen = Progress("running", total, 0, 0, 0.0)
        self.complete = False

    def look(self, wait_s: float) -> list[bytes]:
        """The outcomes that landed since the last look, waiting at most ``wait_s`` for the first."""
        if self.complete:
            return []
        events = self._ledger.events(self._batch, self._after, wait_s)
        chunks = [(event.start, event.stop) for event in events if event.start is not None]
        blobs = self._ledger.outcomes(self._batch, [start for start, _ in chunks])
        if events:
            self._after = events[-1].id
        self._landed += sum(stop - start for start, stop in chunks)
        self.refresh()
        self.complete = self.seen.ended and self._landed >= self.seen.done
        return blobs

    def refresh(self) -> Progress:
        """Where it stands now: one question to the server."""
        self.seen = self._ledger.progress(self._batch)
        return self.seen
