"""Opens what a path holds as a source of clips."""

from __future__ import annotations

import logging
from pathlib import Path

from m2d_bench import audio
from m2d_bench.encoders.frontend import SAMPLE_RATES
from m2d_bench.errors import DataError, UsageError
from m2d_bench.files import kinds
from m2d_bench.images import SUFFIXES
from m2d_bench.pretrain.data import parts, shards
from m2d_bench.pretrain.data.images import ImageSource
from m2d_bench.pretrain.data.listing import Paths
from m2d_bench.pretrain.data.source import SKIP, Source
from m2d_bench.pretrain.data.sources import ArraySource, AudioSource, PreparedSource
from m2d_bench.settings import OnBadFile
from m2d_bench.tasks import index

logger = logging.getLogger(__name__)

_ALLOWED = (
    "Allowed are a folder that m2d-bench prepare wrote, a CSV file with the column file_name that lists .npy log-mels, "
    "a folder of sound files, or a folder of .png or .jpg images."
)


def open_source(
    path: Path,
    frames: int,
    sample_rate: int = 16000,
    *,
    root: Path | None = None,
    height: int | None = None,
    on_bad_file: OnBadFile = "stop",
) -> Source:
    """Opens what a path holds.

    Args:
        path: A folder that `m2d-bench prepare` wrote; a CSV file with a column file_name of `.npy` log-mels
            [1, 80, frames]; a tree of sound files; or a tree of images. Sound files win where there are images too,
            which are their covers.
        frames: Width of a crop.
        sample_rate: Hz the model works at.
        root: Folder the paths of a CSV file are relative to; None: the folder it lies in.
        height: Height of a crop of an image; None: as its width.
        on_bad_file: Whether what cannot be read is an error (stop) or left out (skip), see `Source.skipped`.

    Raises:
        DataError: It is none of them, is incomplete or does not fit the model.
    """
    if sample_rate not in SAMPLE_RATES or frames < 1:
        raise UsageError(f"frames is at least 1, sample_rate one of {SAMPLE_RATES}; got {frames} and {sample_rate}.")
    source: Source
    if path.is_file():
        source = ArraySource(root or path.parent, Paths(_read_list(path)), frames)
    elif not path.is_dir():
        raise DataError(f"{path}: no such file or folder. {_ALLOWED}")
    elif (path / shards.INDEX).exists():
        source = PreparedSource(path, frames, sample_rate)
    elif (path / parts.UNFINISHED).exists():
        raise DataError(f"{path}: was not prepared to the end. Start the same m2d-bench prepare again.")
    else:
        source = _open_tree(path, frames, sample_rate, height or frames, on_bad_file)
    if on_bad_file == "skip":
        source.skipped = {}
    return source


def _open_tree(path: Path, frames: int, sample_rate: int, height: int, on_bad_file: OnBadFile) -> Source:
    """The sound files of a tree; its images where it has none."""
    sounds, others, unlisted = audio.find_sounds(path)
    for name, reason in unlisted:
        if on_bad_file == "stop":
            raise DataError(f"{path / name}: {reason} {SKIP}")
        logger.warning("%s: %s", path / name, reason)
    pictures = [name for name in others if name.lower().endswith(SUFFIXES)]
    if sounds:
        audio.warn_of_others(path, others)
        return AudioSource(path, Paths(sounds), frames, sample_rate)
    if pictures:
        return ImageSource(path, Paths(pictures), (height, frames))
    raise DataError(f"{path}: holds {f'files: {kinds(others)}' if others else 'no files'}. {_ALLOWED}")


def _read_list(path: Path) -> list[str]:
    """The column file_name of a CSV file of `.npy` files."""
    names: list[str] = index.read_columns(path, ["file_name"])["file_name"].tolist()
    if other := next((name for name in names if not name.lower().endswith(".npy")), None):
        raise DataError(f"{path}: lists {other!r}, which is no .npy file. {_ALLOWED}")
    return names
