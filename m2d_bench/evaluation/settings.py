"""How linear evaluation runs; the defaults are the protocol of the papers. No torch here."""

# No postponed annotations here: the command line and pydantic read them.

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from m2d_bench.settings import Compute, OnBadFile, Storage
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


@dataclass(frozen=True, kw_only=True)
class LinearSettings(ProbeSettings, Compute, Storage):
    """How to evaluate; the defaults are the protocol of the papers.

    Args:
        seeds: Number of runs.
        first_seed: Seed of the first run; the others follow.
        force: Compute finished seeds anew.
        train_fraction: Share of the training clips to train on, drawn anew for each seed and fold.
        keep_predictions: Also keep what each test clip scored, and the validation scores, beside the record.
        clip_seconds: Seconds that clips are cut or padded to; by default each task's own.
        on_bad_file: Sound files that cannot be read make their task fail (stop), or are left out of it (skip), which
            the record tells.
    """

    seeds: PositiveInt = 6
    first_seed: int = 42
    force: bool = False
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    keep_predictions: bool = False
    clip_seconds: PositiveFloat | None = None
    on_bad_file: OnBadFile = "stop"
