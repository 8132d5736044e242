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

    folder = FOLDER
    default = "esc50"  # recipe of a task that has none of its name
    kind = "a recipe"
    spares_vectors = False  # whether weight decay does
    absent = frozenset[str]()  # fields that are no values of this kind

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
        unused = {"accumulate", *self.absent}
        unused |= {"momentum"} if self.optimizer == "adamw" else {"beta1", "beta2", "amsgrad"}
        unused |= set() if self.lora_rank else {"lora_alpha"}
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def augments(self) -> bool:
        """Whether a clip looks different each time."""
        drawn = (self.mixup, self.frequency_mask, self.time_mask, self.random_resize_crop, self.patchout_ratio)
        return any(drawn)


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """A fine-tuning on images, whose crops are random. Of a recipe's values, those about spectrograms are not there.

    Mixup and cutmix take turns at random, with one λ a batch. Weight decay spares biases, norms, class token and
    positions.

    Args:
        cutmix: α of the Beta distribution that the share λ of cutmix is drawn from; 0 for none.
        label_smoothing: Share of a label that all classes get in equal parts.
        drop_path: How often the last block's branches are left out of a sample; of the blocks before, less and less.
        rand_augment: Strength of RandAugment's two changes an image, 0 to 10; 0 for none.
        erasing: How often a box of an image is filled with noise.
        pooling: What is classified: the mean over the patches, or the class token; after a layer normalisation, which
            for the mean starts fresh.

    Source: MAE (arXiv 2111.06377), appendix A.1 and official code.
    """

    folder = FOLDER / "images"
    default = "image"
    kind = "a recipe of images"
    spares_vectors = True
    absent = frozenset(
        ("frequency_mask", "time_mask", "random_resize_crop", "patchout_ratio", "features", "adjust_positions")
    )

    cutmix: NonNegativeFloat = 0.0
    label_smoothing: Share = 0.0
    drop_path: Share = 0.0
    rand_augment: Annotated[float, Field(ge=0, le=10)] = 0.0
    erasing: Share = 0.0
    pooling: Literal["mean", "class"] = "mean"

    def augments(self) -> bool:
        """Whether an image looks different each time."""
        return True


def names(kind: type[Recipe] = Recipe) -> list[str]:
    """The recipes of a kind that come with the package."""
    return recipes.names(kind.folder)


def load(name: str | Path, changes: Mapping[str, Any] | None = None, kind: type[Recipe] = Recipe) -> Recipe:
    """A recipe by name or file, with changes.

    Args:
        name: One of `names`, or a YAML file.
        changes: Values to set.
        kind: Of sound, or of images.

    Raises:
        UsageError: Unknown recipe or value, or one of another type.
    """
    values = {**recipes.read(name, kind.folder), **(changes or {})}
    check_names(
        f"value of {kind.kind}", values, [field.name for field in fields(kind) if field.name not in kind.absent]
    )
    return kind(**values)


def name_for(task: str, kind: type[Recipe] = Recipe) -> str:
    """The recipe of a task: the one of its name, without the format before it; else the kind's default.

    A warning says so where there are others.
    """
    name = task.rpartition(":")[2]
    if name in names(kind):
        return name
    if len(names(kind)) > 1:
        logger.warning("%s has no recipe of its own; that of %s is used. --recipe names another.", task, kind.default)
    return kind.default
