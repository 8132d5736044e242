"""The papers' numbers: every cell of their tables as printed, with its source.

`results.csv` has one row a cell; `tasks.csv`, `finetune_settings.csv` and `pretrain_settings.csv` lie beside it.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from m2d_bench.registry import unknown

GROUPS = {
    "avg": ("esc50", "us8k", "spcv2", "vc1", "vf", "cremad", "gtzan", "nsynth", "surge"),
    "env": ("esc50", "us8k"),
    "mus": ("gtzan", "nsynth", "surge"),
}
"""Averages over tasks of linear evaluation. Source: M2D-X (2024), sections IV-B and IV-D."""

_ALIASES = {"voxforge": "vf"}
_NOT_A_NOTE = {"", "printed '-'", "cell blank in source", "printed 'N/A'"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table.

    Args:
        source: Paper, such as m2dx-2024.
        table: Its number.
        protocol: linear, finetune, superb, medical-finetune, imagenet-finetune or hear.
        section: Heading of the group of rows.
        model: As printed; what the source lost stands in brackets.
        params_millions: As printed, or empty.
        pretrain_data: As printed, or empty.
        task: Short name of the task, or of a group of tasks.
        metric: As printed.
        value: As printed, in percent; empty where nothing is.
        ci95: Half width printed beside it, or empty.
        higher_is_better: Direction of the metric.
        note: What has to be known of the cell.
    """

    source: str
    table: str
    protocol: str
    section: str
    model: str
    params_millions: str
    pretrain_data: str
    task: str
    metric: str
    value: str
    ci95: str
    higher_is_better: bool
    note: str

    @property
    def spread_is_interval(self) -> bool:
        """Whether what is printed behind ± is a 95% confidence interval."""
        return bool(self.ci95) and "not stated to be 95% CI" not in self.note

    @property
    def notes(self) -> list[str]:
        """The remarks, without those that say that nothing is printed."""
        parts = re.split(r";\s*(?![^()]*\))", self.note)  # not inside parentheses
        return [part for part in map(str.strip, parts) if part not in _NOT_A_NOTE]


@lru_cache(maxsize=1)
def cells() -> tuple[Cell, ...]:
    """Every cell, in the order of the papers."""
    text = files("m2d_bench.results.papers").joinpath("results.csv").read_text(encoding="utf-8")
    return tuple(
        Cell(**{**row, "higher_is_better": row["higher_is_better"] == "true"})  # type: ignore[arg-type]
        for row in csv.DictReader(text.splitlines())
    )


def names() -> list[str]:
    """Every table as `table` takes it: SOURCE:TABLE."""
    return list(dict.fromkeys(f"{cell.source}:{cell.table}" for cell in cells()))


def table(name: str) -> list[Cell]:
    """The cells of a table.

    Args:
        name: SOURCE:TABLE, such as m2dx-2024:III.

    Raises:
        UsageError: No such table.
    """
    matching = [cell for cell in cells() if f"{cell.source}:{cell.table}".lower() == name.lower()]
    if not matching:
        raise unknown("published table", name, names(), "m2d-bench table --list")
    return matching


def task_name(name: str) -> str:
    """The papers' short name of a task of ours: `superb:ks` → ks, `evar:voxforge` → vf."""
    short = name.partition(":")[2] or name
    return _ALIASES.get(short, short)
