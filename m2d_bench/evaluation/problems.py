"""What a probe is given and gives back: settings, problems, results."""

# No postponed annotations here: the command line reads the types of ProbeSettings from another module's subclass.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from m2d_bench.randomness import generator_of
from m2d_bench.values import Checked


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Checked):
    """How a probe is trained; the defaults are the papers' linear evaluation.

    Args:
        probe: `linear`, or scikit-learn's nearest neighbours (cosine) or logistic regression.
        learning_rate: Adam's.
        weight_decay: Adam's, added to the gradient (L2).
        probe_batch_size: Clips a step; an epoch's last batch may be smaller.
        epochs: Most epochs trained.
        patience: Epochs below the best validation score after which training stops; a tie counts as better.

    Source: M2D-X (2024), section IV-B.
    """

    probe: Literal["linear", "knn", "logreg"] = "linear"
    learning_rate: PositiveFloat = 3e-5
    weight_decay: NonNegativeFloat = 1e-8
    probe_batch_size: PositiveInt = 200
    epochs: PositiveInt = 200
    patience: PositiveInt = 20


@dataclass(frozen=True, eq=False)
class Problem:
    """One training run: one seed on one fold, or on the official split.

    Args:
        seed: Draws, with the fold, the initial weights and the order of the batches.
        fold: Name of the fold or split.
        train: Rows of the feature matrix to train on, [n] int64.
        valid: Rows that choose the epoch (or k, or C).
        test: Rows that are scored.
    """

    seed: int
    fold: str
    train: Tensor
    valid: Tensor
    test: Tensor

    def generator(self) -> Generator:
        """A fresh CPU generator that depends on seed and fold alone, so that every device draws the same."""
        return generator_of(self.seed, self.fold)


@dataclass(frozen=True)
class ProbeResult:
    """What one problem scored.

    Args:
        seed: The problem's.
        fold: The problem's.
        score: Test metric.
        n_test: Number of test rows.
        others: The other metrics' scores.
        valid_scores: Validation metric of each epoch, k or C tried.
        chosen: What validation chose, its best: `{"epoch": 57}` (from 1), `{"k": 5}` or `{"C": 0.1}`.
        logits: Scores of the test rows, larger with the belief in a class, [N, C] on the CPU.
    """

    seed: int
    fold: str
    score: float
    n_test: int
    valid_scores: Sequence[float]
    chosen: Mapping[str, float]
    others: Mapping[str, float]
    logits: Tensor = field(repr=False, compare=False)
