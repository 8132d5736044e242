"""`m2d-bench cache`."""

# No postponed annotations here: the command line and pydantic read the types of ClearSettings.

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from pydantic import NonNegativeFloat
from tabulate import tabulate

from m2d_bench.cache.entries import KINDS, OTHER, Entry, find, remove
from m2d_bench.output import Flat, Names, Output
from m2d_bench.registry import check_names
from m2d_bench.settings import Storage, file_name
from m2d_bench.values import Checked

CACHE = App(name="cache", help="Show what lies in the cache, or clear it.")

CacheFolder = Annotated[Path | None, Parameter("--cache")]


@dataclass(frozen=True, kw_only=True)
class ClearSettings(Checked):
    """What is removed.

    Args:
        kind: embeddings, tasks (generated ones), weights, durations (of sound files), mteb (results) or superb (lists);
            all by default.
        model: Encoders or weights, by name or by the beginning of an encoder's digest; any by default.
        tasks: Tasks; any by default.
        older_than: Days since it was last used; by default an hour, so that what runs now keeps its files.
        yes: Remove it; else it is only listed.
    """

    kind: Annotated[tuple[str, ...], Names] = ()
    model: Annotated[tuple[str, ...], Names] = ()
    tasks: Annotated[tuple[str, ...], Names] = ()
    older_than: NonNegativeFloat | None = None
    yes: Annotated[bool, Parameter(negative=())] = False

    def chosen(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries that are to go.

        Raises:
            UsageError: A kind that there is not, or a model or task of which nothing is there.
        """
        check_names("kind", self.kind, KINDS)
        check_names("model", self.model, {name for entry in entries for name in _models(entry, self.model)})
        tasks = [file_name(name) for name in self.tasks]
        check_names("task", tasks, {entry.task for entry in entries if entry.task})
        before = time.time() - 86400 * (1 / 24 if self.older_than is None else self.older_than)
        return [
            entry
            for entry in entries
            if entry.kind in (self.kind or KINDS)
            and (not self.model or {*_models(entry, self.model)} & {*self.model})
            and (not tasks or entry.task in tasks)
            and entry.used <= before
        ]


def _models(entry: Entry, wanted: Sequence[str]) -> list[str]:
    """What the encoder of an entry may be called: its names, and what of the wanted its digest begins with."""
    return [*entry.models, *(name for name in wanted if entry.digest.startswith(name))]


@CACHE.default
def show(*, cache: CacheFolder = None) -> Output:
    """Show what lies in the cache: kind, size and last use.

    Args:
        cache: The folder; else M2D_BENCH_CACHE, else the user's cache folder.
    """
    root = Storage(cache=cache).cache_root
    entries = find(root)
    return Output(f"{_table(entries)}\n\n{root}: {_size(entries)}" if entries else f"{root}: empty")


@CACHE.command
def clear(*, settings: Annotated[ClearSettings, Flat] = ClearSettings(), cache: CacheFolder = None) -> Output:
    """Remove what m2d-bench made, which it makes or downloads again when it is needed; without --yes, list it.

    Args:
        settings: What is removed.
        cache: The folder; else M2D_BENCH_CACHE, else the user's cache folder.
    """
    root = Storage(cache=cache).cache_root
    chosen = settings.chosen(find(root))
    if not chosen:
        return Output(f"{root}: nothing to remove of what was last used so long ago.")
    if not settings.yes:
        return Output(f"{_table(chosen)}\n\n{root}: --yes removes these {_size(chosen)}")
    removed, failures = remove(root, chosen)
    return Output(f"{_table(removed)}\n\n{root}: {_size(removed)} removed", tuple(failures))


def _table(entries: Sequence[Entry]) -> str:
    rows = [
        {
            "kind": entry.kind if entry.kind != OTHER else "other, never removed",
            "model": " ".join([*entry.models, *([f"({entry.digest[:12]})"] if entry.digest else [])]),
            "task": entry.task,
            "files": len(entry.files),
            "MB": f"{entry.size / 1e6:.1f}",
            "last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        }
        for entry in entries
    ]
    return tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True)


def _size(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.size for entry in entries) / 1e6:.1f} MB"
