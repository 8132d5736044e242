"""How each cell stands in its column: the best, what ties with it, and the difference from a baseline."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from m2d_bench.results.statistics import Difference, holm, paired, welch
from m2d_bench.results.table import Column, Mark, Row, Value

Key = TypeVar("Key", bound=Hashable)


def marks_of(rows: Sequence[Row], columns: Sequence[Column], baseline: Row | None) -> dict[tuple[int, Column], Mark]:
    """The mark of every cell that is not empty, by its row's number and column.

    Args:
        rows: Of the table; those trained on different shares of the training clips are ranked apart.
        columns: Of the table.
        baseline: The row that differences are taken from, if any.
    """
    marks: dict[tuple[int, Column], Mark] = {}
    for column in columns:
        peers: dict[float, dict[int, Value]] = {}
        for number, row in enumerate(rows):
            if column in row.values:
                peers.setdefault(row.train_fraction, {})[number] = row.values[column]
        for values in peers.values():
            marks |= {(number, column): mark for number, mark in ranked(values, column.higher_is_better).items()}
    return _compared(rows, marks, baseline) if baseline else marks


def ranked(values: Mapping[Key, Value], higher_is_better: bool) -> dict[Key, Mark]:
    """The marks of comparable values, such as those of a column by their rows' numbers."""
    sign = 1 if higher_is_better else -1
    top_two = sorted({sign * value.estimate.mean for value in values.values()}, reverse=True)[:2]
    ranks = {
        key: top_two.index(score) + 1 if (score := sign * value.estimate.mean) in top_two else 0
        for key, value in values.items()
    }
    best = [values[key] for key, rank in ranks.items() if rank == 1]
    return {
        key: Mark(rank=ranks[key], ties=ranks[key] != 1 and any(_ties(value, other) for other in best))
        for key, value in values.items()
    }


def _ties(value: Value, best: Value) -> bool:
    """Whether the 95% interval of the difference holds zero; not where it is unknown."""
    difference = _difference(value, best)
    return difference.half_width is not None and abs(difference.mean) <= difference.half_width


def _compared(
    rows: Sequence[Row], marks: Mapping[tuple[int, Column], Mark], base: Row
) -> dict[tuple[int, Column], Mark]:
    """The marks with the differences from the baseline, their significance corrected for all of them."""
    differences = {
        (number, column): _difference(rows[number].values[column], base.values[column])
        for number, column in marks
        if rows[number] is not base and column in base.values
    }
    tested = {key: difference.p for key, difference in differences.items() if difference.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {key: replace(mark, difference=differences.get(key), p=corrected.get(key)) for key, mark in marks.items()}


def _difference(value: Value, base: Value) -> Difference:
    """Paired where both ran the same seeds, else Welch's; no p-value where a side's number of runs is not printed."""
    if len(value.scores) > 1 and value.scores.keys() == base.scores.keys():
        return paired([value.scores[key] for key in base.scores], list(base.scores.values()))
    difference = welch(value.estimate, base.estimate)
    return replace(difference, p=None) if value.printed or base.printed else difference
