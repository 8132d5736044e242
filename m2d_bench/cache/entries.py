"""What m2d-bench wrote into the cache, found by the names that it gives, and removed; links are never followed."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from m2d_bench.errors import StorageError, describe

NAMES = "encoder.jsonl"
"""File beside embeddings with the names of their encoder, a line each."""

_HASH = "[0-9a-f]{12}"
_TEMPORARY = r"\.[^/]+\.\d+\.tmp"

_PATTERNS = {
    "embeddings": rf"embeddings/(?P<digest>[^/]+)/(?P<task>[^/]+)-{_HASH}/(\d+\.npy|\d+\.lock|{NAMES}|{_TEMPORARY})",
    "tasks": r"tasks/(?P<task>\w+)-v\d+(\.json|\.lock|(\.part)?/(index\.csv|audio/\d+\.wav))",
    "weights": r"weights/(?P<model>[^/]+?)(\.lock|\.zip(\.part(\.tag)?)?|(\.part)?/[^/]+\.pth)",
    "durations": rf"contents/([0-9a-f]{{16}}|{_TEMPORARY})",
    "mteb": r"mteb/(?P<task>[^/]+)/.+",
    "superb": rf"superb/(?P<task>[^/]+)-{_HASH}/.+",
}
"""Paths of the files of each kind; those of one model, or digest, and task are shown together."""

_LOCKED = ("embeddings", "tasks", "weights")
"""Kinds that are made under locks: of each shard, beside it; of a task or weights, beside their folder."""

KINDS = tuple(_PATTERNS)
OTHER = "other"
_DOWNLOADED = "weights.sha256"


def mark_used(path: Path) -> None:
    """Sets the time of a file of the cache to now; that of the latest file of an entry tells its last use."""
    with suppress(OSError):  # of a cache that is only read
        os.utime(path)


def mark_encoder(folder: Path, name: str) -> None:
    """Notes whose embeddings a folder holds, and that they are used now."""
    path, line = folder / NAMES, json.dumps(name)
    with suppress(OSError):
        if not path.exists() or line not in path.read_text().splitlines():
            with path.open("a") as file:
                file.write(f"{line}\n")
    mark_used(path)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Files of the cache that are shown and removed together.

    Args:
        kind: One of KINDS, or OTHER: what m2d-bench did not make, which is never removed.
        files: Theirs.
        size: Bytes.
        used: Time of the last use, in seconds since 1970.
        models: Names of the encoder or weights.
        digest: Of the encoder.
        task: Name of the task, as far as a file's name can hold it.
    """

    kind: str
    files: tuple[Path, ...]
    size: int
    used: float
    models: tuple[str, ...] = ()
    digest: str = ""
    task: str = ""

    @property
    def name(self) -> str:
        """What it is, in a line."""
        return " ".join(word for word in (self.kind, ", ".join(self.models) or self.digest[:12], self.task) if word)


def find(root: Path) -> list[Entry]:
    """What lies in a cache folder, kind by kind, the largest first.

    Raises:
        StorageError: A folder of it cannot be listed.
    """
    groups: dict[tuple[str, str, str, str], dict[Path, os.stat_result]] = defaultdict(dict)
    downloaded = _downloaded(root)
    for path, status in _walk(root):
        inside = path.relative_to(root).as_posix()
        matches = ((kind, re.fullmatch(pattern, inside, re.DOTALL)) for kind, pattern in _PATTERNS.items())
        kind, found = next(((kind, match.groupdict()) for kind, match in matches if match), (OTHER, {}))
        by_hand = kind == "weights" and path.suffix == ".pth" and found["model"] not in downloaded
        if by_hand or not stat.S_ISREG(status.st_mode):
            kind, found = OTHER, {}
        groups[kind, found.get("digest", ""), found.get("model", ""), found.get("task", "")][path] = status
    entries = [_entry(*key, files) for key, files in groups.items()]
    order = (*KINDS, OTHER)
    shown = [entry for entry in entries if entry.size or entry.kind == OTHER]  # locks alone stay
    return sorted(shown, key=lambda entry: (order.index(entry.kind), -entry.size, entry.name))


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The files of a folder, and the links in it; what these lead to is left alone."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else another process removed it meanwhile
            raise StorageError(f"{error.filename}: cannot be listed ({error.strerror}).")

    for folder, folders, files in os.walk(root, onerror=refuse):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            with suppress(FileNotFoundError):
                yield (path := Path(folder, name)), path.lstat()


def _entry(kind: str, digest: str, model: str, task: str, files: dict[Path, os.stat_result]) -> Entry:
    names = [name for path in files if path.name == NAMES for name in _names(path)]
    return Entry(
        kind=kind,
        files=tuple(sorted(files)),
        size=sum(status.st_size for status in files.values()),
        used=max(status.st_mtime for status in files.values()),
        models=tuple(dict.fromkeys([*names, *([model] if model else [])])),
        digest=digest,
        task=task,
    )


def _names(path: Path) -> list[str]:
    """Names of the encoder whose embeddings lie beside this file; none where it is damaged."""
    with suppress(OSError, ValueError):
        return [str(json.loads(line)) for line in path.read_text().splitlines()]
    return []


def _downloaded(root: Path) -> set[str]:
    """Names of the weights that were downloaded; others were put there by hand."""
    with suppress(OSError):
        return {line.split("  ", 1)[-1].removesuffix(".zip") for line in (root / _DOWNLOADED).read_text().splitlines()}
    return set()


def remove(root: Path, entries: Iterable[Entry]) -> tuple[list[Entry], list[str]]:
    """Removes entries.

    Args:
        root: The cache folder.
        entries: Some of what `find` found; what another process is writing is left.

    Returns:
        What was removed, and a message for each of the others.
    """
    removed, failures = [], []
    for entry in entries:
        try:
            _remove(root, entry)
            removed.append(entry)
        except Timeout:
            failures.append(f"{entry.name}: another process is writing it; it was left.")
        except OSError as error:
            failures.append(f"{entry.name}: not removed: {describe(error)}")
    return removed, failures


def _remove(root: Path, entry: Entry) -> None:
    """Removes an entry, where its locks are free, and the folders that are empty then.

    Those of shards are many, so that they are not held, and they go too: at worst, two processes make the same shard.
    """
    kind = root / entry.kind
    locks = [path for path in entry.files if path.suffix == ".lock" and entry.kind in _LOCKED]
    of_folders = [path for path in locks if path.parent == kind]
    with ExitStack() as held:
        for path in of_folders:
            held.enter_context(FileLock(path, timeout=0))
        for path in locks:
            if path not in of_folders:
                with FileLock(path, timeout=0):
                    pass
        for path in entry.files:
            if path not in of_folders:
                path.unlink(missing_ok=True)
    for folder in sorted({parent for path in entry.files for parent in path.parents}, reverse=True):
        if kind in folder.parents:
            with suppress(OSError):  # it holds something else, or is gone
                folder.rmdir()
