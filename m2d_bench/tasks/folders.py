"""Folders of class folders as clips. The only file that reads them.

    FOLDER/CLASS/*.wav
    FOLDER/{train,valid,test}/CLASS/*.wav     and their usual other names
    FOLDER/{fold1,fold2,…}/CLASS/*.wav

Folders below a class are searched too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from m2d_bench import audio
from m2d_bench.errors import DataError
from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry

logger = logging.getLogger(__name__)

LAYOUT = "FOLDER/CLASS/*.wav, FOLDER/train/CLASS/*.wav beside valid and test, or FOLDER/fold1/CLASS/*.wav"


def read_clips(folder: Path) -> tuple[str, list[Entry]]:
    """Finds the clips of a folder of class folders; what is left out is said.

    Returns:
        What the clips have: split, fold, or nothing of the kind; and the clips, sorted by their paths.

    Raises:
        DataError: No sound file lies in a class folder, only some folders are splits, or one cannot be listed.
    """
    sounds, others = find_sounds(folder)
    audio.warn_of_others(folder, others)
    if hidden := sum(path.name.startswith(".") for path in folder.rglob("*")):
        logger.warning("%s: %d hidden files and folders are left out.", folder, hidden)
    kind = _kind(folder, sorted({sound.split("/")[0] for sound in sounds if "/" in sound}))
    depth = 2 if kind else 1
    clips = [parts for sound in sounds if len(parts := sound.split("/")) > depth]
    if loose := [sound for sound in sounds if sound.count("/") < depth]:
        logger.warning("%s: %d sound files in no class folder are left out, such as %s.", folder, len(loose), loose[0])
    if not clips:
        raise DataError(f"{folder}: no sound file in a folder of its class. Allowed are {LAYOUT}.")
    return kind, [_clip(parts, kind) for parts in clips]


def find_sounds(folder: Path) -> tuple[list[str], list[str]]:
    """Finds the sound files of a tree, and its other files: paths relative to the folder, sorted.

    Raises:
        DataError: A folder cannot be listed.
    """
    sounds, others, unlisted = audio.find_sounds(folder)
    if unlisted:
        raise DataError(f"{folder / unlisted[0][0]}: {unlisted[0][1]}")
    return sounds, others


def _kind(folder: Path, names: Sequence[str]) -> str:
    """Whether the folders of these names are splits, folds or classes: split, fold or nothing."""
    if names and all(re.fullmatch(r"fold[-_ ]?\d+", name, re.IGNORECASE) for name in names):
        return "fold"
    splits = {name: index.split_name(name) for name in names}
    classes = [name for name, split in splits.items() if split not in ("train", "valid", "test")]
    if {"train", "test"} <= {*splits.values()} and classes:
        raise DataError(
            f"{folder}: holds train and test, which are splits, beside {', '.join(classes[:5])}. Move those away, or "
            f"list the clips in a CSV file. Allowed are {LAYOUT}."
        )
    return "" if classes else "split"


def _clip(parts: Sequence[str], kind: str) -> Entry:
    """A clip by the parts of its path."""
    split = index.split_name(parts[0]) if kind else ""
    return index.entry("/".join(parts), [parts[1 if kind else 0]], split)
