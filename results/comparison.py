"""Runs beside each other and beside the papers' numbers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from m2d_bench.errors import UsageError
from m2d_bench.registry import unknown
from m2d_bench.results.filter import Filter, chosen
from m2d_bench.results.papers import published
from m2d_bench.results.papers.rows import printed_columns, printed_rows
from m2d_bench.results.ranking import marks_of
from m2d_bench.results.records import record_columns, record_rows
from m2d_bench.results.table import Column, Comparison, Row
from m2d_bench.runs import Run


@dataclass(frozen=True, kw_only=True)
class Selection(Filter):
    """What a table shows; of models, LABEL=NAME+NAME makes one row of several encoders, all their runs together.

    Args:
        baseline: Model whose differences from the others are shown.
    """

    baseline: str = ""


def compare(runs: Sequence[Run], selection: Selection = Selection(), like: str | None = None) -> Comparison:
    """The table of these runs.

    Args:
        runs: The records.
        selection: What is shown of them.
        like: A published table (`published.table`) whose rows and columns are shown, with the runs below.

    Raises:
        UsageError: An unknown table, or a model, task or protocol that nothing fits.
    """
    pools = {label: names.split("+") for label, equals, names in _split(selection.models) if equals}
    known = {run.encoder["name"] for run in runs}
    for name in (name for names in pools.values() for name in names if name not in known):
        raise unknown("model", name, known, "m2d-bench runs list")
    if like:
        cells = published.table(like)
        title, columns = f"Table {cells[0].table} of {cells[0].source}", _selected(printed_columns(cells), selection)
        rows = printed_rows(cells, columns)
    else:
        title, rows, runs = "", [], selection.runs(runs)
        columns = record_columns(runs)
    rows += record_rows(runs, columns, pools, bool(like))
    rows = chosen("model", [label for label, _, _ in _split(selection.models)], rows, _names)
    base = _baseline(rows, selection.baseline) if selection.baseline else None
    return Comparison(
        title=title,
        columns=columns,
        rows=rows,
        marks=marks_of(rows, columns, base),
        baseline=base.model if base else "",
    )


def _split(models: Sequence[str]) -> list[tuple[str, str, str]]:
    """LABEL=NAME+NAME in its parts; a row's own name may hold an equals sign in parentheses."""
    return [(model, "", "") if "(" in model.partition("=")[0] else model.partition("=") for model in models]


def _names(row: Row) -> list[str]:
    """A model's name with and without what stands behind it in parentheses."""
    return [row.model, row.model.partition(" (")[0]]


def _selected(columns: Sequence[Column], selection: Selection) -> list[Column]:
    """The columns of a published table that are asked for."""
    protocols = [selection.protocol] if selection.protocol else []
    columns = chosen("protocol", protocols, columns, lambda column: [column.protocol])
    return chosen("task", selection.tasks, columns, lambda column: [column.task])


def _baseline(rows: Sequence[Row], model: str) -> Row:
    matches = [row for row in rows if row.model == model] or chosen("baseline", [model], rows, _names)
    if not matches:
        raise UsageError(f"Baseline {model!r}: there are no rows to choose from.")
    if len(matches) != 1:
        names = " or ".join(dict.fromkeys(f"--baseline {shlex.quote(row.model)}" for row in matches))
        raise UsageError(f"Baseline {model!r} fits {len(matches)} rows. Name one: {names}.")
    return matches[0]
