"""What is in a data set's files: their digests and durations, and what is wrong with them; found once, remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
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


@dataclass(frozen=True)
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
        name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        self._path = cache / "contents" / name if cache else None
        self._known: dict[str, Content] = {}

    def of(self, files: Sequence[str], title: str = "") -> list[Content]:
        """Contents of files.

        Args:
            files: Paths relative to the folder.
            title: What a progress bar calls them.
        """
        if any(file not in self._known for file in files):
            self._look(files, title)
        return [self._known[file] for file in files]

    def _look(self, files: Sequence[str], title: str) -> None:
        """Reads what the cache does not know of the files, and adds it there."""
        remembered = self._remembered()
        marks = {file: _mark(self.root / file) for file in files}
        fresh = [file for file in marks if remembered.get(file, {}).get("mark") != marks[file]]
        for file in marks.keys() - set(fresh):
            self._known[file] = Content(**remembered[file]["content"])
        contents = map_ahead(self._read, fresh, self.jobs, ahead=256)
        self._known |= zip(fresh, track(contents, f"Reading {title}", len(fresh), "files"), strict=True)
        latest = time.time_ns() - _SETTLED
        settled = [file for file in fresh if max(marks[file][1:]) < latest and not self._known[file].fault]
        if settled and self._path:
            for file in settled:
                remembered[file] = {"mark": marks[file], "content": asdict(self._known[file])}
            try:
                write_checked(self._path, json.dumps({"reader": _reader(), "files": remembered}).encode())
            except OSError as error:  # the cache is read-only or full: they are read again
                logger.info("%s: not written (%s).", self._path, error)

    def _read(self, file: str) -> Content:
        """Reads a file to its end, as bytes and as what it holds."""
        path, digest = self.root / file, ""
        try:
            digest = sha256(path)
            return Content(digest, *self.inspect(path))
        except (AudioError, DataError, OSError) as error:
            return Content(digest, fault=str(error))

    @staticmethod
    def inspect(path: Path) -> tuple[str, float, int, int]:
        """Decodes a file to its end: digest of what it holds, seconds, Hz and channels; see `audio.inspect`."""
        return audio.inspect(path)

    def _remembered(self) -> dict[str, Any]:
        """Marks and contents of files by an earlier call with the same reader."""
        stored = self._path and read_checked(self._path)
        facts = json.loads(stored) if stored else {}
        if self._path:
            mark_used(self._path)
        return facts["files"] if facts.get("reader") == _reader() else {}


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
    """Size and times of a file, which change with its content."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
