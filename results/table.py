"""What a comparison table is made of: rows of models, columns of tasks, cells, and how each stands in its column."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from m2d_bench.results.statistics import Difference, Estimate


@dataclass(frozen=True, kw_only=True)
class Column:
    """A task, or a group of tasks, under a protocol.

    Args:
        protocol: linear, finetune, superb, …
        task: Its name.
        metric: What it counts.
        unit: % or another, or empty.
        higher_is_better: Direction.
        members: Tasks whose mean it is; empty for a task.
    """

    protocol: str
    task: str
    metric: str
    unit: str
    higher_is_better: bool
    members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Value:
    """A cell that is not empty.

    Args:
        estimate: Mean and 95% half width, in the column's unit.
        printed: What a paper prints; None for a run of ours.
        scores: One score a run, of ours.
        notes: What has to be known of a printed one.
    """

    estimate: Estimate
    printed: str | None = None
    scores: Mapping[Hashable, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model.

    Args:
        model: Its name.
        source: Paper and table, or m2d-bench.
        section: Heading of the group of rows.
        params_millions: As printed.
        pretrain_data: As printed.
        values: Its cells.
        notes: What has to be known of the whole row.
        train_fraction: Share of the training clips behind its values; only rows of the same share are ranked together.
    """

    model: str
    source: str
    section: str = ""
    params_millions: str = ""
    pretrain_data: str = ""
    values: Mapping[Column, Value]
    notes: tuple[str, ...] = ()
    train_fraction: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How a cell stands in its column.

    Args:
        rank: 1 for the best, 2 for the second; equal values share it.
        ties: Not the best, but the 95% interval of the difference from it holds zero.
        difference: From the baseline's; None without a baseline.
        p: Its p-value after Holm's correction for all differences of the table; None where there is none.
    """

    rank: int = 0
    ties: bool = False
    difference: Difference | None = None
    p: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the difference is, at 5%."""
        return self.p is not None and self.p < 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table, ready to be rendered.

    Args:
        title: What it shows; empty for runs alone.
        columns: From left to right.
        rows: From top to bottom.
        marks: Of every cell that is not empty, by its row's number and column.
        baseline: Model of the row the differences are from; empty without.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    marks: Mapping[tuple[int, Column], Mark]
    baseline: str = ""
