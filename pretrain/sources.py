"""What pre-training reads: prepared folders, the reference tool's log-mels, plain folders of audio."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m2d_bench import audio
from m2d_bench.encoders.frontend import N_MELS, LogMel
from m2d_bench.errors import AudioError, DataError, UsageError

from . import shards
from .listing import Paths


class Source(ABC):
    """Clips to pre-train on, of which random crops are read.

    What is read is not normalised, and NaN behind the end of a short clip; `log_mel` turns a batch of it into the
    model's input on the batch's device, zero behind the end.

    Attributes:
        n_clips: Number of clips.
        fingerprint: Identity of the clips, 16 hexadecimal digits.
        channels: Of the model's input: 1 of audio, 3 of images.
        norm_stats: Mean and std of the normalisation. None where they are not known: set them to those of a checkpoint
            or to `measure_norm_stats(source)`.
    """

    n_clips: int
    fingerprint: str
    channels: int = 1
    norm_stats: tuple[float, float] | None = None

    @abstractmethod
    def names(self, indices: Iterable[int]) -> list[str]:
        """Files of clips, for people."""

    @abstractmethod
    def read(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """A random crop of a clip.

        Args:
            index: Which clip.
            rng: Decides where the crop lies.

        Returns:
            The least that `spectrogram` can make its input of: of a prepared clip [frames, 80] float16, of an array
            [1, 80, frames] float32, of a sound file [samples] float32, of an image [3, H, W] float32 in 0..1; NaN
            behind the end of the clip.

        Raises:
            DataError: The file cannot be read.
        """

    def spectrogram(self, batch: Tensor) -> Tensor:
        """A batch of crops before normalisation.

        Args:
            batch: [B, …] of what `read` returns, on any device.

        Returns:
            [B, 1, 80, frames] log-mel or [B, 3, H, W] images, float32; NaN behind the end of a clip.
        """
        return batch

    def log_mel(self, batch: Tensor) -> Tensor:
        """A batch of crops as the model's input, on the device of the batch.

        Args:
            batch: [B, …] of what `read` returns.

        Returns:
            [B, 1, 80, frames] or [B, 3, H, W], normalised; exactly zero behind the end of a clip.

        Raises:
            UsageError: norm_stats are not known.
        """
        if self.norm_stats is None:
            raise UsageError("norm_stats are not known; set source.norm_stats = measure_norm_stats(source) first.")
        mean, std = self.norm_stats
        normalised = (self.spectrogram(batch) - mean) / std
        return normalised.masked_fill(normalised.isnan(), 0)


class PreparedSource(Source):
    """A folder that `m2d-bench prepare` wrote.

    A crop is one read of its bytes and stays as it is, half as large as float32, until it is on the device.

    Args:
        folder: The folder.
        frames: Width of a crop.
        sample_rate: Hz the model works at.

    Raises:
        DataError: Shards are missing or incomplete, or of another sample rate.
    """

    def __init__(self, folder: Path, frames: int, sample_rate: int) -> None:
        index = shards.Index.read(folder)
        if index.sample_rate != sample_rate:
            raise DataError(
                f"{folder}: was prepared at {index.sample_rate} Hz, the model works at {sample_rate} Hz. Prepare the "
                f"audio with --sample-rate {sample_rate}."
            )
        self._folder, self._frames = folder, frames
        self._shards = [folder / shards.shard_name(number) for number in range(len(index.shard_bytes))]
        for path, size in zip(self._shards, index.shard_bytes, strict=True):
            found = path.stat().st_size if path.exists() else None
            if found != size:
                what = "is missing" if found is None else f"has {found} bytes, not {size}"
                raise DataError(f"{path}: {what}. Copy the folder again, or prepare it anew.")
        try:  # a map of the file, which all worker processes share
            self._rows = np.load(folder / shards.ROWS, mmap_mode="r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / shards.ROWS}: cannot be read ({error}). Prepare the folder anew.") from error
        self.n_clips, self.fingerprint = index.n_clips, index.fingerprint
        self.norm_stats = (index.mean, index.std)

    @cached_property
    def _paths(self) -> Paths:
        return Paths(path for path, _ in shards.read_table(self._folder / shards.FILES))

    def names(self, indices: Iterable[int]) -> list[str]:
        """Files of clips, relative to the folders that were prepared."""
        return [self._paths[int(self._rows[index]["file"])] for index in indices]

    def read(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """A random crop, [frames, 80] float16."""
        row = self._rows[index]
        length = int(row["frames"])
        start, stop = _stretch(length, self._frames, rng)
        size = (stop - start) * shards.FRAME_BYTES
        path = self._shards[row["shard"]]
        try:
            with open(path, "rb", buffering=0) as file:
                found = os.pread(file.fileno(), size, int(row["offset"]) + start * shards.FRAME_BYTES)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        if len(found) != size:
            raise DataError(f"{path}: ends within {self.names([index])[0]}. Prepare the folder anew.")
        crop = np.frombuffer(found, np.float16).reshape(-1, N_MELS)
        missing = self._frames - len(crop)
        return np.pad(crop, ((0, missing), (0, 0)), constant_values=np.nan) if missing else crop

    def spectrogram(self, batch: Tensor) -> Tensor:
        """Crops [B, frames, 80] → log-mel [B, 1, 80, frames]."""
        return batch.transpose(1, 2)[:, None].float().contiguous()


class ArraySource(Source):
    """The reference tool's layout: a file a log-mel, `.npy` of [1, 80, frames], listed in a CSV file.

    Args:
        root: Folder the paths are relative to.
        paths: The files.
        frames: Width of a crop.
    """

    def __init__(self, root: Path, paths: Paths, frames: int) -> None:
        self._root, self._paths, self._frames = root, paths, frames
        self.n_clips, self.fingerprint = len(paths), paths.fingerprint("arrays")

    def names(self, indices: Iterable[int]) -> list[str]:
        """Files of clips."""
        return [str(self._root / self._paths[index]) for index in indices]

    def read(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """A random crop, [1, 80, frames] float32."""
        path = self._root / self._paths[index]
        try:
            clip = np.load(path, mmap_mode="r").view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not a .npy file that can be read ({error}).") from error
        if clip.ndim != 3 or clip.shape[:2] != (1, N_MELS) or not clip.shape[2] or clip.dtype.kind != "f":
            raise DataError(f"{path}: holds {clip.dtype} {list(clip.shape)}; a log-mel is float [1, {N_MELS}, frames].")
        start, stop = _stretch(clip.shape[2], self._frames, rng)
        crop = clip[0, :, start:stop]
        if not np.isfinite(crop).all():
            raise DataError(f"{path}: holds NaN or infinite values.")
        missing = self._frames - crop.shape[1]
        return np.pad(crop.astype(np.float32), ((0, 0), (0, missing)), constant_values=np.nan)[None]


class AudioSource(Source):
    """A tree of sound files: stretches of them are decoded, their log-mel is computed on the device.

    Args:
        root: The tree.
        paths: The files.
        frames: Width of a crop.
        sample_rate: Hz the model works at.
    """

    def __init__(self, root: Path, paths: Paths, frames: int, sample_rate: int) -> None:
        self._root, self._paths, self._sample_rate = root, paths, sample_rate
        self._samples = (frames - 1) * LogMel(sample_rate).hop_length  # a frame more than hops, as it is centred
        self.n_clips, self.fingerprint = len(paths), paths.fingerprint("audio", sample_rate)

    def names(self, indices: Iterable[int]) -> list[str]:
        """Files of clips."""
        return [str(self._root / self._paths[index]) for index in indices]

    def read(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """A random stretch, [samples] float32."""
        path, seconds = self._root / self._paths[index], self._samples / self._sample_rate
        try:
            room = audio.duration(path) - seconds
            offset = rng.uniform(0, room) if room > 0 else 0.0
            margin = 0.01  # resampling rounds the number of samples
            waveform = audio.read(path, self._sample_rate, offset=offset, seconds=seconds + margin)[: self._samples]
        except AudioError as error:
            raise DataError(str(error)) from error
        return np.pad(waveform, (0, self._samples - len(waveform)), constant_values=np.nan)

    def spectrogram(self, batch: Tensor) -> Tensor:
        """Waveforms [B, S] → log-mel [B, 1, 80, frames], NaN behind the end."""
        front_end = _front_end(self._sample_rate, batch.device)
        log_mel = front_end(batch.nan_to_num(nan=0.0))
        frames = front_end.frame_counts((~batch.isnan()).sum(-1))
        behind = torch.arange(log_mel.shape[-1], device=batch.device) >= frames[:, None, None, None]
        return log_mel.masked_fill(behind, torch.nan)


@lru_cache(maxsize=4)
def _front_end(sample_rate: int, device: torch.device) -> LogMel:
    return LogMel(sample_rate).to(device)


def _stretch(length: int, wanted: int, rng: np.random.Generator) -> tuple[int, int]:
    """Start and stop of a random stretch; everything of what is shorter."""
    start = int(rng.integers(max(0, length - wanted) + 1))
    return start, min(length, start + wanted)
