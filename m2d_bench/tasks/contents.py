"""What is in a data set's files: their digests and durations, and what is wrong with them; found once, remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from m2d_bench import audio, runs
from m2d_bench.cache.entries import mark_used
from m2d_bench.errors import AudioError, DataError
from m2d_bench.files import sha256
from m2d_bench.parallel import map_ahead
from m2d_bench.progress import track
from m2d_bench.settings import read_checked, write_checked
from m2d_bench.tasks.task import Entry

logger = logging.getLogger(__name__)

_SETTLED = 2 * 10**9
"""Nanoseconds after which a change of a file shows in its times, whatever their resolution."""

_CHUNK = 1024
"""Files that are remembered together; a killed run reads at most so many again."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a sound file.

    Args:
        digest: SHA-256 of its bytes.
        sound: SHA-256 of its samples, see `audio.inspect`; empty where they cannot be decoded.
        seconds: Duration, see `audio.duration`; NaN where it cannot be decoded.
        sample_rate: Hz.
        channels: How many it has.
        fault: What is wrong with it, empty where it can be decoded to its end.
    """

    digest: str
    sound: str = ""
    seconds: float = np.nan
    sample_rate: int = 0
    channels: int = 0
    fault: str = ""


class Contents:
    """Contents of the files of a folder; the cache remembers those that can be decoded by their size and times.

    Args:
        root: Folder of the files.
        cache: Folder that remembers them, or None.
        jobs: Threads; 0 means one a core.
    """

    def __init__(self, root: Path, cache: Path | None = None, jobs: int = 0) -> None:
        self.root, self.jobs = root, jobs
        self._prefix = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
        self._folder = cache / "contents" if cache else None
        self._known: dict[str, Content] = {}

    def of(self, files: Sequence[str], title: str = "") -> list[Content]:
        """Contents of files.

        Args:
            files: Paths relative to the folder.
            title: What a progress bar calls them.
        """
        self.read(self.unread(files), title)
        return [self._known[file] for file in files]

    def read(self, files: Sequence[str], title: str = "") -> None:
        """Reads files, and remembers what is in them, some at a time.

        Args:
            files: Paths relative to the folder.
            title: What a progress bar calls them; none is shown without.
        """
        contents = map_ahead(self._read, files, self.jobs, ahead=256)
        contents = track(contents, f"Reading {title}", len(files), "files", shown=bool(title))
        while some := [*islice(contents, _CHUNK)]:
            self._add(some)

    def unread(self, files: Sequence[str]) -> list[str]:
        """Files that neither this object nor the cache knows."""
        unknown = {file: None for file in files if file not in self._known}
        for remembered in self._remembered() if unknown else ():
            for file, entry in remembered.items():
                if file in unknown and entry["mark"] == _mark(self.root / file):
                    self._known[file] = Content(**entry["content"])
        return [file for file in unknown if file not in self._known]

    def _add(self, contents: Sequence[tuple[str, Sequence[int], Content]]) -> None:
        """Remembers what is in files, by their name and the mark they had before they were read."""
        self._known |= {file: content for file, _, content in contents}
        latest = time.time_ns() - _SETTLED
        settled = {
            file: {"mark": mark, "content": asdict(content)}
            for file, mark, content in contents
            if not content.fault and max(mark[1:]) < latest
        }
        if settled and self._folder:
            name = hashlib.sha256(os.fsencode("\0".join(settled))).hexdigest()[:8]
            path = self._folder / (self._prefix + name)
            try:
                write_checked(path, json.dumps({"reader": _reader(), "files": settled}).encode())
            except OSError as error:  # the cache is read-only or full: they are read again
                logger.info("%s: not written (%s).", path, error)

    def _read(self, file: str) -> tuple[str, list[int], Content]:
        """Reads a file to its end, as bytes and as what it holds."""
        path, digest = self.root / file, ""
        mark = _mark(path)
        try:
            digest = sha256(path)
            return file, mark, Content(digest, *self.inspect(path))
        except (AudioError, DataError, OSError) as error:
            return file, mark, Content(digest, fault=str(error))

    @staticmethod
    def inspect(path: Path) -> tuple[str, float, int, int]:
        """Decodes a file to its end: digest of what it holds, seconds, Hz and channels; see `audio.inspect`."""
        return audio.inspect(path)

    def _remembered(self) -> Iterator[dict[str, Any]]:
        """Marks and contents of files by earlier calls with the same reader, some at a time."""
        reader = _reader()
        for path in sorted(self._folder.glob(f"{self._prefix}*")) if self._folder else ():
            stored = read_checked(path)
            mark_used(path)
            facts = json.loads(stored) if stored else {}
            yield facts["files"] if facts.get("reader") == reader else {}


def durations(root: Path, clips: Sequence[Entry], cache: Path) -> list[float]:
    """Durations in seconds of the clips that can be decoded; what is wrong with others is said when they are read.

    Args:
        root: Folder of the files.
        clips: Some may be missing.
        cache: Folder that remembers them.

    Raises:
        DataError: None can be.
    """
    there = [clip for clip in clips if (root / clip.file).is_file()]
    contents = Contents(root, cache).of([clip.file for clip in there], root.name)
    readable = [(clip, content.seconds) for clip, content in zip(there, contents, strict=True) if not content.fault]
    seconds = [min(clip.end, end) - clip.start for clip, end in readable if clip.start < end]
    if not seconds:
        raise DataError(
            f"None of the clips can be read, the last because: {contents[-1].fault if contents else 'no clip'}"
        )
    return seconds


def _reader() -> list[str]:
    """What decodes files, and what it tells of them: another version may find other faults in them, or none."""
    versions = runs.environment("")["versions"]
    return [versions["m2d-bench"], versions["soundfile"], *(field.name for field in fields(Content))]


def _mark(path: Path) -> list[int]:
    """Size and times of a file, which change with its content; nothing of one that is not there."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
