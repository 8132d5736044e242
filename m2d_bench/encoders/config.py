"""What determines an encoder of the M2D family beside its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from m2d_bench.encoders.frontend import DEFAULT_NORM_STATS, N_MELS, SAMPLE_RATES
from m2d_bench.encoders.vit import ViTConfig
from m2d_bench.errors import UsageError

Features = Literal["stacked", "flat"]
Encoding = Literal["chunks", "one_pass"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that, with the weights, determines an embedding.

    Args:
        name: Name of the model, for people; not part of its identity.
        vit: Shape of the transformer.
        sample_rate: 16000 or 32000 Hz.
        norm_stats: Mean and standard deviation of the log-mel spectrograms of pre-training.
        features: "stacked" concatenates the frequency patches of a frame (N_F·D), "flat" averages them (D).
        encoding: "chunks" cuts the input into windows of the model's input size; "one_pass" encodes it at once, with
            the positional embedding resized when the input is wider.
        dur_frames: With "one_pass", the window in frames instead of the whole input (fine-tuning's fixed length).
    """

    name: str
    vit: ViTConfig
    sample_rate: int = 16000
    norm_stats: tuple[float, float] = DEFAULT_NORM_STATS
    features: Features = "stacked"
    encoding: Encoding = "chunks"
    dur_frames: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("features", get_args(Features)), ("encoding", get_args(Encoding))):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.sample_rate not in SAMPLE_RATES:
            raise UsageError(f"The front end knows {SAMPLE_RATES} Hz, got sample_rate={self.sample_rate!r}.")
        if self.vit.input_size[0] != N_MELS:
            raise UsageError(f"The front end gives {N_MELS} mel bins, the input size says {self.vit.input_size[0]}.")
        if self.vit.channels != 1:
            raise UsageError(f"The front end gives one channel, the patch embedding takes {self.vit.channels}.")
        numbers = isinstance(self.norm_stats, tuple | list) and [
            isinstance(x, int | float) and math.isfinite(x) for x in self.norm_stats
        ]
        if numbers != [True, True] or not self.norm_stats[1] > 0:
            raise UsageError(f"norm_stats is (mean, standard deviation above 0), both finite, got {self.norm_stats!r}.")
        if not isinstance(self.dur_frames, int | None):
            raise UsageError(f"dur_frames is a whole number of frames, got {self.dur_frames!r}.")
        if self.dur_frames is not None and (self.encoding != "one_pass" or self.dur_frames < self.vit.patch_size[1]):
            raise UsageError(
                f"dur_frames={self.dur_frames}: a window for encoding='one_pass' of at least one patch "
                f"({self.vit.patch_size[1]} frames); encoding is {self.encoding!r}."
            )
