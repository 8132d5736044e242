"""What is trained and how: a recipe, one YAML file a published setting, every value overridable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from m2d_bench.encoders.vit import SIZES, ViTConfig
from m2d_bench.errors import UsageError
from m2d_bench.pretrain import method
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.registry import check_names, unknown
from m2d_bench.training import recipes
from m2d_bench.values import Checked, Share

FOLDER = Path(__file__).parent / "recipes"

PRESETS: dict[str, dict[str, Any]] = {
    "audioset": {"epochs": 300, "warmup_epochs": 20, "effective_batch": 2048, "epoch_clips": None},
    "librispeech": {"epochs": 1000, "warmup_epochs": 60, "effective_batch": 2048, "epoch_clips": None},
    "small": {"epochs": 600, "warmup_epochs": 24, "effective_batch": 128, "epoch_clips": 10_000},
}
"""Durations and batches by the size of the data: 2 million clips, 281 thousand, ten thousand or less.

Source: M2D-X (2024), sections IV-B, IV-D and IV-E.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """A pre-training, without where it runs.

    Args:
        method: A module of `pretrain.methods`.
        arguments: The method's.
        size: tiny, small, base or large.
        patch_size: (frequency, time) in mel bins and frames, or in pixels.
        input_size: (frequency, time) of a crop.
        channels: 1 for audio, 3 for images.
        sample_rate: 16000 or 32000 Hz.
        epochs: Passes over the data.
        warmup_epochs: Of them, those in which the learning rate rises.
        effective_batch: Samples an optimizer step, over all devices and accumulated batches.
        epoch_clips: Samples an epoch; the number of clips if None, else these are repeated or cut to it.
        base_rate: Learning rate of a batch of 256; the peak is in proportion to the effective batch.
        weight_decay: AdamW's, except on biases and norms.
        beta1: AdamW's.
        beta2: AdamW's.
        clip_norm: Largest norm of the gradient.
        noise_ratio: Share of background noise in the input, from 0 to 1.
        seed: Of everything drawn: weights, crops, order, masks.

    Raises:
        UsageError: A value is outside what is allowed.

    Source: M2D (2023), section 4.1; M2D-X (2024), section IV-A.
    """

    method: str = "m2d"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    size: Literal["tiny", "small", "base", "large"] = "base"
    patch_size: tuple[PositiveInt, PositiveInt] = (16, 16)
    input_size: tuple[PositiveInt, PositiveInt] = (80, 608)
    channels: PositiveInt = 1
    sample_rate: PositiveInt = 16000
    epochs: PositiveInt = 300
    warmup_epochs: NonNegativeInt = 20
    effective_batch: PositiveInt = 2048
    epoch_clips: PositiveInt | None = None
    base_rate: PositiveFloat = 3e-4
    weight_decay: NonNegativeFloat = 0.05
    beta1: Share = 0.9
    beta2: Share = 0.95
    clip_norm: PositiveFloat = 3.0
    noise_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs > self.epochs:
            raise UsageError(f"warmup_epochs is {self.warmup_epochs}; it must be from 0 to epochs={self.epochs}.")

    @property
    def vit(self) -> ViTConfig:
        """Shape of the encoder."""
        width, depth = SIZES[self.size]
        return ViTConfig(
            width=width,
            depth=depth,
            patch_size=self.patch_size,
            input_size=self.input_size,
            channels=self.channels,
        )

    @property
    def method_arguments(self) -> Any:
        """The method's `Arguments`."""
        return method.arguments_of(self.method)(**self.arguments)

    def build(self) -> MaskedModel:
        """The method, its weights not yet drawn."""
        return method.build(self.method, self.vit, self.arguments)

    def values(self) -> dict[str, Any]:
        """All values as plain data, the method's arguments among the others."""
        own = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        del own["arguments"]
        return {**own, **self.arguments}


def names() -> list[str]:
    """The recipes that come with the package."""
    return recipes.names(FOLDER)


def load(name: str | Path, preset: str | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name or file, with changes.

    Args:
        name: One of `names`, or a YAML file.
        preset: One of PRESETS, for the size of the data.
        changes: Values to set, of the recipe or of its method.

    Raises:
        UsageError: Unknown recipe, preset or value, or one of another type.
    """
    values = recipes.read(name, FOLDER)
    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    return resolve({**values, **PRESETS.get(preset or "", {}), **(changes or {})})


def resolve(values: Mapping[str, Any]) -> Recipe:
    """A recipe of plain values, those of its method among them.

    Raises:
        UsageError: Unknown names, or values of another type than the default's.
    """
    arguments = method.arguments_of(str(values.get("method", Recipe.method)))
    own = [field.name for field in fields(Recipe) if field.name != "arguments"]
    check_names("value of a recipe", values, [*own, *(field.name for field in fields(arguments))])
    given = {name: value for name, value in values.items() if name not in own}
    checked = vars(arguments(**given))
    chosen = {name: checked[name] for name in given}
    return Recipe(**{name: values[name] for name in own if name in values}, arguments=chosen)
