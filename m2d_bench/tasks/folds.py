"""Folds drawn for clips that come without: grouped, stratified, the same whenever they are drawn."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold

from m2d_bench.errors import DataError
from m2d_bench.randomness import generator_of
from m2d_bench.tasks.task import Entry, Folds

COUNT = 5
SEED = 0

_LAST_NUMBER = re.compile(r"[-_. (]+\d+\)?(\.\w+)?$")


def draw(place: Path, entries: Sequence[Entry], names: Sequence[str]) -> tuple[Folds, list[Entry]]:
    """Draws a fold for each clip: no group lies in two of them, and each has its share of every class.

    Groups are those of the clips; else files of one name up to its last number, but each file of a class that would
    have fewer groups than there are folds. A clip of several labels counts as its rarest.

    Args:
        place: Where they were listed, for messages.
        entries: The clips.
        names: Their files' names, [N].

    Returns:
        The folds, which say how they were drawn, and the clips with theirs.

    Raises:
        DataError: A file is in two groups, or there are too few groups or clips.
    """
    groups, how = _groups(place, entries, names)
    unique, numbers = np.unique(groups, return_inverse=True)
    shuffled = torch.randperm(len(unique), generator=generator_of(SEED, "folds")).numpy()[numbers]
    counts = Counter(label for entry in entries for label in entry.labels)
    strata = [min(entry.labels, key=lambda label: (counts[label], label), default="") for entry in entries]
    folds = np.empty(len(entries), int)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes of few clips are named later
            for fold, (_, test) in enumerate(StratifiedGroupKFold(COUNT).split(strata, strata, shuffled), 1):
                folds[test] = fold
    except ValueError:
        raise DataError(
            f"{place}: {len(entries)} clips in {len(unique)} groups are too few to draw {COUNT} folds; it takes "
            f"{COUNT} groups, and {COUNT} clips of a class. Add clips, or give each a split or a fold."
        ) from None
    drawn = f"no split or fold is given; {COUNT} folds are drawn with seed {SEED}, stratified by class, over {how}"
    return Folds(column="", count=COUNT, drawn=drawn), [
        entry._replace(split=str(fold)) for entry, fold in zip(entries, folds, strict=True)
    ]


def _groups(place: Path, entries: Sequence[Entry], names: Sequence[str]) -> tuple[list[str], str]:
    """The group of each clip, and what the groups are."""
    files = [entry.file for entry in entries]
    if any(entry.group for entry in entries):
        groups = [entry.group or entry.file for entry in entries]
        times = Counter(file for file, _ in {*zip(files, groups, strict=True)})
        if several := [file for file, count in times.items() if count > 1]:
            raise DataError(
                f"{place}: {len(several)} files in several groups, such as {several[0]}. Give each file one."
            )
        return groups, f"{len({*groups})} groups of the column group"
    stems = [_LAST_NUMBER.sub("", name) for name in names]
    groups = [file if stem == name else stem for file, name, stem in zip(files, names, stems, strict=True)]
    members: dict[str, list[str]] = {}
    for file, group in dict(zip(files, groups, strict=True)).items():
        members.setdefault(group, []).append(file)
    largest = max(members.values(), key=len)
    if len(largest) == 1:
        return groups, f"{len(members)} files, no two of one name up to its last number"
    table = pd.DataFrame({"label": [entry.labels for entry in entries], "file": files, "group": groups})
    counts = table.explode("label").groupby("label").nunique()
    few = counts.index[(counts["file"] >= COUNT) & (counts["group"] < COUNT)].tolist()
    alone = {entry.file for entry in entries if not {*few}.isdisjoint(entry.labels)}
    groups = [file if file in alone else group for file, group in zip(files, groups, strict=True)]
    how = f"{len({*groups})} groups: files of one name up to its last number, such as {largest[0]} and {largest[1]}"
    if few:
        how += (
            f", but each file by itself of {len(few)} classes that would have fewer than {COUNT} groups "
            f"({', '.join(few[:5])}{', …' if len(few) > 5 else ''}); the column group of a CSV file says better"
        )
    return groups, how
