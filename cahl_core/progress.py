"""Progress bars on a terminal, one line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

LINE_SECONDS = 10.0


class Bar:
    """Counts work done; ``advance(n, loss="0.42")`` also shows the latest fields."""

    def __init__(self, description: str, total: int) -> None:
        self.description = description
        self.total = total
        self.done = 0
        self.fields: dict[str, str] = {}
        self.started = self._shown = time.perf_counter()

    def advance(self, count: int = 1, **fields: str) -> None:
        self.done += count
        self.fields.update(fields)
        now = time.perf_counter()
        if now - self._shown >= LINE_SECONDS or self.done >= self.total:
            self._shown = now
            self._show(now - self.started)

    def close(self) -> None:
        """Ends the bar; called by `progress`."""

    def _show(self, elapsed: float) -> None:
        rest = elapsed / max(self.done, 1) * max(self.total - self.done, 0)
        fields = " ".join(f"{k}={v}" for k, v in self.fields.items())
        print(
            f"{self.description}: {self.done}/{self.total} "
            f"{elapsed:.0f} s, {rest:.0f} s left {fields}",
            file=sys.stderr,
            flush=True,
        )


class _TerminalBar(Bar):
    def __init__(self, description: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        super().__init__(description, total)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[extra]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(description, total=total, extra="")
        self._progress.start()

    def advance(self, count: int = 1, **fields: str) -> None:
        self.done += count
        self.fields.update(fields)
        extra = " ".join(f"{k}={v}" for k, v in self.fields.items())
        self._progress.update(self._task, advance=count, extra=extra)

    def close(self) -> None:
        self._progress.stop()


class _Silent(Bar):
    def advance(self, count: int = 1, **fields: str) -> None:
        pass


@contextmanager
def progress(description: str, total: int) -> Iterator[Bar]:
    """A bar for ``total`` units of work on standard error; of several processes the first shows it."""
    if os.environ.get("RANK", "0") != "0":
        bar: Bar = _Silent(description, total)
    else:
        bar = _TerminalBar(description, total) if sys.stderr.isatty() else Bar(description, total)
    try:
        yield bar
    finally:
        bar.close()


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yields ``items`` while showing how many have passed."""
    with progress(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
