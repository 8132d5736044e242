"""Which clips train, choose and test: every fold once, or the official split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m2d_bench.dataset import Dataset
from m2d_bench.probes import draw_validation, generator_of

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

    for fold, chooses, trains in _roles(dataset):
        train, valid = clips(trains), clips([] if drawn else [chooses])
        if drawn and draw:
            train, valid = draw_validation(labels, train, VALIDATION_FRACTION, generator_of(seed, fold, "validation"))
        yield Split(fold, train, valid, clips([fold]))


def folds(dataset: Dataset) -> list[str]:
    """Names of the folds; of an official split, "test"."""
    return [fold for fold, _, _ in _roles(dataset)]


def _roles(dataset: Dataset) -> Iterator[tuple[str, str, list[str]]]:
    """For each fold, or the official split: what tests, what chooses (if it is not drawn), what trains."""
    own = dataset.task.folds
    if own is None:
        yield "test", "valid", ["train"]
        return
    names = sorted(set(dataset.splits.tolist()))
    for test, following in zip(names, names[1:] + names[:1], strict=True):
        held = {test, following} if own.valid == "next" else {test}
        yield test, following, [name for name in names if name not in held]
