"""A task's clips: found on disk or generated once, checked, and decoded as equally long waveforms."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from m2d_bench import audio
from m2d_bench.errors import DataError
from m2d_bench.files import missing_files
from m2d_bench.registry import resolve
from m2d_bench.settings import OnBadFile, Storage
from m2d_bench.tasks import generated, layouts
from m2d_bench.tasks.contents import Content, Contents
from m2d_bench.tasks.task import Entry, Task

logger = logging.getLogger(__name__)

CROP_TOLERANCE = 0.01
"""Seconds by which a clip may exceed the unit duration and still count as one of it: a frame of the spectrogram."""

_FEW_CLIPS = 5

_ROWS = 2**14
"""Clips whose labels are packed or unpacked at a time."""

_SPLITS = {"train", "valid", "test"}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The clips of a task, in the index's order.

    Args:
        task: The task.
        root: Folder of the data set.
        files: Paths of the clips, relative to the root, [N].
        classes: Class names in order, [C].
        packed_labels: [N] int64 class numbers, or the bits of [N, C] multi-hot, see `np.packbits`.
        splits: Fold of each clip, or its split (train, valid, test), [N] strings.
        spans: Where each clip starts and ends in its file, in seconds, [N, 2]; 0 and infinity are the whole file.
        numbers: Of each clip in the index, [N]; others than 0 to N - 1 where some are left out.
        contents: What is in the clips' files.
        left_out: Clips of the index that are left out because they cannot be read.
    """

    task: Task
    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    packed_labels: np.ndarray
    splits: np.ndarray
    spans: np.ndarray
    numbers: np.ndarray
    contents: Contents
    left_out: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the clips: names, content, labels and splits or folds, 16 hexadecimal digits."""
        sha = hashlib.sha256(b"folds" if self.task.folds else b"split")
        for clip, (file, split, content) in enumerate(zip(self.files, self.splits, self.clip_contents, strict=True)):
            span = self.span_name(clip)
            words = (file, split, content.digest, *([span] if span else []))
            sha.update("".join(f"{word}\0" for word in words).encode(errors="surrogateescape"))
        sha.update("\0".join(self.classes).encode())
        for labels in self._label_parts():
            sha.update(labels.tobytes())
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
            "clip_seconds_source": task.clip_seconds_source,
            "fingerprint": self.fingerprint,
            "warnings": list(self.warnings),
        }

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What makes scores doubtful, in a line each that names the first few clips or classes."""
        doubts = self._doubts() | (self._own_doubts() if self.task.own else {})
        drawn = self.task.folds.drawn if self.task.folds else ""
        miscounts = miscounted(self) if self.task.vanishing else ()
        return (*self.leaks, *miscounts, *self._lines(doubts), *([f"{self.task.name}: {drawn}."] if drawn else []))

    def _lines(self, found: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """A line for each thing that was found, with the first few names."""
        return (f"{self.task.name}: {len(names)} {what}: {_first(names)}." for what, names in found.items() if names)

    def warn(self) -> None:
        """Warns of what makes scores doubtful, once all clips were read."""
        for warning in self.warnings:
            logger.warning("%s", warning)

    @cached_property
    def leaks(self) -> tuple[str, ...]:
        """The warning of sounds that lie in several splits or folds, if any do."""
        splits = self.splits.tolist()
        alike: dict[str, list[int]] = {}
        for clip, content in enumerate(self.clip_contents):
            alike.setdefault(content.sound, []).append(clip)
        copies = [
            f"{_first([*dict.fromkeys(self.files[clip] for clip in group)], ' = ', 3)} "
            f"({', '.join(dict.fromkeys(splits[clip] for clip in group))})"
            for sound, group in alike.items()
            if sound and len({splits[clip] for clip in group}) > 1
        ]
        what = "sounds in several splits, by name or with the same content; scores say too much"
        return tuple(self._lines({what: copies}))

    def _doubts(self) -> dict[str, list[str]]:
        """Other clips and classes that make scores doubtful, by the reason."""
        splits = self.splits.tolist()
        lines = Counter(zip(self.files, splits, map(tuple, self.spans.tolist()), strict=True))
        untrained = [
            f"{name} ({test})"
            for test, _, trains in self.task.roles(splits)
            for name in sorted(_borne(self, [test]) - _borne(self, trains))
        ]
        packed = self.packed_labels
        unlabelled = np.flatnonzero(~packed.any(1)).tolist() if packed.ndim == 2 else []
        capitals = Counter(name.casefold() for name in self.classes)
        ends = [content.seconds + CROP_TOLERANCE for content in self.clip_contents]
        late = np.flatnonzero((self.seconds > 0) & np.isfinite(self.spans[:, 1]) & (self.spans[:, 1] > ends)).tolist()
        return {
            "clips listed several times in one split": [file for (file, *_), count in lines.items() if count > 1],
            "classes tested where no clip of theirs trains": untrained,
            "clips without a label": [self.files[clip] for clip in unlabelled],
            "classes that differ in capitals alone": [name for name in self.classes if capitals[name.casefold()] > 1],
            "clips that end after their file": [f"{self.files[clip]} ({self.span_name(clip)})" for clip in late],
        }

    def _own_doubts(self) -> dict[str, list[str]]:
        """What is taken as it is of a published data set."""
        unit, counts = self.task.clip_seconds, zip(self.classes, self.class_counts.tolist(), strict=True)
        odd = np.flatnonzero((self.seconds > 2 * unit) | (self.seconds > 0) & (self.seconds < unit / 2)).tolist()
        return {
            f"classes of fewer than {_FEW_CLIPS} clips": [f"{name} ({n})" for name, n in counts if n < _FEW_CLIPS],
            f"clips over twice or under half as long as the {unit:.3g} s they are cut or padded to (--clip-seconds)": [
                f"{self.files[clip]} ({self.seconds[clip]:.3g} s)" for clip in odd
            ],
        }

    @property
    def class_counts(self) -> np.ndarray:
        """Clips of each class, [C]."""
        counts = np.zeros(len(self.classes), int)
        for labels in self._label_parts():
            counts += labels.sum(0, int) if labels.ndim == 2 else np.bincount(labels, minlength=len(counts))
        return counts

    @cached_property
    def labels(self) -> np.ndarray:
        """[N] int64 class numbers, or [N, C] float32 multi-hot."""
        return np.concatenate([*self._label_parts()])

    def _label_parts(self) -> Iterator[np.ndarray]:
        """The labels, some clips at a time."""
        for start in range(0, len(self.files) or 1, _ROWS):
            packed = self.packed_labels[start : start + _ROWS]
            several = packed.ndim == 2
            yield np.unpackbits(packed, 1, len(self.classes)).astype(np.float32) if several else packed

    def span_name(self, clip: int) -> str:
        """Where a clip lies in its file, such as 1.5-4 (seconds); empty for the whole file."""
        start, end = self.spans[clip].tolist()
        return "" if (start, end) == (0, math.inf) else f"{start:.12g}-{end:.12g}"

    def labels_of(self, clip: int) -> tuple[str, ...]:
        """Names of a clip's classes."""
        found = self.packed_labels[clip]
        numbers = [int(found)] if found.ndim == 0 else np.flatnonzero(np.unpackbits(found)).tolist()
        return tuple(self.classes[number] for number in numbers)

    @property
    def clip_contents(self) -> list[Content]:
        """What is in each clip's file, [N]."""
        return self.contents.of(self.files, self.task.name)

    @cached_property
    def seconds(self) -> np.ndarray:
        """Duration of each clip, NaN where its file cannot be decoded, [N]."""
        ends = np.array([content.seconds for content in self.clip_contents])
        seconds: np.ndarray = np.minimum(ends, self.spans[:, 1]) - self.spans[:, 0]
        return seconds

    @cached_property
    def faults(self) -> dict[int, str]:
        """What is wrong with the clips that cannot be read."""
        faults = {clip: content.fault for clip, content in enumerate(self.clip_contents) if content.fault}
        for clip in np.flatnonzero((self.spans[:, 0] > 0) & (self.seconds <= 0)).tolist():
            faults[clip] = f"{self.root / self.files[clip]}: ends before the clip at {self.span_name(clip)} s."
        return faults

    def only(self, clips: Sequence[int]) -> Dataset:
        """Some of the clips."""
        files = tuple(self.files[clip] for clip in clips)
        rows = np.array(clips, dtype=np.int64)
        parts = ("packed_labels", "splits", "spans", "numbers")
        return replace(self, files=files, **{part: getattr(self, part)[rows] for part in parts})

    def readable(self, on_bad_file: OnBadFile = "stop") -> Dataset:
        """The clips, once all were decoded; without those that cannot be where these are to be skipped.

        Args:
            on_bad_file: stop or skip.

        Raises:
            DataError: Clips that cannot be decoded, all named, where they are not to be skipped, or are a whole split;
                or without them one class alone trains.
        """
        faults = self.faults
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
        rest = replace(self.only(kept), left_out=tuple(self.files[clip] for clip in faults))
        _raise_first(_untrained(rest))
        for warning in rest.warnings:
            if warning not in self.warnings:
                logger.warning("%s", warning)
        return rest

    @property
    def longer(self) -> np.ndarray:
        """Whether each clip is longer than the unit duration, so that its training view is a random crop, [N]."""
        longer: np.ndarray = self.seconds > self.task.clip_seconds + CROP_TOLERANCE
        return longer

    def crop_place(self, clip: int) -> float:
        """A place to crop the clip at, see `waveform`, that is drawn once and for all."""
        seed = hashlib.sha256(os.fsencode(f"{self.task.name}/{self.files[clip]}{self.span_name(clip)}")).digest()
        return float(np.random.default_rng(list(seed)).uniform())

    def waveform(self, clip: int, sample_rate: int, *, place: float = 0.0) -> np.ndarray:
        """One clip, cut or zero-padded at its end to the unit duration, or faded and repeated to it.

        Args:
            clip: Index of the clip.
            sample_rate: Hz.
            place: Where a longer clip is cut, from 0 (its start) to 1 (its end); those that are faded, at their start.

        Returns:
            [S] float32 with S = clip_seconds × sample_rate.
        """
        path, seconds = self.root / self.files[clip], self.task.clip_seconds
        start, end = self.spans[clip].tolist()
        if self.task.fade_seconds:
            whole = audio.read(path, sample_rate, offset=start, seconds=end - start)
            return faded(whole, round(seconds * sample_rate), round(self.task.fade_seconds * sample_rate))
        offset = place * max(0.0, min(end, audio.duration(path)) - start - seconds) if place else 0.0
        samples = round(seconds * sample_rate)
        waveform = audio.read(path, sample_rate, offset=start + offset, seconds=min(seconds, end - start))[:samples]
        return np.pad(waveform, (0, samples - len(waveform)))


def faded(waveform: np.ndarray, samples: int, fade: int) -> np.ndarray:
    """A clip faded in and out linearly, then cut, or repeated and faded out again.

    Args:
        waveform: [S].
        samples: Wanted number of samples.
        fade: Samples of each fade.

    Returns:
        [samples].

    Source: M2D-X (2024), section IV-E, after the public code of Moummad and Farrugia (2023).
    """
    ramp = np.linspace(0, 1, fade, dtype=waveform.dtype)[: len(waveform)]
    waveform = waveform.copy()
    waveform[: len(ramp)] *= ramp
    waveform[-len(ramp) :] *= ramp[::-1]
    if len(waveform) < samples:
        waveform = np.resize(waveform, samples)
        waveform[-len(ramp) :] *= ramp[::-1]
    return waveform[:samples]


def load(task: Task, storage: Storage, sample_rate: int = 16000, jobs: int = 0) -> Dataset:
    """Finds a task's clips, checks that all are there, reads them, and warns of what makes scores doubtful.

    Args:
        task, storage, sample_rate, jobs: As of `find`.

    Raises:
        DataError: As of `find_all`.
    """
    dataset = find_all(task, storage, sample_rate, jobs)
    dataset.warn()
    return dataset


def find_all(task: Task, storage: Storage, sample_rate: int = 16000, jobs: int = 0) -> Dataset:
    """Finds a task's clips and checks that all are there; reads none.

    Args:
        task, storage, sample_rate, jobs: As of `find`.

    Raises:
        DataError: As of `find`; or files are missing, or other numbers of clips, classes or folds than the task has.
    """
    dataset = find(task, storage, sample_rate, jobs)
    _raise_first(chain(() if task.vanishing else miscounted(dataset), problems(dataset)))
    return dataset


def find(task: Task, storage: Storage, sample_rate: int = 16000, jobs: int = 0) -> Dataset:
    """Finds a task's clips, or generates them.

    Args:
        task: The task.
        storage: Data folder for published data sets, cache folder for generated ones.
        sample_rate: Hz that will be asked for; chooses among copies of the clips at several rates.
        jobs: Threads that read the clips; 0 means one a core.

    Raises:
        DataError: Not found, not laid out as it should be, or labels that are no class of the task.
    """
    layout = generated.LAYOUT
    if task.generator:
        root = generated.folder(task, storage.cache_root)
    elif task.folder:
        root = Path(task.folder)
    else:
        root, layout = layouts.locate(task, storage.data_root)
    root, entries = task.lister(root, sample_rate) if task.lister else (root, layouts.read_entries(task, root, layout))
    classes, labels = _labels(task, entries)
    return Dataset(
        task=task,
        root=root,
        files=tuple(entry.file for entry in entries),
        classes=classes,
        packed_labels=labels,
        splits=np.array([entry.split for entry in entries], str),
        spans=np.stack([[entry.start for entry in entries], [entry.end for entry in entries]], 1),
        numbers=np.arange(len(entries)),
        contents=resolve(task.contents)(root, storage.cache_root, jobs),
    )


def _labels(task: Task, entries: Sequence[Entry]) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and [N] numbers, or the bits of [N, C] multi-hot where a clip may have several labels."""
    found = sorted({label for entry in entries for label in entry.labels})
    classes = task.classes or tuple(found)
    if unknown := [label for label in found if label not in classes]:
        raise DataError(f"{task.name}: labels that are no class of the task: {', '.join(unknown[:10])}.")
    number = {label: i for i, label in enumerate(classes)}
    if not task.multilabel:
        if wrong := [entry.file for entry in entries if len(entry.labels) != 1]:
            raise DataError(
                f"{task.name}: {len(wrong)} clips have not one label: {_first(wrong)}. Give each one, or leave it out."
            )
        return classes, np.array([number[entry.labels[0]] for entry in entries], dtype=np.int64)
    packed = [np.empty((0, -(-len(classes) // 8)), np.uint8)]
    for start in range(0, len(entries), _ROWS):
        part = entries[start : start + _ROWS]
        labels = np.zeros((len(part), len(classes)), bool)
        rows = np.repeat(np.arange(len(part)), [len(entry.labels) for entry in part])
        labels[rows, [number[label] for entry in part for label in entry.labels]] = True
        packed.append(np.packbits(labels, 1))
    return classes, np.concatenate(packed)


def miscounted(dataset: Dataset) -> Iterator[str]:
    """Numbers of clips, classes and folds that are not those of the task."""
    task, splits = dataset.task, Counter(dataset.splits.tolist())
    found = {"clips": len(dataset.files), "classes": len(dataset.classes)}
    wanted = {"clips": task.n_clips, "classes": task.n_classes}
    if task.folds:
        found["folds"], wanted["folds"] = len(splits), task.folds.count
    for split, clips in task.split_clips.items():
        what = f"clips of {'fold ' if task.folds else ''}{split}"
        found[what], wanted[what] = splits[split], clips
    for what, number in wanted.items():
        if found[what] != number:
            yield (
                f"{task.name}: {dataset.root} holds {found[what]} {what}, the task has {number}. The copy is "
                f"incomplete or another edition; get it from {task.source or 'the cache anew: remove that folder'}."
            )


def problems(dataset: Dataset) -> Iterator[str]:
    """What of a data set is not laid out as it should be, cannot be trained or tested, or is not there."""
    task, splits = dataset.task, {*dataset.splits.tolist()}
    if blank := [file for file, split in zip(dataset.files, dataset.splits, strict=True) if not split]:
        yield f"{task.name}: {len(blank)} clips have no fold or split: {_first(blank)}. Give each one, or leave it out."
    if not task.folds and not {"train", "test"} <= splits <= _SPLITS:
        yield f"{task.name}: the column split holds {sorted(splits)}; it takes train and test, and may have valid."
    yield from _untrained(dataset)
    if missing := missing_files(dataset.root, dataset.files):
        yield (
            f"{task.name}: {len(missing)} of {len(dataset.files)} files of the index are missing from {dataset.root}: "
            f"{_first(missing)}. Get them, or leave their lines out."
        )


def _untrained(dataset: Dataset) -> Iterator[str]:
    """Splits for whose test fewer than two classes train."""
    task = dataset.task
    for test, _, trains in task.roles(dataset.splits.tolist()):
        trained = _borne(dataset, trains)
        if not trains or (not task.multilabel and len(trained) < 2):
            yield (
                f"{task.name}: to test {test!r}, the clips of {', '.join(trains) or 'no other fold'} train, with the "
                f"classes {', '.join(sorted(trained)) or 'none'}; it takes clips of two classes or more."
            )


def _raise_first(problems: Iterable[str]) -> None:
    """Raises a DataError of the first problem, if there is one."""
    if (problem := next(iter(problems), None)) is not None:
        raise DataError(problem)


def _borne(dataset: Dataset, splits: Sequence[str]) -> set[str]:
    """Classes that the clips of some splits bear."""
    packed = dataset.packed_labels[np.isin(dataset.splits, splits)]
    numbers = np.unique(packed) if packed.ndim == 1 else np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(packed)))
    return {dataset.classes[number] for number in numbers}


def _first(names: Sequence[str], separator: str = ", ", count: int = 5) -> str:
    return separator.join(names[:count]) + (" …" if len(names) > count else "")
