"""What a task is: a frozen value that says where its clips lie, how they are labelled and how they are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from m2d_bench.errors import UsageError

_HUGE = 10**6
"""Clips from which on a data set is huge."""

Metric = Literal["accuracy", "chroma_accuracy", "mAP", "d_prime", "aucroc", "sensitivity", "specificity", "icbhi_score"]


class Entry(NamedTuple):
    """One clip of an index.

    Args:
        file: Path inside the data set's folder.
        labels: Names of its classes.
        split: Its fold, or its split (train, valid, test).
        start: Where it begins in the file, in seconds.
        end: Where it ends in the file, in seconds; infinite for the file's end.
        group: What it shares with clips that must not be in another fold.
    """

    file: str
    labels: tuple[str, ...]
    split: str
    start: float = 0.0
    end: float = math.inf
    group: str = ""


Lister = Callable[[Path, int], tuple[Path, Sequence[Entry]]]
"""(Folder or file of a data set, sample rate in Hz) → folder of the clips, entries."""


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Cross-validation: each fold is the test split once.

    Args:
        column: Column of the index that holds the fold's number or name.
        count: Number of folds.
        valid: What chooses the epoch: a tenth drawn from the training folds, or the next fold (the first after the
            last), which is then left out of training.
        drawn: How the folds were drawn, where the data set gives none.
    """

    column: str
    count: int
    valid: Literal["drawn", "next"] = "drawn"
    drawn: str = ""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which a data set lies on disk.

    Args:
        folders: Folder names under the data root to try in turn; the data root itself is tried last.
        index: CSV file inside the folder, one line a clip; of a task with a lister, any file that tells the folder.
        file: Path of a clip inside the folder, with index columns in braces; of no use to a lister.
        where: Column and value, as text, that a line must have to belong to the task.
    """

    folders: tuple[str, ...]
    index: str
    file: str = ""
    where: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a data set comes in: an archive, a list beside it, or what only a person can get.

    Args:
        holds: Patterns of its files or folders inside the data set's folder; where one is there, the part is.
        files: Addresses, each with the checksum its publisher or a library of data sets tells (see `download.verify`):
            an archive, in one file or split, or a file that is none.
        manual: Where a person gets it, if it has no address.
        what: What messages call it; by default its first pattern.
    """

    holds: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    manual: str = ""
    what: str = ""

    def __str__(self) -> str:
        return self.what or self.holds[0]

    def lies_in(self, folder: Path) -> bool:
        """Whether the part is in the data set's folder; an empty folder is none."""
        found = (path for pattern in self.holds for path in folder.glob(pattern))
        return any(not path.is_dir() or next(path.iterdir(), None) for path in found)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task over clips.

    Args:
        name: What users type.
        domain: Group of the comparison tables: environment, speech or music.
        metric: How a fold or test split is scored and its epoch chosen; see `metrics`.
        other_metrics: What is scored beside it.
        clip_seconds: Unit duration in seconds; clips are cut or zero-padded to it.
        clip_seconds_source: What says so.
        fade_seconds: Where above 0, clips are faded in and out so long and repeated, not zero-padded; see `faded`.
        n_classes: Number of classes.
        n_clips: Number of clips in all splits; a data set with another number is an error.
        split_clips: Number of clips of each split or fold, as published; another number is an error too.
        vanishing: Whether clips vanish from where they are published, so that other numbers are a doubt and no error.
        folds: Cross-validation folds, or None if the column `split` says train, valid or test.
        multilabel: Whether a clip may have several labels, or none.
        classes: Class names in order, where the data set gives one; else they are sorted.
        layouts: Where a published data set may lie under the data root, tried in order.
        label: Index column of the label; several labels of a clip stand in one cell, separated by commas.
        source: Where the data comes from.
        parts: What the data set comes in, where it is published; downloads go to the folder of the last layout.
        licence: Of what is downloaded.
        version: Raised whenever a change would alter scores.
        generator: `module:function` that yields the clips of a synthetic task; see `tasks.synthetic.scene`.
        lister: Lists the clips, where they are not the lines of a layout's index.
        folder: What it lists, where that is not found by a layout.
        own: Whether it is a user's own data, of which more is doubted than of a published set.
        contents: `module:class` that reads the clips' files, see `contents.Contents`.
    """

    name: str
    domain: Literal["environment", "speech", "music", "other"]
    metric: Metric
    clip_seconds: float
    n_classes: int
    n_clips: int
    clip_seconds_source: str = "task"
    fade_seconds: float = 0.0
    split_clips: Mapping[str, int] = field(default_factory=dict)
    vanishing: bool = False
    other_metrics: tuple[Metric, ...] = ()
    multilabel: bool = False
    classes: tuple[str, ...] = ()
    folds: Folds | None = None
    layouts: tuple[Layout, ...] = ()
    label: str = "label"
    source: str = ""
    parts: tuple[Part, ...] = ()
    licence: str = ""
    version: int = 1
    generator: str | None = None
    lister: Lister | None = None
    folder: str = ""
    own: bool = False
    contents: str = "m2d_bench.tasks.contents:Contents"

    def __post_init__(self) -> None:
        if [bool(self.layouts), bool(self.generator), bool(self.folder)].count(True) != 1:
            raise UsageError(f"Task {self.name!r} needs one of layouts, generator and folder.")

    @classmethod
    def listed(
        cls,
        entries: Sequence[Entry],
        column: str = "split",
        *,
        folds: Folds | None = None,
        multilabel: bool = False,
        **others: Any,
    ) -> Task:
        """A task of clips that were listed: what can be counted is theirs, and the metric follows from their labels.

        Args:
            entries: The clips.
            column: What their splits are: split, or fold.
            folds: Folds that were drawn.
            multilabel: Whether a clip may have several labels, even if none has.
            others: Further arguments of a task.
        """
        multilabel = multilabel or any(len(entry.labels) > 1 for entry in entries)
        if column == "fold":
            folds = Folds(column=column, count=len({entry.split for entry in entries}))
        return cls(
            domain="other",
            metric="mAP" if multilabel else "accuracy",
            multilabel=multilabel,
            n_classes=len({label for entry in entries for label in entry.labels}),
            n_clips=len(entries),
            folds=folds,
            **others,
        )

    @property
    def synthetic(self) -> bool:
        """Whether the clips are generated rather than recorded; tables say so."""
        return self.generator is not None

    @property
    def huge(self) -> bool:
        """Whether there are so many clips that they are embedded while they are read."""
        return self.n_clips >= _HUGE

    def lasting(self, clip_seconds: float | None) -> Task:
        """The same task with another unit duration in seconds, unless that is None."""
        if clip_seconds is None:
            return self
        return replace(self, clip_seconds=clip_seconds, clip_seconds_source="--clip-seconds")

    def roles(self, splits: Iterable[str]) -> list[tuple[str, str, list[str]]]:
        """For each fold, or the official split: what tests, what chooses (if it is not drawn), what trains.

        Args:
            splits: Fold or split of each clip.
        """
        if self.folds is None:
            return [("test", "valid", ["train"])]
        names = sorted(set(splits))
        roles = []
        for test, following in zip(names, names[1:] + names[:1], strict=True):
            held = {test, following} if self.folds.valid == "next" else {test}
            roles.append((test, following, [name for name in names if name not in held]))
        return roles
