"""Prepared folders: log-mel spectrograms in WebDataset shards, and the index that finds a crop in them.

    shard-000000.tar …  plain tar files; of a clip, KEY.npy is its float16 log-mel, not normalised, [frames, 80], and
                        KEY.teacher.npy a teacher's float16 features, if one was named, [frames, width]
    index.npy           one row a clip: its line of files.csv, shard, and of both arrays the number of frames, the byte
                        offset of the first and the number of the first checksum
    checksums.npy       CRC-32 of every 64 frames of an array, one array after the other
    index.json          facts of the whole: front end, teacher, exact mean and std, sizes of the shards, SHA-256 of the
                        files above and below, what could not be read, fingerprint
    files.csv           every sound file that was asked for, its path and size; read back, so cells are as they are
    failures.csv        what could not be read, and why, for people; only where there is any

The arrays are time-major, unlike the [80, frames] of the front end, so that any crop is one contiguous stretch of its
shard: a single read, of nothing but the crop.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from m2d_bench.errors import DataError
from m2d_bench.output import csv_text
from m2d_bench.settings import replacing

FORMAT = 2
"""Version of the layout."""

FRONT_END = 1
"""Version of the front end's numbers: raise it when they change, so that old folders are refused."""

INDEX, ROWS, CHECKSUMS = "index.json", "index.npy", "checksums.npy"
FILES, FAILURES = "files.csv", "failures.csv"
STRETCH = np.dtype([("frames", "<i4"), ("offset", "<i8"), ("block", "<i8")])
ARRAYS = ("log_mel", "features")
ROW = np.dtype([("file", "<i4"), ("shard", "<i4"), *((name, STRETCH) for name in ARRAYS)])
CHECKSUM = np.dtype("<u4")
BLOCK = 64
"""Frames of a checksum: 10 KiB of a log-mel, so that checking a crop reads little beside it."""


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """Whose features a folder holds.

    Args:
        name: Of the model.
        layer: Its layer, from 1; None: the last.
        digest: Of its weights and the layer.
        size: Width of a frame.
        hop_ms: Milliseconds between frames.
        precision: In which it computed them: fp32 or bf16.
    """

    name: str
    layer: int | None
    digest: str
    size: int
    hop_ms: float
    precision: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """Facts of a prepared folder.

    Args:
        format: Version of the layout.
        front_end: Version of the front end.
        sample_rate: Hz.
        n_mels: Rows of a spectrogram.
        hop_length: Samples a frame.
        shard_mb: Size at which a shard was closed, in 10⁶ bytes.
        max_seconds: Length the files were cut to, or None.
        teacher: Whose features there are, or None.
        files: Identity of the list of files.
        n_clips: Clips that were written.
        n_frames: Their frames.
        mean: Mean of all values.
        std: Standard deviation of all values.
        shard_bytes: Size of each shard.
        sha256: Of the other files of the folder that are read back, by name.
        failures: Path and reason of everything that could not be read.
        fingerprint: Identity of the clips and their values, 16 hexadecimal digits.
    """

    format: int
    front_end: int
    sample_rate: int
    n_mels: int
    hop_length: int
    shard_mb: float
    max_seconds: float | None
    teacher: TeacherFacts | None
    files: str
    n_clips: int
    n_frames: int
    mean: float
    std: float
    shard_bytes: tuple[int, ...]
    sha256: dict[str, str]
    failures: tuple[tuple[str, str], ...]
    fingerprint: str

    def to_bytes(self) -> bytes:
        """The text of index.json."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Reads a folder's index.json.

        Raises:
            DataError: It is not one, or of another version.
        """
        path = folder / INDEX
        try:
            facts = json.loads(path.read_bytes())
            versions = (facts["format"], facts["front_end"])
            if versions != (FORMAT, FRONT_END):
                raise DataError(
                    f"{path}: written with format {versions[0]} and front end {versions[1]}; this version reads format "
                    f"{FORMAT} and front end {FRONT_END}. Prepare the audio again, into a new folder."
                )
            lists = {"shard_bytes": tuple(facts["shard_bytes"]), "failures": tuple(map(tuple, facts["failures"]))}
            teacher = facts["teacher"] and TeacherFacts(**facts["teacher"])
            return cls(**{**facts, **lists, "teacher": teacher})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not the index of a folder that m2d-bench prepare wrote ({error}).") from error


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.tar"


def key(number: int, path: str) -> str:
    """WebDataset key of a clip: unique by its number, readable by its path, without a dot."""
    return f"{number:08d}-{re.sub('[^A-Za-z0-9=-]+', '_', path).strip('_')[-80:]}"  # ustar holds 100 characters


def checksums(array: np.ndarray) -> list[int]:
    """CRC-32 of each block of an array's frames, the last of which may be short."""
    return [zlib.crc32(array[start : start + BLOCK].tobytes()) for start in range(0, len(array), BLOCK)]


class ShardWriter:
    """Writes clips into a tar file whose bytes depend on nothing but them.

    Args:
        file: Opened for writing, empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, name: str, array: np.ndarray) -> int:
        """Appends an array of a clip.

        Args:
            name: Its name without .npy.
            array: [frames, …] float16.

        Returns:
            Byte offset of its first frame.
        """
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        member = tarfile.TarInfo(f"{name}.npy")
        member.size = buffer.tell()
        buffer.seek(0)
        offset = self._file.tell() + tarfile.BLOCKSIZE + member.size - array.nbytes
        self._tar.addfile(member, buffer)
        return offset

    def close(self) -> None:
        """Ends the archive; the file stays open."""
        self._tar.close()


Sums = tuple[int, int, int]
"""Number, sum and sum of squares of float16 values, the latter in units of 2⁻²⁴ and 2⁻⁴⁸: whole numbers, so exact."""


class Histogram:
    """Counts of each float16 value: enough for exact mean and std, whatever the order of adding."""

    def __init__(self) -> None:
        self._counts = np.zeros(2**16, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Counts finite float16 values."""
        self._counts += np.bincount(values.view(np.uint16).ravel(), minlength=2**16)

    def sums(self) -> Sums:
        """The exact sums of what was counted."""
        bits = np.flatnonzero(self._counts)
        units = (bits.astype(np.uint16).view(np.float16).astype(np.float64) * 2**24).astype(np.int64).tolist()
        pairs = list(zip(self._counts[bits].tolist(), units, strict=True))
        return sum(n for n, _ in pairs), sum(n * unit for n, unit in pairs), sum(n * unit**2 for n, unit in pairs)


def mean_and_std(sums: Iterable[Sums]) -> tuple[float, float]:
    """Exact mean and population standard deviation of everything that was summed, rounded once."""
    number, total, squares = (sum(column) for column in zip(*sums, strict=True))
    variance = Fraction(number * squares - total**2, number**2 * 2**48)
    return float(Fraction(total, number * 2**24)), math.sqrt(variance)


def write_files(folder: Path, paths: Iterable[str], sizes: Iterable[int]) -> None:
    """Writes a folder's files.csv."""
    with replacing(folder / FILES) as file:
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("path", "bytes"))
        writer.writerows(zip(paths, sizes, strict=True))
        text.detach()


def read_files(folder: Path) -> dict[str, int]:
    """Path and size of the sound files of a folder's files.csv."""
    with (folder / FILES).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return {row[0]: int(row[1]) for row in list(csv.reader(file))[1:]}


def write_failures(folder: Path, failures: Iterable[tuple[str, str]]) -> None:
    """Writes a folder's failures.csv, a table for people: nothing that a spreadsheet would compute."""
    with replacing(folder / FAILURES) as file:
        file.write(f"{csv_text(('path', 'reason'), failures)}\n".encode("utf-8", "surrogateescape"))
