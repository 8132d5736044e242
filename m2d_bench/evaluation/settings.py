"""How linear evaluation runs; the defaults are the protocol of the papers. No torch here."""

# No postponed annotations here: the command line and pydantic read them.

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from m2d_bench.errors import UsageError
from m2d_bench.output import Names
from m2d_bench.settings import Compute, OnBadFile, Storage
from m2d_bench.values import Checked

MIXING_LEARNING_RATE = 3e-3
"""Adam's for the logits of a mixture, by reparametrisation.

A step of Adam does not depend on the gradient's size: at the papers' learning rate of 3e-5, the 400 steps of a task as
small as ESC-10 would leave every mixture the mean.
"""

LEAST_SEEDS, MOST_SEEDS = 3, 30
"""Where their number is left open."""

Pooling = Literal["mean", "mean+std", "max", "flat"]
"""What makes one vector of a clip's frames; docs/layers.md says how."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(Checked):
    """How a probe is trained; the defaults are the papers' linear evaluation.

    Args:
        probe: linear; knn or logreg, scikit-learn's nearest neighbours (cosine) or logistic regression; or attentive, a
            linear layer on the frames' mean under a learned attention.
        learning_rate: Adam's.
        weight_decay: Adam's, added to the gradient (L2).
        probe_batch_size: Clips a step; an epoch's last batch may be smaller.
        epochs: Most epochs trained.
        patience: Epochs below the best validation score after which training stops; a tie counts as better.

    Source: M2D-X (2024), section IV-B.
    """

    probe: Literal["linear", "knn", "logreg", "attentive"] = "linear"
    learning_rate: PositiveFloat = 3e-5
    weight_decay: NonNegativeFloat = 1e-8
    probe_batch_size: PositiveInt = 200
    epochs: PositiveInt = 200
    patience: PositiveInt = 20


@dataclass(frozen=True, kw_only=True)
class LinearSettings(ProbeSettings, Compute, Storage):
    """How to evaluate; the defaults are the protocol of the papers.

    Args:
        seeds: Number of runs; or until=WIDTH, which goes on from 3 until the half width of the 95% interval is below
            WIDTH in the table's unit, or a comparison with a baseline is decided, but not beyond 30.
        first_seed: Seed of the first run; the others follow.
        force: Compute finished seeds anew.
        layer: Which of the encoder's layers, from 1, instead of its own embedding; all, each on its own; or weighted,
            their sum under learned weights.
        pooling: mean, mean+std, max or flat of the frames, or several separated by commas, instead of the encoder's own
            embedding; mean where only --layer is given.
        encoding: chunks or one_pass: how models of the M2D family take clips longer than their input; by default as
            the model says.
        train_fraction: Share of the training clips to train on, drawn anew for each seed and fold.
        keep_predictions: Also keep what each test clip scored, and the validation scores, beside the record.
        clip_seconds: Seconds that clips are cut or padded to; by default each task's own.
        on_bad_file: Sound files that cannot be read make their task fail (stop), or are left out of it (skip), which
            the record tells.
    """

    seeds: int | str = 6
    first_seed: int = 42
    force: bool = False
    layer: int | str | None = None
    pooling: Annotated[tuple[Pooling, ...], Names] = ()
    encoding: Literal["chunks", "one_pass"] | None = None
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    keep_predictions: bool = False
    clip_seconds: PositiveFloat | None = None
    on_bad_file: OnBadFile = "stop"

    @property
    def own_embedding(self) -> bool:
        """Whether it is an encoder's own embedding that is probed, which every encoder has."""
        return self.layer is None and not self.pooling and self.encoding is None

    @property
    def until(self) -> float | None:
        """The half width that ends the runs, in the table's unit; None where their number is given."""
        return float(self.seeds.removeprefix("until=")) if isinstance(self.seeds, str) else None

    def __post_init__(self) -> None:
        _check_seeds(self.seeds)
        object.__setattr__(self, "layer", _layer(self.layer))
        if isinstance(self.pooling, str):
            object.__setattr__(self, "pooling", tuple(map(str.strip, self.pooling.split(","))))
        super().__post_init__()
        if self.probe == "attentive" and self.pooling:
            raise UsageError("The attentive probe learns how to pool frames: leave out pooling, or take probe linear.")
        if self.probe == "attentive" and self.layer in ("all", "weighted"):
            raise UsageError(f"The attentive probe takes the frames of one layer, got {self.layer}. Name its number.")
        if self.probe != "linear" and self.layer == "weighted":
            raise UsageError(f"Layers are weighted with probe linear, got {self.probe}. Name a layer's number, or all.")


def _check_seeds(value: object) -> None:
    width = re.fullmatch(r"until=(\d*\.?\d+)", value) if isinstance(value, str) else None
    if not (float(width[1]) > 0 if width else type(value) is int and value > 0):
        raise UsageError(
            f"seeds is {value!r}; it is a number of runs from 1, or until= and a half width above 0 in the table's "
            "unit, such as until=0.5."
        )


def _layer(value: object) -> int | str | None:
    """A layer by its number, which "2", 2.0 and NumPy's 2 are too, or by name."""
    if value is None or (isinstance(value, str) and value in ("all", "weighted")):
        return value
    if not re.fullmatch(r"[1-9][0-9]*(\.0)?", str(value)):
        raise UsageError(f"layer is {value!r}; it is a number from 1, all or weighted.")
    return int(str(value).removesuffix(".0"))
