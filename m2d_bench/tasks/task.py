"""What a task is: a frozen value that says where its clips lie, how they are labelled and how they are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2d_bench.errors import UsageError

Metric = Literal["accuracy", "mAP"]


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Cross-validation: each fold is the test split once.

    Args:
        column: Column of the index that holds the fold's number or name.
        count: Number of folds.
    """

    column: str
    count: int


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
        metric: How a fold or test split is scored; both metrics count from 0 to 1, higher is better.
        clip_seconds: Unit duration in seconds; clips are cut or zero-padded to it.
        n_classes: Number of classes.
        n_clips: Number of clips in all splits; a data set with another number is an error.
        folds: Cross-validation folds, or None if the column `split` says train, valid or test.
        layouts: Where the clips may lie, tried in order. Empty for a generated task.
        label: Index column of the label; with metric mAP several labels in one cell, separated by commas.
        source: Where the data comes from.
        version: Raised whenever a change would alter scores.
        generator: `module:function` that yields the clips of a synthetic task; see `tasks.synthetic`.
    """

    name: str
    domain: Literal["environment", "speech", "music"]
    metric: Metric
    clip_seconds: float
    n_classes: int
    n_clips: int
    folds: Folds | None = None
    layouts: tuple[Layout, ...] = ()
    label: str = "label"
    source: str = ""
    version: int = 1
    generator: str | None = None

    def __post_init__(self) -> None:
        if bool(self.layouts) == bool(self.generator):
            raise UsageError(f"Task {self.name!r} needs layouts (a data set on disk) or a generator, and not both.")

    @property
    def synthetic(self) -> bool:
        """Whether the clips are generated rather than recorded; tables say so."""
        return self.generator is not None

    @property
    def multilabel(self) -> bool:
        """Whether a clip may have several labels."""
        return self.metric == "mAP"
