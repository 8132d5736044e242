"""How a model is fine-tuned: a recipe, one YAML file a published setting, every value overridable."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from m2d_bench.errors import UsageError
from m2d_bench.registry import check_names
from m2d_bench.training import recipes
from m2d_bench.values import Checked, Share

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "recipes"

DEFAULT = "esc50"
"""Recipe of a task that has none of its name."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """A fine-tuning, without the task and where it runs.

    Args:
        optimizer: sgd, lars (of pytorch-optimizer) or adamw.
        learning_rate: Highest rate, after the warm-up.
        batch_size: Clips an optimizer step, over all devices.
        accumulate: Parts in which a device computes its clips of a step: less memory, the same result, a third more
            time.
        epochs: Passes over the training clips.
        warmup_epochs: Of them, those in which the learning rate rises from 0.
        end_rate: Rate at the end of the cosine.
        weight_decay: The optimizer's, on all parameters.
        momentum: SGD's and LARS's.
        beta1: AdamW's.
        beta2: AdamW's.
        amsgrad: AdamW's.
        layer_decay: Factor of the learning rate from a layer to the one below it; 1 for none.
        mixup: α of the Beta distribution that λ is drawn from; 0 for none.
        frequency_mask: Widest band of SpecAugment in mel bins; 0 for none.
        time_mask: Widest band of SpecAugment in frames; 0 for none.
        random_resize_crop: Whether crops are resized.
        patchout_ratio: Share of the patches that structured patchout drops.
        features: flat, the mean of all patches, as patchout needs; or stacked, a frame's patches side by side.
        adjust_positions: Whether clips are encoded at once, the positional embedding resized to their length; else in
            windows of the model's input size.
        freeze_patch_embed: Whether the patch embedding stays as it is.
        sampler: shuffle; or balanced, by inverse label frequency, without replacement.
        epoch_clips: Clips an epoch; all if None.
        lora_rank: Rank of low-rank updates, trained in place of the encoder's weights; 0 trains these.
        lora_alpha: The updates' scale is this over the rank.
        ema_decay: Of a moving average of the weights, which is then what is evaluated and saved; 0 for none.

    Raises:
        UsageError: A value is outside what is allowed.

    Source: M2D-X (2024), Table II and section IV-C.
    """

    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.5
    batch_size: Annotated[int, Field(ge=2)] = 128
    accumulate: PositiveInt = 1
    epochs: PositiveInt = 200
    warmup_epochs: NonNegativeInt = 5
    end_rate: NonNegativeFloat = 1e-7
    weight_decay: NonNegativeFloat = 0.0
    momentum: Share = 0.9
    beta1: Share = 0.9
    beta2: Share = 0.95
    amsgrad: bool = True
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    mixup: NonNegativeFloat = 0.0
    frequency_mask: NonNegativeInt = 0
    time_mask: NonNegativeInt = 0
    random_resize_crop: bool = False
    patchout_ratio: Share = 0.0
    features: Literal["flat", "stacked"] = "flat"
    adjust_positions: bool = False
    freeze_patch_embed: bool = False
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    epoch_clips: Annotated[int, Field(ge=2)] | None = None
    lora_rank: NonNegativeInt = 0
    lora_alpha: PositiveFloat = 16.0
    ema_decay: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end_rate > self.learning_rate:
            raise UsageError(f"end_rate is {self.end_rate}, above learning_rate={self.learning_rate}.")
        if self.warmup_epochs > self.epochs:
            raise UsageError(
                f"warmup_epochs is {self.warmup_epochs}, more than epochs={self.epochs}. Shorten it too: "
                f"--set warmup_epochs={self.epochs // 10}."
            )
        if self.patchout_ratio and self.features != "flat":
            raise UsageError(
                f"patchout_ratio={self.patchout_ratio} leaves no whole frames to stack: it takes features=flat."
            )

    def identity(self) -> dict[str, Any]:
        """The values that can change a score."""
        unused = {"accumulate"}
        unused |= {"momentum"} if self.optimizer == "adamw" else {"beta1", "beta2", "amsgrad"}
        unused |= set() if self.lora_rank else {"lora_alpha"}
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def augments(self) -> bool:
        """Whether a clip looks different each time."""
        drawn = (self.mixup, self.frequency_mask, self.time_mask, self.random_resize_crop, self.patchout_ratio)
        return any(drawn)


def names() -> list[str]:
    """The recipes that come with the package."""
    return recipes.names(FOLDER)


def load(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name or file, with changes.

    Args:
        name: One of `names`, or a YAML file.
        changes: Values to set.

    Raises:
        UsageError: Unknown recipe or value, or one of another type.
    """
    values = {**recipes.read(name, FOLDER), **(changes or {})}
    check_names("value of a recipe", values, [field.name for field in fields(Recipe)])
    return Recipe(**values)


def name_for(task: str) -> str:
    """The recipe of a task: the one of its name, without the format before it; else DEFAULT, said aloud."""
    name = task.rpartition(":")[2]
    if name in names():
        return name
    logger.warning("%s has no recipe of its own; that of %s is used. --recipe names another.", task, DEFAULT)
    return DEFAULT
