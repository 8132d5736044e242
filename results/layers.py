"""Layers × poolings of an encoder: which is the best, and whether the seeds agree."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from m2d_bench.results.ranking import ranked
from m2d_bench.results.records import OURS
from m2d_bench.results.render import render
from m2d_bench.results.statistics import UNITS, estimate, higher_is_better, scale, seed_means
from m2d_bench.results.table import Column, Comparison, Mark, Row, Value
from m2d_bench.runs import Run

Cell = tuple[Any, Column]
"""A layer and a column: a task and a pooling."""


def layer_report(runs: Sequence[Run], style: str = "text") -> str:
    """The table of `by_layer` in one of `render.FORMATS`."""
    return render(by_layer(runs), style)


def by_layer(runs: Sequence[Run]) -> Comparison:
    """The table of runs of one encoder under one protocol: a row a layer, a column a task and pooling.

    The best is marked among all layers and poolings of a task. The title tells how stable the ranking is.

    Args:
        runs: Their settings differ in layer and pooling alone.
    """
    by_task: dict[str, dict[Cell, Value]] = {}
    for run in runs:
        if value := _value(run):
            by_task.setdefault(run.task_title, {})[run.settings["layer"], _column(run)] = value
    values = {cell: value for cells in by_task.values() for cell, value in cells.items()}
    layers = list(dict.fromkeys(layer for layer, _ in values))
    rows = [
        Row(
            model=f"layer {layer}",
            source=OURS,
            section=runs[0].encoder["name"],
            values={column: value for (of, column), value in values.items() if of == layer},
        )
        for layer in layers
    ]
    marks: dict[tuple[int, Column], Mark] = {}
    for cells in by_task.values():
        higher_is_better = next(iter(cells))[1].higher_is_better
        for (layer, column), mark in ranked(cells, higher_is_better).items():
            marks[layers.index(layer), column] = mark
    return Comparison(
        title=" ".join(filter(None, (_stability(task, cells) for task, cells in by_task.items()))),
        columns=list(dict.fromkeys(column for _, column in values)),
        rows=rows,
        marks=marks,
    )


def _value(run: Run) -> Value | None:
    """Its scores in the unit shown; None without a finished seed."""
    scores: dict[Hashable, float] = {seed: scale(run.task["metric"]) * score for seed, score in seed_means(run).items()}
    return Value(estimate=estimate(list(scores.values())), scores=scores) if scores else None


def _column(run: Run) -> Column:
    metric = run.task["metric"]
    return Column(
        protocol=run.protocol,
        task=f"{run.task_title} {run.settings['pooling']}",
        metric=metric,
        unit=UNITS.get(metric, "%"),
        higher_is_better=higher_is_better(metric),
    )


def _stability(task: str, cells: Mapping[Cell, Value]) -> str:
    """A sentence on how far seeds rank layers and poolings alike; empty for a single seed or cell.

    Source: Kendall's τ-b (1945), of each seed's scores with the mean of the others'.
    """
    from scipy.stats import kendalltau  # takes a second, which other tables need not wait

    scores = [value.scores for value in cells.values()]
    seeds = [seed for seed in scores[0] if all(seed in others for others in scores)]
    if len(seeds) < 2 or len(cells) < 2:
        return ""
    sign = 1 if next(iter(cells))[1].higher_is_better else -1
    by_seed = sign * np.array([[of_cell[seed] for of_cell in scores] for seed in seeds])
    means = by_seed.mean(0)
    best = np.flatnonzero(np.isclose(means, means.max(), rtol=0, atol=1e-9))
    firsts = int((by_seed[:, best].max(1) == by_seed.max(1)).sum())
    taus = [kendalltau(own, np.delete(by_seed, row, 0).mean(0)).statistic for row, own in enumerate(by_seed)]
    agreement = estimate([float(np.nan_to_num(tau)) for tau in taus])  # NaN: one side ranks nothing
    width = f" ± {agreement.half_width:.2f}" if len(seeds) > 2 else ""
    named = [f"layer {layer}, {column.task.rpartition(' ')[2]}" for layer, column in cells]
    first = [named[cell] for cell in best[:3]] + ([f"{len(best) - 3} more"] if len(best) > 3 else [])
    verdict = "is the best on average and" if len(best) == 1 else "tie as the best on average, one of them"
    return (
        f"{task}: {' and '.join(first)} {verdict} in {firsts} of {len(seeds)} seeds; "
        f"Kendall's τ of a seed's ranking with the others' {agreement.mean:.2f}{width}."
    )
