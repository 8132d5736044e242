"""Models on the built-in tasks, beside each other and beside chance: a row a task, within 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from m2d_bench.results.ranking import marks_of
from m2d_bench.results.records import record_columns, record_rows
from m2d_bench.results.render import render
from m2d_bench.results.statistics import Estimate
from m2d_bench.results.table import Column, Comparison, Mark, Row, Value
from m2d_bench.runs import Run


def overview(runs: Sequence[Run], style: str = "text") -> str:
    """The table of runs on synthetic tasks of balanced classes, in one of `render.FORMATS`.

    Args:
        runs: Under one protocol; models stand in their order.
        style: The format.
    """
    runs = [replace(run, task={**run.task, "synthetic": False}) for run in runs]  # the title says it once for all
    title = f"Built-in synthetic tasks, {runs[0].protocol} probe; mean ± 95% interval over n seeds"
    columns = record_columns(runs)
    models = dict.fromkeys(run.encoder["name"] for run in runs)
    of_models = ([run for run in runs if run.encoder["name"] == model] for model in models)
    rows = [row for of_model in of_models for row in record_rows(of_model, columns, {}, like=False)]
    marks = marks_of(rows, columns, None) | {(len(rows), column): Mark() for column in columns}  # chance is not ranked
    rows = [replace(row, section=title) for row in (*rows, _chance(runs, columns))]
    table = Comparison(title=title, columns=columns, rows=rows, marks=marks)
    return render(table, style, by_task=True)


def _chance(runs: Sequence[Run], columns: Sequence[Column]) -> Row:
    """What guessing scores: one in as many as there are classes."""
    shares = {run.task_title: 100 / run.task["n_classes"] for run in runs}
    means = {column: fmean(shares[task] for task in column.members or (column.task,)) for column in columns}
    values = {column: Value(estimate=Estimate(mean, None, 1), printed=f"{mean:.1f}") for column, mean in means.items()}
    return Row(model="chance", source="1 / classes", values=values)
