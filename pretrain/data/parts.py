"""The shards of a folder that is being prepared: written one after the other, each with a record of what it holds.

Both are written atomically, the record last: a shard with a record is complete and is never written again.
"""

# No postponed annotations here: the command line reads the types of PrepareSettings.

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat

from m2d_bench import audio
from m2d_bench.encoders.frontend import LogMel
from m2d_bench.errors import AudioError
from m2d_bench.parallel import map_ahead
from m2d_bench.pretrain.data import shards
from m2d_bench.pretrain.data.listing import Files
from m2d_bench.pretrain.data.shards import Histogram, ShardWriter, Sums
from m2d_bench.pretrain.data.teachers import SpeechTeacher
from m2d_bench.progress import bar
from m2d_bench.settings import Precision, replacing
from m2d_bench.values import Checked

UNFINISHED = "unfinished"
"""Folder of the records, removed once the index is written."""

_Result = tuple[int, tuple[np.ndarray, ...] | str]
"""Number of a file and its arrays: log-mel, and features if there is a teacher; or why there are none."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(Checked):
    """How sound files become shards.

    Args:
        sample_rate: Hz of the front end: 16000 or 32000.
        jobs: Threads that decode and transform, a file each; 0 means one a core.
        shard_mb: Size at which a shard is closed, in megabytes.
        max_seconds: Longer files are cut to it; by default they are kept whole.
        memory_gb: Memory that files decoded at the same time take together, by their headers, in 10⁹ bytes; one that
            takes more is decoded alone.
        teacher: Model whose features are written beside the log-mels, such as hf:facebook/hubert-base-ls960.
        layer: Its layer, from 1; by default the last.
        device: Of the teacher: auto (a GPU if there is one), cpu, cuda, …
        precision: Of the teacher: fp32, bf16, or auto: bf16 where the device multiplies it natively, else fp32.
        trust_remote_code: Run the code that the repository of an hf: teacher holds. Read it first.
    """

    sample_rate: Literal[16000, 32000] = 16000
    jobs: NonNegativeInt = 0
    shard_mb: PositiveFloat = 256
    max_seconds: PositiveFloat | None = None
    memory_gb: PositiveFloat = 2
    teacher: str | None = None
    layer: NonNegativeInt | None = None
    device: str = "auto"
    precision: Precision = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished stretch of the list of files: what its shard holds.

    Args:
        end: Number of the first file after it.
        clips: File of each clip, and frames and offset of each of its arrays.
        checksums: Of the blocks of the clips, see `shards.checksums`; bytes in hexadecimal digits.
        failures: File and reason.
        sums: Of the values.
        size: Bytes of the shard; 0 where no file could be read and there is none.
    """

    end: int
    clips: list[tuple[int, list[tuple[int, int]]]]
    checksums: str
    failures: list[tuple[int, str]]
    sums: Sums
    size: int


def write_parts(out: Path, files: Files, settings: PrepareSettings, teacher: SpeechTeacher | None) -> list[Part]:
    """Reads the finished parts of the list and writes the others, one shard after the other.

    Args:
        out: Folder of the shards.
        files: The list.
        settings: How.
        teacher: Whose features are written too.
    """
    parts = _read_parts(out)
    done, total = parts[-1].end if parts else 0, len(files.paths)
    front_end = LogMel(settings.sample_rate)

    def transform(number: int) -> _Result:
        return number, _arrays(files.root / files.paths[number], front_end, settings.max_seconds, teacher)

    def memory(number: int) -> float:
        return audio.memory_to_read(files.root / files.paths[number], settings.max_seconds)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # leaves the cores to the jobs
    try:
        with bar("Preparing", total, "files", done=done) as advance:
            results = map_ahead(
                transform,
                range(done, total),
                settings.jobs,
                2 * (settings.jobs or os.cpu_count() or 1),
                weight=memory,
                heaviest=settings.memory_gb * 1e9,
            )
            while done < total:
                part = _write_part(out, len(parts), results, files, settings.shard_mb * 1e6, advance)
                with replacing(_record(out, len(parts))) as file:
                    file.write(json.dumps(asdict(part)).encode())
                parts.append(part)
                done = part.end
    finally:
        torch.set_num_threads(threads)
    return parts


def _record(out: Path, number: int) -> Path:
    return out / UNFINISHED / f"{shards.shard_name(number)}.json"


def _read_parts(out: Path) -> list[Part]:
    """Reads the records of finished parts."""
    parts: list[Part] = []
    while (path := _record(out, len(parts))).exists():
        parts.append(Part(**json.loads(path.read_bytes())))
    return parts


def _write_part(
    out: Path, number: int, results: Iterator[_Result], files: Files, enough: float, advance: Callable[[int], None]
) -> Part:
    """Writes one shard, closed when it has enough bytes or no file is left."""
    path = out / shards.shard_name(number)
    clips, checksums, failures, histogram, end = [], [], [], Histogram(), 0
    with replacing(path) as file, closing(ShardWriter(file)) as writer:
        for index, result in results:
            end = index + 1
            advance(1)
            if isinstance(result, str):
                failures.append((index, result))
                continue
            histogram.add(result[0])
            key, stretches = shards.key(index, files.paths[index]), []
            for name, array in zip((key, f"{key}.teacher"), result, strict=False):
                checksums += shards.checksums(array)
                stretches.append((len(array), writer.add(name, array)))
            clips.append((index, stretches))
            if file.tell() >= enough:
                break
    if not clips:
        path.unlink()
    size = path.stat().st_size if clips else 0
    digits = np.array(checksums, shards.CHECKSUM).tobytes().hex()
    return Part(end=end, clips=clips, checksums=digits, failures=failures, sums=histogram.sums(), size=size)


def _arrays(
    path: Path, front_end: LogMel, max_seconds: float | None, teacher: SpeechTeacher | None
) -> tuple[np.ndarray, ...] | str:
    """Computes a file's log-mel, [frames, 80] float16, and a teacher's features; or says why there are none."""
    try:
        waveform = torch.from_numpy(audio.read(path, front_end.sample_rate, seconds=max_seconds))
    except AudioError as error:
        return str(error).removeprefix(f"{path}: ")
    with torch.inference_mode():
        log_mel = front_end(waveform[None])[0, 0].T.half().contiguous().numpy()
    if teacher is None:
        return (log_mel,)
    (features,) = teacher.features([waveform])
    return log_mel, features.half().cpu().numpy()
