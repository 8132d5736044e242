"""Batches of fine-tuning: sampled by seed, fold and step alone, their audio prefetched in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from m2d_bench.encoders.frontend import N_MELS
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.patchout import draw_windows
from m2d_bench.errors import DataError
from m2d_bench.finetuning.recipe import Recipe
from m2d_bench.parallel import map_ahead
from m2d_bench.randomness import generator_of
from m2d_bench.tasks.dataset import Dataset
from m2d_bench.training.augment import draw_crops, draw_masks, draw_mixup

_PREFETCH = 2  # steps that are read while another is trained


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Random draws of one optimizer step, a row a sample of the whole batch.

    Of images, offsets seed the views, crops are what cutmix pastes, and kept is what drop path leaves of the branches.

    Args:
        clips: Indices into the task's clips, [B].
        offsets: Crop offsets of longer clips, see `Dataset.waveform`, [B].
        partner: Row that each is mixed with, [B].
        share: Its own share λ, [B].
        masks: Bands of SpecAugment, [B, 4].
        crops: Boxes of random resize crop, [B, 4].
        kept: Patches that stay, [B, n] for each window; empty without patchout.
    """

    clips: Tensor
    offsets: Tensor
    partner: Tensor
    share: Tensor
    masks: Tensor
    crops: Tensor
    kept: list[Tensor]


class StepSampler:
    """Samples clips and augmentations of each optimizer step.

    Args:
        recipe: How it is augmented.
        labels: Class numbers [N] or multi-hot [N, C], of all clips.
        clips: Those to train on, [n].
        encoder: What is trained; says windows and patches.
        frames: Frames of a clip's spectrogram.
        words: Name the training, for its random generators: seed and fold.

    Raises:
        DataError: Fewer than two clips.
    """

    def __init__(
        self,
        recipe: Recipe,
        labels: Tensor,
        clips: Tensor,
        encoder: M2DEncoder,
        frames: int,
        words: tuple[object, ...],
    ) -> None:
        if len(clips) < 2:
            raise DataError(f"There are {len(clips)} clips to train on; it takes two or more.")
        self.recipe, self.labels, self.clips, self.words = recipe, labels, clips, words
        self.encoder, self.frames = encoder, frames
        self.weights = clip_weights(labels[clips]) if recipe.sampler == "balanced" else None
        self.epoch_clips = min(recipe.epoch_clips or len(clips), len(clips))
        whole, rest = divmod(self.epoch_clips, recipe.batch_size)
        self.steps_per_epoch = whole + (rest > 1)  # batch normalisation needs two
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> Tensor:
        generator = generator_of(*self.words, "order", epoch)
        if self.weights is None:
            order = torch.randperm(len(self.clips), generator=generator)
        else:
            order = torch.multinomial(self.weights, self.epoch_clips, generator=generator)
        return self.clips[order[: self.epoch_clips]]

    def draw(self, step: int) -> Draws:
        """The draws of an optimizer step, numbered from 0 over the whole training."""
        recipe = self.recipe
        epoch, batch = divmod(step, self.steps_per_epoch)
        clips = self._order(epoch)[batch * recipe.batch_size :][: recipe.batch_size]
        count, size = len(clips), (N_MELS, self.frames)
        generator = generator_of(*self.words, "step", step)
        partner, share = draw_mixup(count, recipe.mixup, generator)
        kept = []
        if recipe.patchout_ratio:
            kept = draw_windows(self.encoder, self.frames, recipe.patchout_ratio, count, generator)
        return Draws(
            clips=clips,
            offsets=torch.rand(count, generator=generator),
            partner=partner,
            share=share,
            masks=draw_masks(count, size, (recipe.frequency_mask, recipe.time_mask), generator),
            crops=draw_crops(count, size, generator),
            kept=kept,
        )


def clip_weights(labels: Tensor) -> Tensor:
    """How likely each clip is drawn: the sum over its labels of 1000 / (clips of that label + 100).

    Args:
        labels: Class numbers [N], or multi-hot [N, C].

    Returns:
        [N] float64 above 0.

    Source: Audio-MAE (arXiv 2207.06405), official weights of AudioSet's samples.
    """
    several = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels).float()
    weights = (several @ (1000 / (several.sum(0) + 100))).double()
    return weights.clamp(min=weights[weights > 0].min())  # a clip without labels counts as the least likely


class ClipCache:
    """Decodes clips, and caches those that need no crop in memory.

    Args:
        dataset: The clips.
        sample_rate: Hz.
        jobs: Threads; 0 means one a core.
        memory: Bytes of waveforms to keep.
    """

    def __init__(self, dataset: Dataset, sample_rate: int, jobs: int, memory: float) -> None:
        self.dataset, self.sample_rate, self.jobs = dataset, sample_rate, jobs
        self._free, self._cached = memory, dict[int, np.ndarray]()
        self._longer = dataset.longer

    def read(self, clip: int, offset: float = 0.0) -> np.ndarray:
        """A clip's waveform, see `Dataset.waveform`, [S] float32."""
        if self._longer[clip]:
            return self.dataset.waveform(clip, self.sample_rate, place=offset)
        if clip in self._cached:
            return self._cached[clip]
        waveform = self.dataset.waveform(clip, self.sample_rate)
        if waveform.nbytes <= self._free:
            self._free -= waveform.nbytes
            self._cached[clip] = waveform
        return waveform

    def batches(self, clips: Tensor, size: int) -> Iterator[Tensor]:
        """Clips from their start, in order, [size, S] at a time."""
        waveforms = map_ahead(self.read, clips.tolist(), self.jobs, 2 * size)
        while batch := list(islice(waveforms, size)):
            yield torch.from_numpy(np.stack(batch))

    def prefetch(
        self, sampler: StepSampler, rows: Callable[[int], Tensor], start: int, end: int
    ) -> Iterator[tuple[Draws, Tensor, Tensor]]:
        """Steps of a sampler with their audio, read while others are trained.

        Args:
            sampler: Draws the steps.
            rows: Rows of a batch of so many samples that this process takes, [m].
            start: First step.
            end: The step after the last.

        Yields:
            The draws, and the waveforms of the rows and of their partners, [m, S] each.
        """
        with ThreadPoolExecutor(self.jobs or os.cpu_count()) as pool:

            def submit(step: int) -> tuple[Draws, list[list[Future[np.ndarray]]]]:
                draws = sampler.draw(step)
                own = rows(len(draws.clips))
                clips, offsets = draws.clips.tolist(), draws.offsets.tolist()
                wanted = [own.tolist(), draws.partner[own].tolist()]
                futures = {row: pool.submit(self.read, clips[row], offsets[row]) for row in set().union(*wanted)}
                return draws, [[futures[row] for row in half] for half in wanted]

            waiting = deque(submit(step) for step in range(start, min(end, start + _PREFETCH)))
            for step in range(start + _PREFETCH, end + _PREFETCH):
                if step < end:
                    waiting.append(submit(step))
                draws, futures = waiting.popleft()
                own, partners = (torch.from_numpy(np.stack([future.result() for future in half])) for half in futures)
                yield draws, own, partners
