"""Batches of random crops, drawn by a sampler and read by worker processes.

An epoch is one permutation of all clips, drawn from (seed, epoch). Global batch s is its slice [s·W·b : (s+1)·W·b]
for W ranks and batches of b; rank r reads [r·b : (r+1)·b] of it. The offset of a crop is drawn from (seed, epoch,
position in the permutation), and so is the clip that takes the place of one that cannot be read. So batches depend
neither on the number of ranks or workers nor on where an epoch was resumed.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from m2d_bench.errors import M2DBenchError, UsageError
from m2d_bench.pretrain.data.source import Crops, Source
from m2d_bench.training.signals import stop_signals_blocked

logger = logging.getLogger(__name__)

CHUNK = 64
"""Crops a worker reads at a time, which bounds the memory of prefetching whatever the batch size."""

_PREFETCH = 4  # chunks a worker reads ahead


class Chunk(NamedTuple):
    """A part of a batch.

    Args:
        epoch: Which epoch.
        position: Of its first crop in the epoch's permutation.
        clips: Clips to crop, [n].
        last: Whether it ends the batch.
    """

    epoch: int
    position: int
    clips: np.ndarray
    last: bool


@dataclass(frozen=True, kw_only=True)
class EpochSampler:
    """Draws the order in which a rank reads clips; iterates over its chunks.

    Args:
        n_clips: Clips of the source.
        batch_size: Crops a batch and rank.
        seed: Of the permutations and the crops, together with the epoch.
        epoch: The first epoch, from 0.
        epochs: How many follow each other in one stream, read by workers that stay.
        epoch_clips: Clips an epoch: fewer clips are repeated, each equally often but for one; of more, as many are
            drawn. None: each clip once.
        rank: Of this process.
        world_size: Number of ranks.
        start_batch: Batches of the first epoch to skip, as they were done before.
        drop_last: Leave out what does not fill a batch of every rank. Otherwise the last batch of a rank may be short
            or missing.

    Raises:
        UsageError: The clips do not fill a batch, or a number is out of its range.
    """

    n_clips: int
    batch_size: int
    seed: int
    epoch: int = 0
    epochs: int = 1
    epoch_clips: int | None = None
    rank: int = 0
    world_size: int = 1
    start_batch: int = 0
    drop_last: bool = True

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "epoch_clips": 1, "seed": 0, "epoch": 0, "epochs": 1, "rank": 0, "start_batch": 0}
        for name, minimum in least.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise UsageError(f"{name} is at least {minimum}, got {value}.")
        if self.rank >= self.world_size:
            raise UsageError(f"rank is less than world_size, got rank={self.rank}, world_size={self.world_size}.")
        if self.drop_last and self.clips_an_epoch < self.world_size * self.batch_size:
            raise UsageError(
                f"{self.clips_an_epoch} clips an epoch do not fill one batch of {self.world_size} × {self.batch_size}. "
                "Take a smaller batch, or repeat the clips with a larger epoch_clips."
            )
        if self.start_batch > self.batches_an_epoch:
            raise UsageError(f"start_batch={self.start_batch}, but an epoch has {self.batches_an_epoch} batches.")

    @property
    def clips_an_epoch(self) -> int:
        """Clips of all ranks in an epoch."""
        return self.n_clips if self.epoch_clips is None else self.epoch_clips

    @property
    def batches_an_epoch(self) -> int:
        """Batches of this rank in an epoch."""
        whole, rest = divmod(self.clips_an_epoch, self.world_size * self.batch_size)
        return whole + (not self.drop_last and rest > self.rank * self.batch_size)

    def __len__(self) -> int:
        """Batches of this rank in all."""
        return self.epochs * self.batches_an_epoch - self.start_batch

    def permutation(self, epoch: int) -> np.ndarray:
        """Clips of an epoch in the order of all ranks, [clips_an_epoch] int64."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.n_clips)
        if self.clips_an_epoch == self.n_clips:
            return order
        return rng.permutation(np.resize(order, self.clips_an_epoch))

    def __iter__(self) -> Iterator[Chunk]:
        start_batch = self.start_batch
        for epoch in range(self.epoch, self.epoch + self.epochs):
            clips = self.permutation(epoch)
            for batch in range(start_batch, self.batches_an_epoch):
                start = (batch * self.world_size + self.rank) * self.batch_size
                stop = min(start + self.batch_size, len(clips))
                for position in range(start, stop, CHUNK):
                    end = min(position + CHUNK, stop)
                    yield Chunk(epoch=epoch, position=position, clips=clips[position:end], last=end == stop)
            start_batch = 0


_Read = tuple[Crops, bool, dict[str, str]] | M2DBenchError
"""Crops, whether they end a batch, and `Source.skipped` of the worker; or why they cannot be read."""


class _Chunks(Dataset[_Read]):
    """Reads chunks. An error is handed on as a value: raised in a worker it would arrive wrapped in its traceback."""

    def __init__(self, source: Source, seed: int) -> None:
        self._source, self._seed = source, seed

    def __getitems__(self, chunk: Chunk) -> _Read:
        rngs = (np.random.default_rng([self._seed, chunk.epoch, position]) for position in count(chunk.position))
        try:
            return self._source.crops(chunk.clips, rngs), chunk.last, self._source.skipped or {}
        except M2DBenchError as error:
            return error


def _unchanged(read: Any) -> Any:
    return read


class CropLoader:
    """Iterates over the batches of a sampler as `Crops`, in pinned memory where there is a GPU.

    Args:
        source: The clips.
        sampler: Which of them and when; its length is the number of batches.
        workers: Processes that read; 0: this one.

    Raises:
        UsageError: A negative number of workers.
        DataError: While iterating: a file cannot be read.
    """

    def __init__(self, source: Source, sampler: EpochSampler, workers: int = 0) -> None:
        if workers < 0:
            raise UsageError(f"workers is at least 0, got {workers}.")
        self._source, self._sampler = source, sampler
        self._chunks = DataLoader(
            _Chunks(source, sampler.seed),
            batch_sampler=sampler,  # type: ignore[arg-type]  # a chunk in place of a list
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=_PREFETCH if workers else None,
            generator=torch.Generator(),  # otherwise every epoch would advance the global one
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Crops]:
        parts: list[Crops] = []
        before = multiprocessing.active_children()
        with stop_signals_blocked():
            chunks = iter(self._chunks)
        workers = [child for child in multiprocessing.active_children() if child not in before]
        try:
            for read in chunks:
                if isinstance(read, M2DBenchError):
                    raise read
                crops, last, skipped = read
                self._source.skip(skipped)
                parts.append(crops)
                if last:
                    yield Crops._make(
                        None if field[0] is None else _concatenated(field) for field in zip(*parts, strict=True)
                    )
                    parts = []
        finally:
            del chunks  # asks the workers to end, and waits for seconds
            for worker in workers:  # one that hangs, deaf to SIGTERM as it is, would be waited for at exit
                worker.kill()
            if self._source.skipped:
                logger.warning("%s clips could not be read; others took their place.", len(self._source.skipped))


def _concatenated(tensors: tuple[Tensor, ...]) -> Tensor:
    """One tensor of several, ready to be copied to a GPU while that computes."""
    if torch.cuda.is_available():
        size = (sum(map(len, tensors)), *tensors[0].shape[1:])
        return torch.cat(tensors, out=torch.empty(size, dtype=tensors[0].dtype, pin_memory=True))
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
