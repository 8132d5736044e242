"""Progress bars on stderr, silent when it is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


@contextmanager
def bar(title: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A progress bar; yields a function that advances it by a number of units."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


def track(items: Iterable[T], title: str, total: int, unit: str = "") -> Iterator[T]:
    """Passes items through, one step of the bar each."""
    with bar(title, total, unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def track_bytes(title: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar for a download of which `done` bytes are already there."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda count: progress.advance(task, count)
