"""What a task is: a frozen value that says where its clips lie, how they are labelled and how they are scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from m2d_bench.errors import UsageError

Metric = Literal["accuracy", "chroma_accuracy", "mAP", "d_prime", "aucroc"]


class Entry(NamedTuple):
    """One clip of an index: path inside the data set's folder, labels, and fold or split."""

    file: str
    labels: tuple[str, ...]
    split: str


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Cross-validation: each fold is the test split once.

    Args:
        column: Column of the index that holds the fold's number or name.
        count: Number of folds.
        valid: What chooses the epoch: a tenth drawn from the training folds, or the next fold (the first after the
            last), which is then left out of training.
    """

    column: str
    count: int
    valid: Literal["drawn", "next"] = "drawn"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which a data set lies on disk.

    Args:
        folders: Folder names under the data root to try in turn; the data root itself is tried last.
        index: CSV file inside the folder, one line a clip.
        file: Path of a clip inside the folder, with index columns in braces.
        where: Column and value, as text, that a line must have to belong to the task.
    """

    folders: tuple[str, ...]
    index: str
    file: str
    where: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task over clips.

    Args:
        name: What users type.
        domain: Group of the comparison tables: environment, speech or music.
        metric: How a fold or test split is scored and its epoch chosen; see `metrics`.
        other_metrics: What is scored beside it.
        clip_seconds: Unit duration in seconds; clips are cut or zero-padded to it.
        n_classes: Number of classes.
        n_clips: Number of clips in all splits; a data set with another number is an error.
        folds: Cross-validation folds, or None if the column `split` says train, valid or test.
        multilabel: Whether a clip may have several labels, or none.
        classes: Class names in order, where the data set gives one; else they are sorted.
        layouts: Where the clips may lie, tried in order. Empty for a task of another kind.
        label: Index column of the label; several labels of a clip stand in one cell, separated by commas.
        source: Where the data comes from.
        version: Raised whenever a change would alter scores.
        generator: `module:function` that yields the clips of a synthetic task; see `tasks.synthetic.scene`.
        lister: `module:function` that lists a task kept in another tool's files: (their place, sample rate in Hz) →
            folder of the clips, entries.
        folder: Where those files lie.
        contents: `module:class` that reads the clips' files, see `contents.Contents`.
    """

    name: str
    domain: Literal["environment", "speech", "music", "other"]
    metric: Metric
    clip_seconds: float
    n_classes: int
    n_clips: int
    other_metrics: tuple[Metric, ...] = ()
    multilabel: bool = False
    classes: tuple[str, ...] = ()
    folds: Folds | None = None
    layouts: tuple[Layout, ...] = ()
    label: str = "label"
    source: str = ""
    version: int = 1
    generator: str | None = None
    lister: str | None = None
    folder: str = ""
    contents: str = "m2d_bench.tasks.contents:Contents"

    def __post_init__(self) -> None:
        if [bool(self.layouts), bool(self.generator), bool(self.lister)].count(True) != 1:
            raise UsageError(f"Task {self.name!r} needs one of layouts, generator and lister.")

    @property
    def synthetic(self) -> bool:
        """Whether the clips are generated rather than recorded; tables say so."""
        return self.generator is not None

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
