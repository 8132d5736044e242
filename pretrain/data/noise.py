"""Background noise: clips of another source, mixed into crops in the log-mel domain."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from m2d_bench.errors import UsageError
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.data.source import Crops, Derived, Source


class NoisySource(Derived):
    """Clips with background noise.

    The noise clips follow each other in one random order after another, and which is mixed into a crop depends on the
    seed and the crop's number in the training alone.

    Args:
        source: The clips, their norm_stats known.
        noise: Clips of noise, their norm_stats known.
        ratio: Share η of the noise, from 0 to 1, which replaces the clips.
        seed: Of the orders and of the noise's crops.

    Raises:
        UsageError: A ratio outside, or clips of images.

    Source: M2D-X (2024), section III-B.
    """

    def __init__(self, source: Source, noise: Source, ratio: float, seed: int) -> None:
        super().__init__(source, noise=noise.fingerprint)
        if not 0 <= ratio <= 1:
            raise UsageError(f"noise_ratio is from 0, none, to 1, nothing but noise; got {ratio}.")
        if source.channels != 1 or noise.channels != 1:
            raise UsageError("Noise is mixed into sound; the clips or the noise are images.")
        self._noise, self._ratio, self._seed = noise, ratio, seed
        self.noise_norm_stats = noise.norm_stats

    def crops(self, clips: np.ndarray, rngs: Iterable[np.random.Generator], first: int = 0) -> Crops:
        """Reads crops, and one of a noise clip for each."""
        numbers = range(first, first + len(clips))
        chosen = np.array([self._noise_clip(number) for number in numbers])
        own = (np.random.default_rng([self._seed, 1, number]) for number in numbers)
        return super().crops(clips, rngs, first)._replace(noise=self._noise.crops(chosen, own).values)

    def batch(self, crops: Crops, device: torch.device) -> Batch:
        """Crops with noise, and without it as `clean`."""
        batch = super().batch(crops, device)
        assert crops.noise is not None
        assert self.noise_norm_stats
        assert self.norm_stats
        noise = repeated(self._noise.spectrogram(crops.noise.to(device, non_blocking=True))) - self.noise_norm_stats[0]
        std = self.norm_stats[1]
        return batch._replace(log_mel=mixed(batch.log_mel * std, noise, self._ratio) / std, clean=batch.log_mel)

    def _noise_clip(self, number: int) -> int:
        turn, place = divmod(number, self._noise.n_clips)
        return int(_order(self._seed, turn, self._noise.n_clips)[place])


@lru_cache(maxsize=2)  # a chunk of crops may begin in one order and end in the next
def _order(seed: int, turn: int, n_clips: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, turn]).permutation(n_clips)


def repeated(spectrogram: Tensor) -> Tensor:
    """Repeats what is shorter than a crop.

    Args:
        spectrogram: [B, 1, F, T], NaN behind the end of a clip.

    Returns:
        The same without NaN.
    """
    lengths = (~spectrogram[:, :, :1].isnan()).sum(-1, keepdim=True).clamp(min=1)
    frames = torch.arange(spectrogram.shape[-1], device=spectrogram.device) % lengths
    return spectrogram.gather(-1, frames.expand_as(spectrogram))


def mixed(clean: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """log((1 − η)·exp(clean) + η·exp(noise)) of centred log-mels.

    Args:
        clean: Centred by the mean of its data, 0 behind the end of a clip.
        noise: Centred by the mean of its own, of the same shape.
        ratio: η: 0 gives the clean one as it is, 1 the noise.

    Source: M2D-X (2024), section III-B.
    """
    if ratio in (0, 1):
        return noise if ratio else clean
    return torch.logaddexp(clean + math.log(1 - ratio), noise + math.log(ratio))
