"""Which clips train, choose and test: every fold once, or the official split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from m2d_bench.errors import DataError
from m2d_bench.randomness import generator_of
from m2d_bench.tasks.dataset import Dataset

VALIDATION_FRACTION = 0.1


@dataclass(frozen=True, eq=False)
class Split:
    """Clips of one training run, by their place in the task's index, [n] int64 each.

    Args:
        fold: Name of the fold that is tested, or "test".
        train: Clips to train on.
        valid: Clips that choose among epochs or settings.
        test: Clips that are scored.
    """

    fold: str
    train: Tensor
    valid: Tensor
    test: Tensor


def draws_validation(dataset: Dataset) -> bool:
    """Whether a data set has no validation clips of its own, so that they are drawn from the training ones."""
    folds = dataset.task.folds
    return folds.valid == "drawn" if folds else "valid" not in dataset.splits


def splits(dataset: Dataset, seed: int, *, draw: bool = True) -> Iterator[Split]:
    """For each fold, or the official split: its clips.

    Where there is no official validation split, a tenth of the training clips, drawn anew for each seed and fold, takes
    its place; the test fold never does.

    Args:
        dataset: The clips.
        seed: Draws the validation clips.
        draw: Whether to draw them; else such splits have none and train on all.
    """
    labels, drawn = torch.from_numpy(dataset.labels), draws_validation(dataset)

    def clips(names: Sequence[str]) -> Tensor:
        return torch.from_numpy(np.isin(dataset.splits, names)).nonzero().flatten()

    for fold, chooses, trains in dataset.task.roles(dataset.splits):
        train, valid = clips(trains), clips([] if drawn else [chooses])
        if drawn and draw:
            train, valid = draw_validation(labels, train, VALIDATION_FRACTION, generator_of(seed, fold, "validation"))
        yield Split(fold, train, valid, clips([fold]))


def folds(dataset: Dataset) -> list[str]:
    """Names of the folds; of an official split, "test"."""
    return [fold for fold, _, _ in dataset.task.roles(dataset.splits)]


def count_classes(labels: Tensor) -> int:
    """Number of classes by class indices [N], or multi-hot [N, C]."""
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1


def draw_validation(labels: Tensor, rows: Tensor, fraction: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Split rows at random into training and validation, every class with two clips or more in both.

    Validation is larger than the fraction where the classes need it. A clip that stands for several labels goes to
    validation if one of them needs it there, even where another label then misses training.

    Args:
        labels: Class indices [N], or multi-hot [N, C].
        rows: The rows to split, [n] int64.
        fraction: Share of the rows for validation, between 0 and 1.
        generator: Draws the split.

    Returns:
        Training rows and validation rows, each in the order of `rows`.

    Raises:
        DataError: There are fewer than two rows, or the fraction is not between 0 and 1.
    """
    n = len(rows)
    if n < 2 or not 0 < fraction < 1:
        raise DataError(
            f"Cannot draw a validation share of {fraction} from {n} clips: it takes two or more, and 0 to 1."
        )
    order = torch.randperm(n, generator=generator)
    shuffled = labels[rows[order]]
    place, label = shuffled.nonzero().unbind(1) if labels.ndim == 2 else (torch.arange(n), shuffled)
    n_classes = count_classes(labels)
    first = torch.full((n_classes,), n).scatter_reduce(0, label, place, "amin")
    last = torch.full((n_classes,), -1).scatter_reduce(0, label, place, "amax")
    needed = torch.zeros(n, dtype=torch.bool)
    needed[first[first < last]] = True
    kept = torch.zeros(n, dtype=torch.bool)
    kept[last[last >= 0]] = True
    free = (~needed & ~kept).nonzero().squeeze(1)
    missing = max(0, max(1, round(fraction * n)) - int(needed.sum()))
    needed[free[:missing]] = True
    valid = torch.zeros(n, dtype=torch.bool)
    valid[order[needed]] = True
    return rows[~valid], rows[valid]
