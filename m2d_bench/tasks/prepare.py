"""Copies of a published data set at one sample rate: its sound files mono, laid out and named as they are."""

# No postponed annotations here: the command line and pydantic read the types of PrepareSettings.

import io
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import soundfile
from filelock import FileLock, Timeout
from pydantic import Field, NonNegativeInt

from m2d_bench import audio
from m2d_bench.errors import AudioError, DataError, UsageError
from m2d_bench.parallel import map_ahead
from m2d_bench.progress import track
from m2d_bench.settings import Storage, make_folder, replacing, writing
from m2d_bench.tasks import dataset as datasets
from m2d_bench.tasks import folders, layouts
from m2d_bench.tasks.task import Task

logger = logging.getLogger(__name__)

_ENCODINGS = {"flac": ("FLAC", "PCM_24", 3), "flac16": ("FLAC", "PCM_16", 2), "wav": ("WAV", "FLOAT", 4)}
"""libsndfile's format and subtype, and the bytes of a sample before they are packed."""

_UNBOUNDED = "wav"
"""Holds samples beyond full scale, which resampling and lossy formats give; others clip them."""

_INDEX_SUFFIXES = {"", ".csv", ".json", ".md", ".tsv", ".txt"}
"""Files that are copied as they are: indexes, lists, licences; not archives."""

_ASKED = 100
"""Files whose headers are read to estimate the length of all."""

_MEMORY = 2e9
"""Bytes that files decoded at the same time take together."""

_MARK = ".m2d-bench-copies.json"


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(Storage):
    """How copies are made.

    Args:
        to: Folder that takes the data set's folder; by default the data folder's name and the rate: DATA-16k.
        sample_rate: Hz.
        format: flac, of 24 bits; flac16, of 16; or wav, of 32-bit floats, which sounds beyond full scale get in any
            case. A file's name stays, whatever is in it.
        jobs: Threads that read and write; 0 means one a core.
    """

    to: Path | None = None
    sample_rate: Annotated[int, Field(ge=audio.RATES[0], le=192_000)] = 16000
    format: Literal["flac", "flac16", "wav"] = "flac"
    jobs: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` wrote.

    Args:
        to: What `--data` is to name.
        files: Number of sound files there.
        failures: Why the others are not.
    """

    to: Path
    files: int
    failures: tuple[str, ...]


def prepare(task: Task, settings: PrepareSettings) -> Prepared:
    """Copies a task's sound files at one rate, and what lists them; called again, it goes on where it was ended.

    Args:
        task: A published one.
        settings: How.

    Raises:
        UsageError: The task is none of a published data set, or the folder is of other copies or in use.
        DataError: The data set is not there, or not laid out as it should be.
        StorageError: The disk is full; what was copied stays.
    """
    if not task.layouts:
        raise UsageError(f"{task.name}: copies are made of published data sets, see m2d-bench tasks.")
    root, layout = layouts.locate(task, settings.data_root)
    data = settings.data_root or root
    to = (settings.to or Path(f"{data.resolve()}-{settings.sample_rate // 1000}k")).expanduser()
    target = to / (layout.folders[0] if root == data else root.relative_to(data))
    if target.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{target}: lies in the data set itself. Name a folder outside of {root} with --to.")
    dataset = datasets.find(task, settings, settings.sample_rate, settings.jobs)
    files = [(dataset.root / file).relative_to(root).as_posix() for file in dict.fromkeys(dataset.files)]
    make_folder(target)
    with _locked(target):
        _mark(target, settings)
        _tell_size(root, target, files, settings)
        _copy_indexes(root, target)
        failures = _copy_sounds(task.name, root, target, files, settings)
    if not failures and datasets.find(task, replace(settings, data=to)).files != dataset.files:
        raise DataError(f"{target}: lists other clips than {root}. Remove it, and report this.")
    return Prepared(to=to, files=len(files) - len(failures), failures=tuple(failures))


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Locks a folder against other processes, so that half-written files are known to be a killed one's."""
    try:
        with FileLock(target / ".m2d-bench-copies.lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(f"{target}: another process is copying into this folder. Wait for it.") from None


def _mark(target: Path, settings: PrepareSettings) -> None:
    """Notes what the copies in a folder are, or refuses to put others beside them; removes half-written files."""
    mark, facts = target / _MARK, {"sample_rate": settings.sample_rate, "format": settings.format}
    if mark.exists():
        before = json.loads(mark.read_bytes())
        if before != facts:
            raise UsageError(f"{target}: holds copies of {before}, now {facts}. Name another folder with --to.")
        for leftover in target.rglob(".*.tmp"):
            leftover.unlink()
        return
    if other := next((path for path in target.iterdir() if not path.name.startswith(".")), None):
        raise UsageError(f"{target}: holds {other.name}, which this command did not write. Name another with --to.")
    with replacing(mark) as file:
        file.write(json.dumps(facts).encode())


def _tell_size(root: Path, target: Path, files: Sequence[str], settings: PrepareSettings) -> None:
    """Says about how much is going to be written, by the headers of some files, and what room there is."""
    seconds = []
    for file in files[:: max(1, len(files) // _ASKED)]:
        try:
            seconds.append(audio.duration(root / file))
        except AudioError:  # is named when it is copied
            continue
    total = float(np.mean(seconds or [0])) * len(files)
    size = total * settings.sample_rate * _ENCODINGS[settings.format][2]
    logger.warning(
        "%s: copies of %d files, %.3g hours, take about %.3g GB%s; %.3g GB are free.",
        target,
        len(files),
        total / 3600,
        size / 1e9,
        "" if settings.format == "wav" else " or less",
        shutil.disk_usage(target).free / 1e9,
    )


def _copy_indexes(root: Path, target: Path) -> None:
    """Copies what lists the clips, and what else tells of them."""
    for file in folders.find_sounds(root)[1]:
        if os.path.splitext(file)[1].lower() in _INDEX_SUFFIXES and not _is_current(root / file, target / file):
            with (root / file).open("rb") as source, replacing(target / file) as copy:
                shutil.copyfileobj(source, copy)


def _copy_sounds(title: str, root: Path, target: Path, files: Sequence[str], settings: PrepareSettings) -> list[str]:
    """Writes the copies that are not there yet, and tells why some cannot be."""

    def copy(file: str) -> str:
        try:
            if not _is_current(root / file, target / file):
                _copy(root / file, target / file, settings)
        except AudioError as error:
            return str(error)
        return ""

    copies = map_ahead(
        copy,
        files,
        settings.jobs,
        2 * (settings.jobs or os.cpu_count() or 1),
        weight=lambda file: audio.memory_to_read(root / file),
        heaviest=_MEMORY,
    )
    with writing(target, 0, "--to"):
        return [failure for failure in track(copies, f"Copying {title}", len(files), "files") if failure]


def _is_current(source: Path, copy: Path) -> bool:
    """Whether a copy is there and not older than what it was made of."""
    try:
        return copy.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except OSError:
        return False


def _copy(source: Path, target: Path, settings: PrepareSettings) -> None:
    """Writes a sound file's copy, whole or not at all."""
    waveform = audio.read(source, settings.sample_rate)
    container, subtype, _ = _ENCODINGS[settings.format if np.abs(waveform).max() <= 1 else _UNBOUNDED]
    encoded = io.BytesIO()  # libsndfile itself does not say that a disk is full
    soundfile.write(encoded, waveform, settings.sample_rate, format=container, subtype=subtype)
    with replacing(target) as file:
        file.write(encoded.getvalue())
