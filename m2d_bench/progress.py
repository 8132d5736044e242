"""Progress bars on stderr, silent when it is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from m2d_bench.terminal import printable

T = TypeVar("T")


class Advance:
    """Moves a progress bar on.

    Args:
        progress: The bar.
        task: Its number there.
    """

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def __call__(self, count: int) -> None:
        """Counts so many units as done."""
        self._progress.advance(self._task, count)

    def describe(self, text: str) -> None:
        """Says where it stands, in the title's place."""
        self._progress.update(self._task, description=printable(text))


@contextmanager
def bar(title: str, total: int | None, unit: str = "", *, done: int = 0, shown: bool = True) -> Iterator[Advance]:
    """A progress bar; yields what advances it by a number of units.

    Args:
        title: What is going on.
        total: Number of units, None if it is not known.
        unit: What is counted; "bytes" are shown in the usual multiples.
        done: Units that were done before.
        shown: Whether this process is the one that shows it.
    """
    counter = [DownloadColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit)]
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *counter, TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task(printable(title), total=total, completed=done)
        yield Advance(progress, task)


def track(items: Iterable[T], title: str, total: int, unit: str = "", *, shown: bool = True) -> Iterator[T]:
    """Passes items through, one step of the bar each."""
    with bar(title, total, unit, shown=shown) as advance:
        for item in items:
            yield item
            advance(1)
