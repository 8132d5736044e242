"""How well each class is told, of runs on tasks whose clips may have several labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from m2d_bench.results.records import variants
from m2d_bench.results.render import as_csv, interval, render_rows
from m2d_bench.results.statistics import class_means
from m2d_bench.results.summary import figures
from m2d_bench.runs import Run


def class_summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per run, class and metric: model, task, protocol, class, metric, unit, mean and ci95 in it, n seeds.

    Of a run's classes the one with the best average precision comes first.
    """
    rows = []
    for run, variant in zip(runs, variants(runs), strict=True):
        model = run.encoder["name"] + (f" ({variant})" if variant else "")
        about = {"model": model, "task": run.task_title, "protocol": run.protocol}
        for name, of_class in sorted(class_means(run).items(), key=_best_first):
            rows += [{**about, "class": name, **figures(metric, scores)} for metric, scores in of_class.items()]
    return rows


def _best_first(scored: tuple[str, dict[str, list[float]]]) -> float:
    """By what classes are sorted: their first metric."""
    return -fmean(next(iter(scored[1].values())))


def class_table(rows: Iterable[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """The header and lines of rows of `class_summary`: model, task, protocol, class, a column a metric, n."""
    headings: dict[str, str] = {}
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        headings[row["metric"]] = row["metric"] + (f" ({row['unit']})" if row["unit"] else "")
        line = lines.setdefault(tuple(row[name] for name in _NAMES), {"n": row["n"]})
        line[row["metric"]] = interval(row["mean"], row["ci95"])
    columns = [*headings, "n"]
    return [*_NAMES, *headings.values(), "n"], [[*key, *map(line.get, columns)] for key, line in lines.items()]


_NAMES = ("model", "task", "protocol", "class")


def class_report(runs: Sequence[Run], style: str = "text") -> str:
    """The table of these runs' classes in one of `render.FORMATS`: a line a class, in csv and json one a metric."""
    rows = class_summary(runs)
    if style == "json":
        return json.dumps(rows, indent=1)
    return as_csv(rows) if style == "csv" else render_rows(*class_table(rows), style)
