"""A task's clips: found on disk or generated once, checked, and decoded as equally long waveforms."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from filelock import FileLock

from m2d_bench import audio
from m2d_bench.errors import AudioError, DataError
from m2d_bench.parallel import map_ahead
from m2d_bench.progress import track
from m2d_bench.registry import resolve
from m2d_bench.settings import Storage, naming
from m2d_bench.tasks.task import Entry, Layout, Task

CROP_TOLERANCE = 0.01
"""Seconds by which a clip may exceed the unit duration and still count as one of it: a frame of the spectrogram."""

_SPLITS = {"train", "valid", "test"}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The clips of a task, in the index's order.

    Args:
        task: The task.
        root: Folder of the data set.
        files: Paths of the clips, relative to the root, [N].
        classes: Class names in order, [C].
        labels: [N] int64 class numbers, or [N, C] float32 multi-hot.
        splits: Fold of each clip, or its split (train, valid, test), [N] strings.
    """

    task: Task
    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    splits: np.ndarray

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the clips: names, content, labels and splits, 16 hexadecimal digits.

        The content counts by its size and three samples of it, so that large data sets are not read twice.
        """
        sha = hashlib.sha256()
        for file, split in zip(self.files, self.splits, strict=True):
            sha.update(f"{file}\0{split}\0".encode())
            sha.update(_sampled(self.root / file))
        sha.update("\0".join(self.classes).encode())
        sha.update(self.labels.tobytes())
        return sha.hexdigest()[:16]

    @property
    def facts(self) -> dict[str, Any]:
        """What a run's record says of the task and these clips of it."""
        task = self.task
        return {
            "name": task.name,
            "version": task.version,
            "metric": task.metric,
            "other_metrics": task.other_metrics,
            "domain": task.domain,
            "synthetic": task.synthetic,
            "n_classes": task.n_classes,
            "n_clips": task.n_clips,
            "n_folds": task.folds.count if task.folds else 1,
            "fingerprint": self.fingerprint,
        }

    def labels_of(self, clip: int) -> tuple[str, ...]:
        """Names of a clip's classes."""
        found = self.labels[clip]
        numbers = [int(found)] if found.ndim == 0 else np.flatnonzero(found).tolist()
        return tuple(self.classes[number] for number in numbers)

    def durations(self, jobs: int = 0) -> tuple[np.ndarray, list[str]]:
        """Durations of the clips in seconds by their headers, NaN where one cannot be opened, and what is wrong there.

        Args:
            jobs: Threads; 0 means one a core.
        """
        failures = []

        def duration(file: str) -> float | AudioError:
            try:
                return audio.duration(self.root / file)
            except AudioError as error:
                return error

        found = np.full(len(self.files), np.nan)
        headers = map_ahead(duration, self.files, jobs, ahead=256)
        for clip, each in enumerate(track(headers, f"Opening {self.task.name}", len(self.files), "files")):
            if isinstance(each, AudioError):
                failures.append(str(each))
            else:
                found[clip] = each
        return found, failures

    def longer(self, durations: np.ndarray) -> np.ndarray:
        """Whether each clip is longer than the unit duration, so that its training view is a random crop, [N]."""
        return durations > self.task.clip_seconds + CROP_TOLERANCE

    def crop_place(self, clip: int) -> float:
        """A place to crop the clip at, see `waveform`, that is drawn once and for all."""
        seed = hashlib.sha256(f"{self.task.name}/{self.files[clip]}".encode()).digest()
        return float(np.random.default_rng(list(seed)).uniform())

    def waveform(self, clip: int, sample_rate: int, *, place: float = 0.0) -> np.ndarray:
        """One clip, cut or zero-padded at its end to the unit duration.

        Args:
            clip: Index of the clip.
            sample_rate: Hz.
            place: Where a longer clip is cut, from 0 (its start) to 1 (its end).

        Returns:
            [S] float32 with S = clip_seconds × sample_rate.
        """
        path, seconds = self.root / self.files[clip], self.task.clip_seconds
        offset = place * max(0.0, audio.duration(path) - seconds) if place else 0.0
        samples = round(seconds * sample_rate)
        waveform = audio.read(path, sample_rate, offset=offset, seconds=seconds)[:samples]
        return np.pad(waveform, (0, samples - len(waveform)))


def _sampled(path: Path) -> bytes:
    """Size of a file, and 4 KiB each of its start, middle and end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        parts = [size.to_bytes(8, "little")]
        for start in (0, size // 2, max(0, size - 4096)):
            file.seek(start)
            parts.append(file.read(4096))
    return b"".join(parts)


def load(task: Task, storage: Storage, sample_rate: int = 16000) -> Dataset:
    """Finds a task's clips, or generates them, and checks that all are there.

    Args:
        task: The task.
        storage: Data folder for published data sets, cache folder for generated ones.
        sample_rate: Hz that will be asked for; chooses among copies of the clips at several rates.

    Raises:
        DataError: Not found, files missing, or other numbers of clips, classes or folds than the task has.
    """
    if task.lister:
        root, entries = resolve(task.lister)(Path(task.folder), sample_rate)
    elif task.generator:
        root = generated(task, storage.cache_root)
        entries = _read_entries(task, root, GENERATED)
    else:
        root, layout = _find(task, storage.data_root)
        entries = _read_entries(task, root, layout)
    files, cells, splits = zip(*entries, strict=True) if entries else ((), (), ())
    classes, labels = _labels(task, cells)
    dataset = Dataset(task=task, root=root, files=files, classes=classes, labels=labels, splits=np.array(splits, str))
    _check(dataset)
    return dataset


def _read_entries(task: Task, root: Path, layout: Layout) -> list[Entry]:
    """The lines of an index that belong to the task."""
    split = task.folds.column if task.folds else "split"
    named = [name for _, name, _, _ in Formatter().parse(layout.file) if name]
    index = _read_index(root / layout.index, [task.label, split, *named, *(layout.where or ())[:1]])
    if layout.where:
        index = index[index[layout.where[0]] == layout.where[1]]

    def labels(cell: str) -> tuple[str, ...]:
        return tuple(label.strip() for label in cell.split(",")) if task.multilabel else (cell,)

    return [
        Entry(layout.file.format_map(row), labels(str(row[task.label])), str(row[split]))
        for row in index.to_dict("records")
    ]


def _read_index(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """An index as text, with the columns that are needed."""
    try:
        index = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # empty, ragged, or not UTF-8
        raise DataError(f"{path}: not a CSV file in UTF-8 with one line a clip: {error}") from error
    for column in columns:
        if column not in index.columns:
            raise DataError(f"{path}: no column {column!r}; it has {', '.join(index.columns)}.")
    return index


GENERATED = Layout(folders=(), index="index.csv", file="audio/{filename}")


def generated(task: Task, cache: Path) -> Path:
    """Folder of a synthetic task in the cache; generated there once, whole or not at all."""
    root = cache / "tasks" / f"{task.name}-v{task.version}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{root}.lock"):
        if not root.exists():
            partial = Path(f"{root}.part")
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "audio").mkdir(parents=True)
            _write_clips(task, partial)
            os.replace(partial, root)
    return root


def _write_clips(task: Task, folder: Path) -> None:
    from m2d_bench.tasks.synthetic.scene import SAMPLE_RATE

    clips = resolve(str(task.generator))()
    with naming(folder), (folder / GENERATED.index).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label", "fold"])
        for number, clip in enumerate(track(clips, f"Generating {task.name}", task.n_clips, "clips")):
            name = f"{number:05d}.wav"
            soundfile.write(folder / "audio" / name, clip.waveform, SAMPLE_RATE, subtype="PCM_16")
            writer.writerow([name, clip.label, clip.fold])


def _find(task: Task, data: Path | None) -> tuple[Path, Layout]:
    """The first folder that holds one of the task's layouts."""
    if data is None:
        raise DataError(
            f"{task.name}: needs its data set from {task.source}. Unpack it anywhere and name the folder that holds it "
            "with --data DIR or the environment's M2D_BENCH_DATA."
        )
    if not data.is_dir():
        raise DataError(f"{task.name}: the data folder {data} does not exist. Name one with --data or M2D_BENCH_DATA.")
    looked = []
    for layout in task.layouts:
        for root in (*(data / folder for folder in layout.folders), data):
            if (root / layout.index).is_file():
                return root, layout
            looked.append(str(root / layout.index))
    raise DataError(
        f"{task.name}: not found. Looked for {', '.join(looked)}. Name the folder "
        f"that holds {task.layouts[0].folders[0]}, or that folder itself. It comes from {task.source}."
    )


def _labels(task: Task, cells: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and [N] numbers, or [N, C] multi-hot where a clip may have several labels."""
    found = sorted({label for cell in cells for label in cell})
    classes = task.classes or tuple(found)
    if unknown := [label for label in found if label not in classes]:
        raise DataError(f"{task.name}: labels that are no class of the task: {', '.join(unknown[:10])}.")
    number = {label: i for i, label in enumerate(classes)}
    if not task.multilabel:
        return classes, np.array([number[label] for (label,) in cells], dtype=np.int64)
    labels = np.zeros((len(cells), len(classes)), dtype=np.float32)
    for i, cell in enumerate(cells):
        labels[i, [number[label] for label in cell]] = 1
    return classes, labels


def _check(dataset: Dataset) -> None:
    """The task's numbers hold and every file is there."""
    task = dataset.task
    found = {"clips": len(dataset.files), "classes": len(dataset.classes)}
    wanted = {"clips": task.n_clips, "classes": task.n_classes}
    splits = set(dataset.splits.tolist())
    if task.folds:
        found["folds"], wanted["folds"] = len(splits), task.folds.count
    elif not {"train", "test"} <= splits <= _SPLITS:
        raise DataError(f"{task.name}: the column split holds {sorted(splits)}; allowed are {sorted(_SPLITS)}.")
    for what, number in wanted.items():
        if found[what] != number:
            raise DataError(
                f"{task.name}: {dataset.root} holds {found[what]} {what}, the task has {number}. The copy is "
                f"incomplete or another edition; get it from {task.source or 'the cache anew: remove that folder'}."
            )
    missing = [file for file in dataset.files if not (dataset.root / file).is_file()]
    if missing:
        raise DataError(
            f"{task.name}: {len(missing)} of {len(dataset.files)} files of the index are missing from {dataset.root}: "
            f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}."
        )
