"""The contract of a data source: clips, of which random crops are read."""

from __future__ import annotations

import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.utils.data import get_worker_info

from m2d_bench.errors import DataError, UsageError
from m2d_bench.pretrain.batch import Batch

logger = logging.getLogger(__name__)

SKIP = "To go on without such files: --on-bad-file skip."

_MOST_TRIES = 100
"""Clips in a row that cannot be read, after which the reason is another than that some files are bad."""


def check_varied(mean: float, std: float) -> None:
    """Raises a DataError where values hardly vary, as those of silence."""
    if not std > 1e-6 * math.hypot(mean, std):
        raise DataError(f"The clips hold nothing but {mean:g}: there is nothing to learn from. Look at the files.")


class Crop(NamedTuple):
    """A crop of a clip as it is read.

    Args:
        values: The least that `Source.spectrogram` needs, NaN behind the end of a short clip.
        start: Log-mel frame of the clip at which it starts; 0 for images.
        features: A teacher's features, [T', D']; None where none are stored.
        waveform: The whole clip, [S], for a teacher that encodes it later; else None.
    """

    values: np.ndarray
    start: int
    features: np.ndarray | None = None
    waveform: np.ndarray | None = None


class Crops(NamedTuple):
    """Crops of several clips as they are read.

    Args:
        values: [n, …], see `Crop`.
        clips: Index of each clip in its source, [n] int64.
        starts: See `Crop`, [n] int64.
        labels: Multi-hot, [n, n_classes] float32; None where the source has none.
        noise: Crops of noise to mix in, [n, …]; None where there is none.
        teacher: Features of a teacher for each crop, [n, T', D']; or the clips' whole waveforms, [S] each, which it
            encodes later (arrays: a worker would hold a file open for each tensor); None where there is no teacher, or
            it needs no more than the crops.
    """

    values: Tensor
    clips: Tensor
    starts: Tensor
    labels: Tensor | None = None
    noise: Tensor | None = None
    teacher: Tensor | tuple[np.ndarray, ...] | None = None

    def to(self, device: torch.device) -> Crops:
        """Copies to a device, without waiting where the memory is pinned."""
        return Crops._make(
            field.to(device, non_blocking=True) if isinstance(field, Tensor) else field for field in self
        )


class Source(ABC):
    """Clips to pre-train on.

    What is read is not normalised; `batch` turns it into the model's input on a device, zero behind the end of a clip.

    Attributes:
        n_clips: Number of clips.
        fingerprint: Identity of the clips and their labels, 16 hexadecimal digits.
        beside: Identities of what is seen beside the clips: of noise and teacher.
        channels: Of the model's input: 1 for audio, 3 for images.
        norm_stats: Mean and std of the normalisation. None where they are not known: set them to those of a checkpoint
            or to `measure_norm_stats(source)`.
        noise_norm_stats: Those of the noise that is mixed in; None where there is none.
        classes: Names of the classes of the labels.
        labels: Multi-hot, [n_clips, n_classes] float32; None where the clips have none.
        root: Folder the clips' paths are relative to.
        skipped: Path of each clip that could not be read, and why: another took its place. None: the first is an error.
    """

    n_clips: int
    fingerprint: str
    channels: int = 1
    norm_stats: tuple[float, float] | None = None
    noise_norm_stats: tuple[float, float] | None = None
    classes: tuple[str, ...] = ()
    labels: csr_array | None = None
    root: Path = Path()
    skipped: dict[str, str] | None = None
    beside: Mapping[str, str] = {}

    @property
    def identities(self) -> dict[str, str]:
        """Identities of all that is trained on, by what it is."""
        return {"data or labels": self.fingerprint, **self.beside}

    @abstractmethod
    def path(self, index: int) -> str:
        """A clip's path relative to the root."""

    @abstractmethod
    def read(self, index: int, rng: np.random.Generator) -> Crop:
        """Reads a random crop of a clip.

        Args:
            index: Which clip.
            rng: Decides where the crop lies.

        Returns:
            Values of a prepared clip [frames, 80] float16, of an array [1, 80, frames] float32, of a sound file
            [samples] float32, of an image [3, H, W] float32 in 0..1.

        Raises:
            DataError: The file cannot be read.
        """

    def names(self, indices: Iterable[int]) -> list[str]:
        """Files of clips, for messages."""
        return [str(self.root / self.path(index)) for index in indices]

    def crops(self, clips: np.ndarray, rngs: Iterable[np.random.Generator], first: int = 0) -> Crops:
        """Reads a random crop of each of several clips.

        Args:
            clips: Which, [n] int64; the `clips` of the result are others where files are skipped.
            rngs: A generator for each, such as the same one repeated without end.
            first: Number of the first of them in the training, which decides the noise that is mixed in.

        Raises:
            DataError: A file cannot be read.
        """
        read = [self._read(clip, rng) for clip, rng in zip(clips.tolist(), rngs, strict=False)]
        clips, crops = np.array([clip for clip, _ in read]), [crop for _, crop in read]
        features = [crop.features for crop in crops if crop.features is not None]
        waveforms = tuple(crop.waveform for crop in crops if crop.waveform is not None)
        return Crops(
            values=torch.from_numpy(np.stack([crop.values for crop in crops])),
            clips=torch.from_numpy(clips),
            starts=torch.tensor([crop.start for crop in crops]),
            labels=None if self.labels is None else torch.from_numpy(self.labels[clips].toarray()),
            teacher=torch.from_numpy(np.stack(features)) if features else waveforms or None,
        )

    def _read(self, clip: int, rng: np.random.Generator) -> tuple[int, Crop]:
        """A clip and a crop of it; where it cannot be read and such are skipped, of one that the generator draws."""
        for _ in range(_MOST_TRIES):
            try:
                return clip, self.read(clip, rng)
            except DataError as error:
                if self.skipped is None:
                    raise DataError(f"{error} {SKIP}") from error
                last = error
                self.skip({self.path(clip): str(error)})
                clip = int(rng.integers(self.n_clips))
        raise DataError(f"{_MOST_TRIES} clips in a row cannot be read. The last: {last}") from last

    def skip(self, reasons: dict[str, str]) -> None:
        """Notes clips that cannot be read, by their paths; the main process names each once."""
        for path, reason in reasons.items():
            if self.skipped is not None and path not in self.skipped:
                self.skipped[path] = reason
                if get_worker_info() is None:
                    logger.warning("%s Another clip takes its place.", reason)

    def spectrogram(self, values: Tensor) -> Tensor:
        """Values of crops before normalisation.

        Args:
            values: [B, …] of what `read` returns, on any device.

        Returns:
            [B, 1, 80, frames] log-mel or [B, 3, H, W] images, float32; NaN behind the end of a clip.
        """
        return values

    def log_mel(self, values: Tensor) -> Tensor:
        """Values of crops as the model's input, on their device.

        Args:
            values: [B, …] of what `read` returns.

        Returns:
            [B, 1, 80, frames] or [B, 3, H, W], normalised; exactly zero behind the end of a clip.

        Raises:
            UsageError: norm_stats are not known.
        """
        if self.norm_stats is None:
            raise UsageError("norm_stats are not known; set source.norm_stats = measure_norm_stats(source) first.")
        mean, std = self.norm_stats
        normalised = (self.spectrogram(values) - mean) / std
        return normalised.masked_fill(normalised.isnan(), 0)

    def batch(self, crops: Crops, device: torch.device) -> Batch:
        """Crops as a training step sees them, on a device."""
        crops = crops.to(device)
        return Batch(log_mel=self.log_mel(crops.values), clips=crops.clips, starts=crops.starts, labels=crops.labels)


class Derived(Source):
    """The clips of another source, seen in another way.

    Args:
        source: The other source.
        beside: Identities of what is seen beside the clips.
    """

    def __init__(self, source: Source, **beside: str) -> None:
        self._source, self.n_clips, self.channels, self.root = source, source.n_clips, source.channels, source.root
        self.classes, self.labels, self.fingerprint = source.classes, source.labels, source.fingerprint
        self.skipped = source.skipped
        self.beside = {**source.beside, **beside}

    @property
    def norm_stats(self) -> tuple[float, float] | None:
        """Those of the other source."""
        return self._source.norm_stats

    @norm_stats.setter
    def norm_stats(self, norm_stats: tuple[float, float] | None) -> None:
        self._source.norm_stats = norm_stats

    def path(self, index: int) -> str:
        return self._source.path(index)

    def read(self, index: int, rng: np.random.Generator) -> Crop:
        return self._source.read(index, rng)

    def crops(self, clips: np.ndarray, rngs: Iterable[np.random.Generator], first: int = 0) -> Crops:
        return self._source.crops(clips, rngs, first)

    def spectrogram(self, values: Tensor) -> Tensor:
        return self._source.spectrogram(values)

    def batch(self, crops: Crops, device: torch.device) -> Batch:
        return self._source.batch(crops, device)


class Subset(Derived):
    """Some clips of a source.

    Args:
        source: All clips.
        indices: Which of them, [n] int64.
    """

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        super().__init__(source)
        self._indices, self.n_clips = indices, len(indices)
        self.fingerprint = hashlib.sha256(source.fingerprint.encode() + indices.tobytes()).hexdigest()[:16]
        self.labels = None if source.labels is None else source.labels[indices]

    def path(self, index: int) -> str:
        return self._source.path(int(self._indices[index]))

    def read(self, index: int, rng: np.random.Generator) -> Crop:
        return self._source.read(int(self._indices[index]), rng)

    def crops(self, clips: np.ndarray, rngs: Iterable[np.random.Generator], first: int = 0) -> Crops:
        return Source.crops(self, clips, rngs, first)  # what is skipped is replaced by one of these clips
