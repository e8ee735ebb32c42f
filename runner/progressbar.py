"""The one progress bar: a tqdm bar driven from the thread that waits (a background thread's breaks in notebooks)."""

from __future__ import annotations

import sys
from typing import Self


class ProgressBar:
    """So many of ``total`` are done; silent where no one would see it move (neither a terminal nor a notebook)."""

    def __init__(self, title: str, total: int, *, shown: bool, unit: str = "run") -> None:
        from tqdm.auto import tqdm

        terminal = sys.stderr is not None and sys.stderr.isatty()
        seen = shown and (terminal or "ipykernel" in sys.modules)
        self._bar = tqdm(total=total, desc=title, unit=unit, unit_scale=True, disable=not seen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, done: int, note: str = "") -> None:
        """``done`` in all; ``note`` beside them, such as how many failed."""
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text, file=sys.stderr)
