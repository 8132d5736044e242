"""A task's clips: found on disk or generated once, checked, and decoded as equally long waveforms."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from m2d_bench import audio
from m2d_bench.errors import DataError
from m2d_bench.registry import resolve
from m2d_bench.settings import OnBadFile, Storage
from m2d_bench.tasks import generated, index
from m2d_bench.tasks.contents import Content, Contents
from m2d_bench.tasks.task import Entry, Layout, Task

logger = logging.getLogger(__name__)

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
        contents: What is in the clips' files.
        left_out: Clips of the index that are left out because they cannot be read.
    """

    task: Task
    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    splits: np.ndarray
    contents: Contents
    left_out: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the clips: names, content, labels and splits or folds, 16 hexadecimal digits."""
        sha = hashlib.sha256(b"folds" if self.task.folds else b"split")
        for file, split, content in zip(self.files, self.splits, self._contents, strict=True):
            sha.update(f"{file}\0{split}\0{content.digest}\0".encode(errors="surrogateescape"))
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
            "n_clips": len(self.files),
            "n_folds": task.folds.count if task.folds else 1,
            "fingerprint": self.fingerprint,
            "warnings": list(self.warnings),
        }

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What makes scores doubtful, in a line each that names the first few clips or classes."""
        splits = self.splits.tolist()
        alike: dict[str, list[int]] = {}
        for clip, content in enumerate(self._contents):
            alike.setdefault(content.sound, []).append(clip)
        copies = [
            f"{_first([*dict.fromkeys(self.files[clip] for clip in group)], ' = ', 3)} "
            f"({', '.join(dict.fromkeys(splits[clip] for clip in group))})"
            for sound, group in alike.items()
            if sound and len({splits[clip] for clip in group}) > 1
        ]
        lines = Counter(zip(self.files, splits, strict=True))
        untrained = [
            f"{name} ({test})"
            for test, _, trains in self.task.roles(splits)
            for name in sorted(_borne(self, [test]) - _borne(self, trains))
        ]
        unlabelled = np.flatnonzero(~self.labels.any(1)).tolist() if self.labels.ndim == 2 else []
        capitals = Counter(name.casefold() for name in self.classes)
        found = {
            "sounds in several splits, by name or with the same content; scores say too much": copies,
            "clips listed several times in one split": [file for (file, _), count in lines.items() if count > 1],
            "classes tested where no clip of theirs trains": untrained,
            "clips without a label": [self.files[clip] for clip in unlabelled],
            "classes that differ in capitals alone": [name for name in self.classes if capitals[name.casefold()] > 1],
        }
        return tuple(
            f"{self.task.name}: {len(names)} {what}: {_first(names)}." for what, names in found.items() if names
        )

    def labels_of(self, clip: int) -> tuple[str, ...]:
        """Names of a clip's classes."""
        found = self.labels[clip]
        numbers = [int(found)] if found.ndim == 0 else np.flatnonzero(found).tolist()
        return tuple(self.classes[number] for number in numbers)

    @property
    def _contents(self) -> list[Content]:
        return self.contents.of(self.files, self.task.name)

    def readable(self, on_bad_file: OnBadFile = "stop") -> Dataset:
        """The clips, once all were decoded; without those that cannot be where these are to be skipped.

        Args:
            on_bad_file: stop or skip.

        Raises:
            DataError: Clips that cannot be decoded, all named, where they are not to be skipped, or are a whole split;
                or without them one class alone trains.
        """
        faults = {clip: content.fault for clip, content in enumerate(self._contents) if content.fault}
        if not faults:
            return self
        kept = [clip for clip in range(len(self.files)) if clip not in faults]
        what = f"{self.task.name}: {len(faults)} of {len(self.files)} clips cannot be read"
        emptied = sorted({*self.splits.tolist()} - {*self.splits[kept].tolist()})
        if on_bad_file == "stop" or emptied:
            remedy = "Repair or replace them, or leave them out with --on-bad-file skip, which the record tells."
            if emptied:
                remedy = f"Repair or replace them; without them, none is left of {', '.join(emptied)}."
            raise DataError(f"{what}: {'; '.join(faults.values())} {remedy}")
        logger.warning("%s and are left out of the score: %s", what, "; ".join(faults.values()))
        rest = replace(
            self,
            files=tuple(self.files[clip] for clip in kept),
            labels=self.labels[kept],
            splits=self.splits[kept],
            left_out=tuple(self.files[clip] for clip in faults),
        )
        _check_trained(rest)
        for warning in rest.warnings:
            if warning not in self.warnings:
                logger.warning("%s", warning)
        return rest

    @property
    def longer(self) -> np.ndarray:
        """Whether each clip is longer than the unit duration, so that its training view is a random crop, [N]."""
        durations = np.array([content.seconds for content in self._contents])
        return durations > self.task.clip_seconds + CROP_TOLERANCE

    def crop_place(self, clip: int) -> float:
        """A place to crop the clip at, see `waveform`, that is drawn once and for all."""
        seed = hashlib.sha256(os.fsencode(f"{self.task.name}/{self.files[clip]}")).digest()
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


def load(task: Task, storage: Storage, sample_rate: int = 16000, jobs: int = 0) -> Dataset:
    """Finds a task's clips, or generates them, checks that all are there, and warns of what makes scores doubtful.

    Args:
        task: The task.
        storage: Data folder for published data sets, cache folder for generated ones.
        sample_rate: Hz that will be asked for; chooses among copies of the clips at several rates.
        jobs: Threads that read the clips; 0 means one a core.

    Raises:
        DataError: Not found, files missing, or other numbers of clips, classes or folds than the task has.
    """
    if task.lister:
        root, entries = resolve(task.lister)(Path(task.folder), sample_rate)
    elif task.generator:
        root = generated.folder(task, storage.cache_root)
        entries = _read_entries(task, root, generated.LAYOUT)
    else:
        root, layout = _find(task, storage.data_root)
        entries = _read_entries(task, root, layout)
    files, cells, splits = zip(*entries, strict=True) if entries else ((), (), ())
    classes, labels = _labels(task, files, cells)
    dataset = Dataset(
        task=task,
        root=root,
        files=files,
        classes=classes,
        labels=labels,
        splits=np.array(splits, str),
        contents=resolve(task.contents)(root, storage.cache_root, jobs),
    )
    _check(dataset)
    for warning in dataset.warnings:
        logger.warning("%s", warning)
    return dataset


def _read_entries(task: Task, root: Path, layout: Layout) -> list[Entry]:
    """The lines of an index that belong to the task."""
    split = task.folds.column if task.folds else "split"
    named = [name for _, name, _, _ in Formatter().parse(layout.file) if name]
    table = index.read_columns(root / layout.index, [task.label, split, *named, *(layout.where or ())[:1]])
    if layout.where:
        table = table[table[layout.where[0]] == layout.where[1]]
    return [
        index.entry(
            layout.file.format_map(row),
            row[task.label].split(",") if task.multilabel else [row[task.label]],
            row[split],
        )
        for row in table.to_dict("records")
    ]


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


def _labels(task: Task, files: Sequence[str], cells: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and [N] numbers, or [N, C] multi-hot where a clip may have several labels."""
    found = sorted({label for cell in cells for label in cell})
    classes = task.classes or tuple(found)
    if unknown := [label for label in found if label not in classes]:
        raise DataError(f"{task.name}: labels that are no class of the task: {', '.join(unknown[:10])}.")
    number = {label: i for i, label in enumerate(classes)}
    if not task.multilabel:
        if wrong := [file for file, cell in zip(files, cells, strict=True) if len(cell) != 1]:
            raise DataError(
                f"{task.name}: {len(wrong)} clips have not one label: {_first(wrong)}. Give each one, or leave it out."
            )
        return classes, np.array([number[label] for (label,) in cells], dtype=np.int64)
    labels = np.zeros((len(cells), len(classes)), dtype=np.float32)
    for i, cell in enumerate(cells):
        labels[i, [number[label] for label in cell]] = 1
    return classes, labels


def _check(dataset: Dataset) -> None:
    """The task's numbers hold, its splits can be trained and tested, and every file is there."""
    task = dataset.task
    found = {"clips": len(dataset.files), "classes": len(dataset.classes)}
    wanted = {"clips": task.n_clips, "classes": task.n_classes}
    splits = set(dataset.splits.tolist())
    if blank := [file for file, split in zip(dataset.files, dataset.splits, strict=True) if not split]:
        raise DataError(
            f"{task.name}: {len(blank)} clips have no fold or split: {_first(blank)}. Give each one, or leave it out."
        )
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
    _check_trained(dataset)
    missing = [file for file in dataset.files if not (dataset.root / file).is_file()]
    if missing:
        raise DataError(
            f"{task.name}: {len(missing)} of {len(dataset.files)} files of the index are missing from {dataset.root}: "
            f"{_first(missing)}."
        )


def _check_trained(dataset: Dataset) -> None:
    """Two classes or more train, whichever split is tested."""
    task = dataset.task
    for test, _, trains in task.roles(dataset.splits.tolist()):
        trained = _borne(dataset, trains)
        if not trains or (not task.multilabel and len(trained) < 2):
            raise DataError(
                f"{task.name}: to test {test!r}, the clips of {', '.join(trains) or 'no other fold'} train, with the "
                f"classes {', '.join(sorted(trained)) or 'none'}; it takes clips of two classes or more."
            )


def _borne(dataset: Dataset, splits: Sequence[str]) -> set[str]:
    """Classes that the clips of some splits bear."""
    labels = dataset.labels[np.isin(dataset.splits, splits)]
    numbers = np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(0))
    return {dataset.classes[number] for number in numbers}


def _first(names: Sequence[str], separator: str = ", ", count: int = 5) -> str:
    return separator.join(names[:count]) + (" …" if len(names) > count else "")
