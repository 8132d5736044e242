"""How a model is fine-tuned: a recipe, one YAML file a published setting, every value overridable."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2d_bench.errors import UsageError
from m2d_bench.registry import unknown
from m2d_bench.training import recipes

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "recipes"

DEFAULT = "esc50"
"""Recipe of a task that has none of its name."""

OPTIMIZERS = ("sgd", "lars", "adamw")
_SHARES = ("patchout_ratio", "momentum", "beta1", "beta2", "ema_decay")
_CHOICES = {"optimizer": OPTIMIZERS, "features": ("flat", "stacked"), "sampler": ("shuffle", "balanced")}


@dataclass(frozen=True, kw_only=True)
class Recipe:
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

    optimizer: str = "sgd"
    learning_rate: float = 0.5
    batch_size: int = 128
    accumulate: int = 1
    epochs: int = 200
    warmup_epochs: int = 5
    end_rate: float = 1e-7
    weight_decay: float = 0.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.95
    amsgrad: bool = True
    layer_decay: float = 1.0
    mixup: float = 0.0
    frequency_mask: int = 0
    time_mask: int = 0
    random_resize_crop: bool = False
    patchout_ratio: float = 0.0
    features: str = "flat"
    adjust_positions: bool = False
    freeze_patch_embed: bool = False
    sampler: str = "shuffle"
    epoch_clips: int | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed, f"these: {', '.join(allowed)}")
        least = {"batch_size": 2, "accumulate": 1, "epochs": 1}
        for name in ("mixup", "frequency_mask", "time_mask", "weight_decay", "end_rate", "lora_rank", "warmup_epochs"):
            least[name] = 0
        if self.epoch_clips is not None:
            least["epoch_clips"] = 2
        for name, minimum in least.items():
            if not getattr(self, name) >= minimum:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {minimum}.")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        for name in ("learning_rate", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if self.end_rate > self.learning_rate:
            raise UsageError(f"end_rate is {self.end_rate}, above learning_rate={self.learning_rate}.")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1.")
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
    return Recipe(**recipes.check(values, asdict(Recipe())))


def name_for(task: str) -> str:
    """The recipe of a task: the one of its name, without the format before it; else DEFAULT, said aloud."""
    name = task.rpartition(":")[2]
    if name in names():
        return name
    logger.warning("%s has no recipe of its own; that of %s is used. --recipe names another.", task, DEFAULT)
    return DEFAULT
