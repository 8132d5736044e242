"""The rows and columns of run records."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from m2d_bench.errors import UsageError
from m2d_bench.evaluation.settings import MIXING_LEARNING_RATE, LinearSettings
from m2d_bench.results.papers import published
from m2d_bench.results.statistics import UNITS, average, estimate, higher_is_better, scale, seed_means
from m2d_bench.results.table import Column, Row, Value
from m2d_bench.runs import SYNTHETIC, Run

logger = logging.getLogger(__name__)

OURS = "m2d-bench"

PROBES = ("linear", "knn", "logreg", "attentive")
_OF_THE_TASK = {"clip_seconds", "validation_fraction", "task version", "clips", "metric"}
_DEFAULTS: dict[str, Any] = {
    **{field.name: field.default for field in fields(LinearSettings) if field.name not in {"probe", *_OF_THE_TASK}},
    "mixing_learning_rate": MIXING_LEARNING_RATE,
}


def variants(runs: Sequence[Run], *, keys: bool = True) -> list[str]:
    """What has to stand behind each run's model name: settings of a probe that are not the default, and whatever else
    tells it from other runs of the same model and protocol; empty for a run at the defaults.

    Settings without a default, and weights, that differ between tasks are named for every run; those that belong to a
    task, and other tools' settings, which are one set per task, only where a task was run with several. A model under
    another encoding has another digest, which is no other weights.

    Args:
        runs: The records.
        keys: Whether runs on the same task that differ in nothing else are told apart by their keys.
    """
    identities = [_identity(run) for run in runs]
    labels = [""] * len(runs)
    same = lambda i: (runs[i].encoder["name"], runs[i].protocol, str(runs[i].settings.get("encoding")))  # noqa: E731
    for members in _grouped(range(len(runs)), same):
        shared = _differing([identities[i] for i in members if is_probe(runs[i])], _OF_THE_TASK)
        for of_task in _grouped(members, lambda i: runs[i].task["name"]):
            differing = shared | _differing([identities[i] for i in of_task], set())
            for i in of_task:
                labels[i] = _variant(identities[i], differing, _DEFAULTS if is_probe(runs[i]) else {})
            if keys and len({labels[i] for i in of_task}) < len(of_task):
                for i in of_task:
                    labels[i] = ", ".join(filter(None, (labels[i], f"key={runs[i].key}")))
    return labels


def _variant(identity: Mapping[str, Any], differing: set[str], defaults: Mapping[str, Any]) -> str:
    """`name=value` of what differs from the default or, where there is none, from other runs."""
    return ", ".join(
        f"{name}={value}"
        for name, value in identity.items()
        if (value != defaults[name] if name in defaults else name in differing)
    )


def _grouped(items: Iterable[int], key: Callable[[int], Hashable]) -> Iterable[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups.values()


def train_fraction(run: Run) -> float:
    """Share of the training clips a run was trained on."""
    return float(run.settings.get("train_fraction", 1.0))


def is_probe(run: Run) -> bool:
    """Whether it is of this package's harness, whose settings are the same for all tasks."""
    return run.protocol in PROBES and "harness" not in run.settings


def _differing(identities: Sequence[Mapping[str, Any]], without: set[str]) -> set[str]:
    """The names whose values differ."""
    names = {name for values in identities for name in values} - without
    return {name for name in names if len({repr(values.get(name)) for values in identities}) > 1}


def _identity(run: Run) -> dict[str, Any]:
    """Whatever tells two runs of an encoder's name apart."""
    settings: dict[str, Any] = {}

    def flatten(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                flatten(value, f"{prefix}{name}.")
            else:
                settings[prefix + name] = value

    flatten(run.settings, "")
    others = {"weights": run.encoder["digest"][:8], "task version": run.task["version"]}
    return {**settings, **others, "clips": run.task["fingerprint"], "metric": run.task["metric"]}


def record_columns(runs: Iterable[Run]) -> list[Column]:
    """A column a task, and the means over all tasks and over those of each domain, where they count in one unit."""
    by_task: dict[tuple[str, str], Column] = {}
    domains: dict[str, str] = {}
    for run in runs:
        metric, task = run.task["metric"], run.task_title
        if domains.get(task, "other") == "other":
            domains[task] = run.task.get("domain", "other")
        column = Column(
            protocol=run.protocol,
            task=task,
            metric=metric,
            unit=UNITS.get(metric, "%"),
            higher_is_better=higher_is_better(metric),
        )
        by_task.setdefault((run.protocol, task), column)
    columns: list[Column] = []
    for protocol in sorted({protocol for protocol, _ in by_task}):
        tasks = [by_task[key] for key in sorted(by_task) if key[0] == protocol]
        columns += tasks
        if len({(column.unit, column.higher_is_better) for column in tasks}) == 1:
            columns += _means(tasks, domains)
    return columns


def _means(tasks: Sequence[Column], domains: Mapping[str, str]) -> list[Column]:
    """The averages over these tasks: of each domain, and of all."""
    groups: dict[str, tuple[str, ...]] = {}
    for column in tasks:
        groups[domains[column.task]] = (*groups.get(domains[column.task], ()), column.task)
    if len(groups) == 1:
        groups = {}
    groups["average"] = tuple(column.task for column in tasks)
    metrics = "/".join(dict.fromkeys(column.metric for column in tasks))
    return [
        replace(tasks[0], task=f"{name} ({_counted(members)})", metric=metrics, members=members)
        for name, members in groups.items()
        if len(members) > 1
    ]


def _counted(tasks: Sequence[str]) -> str:
    synthetic = sum(task.endswith(SYNTHETIC) for task in tasks)
    return f"{len(tasks)} tasks" + (f", {synthetic} synthetic" if synthetic else "")


def record_rows(
    runs: Sequence[Run], columns: Sequence[Column], pools: Mapping[str, Sequence[str]], like: bool
) -> list[Row]:
    """The runs' rows: one an encoder and, where it ran a task more than once, one a setting.

    Args:
        runs: The records.
        columns: Of the table.
        pools: Labels of rows, and the names of the encoders that make up each, all their runs together.
        like: Whether the columns are a published table's, where tasks go by the papers' names.
    """
    labels = _labels(pools, {run.encoder["name"] for run in runs})
    rows: dict[tuple[str, str], dict[tuple[str, str], dict[Hashable, float]]] = {}
    commands: dict[tuple[str, str], dict[str, None]] = {}
    ran: dict[tuple[tuple[str, str], tuple[str, str], str], Run] = {}
    fractions: dict[tuple[str, str], float] = {}
    metrics = _metrics(columns)
    for run, variant in zip(runs, variants(runs), strict=True):
        name, metric = run.encoder["name"], run.task["metric"]
        cell = run.protocol, published.task_name(run.task["name"]) if like else run.task_title
        if cell not in metrics or not (scores := _usable(run, metrics[cell])):
            continue
        row = (labels[name], "") if name in labels else (name, variant)
        if (other := ran.get((row, cell, name))) is not None:
            if name in labels:
                raise UsageError(
                    f"{labels[name]} takes {name}, which ran {cell[1]} more than once ({variant or run.task['name']}, "
                    "…). A label of several encoders takes one run of each; keep the others in another folder."
                )
            row = name, ", ".join(filter(None, (variant, run.task["name"])))  # evar:esc50 beside a paper's esc50
            assert other.task["name"] != run.task["name"]
        ran[row, cell, name] = run
        fractions[row] = train_fraction(run)
        of_pool = name if name in labels else ""
        by_seed = {(of_pool, seed): scale(metric) * score for seed, score in scores.items()}
        rows.setdefault(row, {}).setdefault(cell, {}).update(by_seed)
        commands.setdefault(row, {})[re.sub(r" --tasks \S+", "", run.command)] = None
    return [
        Row(
            model=model + (f" ({variant})" if variant else ""),
            source=OURS,
            section="this benchmark's runs" if like else "",
            values=_values(tasks, columns),
            notes=tuple(filter(None, commands[model, variant])) if like else (),
            train_fraction=fractions[model, variant],
        )
        for (model, variant), tasks in sorted(rows.items())
    ]


def _labels(pools: Mapping[str, Sequence[str]], known: set[str]) -> dict[str, str]:
    """The label of each encoder that is shown under one.

    Raises:
        UsageError: An encoder under two labels, or under the name of another.
    """
    labels: dict[str, str] = {}
    for label, names in pools.items():
        if label in known:
            raise UsageError(f"{label} is the name of an encoder; choose another label for {'+'.join(names)}.")
        for name in names:
            if name in labels:
                raise UsageError(f"{name} stands under {labels[name]} and under {label}; it can be counted once.")
            labels[name] = label
    return labels


def _usable(run: Run, metric: str) -> dict[int, float]:
    """Its scores by seed; none, with a warning, where it has none that can stand in a column that counts `metric`."""
    name, task, scores = run.encoder["name"], run.task["name"], seed_means(run)
    if not scores:
        logger.warning("%s on %s has no finished seed: left out.", name, task)
    elif run.task["metric"].lower() != metric:
        logger.warning("%s on %s counts %s, the table %s: left out.", name, task, run.task["metric"], metric)
    else:
        return scores
    return {}


def _metrics(columns: Iterable[Column]) -> dict[tuple[str, str], str]:
    """What each (protocol, task) of the columns counts, the members of means included; in lower case."""
    metrics: dict[tuple[str, str], str] = {}
    for column in columns:
        for task in column.members or (column.task,):
            metrics.setdefault((column.protocol, task), column.metric.lower())
    return metrics


def _values(
    tasks: Mapping[tuple[str, str], Mapping[Hashable, float]], columns: Sequence[Column]
) -> dict[Column, Value]:
    """Each column's value; of a mean over tasks only where all of them are there."""
    values = {}
    for column in columns:
        of_members = [tasks.get((column.protocol, task)) for task in column.members or (column.task,)]
        if scores := average(of_members):
            values[column] = Value(estimate=estimate(list(scores.values())), scores=scores)
    return values
