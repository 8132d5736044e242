"""Clips held out of training, on which features and loss are monitored: collapse shows here first."""

from __future__ import annotations

from collections import defaultdict
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from m2d_bench.pretrain import pictures
from m2d_bench.pretrain.data.source import Source, Subset
from m2d_bench.pretrain.features import diagnose
from m2d_bench.pretrain.masking import Mask
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.randomness import generator_of
from m2d_bench.training.log import Log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 64


def split(source: Source, held_out: int, seed: int) -> tuple[Subset | None, Source]:
    """Splits clips into held-out ones and those to train on.

    Args:
        source: All clips.
        held_out: How many are held out; at most a tenth, and two or more or none.
        seed: Decides which.

    Returns:
        The clips held out, or None, and the others.
    """
    count = min(held_out, source.n_clips // 10)
    if count < 2:
        return None, source
    order = np.random.default_rng([seed, source.n_clips]).permutation(source.n_clips)
    return Subset(source, np.sort(order[:count])), Subset(source, np.sort(order[count:]))


class HeldOutMonitor:
    """Evaluates a method on held-out clips while it trains.

    Args:
        method: What trains.
        source: The held-out clips.
        device: Of the method.
        log: Where the results go.
        seed: Of the crops and masks, the same at every evaluation.

    Raises:
        UsageError: matplotlib, which draws the pictures, is not installed.
    """

    def __init__(self, method: MaskedModel, source: Source, device: torch.device, log: Log, seed: int) -> None:
        pictures.check_installed()
        self._method, self._source, self._device, self._log, self._seed = method, source, device, log, seed
        clips, rngs = np.arange(source.n_clips), repeat(np.random.default_rng([seed, 0]))
        self._batches = [source.crops(clips[i : i + BATCH], rngs, i) for i in range(0, len(clips), BATCH)]

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Logs rank and spread of the features, the losses, and a picture of the first samples."""
        was_training = self._method.training
        self._method.eval()
        features: list[Tensor] = []
        losses: defaultdict[str, float] = defaultdict(float)
        for number, crops in enumerate(self._batches):
            batch = self._source.batch(crops, self._device)
            features.append(self._method.encode(self._method.encoder.embed(batch.log_mel))[:, 1:].float().mean(1).cpu())
            mask = self._method.draw_mask(len(crops.clips), generator_of(self._seed, "held out", number))
            result = self._method(batch, Mask(*(patches.to(self._device) for patches in mask)))
            for name, loss in result.losses.items():
                losses[f"held_out/{name}"] += float(loss) * len(crops.clips) / self._source.n_clips
            if not number:
                self._save("patches", step, self._method.picture(batch.log_mel[: pictures.SAMPLES], result))
                if batch.clean is not None:
                    self._save("noise", step, pictures.with_noise(batch.clean, batch.log_mel))
        diagnosis = {f"held_out/{name}": value for name, value in diagnose(torch.cat(features)).items()}
        self._log.scalars(step, {**losses, **diagnosis})
        self._method.train(was_training)

    def _save(self, name: str, step: int, picture: Figure) -> None:
        path = self._log.folder / "pictures" / f"{name}-{step}.png"
        pictures.save(picture, path)
        self._log.picture(step, name, path)
