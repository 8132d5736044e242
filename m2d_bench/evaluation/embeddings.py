"""Clips → embeddings or layers, once: encoded in batches, cached on disk shard by shard."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from m2d_bench import audio
from m2d_bench.cache.entries import mark_encoder
from m2d_bench.encoders.protocol import Encoder, SceneEncoder, wrap
from m2d_bench.errors import AudioError, DataError, UsageError, note
from m2d_bench.evaluation import maps
from m2d_bench.evaluation.representations import ALIKE, SECONDS_AT_ONCE, Kept, scenes
from m2d_bench.parallel import map_ahead
from m2d_bench.progress import bar, track
from m2d_bench.settings import (
    Compute,
    Storage,
    check_room,
    file_name,
    make_folder,
    read_checked,
    replacing,
    write_checked,
    writing,
)
from m2d_bench.tasks.dataset import Dataset

logger = logging.getLogger(__name__)

_SHARD = 64
"""Clips a file of the cache; a killed run loses at most one shard."""

_PART = 64 * _SHARD
"""Clips that are read while as many are encoded."""

_MEMORY = 2e9
"""Bytes that waveforms decoded ahead take together."""

_WORTH_SAYING = 2**30
"""Bytes that are said before they are written."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a data set in two views.

    Args:
        features: [K·(N + M), D] float32: N clips from their start, then M random crops of the clips that are longer;
            of K representations, one below the other. Weighted layers and frames are [N + M, layers or frames, D].
            Large ones lie in a file, see `maps`.
        clips: Clip behind each row, [N + M].
        crop_rows: Row of each clip's training view, [N].
    """

    features: Tensor
    clips: Tensor
    crop_rows: Tensor


def encode(
    encoder: SceneEncoder,
    dataset: Dataset,
    compute: Compute,
    storage: Storage,
    kept: Kept | None = None,
    *,
    shown: bool = True,
) -> Embeddings:
    """Embeds every clip of a data set, or reads what an earlier call left in the cache.

    Processes that share a cache share the work: each shard is encoded by one of them.

    Args:
        encoder: Any encoder.
        dataset: The clips.
        compute: Batch size and decoding threads.
        storage: The cache folder.
        kept: What is kept of a clip; by default its scene embedding.
        shown: Whether a progress bar is.

    Raises:
        UsageError: The encoder does not keep the contract.
        DataError: Clips that cannot be decoded, all named, before any is embedded; or that cannot be embedded.
        StorageError: The cache lacks embeddings, or they are too many for the memory, and it cannot be written to.
    """
    encoder, dataset = wrap(encoder), dataset.readable()
    kept = kept or scenes(encoder)
    views = [(clip, False) for clip in range(len(dataset.files))]
    views += [(int(clip), True) for clip in np.flatnonzero(dataset.longer)]
    sets, _, *size = kept.given(np.zeros((1, *kept.shape), dtype=np.float32)).shape
    features = _features((sets, len(views), *size), storage.cache_root)
    folder = storage.cache_root / "embeddings" / file_name(encoder.digest) / _key(encoder, dataset, kept.name)
    shards = [
        _Shard(folder / f"{name}.npy", views[start:end], kept, features[:, start:end])
        for name, start, end in _layout(dataset, views)
    ]
    with bar(f"Embedding {dataset.task.name}", len(views), "clips and crops", shown=shown) as advance:

        def filled(shard: _Shard, fill: Callable[[_Shard], bool]) -> bool:
            if done := fill(shard):
                advance(len(shard.views))
            return done

        missing = [shard for shard in shards if not filled(shard, _Shard.read)]
        if damaged := sum(shard.path.exists() for shard in missing):
            logger.warning("%s: the cache was damaged: %d shards are remade.", folder, damaged)
        needed = 4 * math.prod(kept.shape) * sum(len(shard.views) for shard in missing)
        with writing(storage.cache_root, needed, "--cache"):
            if missing:
                _check_room(folder, needed)
            for wait in (False, True):  # at first for none that another process is encoding
                make = partial(_make, encoder=encoder, dataset=dataset, compute=compute, wait=wait)
                missing = [shard for shard in missing if not filled(shard, make)]
    mark_encoder(folder, encoder.name)
    clips = torch.tensor([clip for clip, _ in views])
    crop_rows = torch.arange(len(dataset.files))
    crop_rows[clips[len(dataset.files) :]] = torch.arange(len(dataset.files), len(views))
    return Embeddings(torch.from_numpy(features).flatten(0, 1), clips, crop_rows)


def _features(shape: Sequence[int], cache: Path) -> np.ndarray:
    """An array to be filled; a large one in a file of the cache, which is said."""
    size = 4 * math.prod(shape)
    if size > maps.LARGE:
        logger.warning("%s: %.1f GB of embeddings lie in one file there while they are probed.", cache, size / 1e9)
    with writing(cache, size, "--cache"):
        return maps.empty(shape, cache)


def encode_unread(
    encoder: SceneEncoder, dataset: Dataset, compute: Compute, storage: Storage, kept: Kept | None = None
) -> None:
    """Embeds a huge data set part by part as its files are read, where `encode` begins after the last was read.

    Args:
        encoder, compute, storage, kept: As of `encode`, which then finds the embeddings in the cache.
        dataset: The clips; those that cannot be read are left to `Dataset.readable`.

    Raises:
        UsageError, DataError, StorageError: As of `encode`.
    """
    files, contents = dataset.files, dataset.contents
    unread = {*contents.unread(files)}

    def read(start: int) -> Dataset:
        part = dataset.only(range(start, min(start + _PART, len(files))))
        contents.read([file for file in dict.fromkeys(part.files) if file in unread])
        return part.only([clip for clip in range(len(part.files)) if clip not in part.faults])

    starts = [start for start in range(0, len(files), _PART) if not unread.isdisjoint(files[start : start + _PART])]
    with bar(f"Reading and embedding {dataset.task.name}", len(starts) * _PART, "clips") as advance:
        for part in map_ahead(read, starts, jobs=1, ahead=1):
            if part.files:
                encode(encoder, part, compute, storage, kept, shown=False)
            advance(_PART)


def _layout(dataset: Dataset, views: Sequence[tuple[int, bool]]) -> Iterator[tuple[str, int, int]]:
    """Name of each shard, and its first and last view.

    Shards of a huge data set hold the clips of so many lines of its index, and are named by the content of these alone,
    so that the first can be encoded before the last line's file is read.
    """
    if not dataset.task.huge:
        for number, start in enumerate(range(0, len(views), _SHARD)):
            yield f"{number:05d}", start, start + _SHARD
        return
    contents, start = dataset.clip_contents, 0
    for (crop, _), group in groupby(views, lambda view: (view[1], dataset.numbers[view[0]] // _SHARD)):
        clips = [clip for clip, _ in group]
        words = [(dataset.files[clip], dataset.span_name(clip), contents[clip].digest) for clip in clips]
        digest = hashlib.sha256(os.fsencode("\0".join((str(crop), *chain(*words))))).hexdigest()
        yield str(int(digest[:15], 16)), start, start + len(clips)
        start += len(clips)


def _check_room(folder: Path, needed: int) -> None:
    """Says what is going to be written where it is much, and refuses to begin what the disk cannot hold."""
    folder.mkdir(parents=True, exist_ok=True)
    if needed > _WORTH_SAYING:
        logger.warning("%s: %.1f GB are going to be written.", folder, needed / 1e9)
    check_room(folder, needed)


def _key(encoder: Encoder, dataset: Dataset, kept: str = "") -> str:
    """Name of the cache folder of what is kept of these clips in this precision."""
    task = dataset.task
    clips = "" if task.huge else dataset.fingerprint
    identity = f"{task.name} {task.version} {task.clip_seconds} {clips} {encoder.precision}"
    identity += f" {kept}" if kept else ""
    return f"{file_name(task.name)}-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:12]}"


@dataclass(frozen=True)
class _Shard:
    """A file of the cache: an array in NumPy's format, and its checksum.

    Args:
        path: The file.
        views: Clips, and whether each is cropped.
        kept: What the file holds of each.
        rows: Where what is given of that is wanted, [K, n, …].
    """

    path: Path
    views: Sequence[tuple[int, bool]]
    kept: Kept
    rows: np.ndarray

    def read(self) -> bool:
        """Fills the rows, where the file is there and whole."""
        content = read_checked(self.path)
        if content is None:
            return False
        stored = np.load(BytesIO(content), allow_pickle=False)
        shape = (len(self.views), *self.kept.shape)
        whole = stored.dtype == np.float32 and stored.shape == shape and np.isfinite(stored).all()
        if whole:
            self.rows[:] = self.kept.given(stored)
        return bool(whole)

    def write(self, embeddings: np.ndarray) -> None:
        """Writes what is kept, [n, …], and fills the rows."""
        file = BytesIO()
        np.save(file, embeddings)
        write_checked(self.path, file.getvalue())
        self.rows[:] = self.kept.given(embeddings)


def _make(shard: _Shard, *, encoder: Encoder, dataset: Dataset, compute: Compute, wait: bool) -> bool:
    """Encodes a shard unless another process did so meanwhile; False where one is doing so and is not waited for."""
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(shard.path.with_suffix(".lock"), timeout=-1 if wait else 0):
            if not shard.read():
                _encode_shard(encoder, dataset, shard, compute)
    except Timeout:
        return False
    return True


def _encode_shard(encoder: Encoder, dataset: Dataset, shard: _Shard, compute: Compute) -> None:
    """Encodes and writes a shard."""

    def read(view: tuple[int, bool]) -> np.ndarray:
        clip, crop = view
        return dataset.waveform(clip, encoder.sample_rate, place=dataset.crop_place(clip) if crop else 0.0)

    names = [dataset.files[clip] for clip, _ in shard.views]
    clip_bytes = audio.SAMPLE_BYTES * dataset.task.clip_seconds * encoder.sample_rate
    ahead = min(2 * compute.batch_size, int(_MEMORY / clip_bytes))
    waveforms = map_ahead(read, shard.views, compute.jobs, ahead)
    kept = shard.kept

    def embed(batch: Tensor, _: list[int], clips: list[str]) -> Tensor:
        found = kept.embed(batch, clips)
        if (shape := tuple(found.shape[1:])) != kept.shape:
            raise UsageError(f"{clips[0]}: {encoder.name} gave {kept.name} {shape}, for noise {kept.shape}. {ALIKE}")
        return found

    samples = kept.seconds_at_once * encoder.sample_rate
    embeddings = _embed(embed, names, waveforms, compute.batch_size, samples, [])
    shard.write(np.stack([embeddings[row] for row in range(len(names))]))


def _embed(
    embed_batch: Callable[[Tensor, list[int], list[str]], Tensor],
    names: Sequence[str],
    waveforms: Iterable[np.ndarray | AudioError],
    batch_size: int,
    most_samples: int,
    failures: list[str],
    retry: bool = False,
) -> dict[int, np.ndarray]:
    """Embeddings of clips by their index, made in padded batches; of those that cannot be read, adds a failure.

    `embed_batch` takes waveforms [B, S], the samples of each, and names; a batch holds `most_samples` and its padding.
    A batch that cannot be embedded is an error; with `retry` its clips are embedded one by one, and those that cannot
    be are failures too.
    """
    embeddings: dict[int, np.ndarray] = {}
    batch: dict[int, np.ndarray] = {}

    def embed(clips: Sequence[int]) -> None:
        lengths = [len(batch[clip]) for clip in clips]
        padded = np.stack([np.pad(batch[clip], (0, max(lengths) - len(batch[clip]))) for clip in clips])
        try:
            found = embed_batch(torch.from_numpy(padded), lengths, [names[clip] for clip in clips])
        except (AudioError, DataError) as error:
            if not retry:
                raise
            if len(clips) == 1:
                failures.append(note(error))
            else:
                for clip in clips:
                    embed([clip])
        else:
            embeddings.update(zip(clips, found.numpy(), strict=True))

    def flush() -> None:
        embed(list(batch))
        batch.clear()

    for index, waveform in enumerate(waveforms):
        if isinstance(waveform, AudioError):
            failures.append(note(waveform))
            continue
        samples = (len(batch) + 1) * max(map(len, [waveform, *batch.values()]))
        if batch and (len(batch) == batch_size or samples > most_samples):
            flush()
        batch[index] = waveform
    if batch:
        flush()
    return embeddings


def embed_files(
    encoder: SceneEncoder, files: Sequence[Path], compute: Compute, least_seconds: float = 0.0
) -> tuple[list[Path], np.ndarray, list[str]]:
    """Scene embeddings of whole sound files of any length, batched by like length.

    Args:
        encoder: Any encoder.
        files: Sound files.
        compute: Batch size and decoding threads.
        least_seconds: Duration that shorter files are zero-padded to.

    Returns:
        The files that could be read, in the order given; their embeddings [N, D] float32; and a message for each other.
    """
    encoder = wrap(encoder)
    durations: dict[Path, float] = {}
    failures: list[str] = []
    for file in files:
        try:
            durations[file] = audio.duration(file)
        except AudioError as error:
            failures.append(note(error))
    ordered = sorted(durations, key=lambda file: durations[file])

    def read(file: Path) -> np.ndarray | AudioError:
        try:
            waveform = audio.read(file, encoder.sample_rate)
        except AudioError as error:
            return error
        return np.pad(waveform, (0, max(0, round(least_seconds * encoder.sample_rate) - len(waveform))))

    waveforms = map_ahead(
        read, ordered, compute.jobs, compute.batch_size, weight=audio.memory_to_read, heaviest=_MEMORY
    )
    progress = track(waveforms, "Embedding", len(ordered), "files")
    found = _embed(
        lambda batch, lengths, clips: encoder.scene_embeddings(batch, lengths, clips=clips),
        [str(file) for file in ordered],
        progress,
        compute.batch_size,
        SECONDS_AT_ONCE * encoder.sample_rate,
        failures,
        retry=True,
    )
    embeddings = {ordered[index]: embedding for index, embedding in found.items()}
    done = [file for file in files if file in embeddings]
    size = (0, encoder.scene_embedding_size)
    return done, np.stack([embeddings[file] for file in done]) if done else np.empty(size), failures


def check_output(path: Path) -> None:
    """Raises a UsageError, before any work is done, unless embeddings can be written as this file."""
    if path.suffix not in (".npz", ".parquet"):
        raise UsageError(f"{path}: embeddings are written as .npz or .parquet.")
    make_folder(path.parent)
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UsageError(f"{path}: writing Parquet needs pyarrow. Run pip install 'm2d-bench[parquet]', or write .npz.")


def write_embeddings(path: Path, files: Sequence[Path], embeddings: np.ndarray, encoder: SceneEncoder) -> None:
    """Writes embeddings with their files' names and the encoder's digest, as .npz or .parquet; whole or not at all.

    Raises:
        UsageError: Another suffix, or .parquet without pyarrow.
    """
    check_output(path)
    names, digest = [str(file) for file in files], wrap(encoder).digest
    with replacing(path) as file:
        if path.suffix == ".npz":
            np.savez(file, files=np.array(names), embeddings=embeddings, digest=np.array(digest))
        else:
            names = [name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in names]
            pd.DataFrame({"file": names, "embedding": list(embeddings), "digest": digest}).to_parquet(file)
