"""What a probe is given and gives back: problems, outcomes and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Generator, Tensor

from m2d_bench.randomness import generator_of


@dataclass(frozen=True, eq=False)
class Problem:
    """One training run: one seed on one fold, or on the official split.

    Args:
        seed: Draws, with the fold, the initial weights and the order of the batches.
        fold: Name of the fold or split.
        train: Rows of the feature matrix to train on, [n] int64.
        valid: Rows that choose the epoch (or k, or C).
        test: Rows that are scored.
        view: Which it is of several feature matrices that lie one below the other.
    """

    seed: int
    fold: str
    train: Tensor
    valid: Tensor
    test: Tensor
    view: int = 0

    def generator(self) -> Generator:
        """A fresh CPU generator that depends on seed and fold alone, so that every device draws the same."""
        return generator_of(self.seed, self.fold)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What training one problem gave.

    Args:
        index: The problem's, among those trained.
        chosen: What validation chose, its best: `{"epoch": 57}` (from 1), `{"k": 5}` or `{"C": 0.1}`;
            of layers also their weights.
        valid_scores: Validation metric of each epoch, k or C tried.
        logits: Scores of the test rows by what was chosen, larger with the belief in a class, [N, C].
    """

    index: int
    chosen: Mapping[str, float]
    valid_scores: Sequence[float]
    logits: Tensor


@dataclass(frozen=True)
class ProbeResult:
    """What one problem scored.

    Args:
        seed: The problem's.
        fold: The problem's.
        score: Test metric.
        n_test: Number of test rows.
        view: The problem's.
        others: The other metrics' scores.
        valid_scores: The outcome's.
        chosen: The outcome's.
        logits: The outcome's, on the CPU.
    """

    seed: int
    fold: str
    score: float
    n_test: int
    view: int
    valid_scores: Sequence[float]
    chosen: Mapping[str, float]
    others: Mapping[str, float]
    logits: Tensor = field(repr=False, compare=False)
