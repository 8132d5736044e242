"""The short table of runs: one line per run and metric."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from m2d_bench.results.render import as_csv, interval, render_rows
from m2d_bench.results.statistics import UNITS, estimate, scale, seed_means
from m2d_bench.runs import Run


def summary(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One row per run and metric: model, task, protocol, metric, unit, mean and ci95 in that unit, n seeds, seconds (of
    the run, on its first row).

    Runs without a finished seed are left out.
    """
    rows = []
    for run in runs:
        for rank, metric in enumerate((run.task["metric"], *run.task["other_metrics"])):
            scores = list(seed_means(run, metric).values())
            if not scores:
                continue
            result, factor = estimate(scores), scale(metric)
            rows.append(
                {
                    "model": run.encoder["name"],
                    "task": run.task_title,
                    "protocol": run.protocol,
                    "metric": metric,
                    "unit": UNITS.get(metric, "%"),
                    "mean": round(factor * result.mean, 2),
                    "ci95": None if result.half_width is None else round(factor * result.half_width, 2),
                    "n": result.n,
                    "seconds": None if rank else _seconds(run),
                }
            )
    return rows


def report(runs: Iterable[Run], style: str = "text") -> str:
    """A table of these runs, one line per run and metric, in one of `render.FORMATS`."""
    rows = summary(runs)
    if style == "json":
        return json.dumps(rows, indent=1)
    if style == "csv":
        return as_csv(rows)
    header = ("model", "task", "metric", "mean ± 95% CI", "n", "seconds")
    lines = [
        (
            row["model"],
            row["task"],
            f"{row['protocol']} {row['metric']}" + (f" ({row['unit']})" if row["unit"] else ""),
            interval(row["mean"], row["ci95"]),
            row["n"],
            row["seconds"],
        )
        for row in rows
    ]
    return render_rows(header, lines, style)


def _seconds(run: Run) -> float:
    return round(sum(run.seconds.values()) + sum(score.seconds for score in run.scores), 1)
