"""The kinds of sources: prepared folders, lists of log-mel arrays, folders of sound files."""

from __future__ import annotations

import os
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m2d_bench import audio
from m2d_bench.encoders.frontend import N_MELS, LogMel
from m2d_bench.errors import AudioError, DataError
from m2d_bench.files import sha256
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.data import shards
from m2d_bench.pretrain.data.listing import Paths
from m2d_bench.pretrain.data.source import Crop, Crops, Source, check_varied
from m2d_bench.pretrain.data.teachers import Alignment

_REMEDY = "Copy the folder again, or prepare it anew."


class FileSource(Source):
    """Clips of a file each.

    Args:
        root: Folder the paths are relative to.
        paths: The files.
        kind: What the files are, for the fingerprint.
    """

    def __init__(self, root: Path, paths: Paths, *kind: object) -> None:
        self.root, self._paths = root, paths
        self.n_clips, self.fingerprint = len(paths), paths.fingerprint(*kind)

    def path(self, index: int) -> str:
        return self._paths[index]


class PreparedSource(Source):
    """A folder that `m2d-bench prepare` wrote.

    A crop is one read of its bytes and stays as it is, half as large as float32, until it is on the device. Before its
    blocks are first used by a process, they are compared with their checksums.

    Args:
        folder: The folder.
        frames: Width of a crop.
        sample_rate: Hz the model works at.

    Raises:
        DataError: Files are missing, incomplete or not what was written, of another sample rate, or hold silence alone.
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
            actual = path.stat().st_size if path.exists() else None
            if actual != size:
                what = "is missing" if actual is None else f"has {actual} bytes, not {size}"
                raise DataError(f"{path}: {what}. {_REMEDY}")
        for name, digest in index.sha256.items():
            path = folder / name
            if not path.exists() or sha256(path) != digest:
                raise DataError(f"{path}: is missing or not what was prepared. {_REMEDY}")
        # maps of the files, which all worker processes share
        self._rows, self._checksums = (
            np.load(folder / name, mmap_mode="r").view(np.ndarray) for name in (shards.ROWS, shards.CHECKSUMS)
        )
        self._intact = np.zeros(len(self._checksums), bool)
        self.n_clips, self.fingerprint = index.n_clips, index.fingerprint
        self.norm_stats = (index.mean, index.std)
        check_varied(*self.norm_stats)
        self.teacher = index.teacher
        self._alignment: Alignment | None = None

    def teach(self, columns: int, patch_frames: int) -> None:
        """Reads the features of the teacher, too.

        Args:
            columns: Patch columns of a crop.
            patch_frames: Log-mel frames of a patch column.

        Raises:
            UsageError: The teacher's frames do not fit the patches.
        """
        assert self.teacher
        self._alignment = Alignment(self.teacher.hop_ms, columns, patch_frames)
        self.beside = {"teacher": self.teacher.digest}

    @cached_property
    def _paths(self) -> Paths:
        return Paths(shards.read_files(self._folder))

    def path(self, index: int) -> str:
        return self._paths[int(self._rows[index]["file"])]

    def read(self, index: int, rng: np.random.Generator) -> Crop:
        """Reads a random crop, [frames, 80] float16, and a teacher's features beside it if there is one."""
        start, stop = _random_range(int(self._rows[index]["log_mel"]["frames"]), self._frames, rng)
        frames = self._stretch(index, "log_mel", N_MELS, start, stop)
        if missing := self._frames - len(frames):
            frames = np.pad(frames, ((0, missing), (0, 0)), constant_values=np.nan)
        if not (self.teacher and self._alignment):
            return Crop(frames, start)
        numbers = self._alignment.beside(start, int(self._rows[index]["features"]["frames"]))
        first, last = int(numbers[0]), int(numbers[-1])
        features = self._stretch(index, "features", self.teacher.size, first, last + 1)
        return Crop(frames, start, features[numbers - first])

    def batch(self, crops: Crops, device: torch.device) -> Batch:
        """Crops with the features of every patch column, if there is a teacher."""
        batch = super().batch(crops, device)
        if not (self._alignment and isinstance(crops.teacher, Tensor)):
            return batch
        features = crops.teacher.to(device, non_blocking=True)
        return batch._replace(teacher_features=self._alignment.averaged(features))

    def _stretch(self, index: int, name: str, width: int, start: int, stop: int) -> np.ndarray:
        """Frames of an array of a clip, [stop − start, width] float16.

        Raises:
            DataError: They are not what was prepared.
        """
        row, size = self._rows[index], width * np.dtype(np.float16).itemsize
        n_frames, offset, block = row[name].item()
        first, end = start // shards.BLOCK, -(-stop // shards.BLOCK)
        low, high = first * shards.BLOCK, min(end * shards.BLOCK, n_frames)
        content = self._bytes(int(row["shard"]), offset + low * size, (high - low) * size)
        blocks = slice(block + first, block + end)
        intact = len(content) == (high - low) * size
        frames = np.frombuffer(content if intact else b"", np.float16).reshape(-1, width)
        if not self._intact[blocks].all():
            intact = shards.checksums(frames) == self._checksums[blocks].tolist()
        if not intact:
            path = self._shards[row["shard"]]
            raise DataError(f"{path}: {self.path(index)} there is not what was prepared. {_REMEDY}")
        self._intact[blocks] = True
        return frames[start - low : stop - low]

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard; fewer where it ends before."""
        path = self._shards[shard]
        try:
            with open(path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error

    def spectrogram(self, values: Tensor) -> Tensor:
        """Values [B, frames, 80] → log-mel [B, 1, 80, frames]."""
        return values.transpose(1, 2)[:, None].float().contiguous()


class ArraySource(FileSource):
    """Log-mels in the reference tool's layout: `.npy` files of [1, 80, frames].

    Args:
        root: Folder the paths are relative to.
        paths: The files.
        frames: Width of a crop.
    """

    def __init__(self, root: Path, paths: Paths, frames: int) -> None:
        super().__init__(root, paths, "arrays")
        self._frames = frames

    def read(self, index: int, rng: np.random.Generator) -> Crop:
        """Reads a random crop, [1, 80, frames] float32."""
        path = self.root / self.path(index)
        try:
            clip = np.load(path, mmap_mode="r").view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: not a .npy file that can be read ({error}).") from error
        if clip.ndim != 3 or clip.shape[:2] != (1, N_MELS) or not clip.shape[2] or clip.dtype.kind != "f":
            raise DataError(f"{path}: holds {clip.dtype} {list(clip.shape)}; a log-mel is float [1, {N_MELS}, frames].")
        start, stop = _random_range(clip.shape[2], self._frames, rng)
        frames = clip[0, :, start:stop].astype(np.float32)
        if not np.isfinite(frames).all():
            raise DataError(f"{path}: holds NaN or infinite values.")
        return Crop(np.pad(frames, ((0, 0), (0, self._frames + start - stop)), constant_values=np.nan)[None], start)


class AudioSource(FileSource):
    """A tree of sound files, of which crops are decoded; their log-mel is computed on the device.

    Args:
        root: The tree.
        paths: The files.
        frames: Width of a crop.
        sample_rate: Hz the model works at.
    """

    def __init__(self, root: Path, paths: Paths, frames: int, sample_rate: int) -> None:
        super().__init__(root, paths, "audio", sample_rate)
        self._sample_rate, self._hop_length = sample_rate, LogMel(sample_rate).hop_length
        self._samples = (frames - 1) * self._hop_length  # a frame more than hops, as it is centred

    def read(self, index: int, rng: np.random.Generator) -> Crop:
        """Reads a random crop, [samples] float32; its start is rounded to the nearest frame."""
        path, seconds = self.root / self.path(index), self._samples / self._sample_rate
        try:
            room = audio.duration(path) - seconds
            offset = rng.uniform(0, room) if room > 0 else 0.0
            margin = 0.01  # resampling rounds the number of samples
            waveform = audio.read(path, self._sample_rate, offset=offset, seconds=seconds + margin)[: self._samples]
        except AudioError as error:
            raise DataError(str(error)) from error
        start = round(offset * self._sample_rate / self._hop_length)
        return Crop(np.pad(waveform, (0, self._samples - len(waveform)), constant_values=np.nan), start)

    def spectrogram(self, values: Tensor) -> Tensor:
        """Waveforms [B, S] → log-mel [B, 1, 80, frames], NaN behind the end."""
        front_end = _front_end(self._sample_rate, values.device)
        log_mel: Tensor = front_end(values.nan_to_num(nan=0.0))
        n_frames = front_end.frame_counts((~values.isnan()).sum(-1))
        padding = torch.arange(log_mel.shape[-1], device=values.device) >= n_frames[:, None, None, None]
        return log_mel.masked_fill(padding, torch.nan)


@lru_cache(maxsize=4)
def _front_end(sample_rate: int, device: torch.device) -> LogMel:
    return LogMel(sample_rate).to(device)


def _random_range(length: int, wanted: int, rng: np.random.Generator) -> tuple[int, int]:
    """Start and stop of a random crop; the whole of what is shorter."""
    start = int(rng.integers(max(0, length - wanted) + 1))
    return start, min(length, start + wanted)
