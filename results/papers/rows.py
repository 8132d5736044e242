"""The rows and columns of a published table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from m2d_bench.results.papers.published import GROUPS, Cell
from m2d_bench.results.statistics import Estimate
from m2d_bench.results.table import Column, Row, Value

MANY = 10**6
"""Number of runs assumed behind a printed interval, which no table prints: its half width is taken for 1.96 standard
errors. Such intervals get no p-value."""


def printed_columns(cells: Iterable[Cell]) -> list[Column]:
    """The columns of these cells, in their order."""
    return list(
        dict.fromkeys(
            Column(
                protocol=cell.protocol,
                task=cell.task,
                metric=cell.metric,
                unit="%",
                higher_is_better=cell.higher_is_better,
                members=GROUPS.get(cell.task, ()),
            )
            for cell in cells
        )
    )


def printed_rows(cells: Iterable[Cell], columns: Sequence[Column]) -> list[Row]:
    """The rows of these cells, in their order; remarks that hold for a whole row are the row's."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        key = (cell.section, cell.model, cell.params_millions, cell.pretrain_data)
        groups.setdefault(key, []).append(cell)
    rows = []
    for (section, model, params, data), row_cells in groups.items():
        shared = [note for note in row_cells[0].notes if all(note in cell.notes for cell in row_cells)]
        rows.append(
            Row(
                model=model,
                source=f"{row_cells[0].source} {row_cells[0].table}",
                section=section,
                params_millions=params,
                pretrain_data=data,
                values={
                    column: _printed_value(cell, shared)
                    for cell in row_cells
                    for column in columns
                    if cell.value and (cell.protocol, cell.task, cell.metric) == _place(column)
                },
                notes=tuple(shared),
            )
        )
    return rows


def _place(column: Column) -> tuple[str, str, str]:
    return column.protocol, column.task, column.metric


def _printed_value(cell: Cell, shared: Sequence[str]) -> Value:
    half_width = float(cell.ci95) if cell.spread_is_interval else None
    return Value(
        estimate=Estimate(float(cell.value), half_width, MANY if half_width is not None else 1),
        printed=cell.value + (f" ± {cell.ci95}" if cell.ci95 else ""),
        notes=tuple(note for note in cell.notes if note not in shared),
    )
