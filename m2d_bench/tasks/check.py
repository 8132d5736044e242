"""What a task's data hold, and what is wrong with them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

import numpy as np
from tabulate import tabulate

from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset as datasets
from m2d_bench.tasks.dataset import Dataset
from m2d_bench.tasks.task import Task

logger = logging.getLogger(__name__)


def check(task: Task, storage: Storage, jobs: int = 0) -> tuple[str, tuple[str, ...]]:
    """Reads every clip of a task to its end; what makes scores doubtful is logged.

    Args:
        task: The task.
        storage: Where its data lie.
        jobs: Threads that read the clips; 0 means one a core.

    Returns:
        What was found; and what is wrong: counts, missing and unreadable files, sounds in several splits.

    Raises:
        DataError: As of `dataset.find`.
    """
    found = datasets.find(task, storage, jobs=jobs)
    there = found.only([clip for clip, file in enumerate(found.files) if (found.root / file).is_file()])
    faults = (f"{task.name}: {fault}" for fault in dict.fromkeys(there.faults.values()))
    wrong = (*datasets.miscounted(found), *datasets.problems(found), *faults, *there.leaks)
    for warning in there.warnings:
        if warning not in wrong:
            logger.warning("%s", warning)
    return _describe(there), wrong


def _describe(dataset: Dataset) -> str:
    """A table of the splits or folds, below what is the same for all."""
    task, counts = dataset.task, sorted(zip(dataset.class_counts.tolist(), dataset.classes, strict=True))
    sounds = [content for content in dataset.clip_contents if not content.fault]
    rows = [_row(split, dataset, dataset.splits == split) for split in sorted({*dataset.splits.tolist()})]
    rows.append(_row("all", dataset, np.full(len(dataset.files), True)))
    (fewest, rarest), (most, commonest) = counts[0], counts[-1]
    return "\n".join(
        [
            f"{task.name}: {task.source}, files below {dataset.root}",
            f"{len(counts)} classes of {fewest} ({rarest}) to {most} ({commonest}) clips; {task.metric}",
            f"sample rates: {_counted(f'{sound.sample_rate} Hz' for sound in sounds)}; "
            f"channels: {_counted(str(sound.channels) for sound in sounds)}; "
            f"cut or padded to {task.clip_seconds:.4g} s ({task.clip_seconds_source})",
            "",
            tabulate(rows, headers="keys", tablefmt="simple", floatfmt=".3f"),
        ]
    )


def _row(name: str, dataset: Dataset, chosen: np.ndarray) -> dict[str, object]:
    """Clips, classes and durations of a split."""
    clips = dataset.only(np.flatnonzero(chosen).tolist())
    row: dict[str, object] = {
        "fold" if dataset.task.folds else "split": name,
        "clips": len(clips.files),
        "classes": int((clips.class_counts > 0).sum()),
    }
    seconds = clips.seconds[clips.seconds > 0]
    if len(seconds):
        row |= {"hours": seconds.sum() / 3600}
        row |= {"shortest s": seconds.min(), "mean s": seconds.mean(), "longest s": seconds.max()}
    return row


def _counted(values: Iterable[str]) -> str:
    """How often each value occurs, the most frequent first."""
    return ", ".join(f"{value} ({count})" for value, count in Counter(values).most_common()) or "none"
