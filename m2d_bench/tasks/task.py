"""What a task is: a frozen value that says where its clips lie, how they are labelled and how they are scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

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
        index_source: Where the index comes from, if copies of the data set may lack it.
    """

    folders: tuple[str, ...]
    index: str
    file: str = ""
    where: tuple[str, str] | None = None
    index_source: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task over clips.

    Args:
        name: What users type.
        domain: Group of the comparison tables: environment, speech or music.
        metric: How a fold or test split is scored and its epoch chosen; see `metrics`.
        other_metrics: What is scored beside it.
        clip_seconds: Unit duration in seconds; clips are cut or zero-padded to it.
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
    version: int = 1
    generator: str | None = None
    lister: Lister | None = None
    folder: str = ""
    own: bool = False
    contents: str = "m2d_bench.tasks.contents:Contents"

    def __post_init__(self) -> None:
        if [bool(self.layouts), bool(self.generator), bool(self.folder)].count(True) != 1:
            raise UsageError(f"Task {self.name!r} needs one of layouts, generator and folder.")

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
        return self if clip_seconds is None else replace(self, clip_seconds=clip_seconds)

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
