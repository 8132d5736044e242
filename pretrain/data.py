"""Data for pre-training: what a path holds, its mean and std, and batches of random crops of it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pandas as pd

from m2d_bench import audio
from m2d_bench.encoders.frontend import SAMPLE_RATES
from m2d_bench.errors import DataError, UsageError
from m2d_bench.progress import bar

from . import images, parts, shards
from .batches import CHUNK, Batches, Order
from .listing import Paths, find
from .sources import ArraySource, AudioSource, PreparedSource, Source

_ALLOWED = (
    "Allowed are a folder that m2d-bench prepare wrote, a CSV file with the column file_name that lists .npy log-mels, "
    "a folder of sound files, or a folder of .png or .jpg images."
)


def open_source(
    path: Path, frames: int, sample_rate: int = 16000, *, root: Path | None = None, height: int | None = None
) -> Source:
    """Finds out what a path holds.

    Args:
        path: A folder that `m2d-bench prepare` wrote; a CSV file with a column file_name of `.npy` log-mels
            [1, 80, frames]; a tree of sound files; or a tree of images. Sound files win where there are images too,
            which are their covers.
        frames: Width of a crop.
        sample_rate: Hz the model works at.
        root: Folder the paths of a CSV file are relative to; None: the folder it lies in.
        height: Height of a crop of an image; None: as its width.

    Raises:
        DataError: It is none of them, is incomplete or does not fit the model.
    """
    if sample_rate not in SAMPLE_RATES or frames < 1:
        raise UsageError(f"frames is at least 1, sample_rate one of {SAMPLE_RATES}; got {frames} and {sample_rate}.")
    if path.is_file():
        return ArraySource(root or path.parent, Paths(_read_list(path)), frames)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder. {_ALLOWED}")
    if (path / shards.INDEX).exists():
        return PreparedSource(path, frames, sample_rate)
    if (path / parts.UNFINISHED).exists():
        raise DataError(f"{path}: was not prepared to the end. Start the same m2d-bench prepare again.")
    if sounds := find(path, audio.SUFFIXES):
        return AudioSource(path, Paths(sounds), frames, sample_rate)
    if pictures := find(path, images.SUFFIXES):
        return images.ImageSource(path, Paths(pictures), (height or frames, frames))
    kinds = Counter(Path(name).suffix or "no suffix" for name in find(path, ()))
    held = ", ".join(f"{count} files with {suffix}" for suffix, count in kinds.most_common(5))
    raise DataError(f"{path}: holds {held or 'no files'}. {_ALLOWED}")


def _read_list(path: Path) -> list[str]:
    """The column file_name of a CSV file."""
    try:
        names = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=["file_name"])["file_name"].tolist()
    except (ValueError, OSError) as error:  # ragged, empty, not UTF-8, or without the column
        raise DataError(f"{path}: not a CSV file with a column file_name ({error}). {_ALLOWED}") from error
    if not names:
        raise DataError(f"{path}: lists no files.")
    if other := next((name for name in names if not name.lower().endswith(".npy")), None):
        raise DataError(f"{path}: lists {other!r}, which is no .npy file. {_ALLOWED}")
    return names


def measure_norm_stats(source: Source, limit: int = 10_000, seed: int = 0, workers: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of random crops, without what lies behind the end of short clips.

    Args:
        source: The clips.
        limit: Number of crops, one a clip; fewer where there are fewer clips.
        seed: Decides which clips and where the crops lie.
        workers: Processes that read; they change the time it takes, not the result.

    Source: M2D (2023), section 4.
    """
    crops = min(limit, source.n_clips)
    batches = loader(source, batch_size=CHUNK, seed=seed, epoch=0, workers=workers, epoch_clips=crops, drop_last=False)
    number, total, squares = 0, 0.0, 0.0
    with bar("Measuring mean and std", crops, "crops") as advance:
        for batch, _ in batches:
            values = source.spectrogram(batch).double()
            number += int((~values.isnan()).sum())
            total += float(values.nansum())
            squares += float(values.square().nansum())
            advance(len(batch))
    mean = total / number
    variance = squares / number - mean**2
    if not variance > 1e-12 * squares / number:
        raise DataError(f"The clips hold nothing but {mean:g}: there is nothing to learn from. Look at the files.")
    return mean, math.sqrt(variance)


def loader(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    start_batch: int = 0,
    epoch_clips: int | None = None,
    drop_last: bool = True,
    epochs: int = 1,
) -> Batches:
    """Batches of random crops of an epoch, as a rank sees them; see `m2d_bench.pretrain.batches`.

    Args:
        source: The clips.
        batch_size: Crops a batch and rank.
        seed: Of the order and the crops, together with the epoch.
        epoch: Which epoch, from 0.
        rank: Of this process.
        world_size: Number of ranks.
        workers: Processes that read; 0: this one.
        start_batch: Batches of this rank to leave out, as they were done before.
        epoch_clips: Clips an epoch: fewer clips are repeated, each equally often but for one; of more, as many are
            drawn. None: each clip once.
        drop_last: Leave out what does not fill a batch of every rank. Otherwise the last batch of a rank may be short
            or missing.
        epochs: Epochs that follow each other in one stream, read by workers that stay.

    Returns:
        Iterates over (crops [b, …] for `source.log_mel`, clips [b] int64); its length is the number of batches.

    Raises:
        UsageError: The clips do not fill a batch, or a number is out of its range.
        DataError: While iterating: a file cannot be read.
    """
    order = Order(
        n_clips=source.n_clips,
        epoch_clips=source.n_clips if epoch_clips is None else epoch_clips,
        seed=seed,
        epoch=epoch,
        epochs=epochs,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        start_batch=start_batch,
        drop_last=drop_last,
    )
    return Batches(source, order, workers)
