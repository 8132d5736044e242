"""Looks at the features of held-out clips while a method trains: collapse shows here first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from m2d_bench.pretrain import pictures
from m2d_bench.pretrain.features import diagnose
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.pretrain.sources import Source
from m2d_bench.randomness import generator_of
from m2d_bench.training.log import Log

BATCH = 64


class Subset(Source):
    """Some clips of a source.

    Args:
        source: All clips.
        indices: Which of them.
    """

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices
        self.n_clips = len(indices)
        self.fingerprint = hashlib.sha256(source.fingerprint.encode() + indices.tobytes()).hexdigest()[:16]

    @property
    def norm_stats(self) -> tuple[float, float] | None:  # type: ignore[override]
        """The whole source's."""
        return self._source.norm_stats

    @norm_stats.setter
    def norm_stats(self, value: tuple[float, float] | None) -> None:
        self._source.norm_stats = value

    def names(self, indices: Iterable[int]) -> list[str]:
        """Files of clips."""
        return self._source.names(int(self._indices[index]) for index in indices)

    def read(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """A random crop; see `Source.read`."""
        return self._source.read(int(self._indices[index]), rng)

    def spectrogram(self, batch: Tensor) -> Tensor:
        """A batch of crops as what is normalised; see `Source.spectrogram`."""
        return self._source.spectrogram(batch)


def split(source: Source, held_out: int, seed: int) -> tuple[Subset | None, Source]:
    """Keeps clips out of training.

    Args:
        source: All clips.
        held_out: How many; at most a tenth, and two or more or none.
        seed: Decides which.

    Returns:
        The clips kept out, or None, and the others.
    """
    count = min(held_out, source.n_clips // 10)
    if count < 2:
        return None, source
    order = np.random.default_rng([seed, source.n_clips]).permutation(source.n_clips)
    return Subset(source, np.sort(order[:count])), Subset(source, np.sort(order[count:]))


class Watch:
    """Held-out clips and what is logged of them.

    Args:
        method: What trains.
        held: The clips.
        device: Of the method.
        log: Where it goes.
        seed: Of the crops and masks, the same at every look.

    Raises:
        UsageError: matplotlib, which draws the pictures, is not installed.
    """

    def __init__(self, method: MaskedModel, held: Source, device: torch.device, log: Log, seed: int) -> None:
        pictures.check_installed()
        self._method, self._device, self._log, self._seed = method, device, log, seed
        rng = np.random.default_rng([seed, 0])
        self._crops = torch.from_numpy(np.stack([held.read(index, rng) for index in range(held.n_clips)]))
        self._held = held

    @torch.no_grad()
    def look(self, step: int) -> None:
        """Logs rank and spread of the features, the loss on held-out clips, and a picture of the step."""
        was_training = self._method.training
        self._method.eval()
        features, losses = [], []
        for number, crops in enumerate(self._crops.split(BATCH)):
            x = self._held.log_mel(crops.to(self._device))
            features.append(self._method.encode(self._method.encoder.embed(x))[:, 1:].float().mean(1).cpu())
            mask = self._method.draw_mask(len(x), generator_of(self._seed, "held out", number))
            result = self._method(x, type(mask)(*(each.to(self._device) for each in mask)))
            losses.append((len(x), float(result.loss)))
            if not number:
                path = self._log.folder / "pictures" / f"patches-{step}.png"
                pictures.save(self._method.picture(x[: pictures.SAMPLES], result), path)
                self._log.picture(step, "patches", path)
        loss = sum(count * value for count, value in losses) / sum(count for count, _ in losses)
        self._log.scalars(step, {"held_out/loss": loss, **{f"held_out/{k}": v for k, v in self._diagnosed(features)}})
        self._method.train(was_training)

    @staticmethod
    def _diagnosed(features: list[Tensor]) -> Iterable[tuple[str, float]]:
        return diagnose(torch.cat(features)).items()
