"""Run records → figures of scores: forest, heatmap and radar."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from m2d_bench.errors import UsageError
from m2d_bench.results.plots.figures import MEANING, Style, legend, panels, styled, styles
from m2d_bench.results.plots.plot_data import Result, axis_title, collect, limits, span
from m2d_bench.results.statistics import UNITS, Estimate
from m2d_bench.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


@styled()
def forest(records: Sequence[Run]) -> Figure:
    """Scores with their 95% intervals: a panel a task, a row a model, the best on top, each seed a faint dot.

    Args:
        records: Run records.

    Raises:
        UsageError: No record has a finished seed.
    """
    groups = _by_task(records)
    look = styles(result.label for members in groups.values() for result in members)
    figure, axes = panels(
        [0.36 * len(members) + 1.1 for members in groups.values()],
        columns=1 if len(groups) == 1 else 2,
        width=8,
        title=f"Scores: {MEANING};\nfaint dots: single seeds; n = 1 has no interval",
    )
    for panel, ((task, metric), members) in zip(axes, groups.items(), strict=True):
        ranked = sorted(
            members, key=lambda result: (result.estimate.mean * (1 if result.lower_is_better else -1), result.label)
        )
        for row, result in enumerate(ranked):
            _forest_row(panel, row, result, look[result.label])
        panel.set_yticks(range(len(ranked)), [f"{result.label}  n = {result.estimate.n}" for result in ranked])
        panel.set_ylim(len(ranked) - 0.4, -0.6)
        panel.set_title(task, loc="left")
        scores = [score for result in ranked for score in result.scores]
        panel.set(xlabel=axis_title(metric), xlim=limits(metric, *panel.get_xlim(), scores))
        panel.grid(axis="y", visible=False)
    return figure


def _forest_row(panel: Axes, row: int, result: Result, look: Style) -> None:
    estimate = result.estimate
    panel.errorbar(
        estimate.mean,
        row,
        xerr=estimate.half_width,
        fmt=look.marker,
        color=look.color,
        capsize=3,
        markersize=5,
        zorder=3,
    )
    panel.scatter(result.scores, [row + 0.22] * estimate.n, s=10, color=look.color, alpha=0.35, linewidths=0)


def _by_task(records: Sequence[Run]) -> dict[tuple[str, str], list[Result]]:
    """The records as they are drawn, by task and metric."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(collect(records), key=lambda result: (result.task, result.metric, result.label)):
        groups.setdefault((result.task, result.metric), []).append(result)
    return groups


@styled()
def heatmap(records: Sequence[Run]) -> Figure:
    """Models × tasks: mean ± half width in each cell, "–" where there is none, coloured within each task.

    Args:
        records: Run records.

    Raises:
        UsageError: No record has a finished seed.
    """
    groups = _by_task(records)
    models = sorted({result.label for members in groups.values() for result in members})
    cells = {
        (models.index(result.label), column): result
        for column, members in enumerate(groups.values())
        for result in members
    }
    counts = {result.estimate.n for result in cells.values()}
    shade = _shades(cells, (len(models), len(groups)))
    figure, (panel,) = panels(
        [0.5 * len(models) + 2.2],
        width=max(7, 1.45 * len(groups) + 0.075 * max(map(len, models))),
        title=f"Scores: mean ± half width of the 95% confidence interval (Student's t);\n"
        f"n = {span(counts)} seeds; darker is better, from the worst to the best within each task",
    )
    panel.imshow(np.ma.masked_invalid(shade), cmap="Blues", vmin=-0.15, vmax=1.25, aspect="auto")
    for row, column in np.ndindex(shade.shape):
        result = cells.get((row, column))
        text = _cell(result.estimate, len(counts) > 1) if result else "–"
        dark = result is not None and shade[row, column] > 0.65
        panel.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    panel.set_xticks(range(len(groups)), [f"{task}\n{_wrapped(axis_title(metric))}" for task, metric in groups])
    panel.set_yticks(range(len(models)), models)
    panel.tick_params(axis="x", rotation=40)
    for label in panel.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    panel.grid(visible=False)
    return figure


def _shades(cells: Mapping[tuple[int, int], Result], shape: tuple[int, int]) -> np.ndarray:
    """How far each cell is between the worst (0) and the best (1) of its column; NaN where there is none."""
    shade = np.full(shape, np.nan)
    for (row, column), result in cells.items():
        shade[row, column] = result.estimate.mean * (-1 if result.lower_is_better else 1)
    low, high = np.nanmin(shade, axis=0), np.nanmax(shade, axis=0)
    return np.where(
        high > low, (shade - low) / np.where(high > low, high - low, 1), np.where(np.isnan(shade), shade, 0.5)
    )


def _cell(estimate: Estimate, count: bool) -> str:
    interval = "" if estimate.half_width is None else f" ± {estimate.half_width:.1f}"
    return f"{estimate.mean:.1f}{interval}" + (f"\nn = {estimate.n}" if count else "")


def _wrapped(text: str) -> str:
    return text.replace(", ", ",\n")


@styled()
def radar(records: Sequence[Run]) -> Figure:
    """A spoke a task, a line a model with its 95% band; of metrics that count errors, 100% less the score.

    Args:
        records: Run records.

    Raises:
        UsageError: Fewer than three tasks counted in percent, or no model that has them all.
    """
    groups = _by_task(records)
    if others := [f"{task} ({metric})" for task, metric in groups if metric in UNITS]:
        logger.warning("Not counted in percent, left out: %s.", ", ".join(others))
    groups = {(task, metric): members for (task, metric), members in groups.items() if metric not in UNITS}
    complete = _complete(groups)
    look = styles(complete)
    n = span(result.estimate.n for by_task in complete.values() for result in by_task)
    title = f"Scores in percent: {MEANING},\nn = {n}; outwards is better"
    figure, (panel,) = panels([7], width=9, title=title, projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(groups), endpoint=False)
    for label, by_task in sorted(complete.items()):
        means = [100 - result.estimate.mean if result.lower_is_better else result.estimate.mean for result in by_task]
        widths = [result.estimate.half_width or 0.0 for result in by_task]
        around, mean, width = (np.append(values, values[0]) for values in (angles, means, widths))
        color, marker = look[label]
        panel.plot(around, mean, color=color, marker=marker, markersize=4, label=label)
        panel.fill_between(around, mean - width, mean + width, color=color, alpha=0.15, linewidth=0)
    _name_spokes(panel, angles, groups)
    panel.set_ylim(0, 10 * np.ceil(max(panel.get_ylim()[1], 1) / 10))
    legend(figure, [panel])
    return figure


def _name_spokes(panel: Axes, angles: np.ndarray, groups: Mapping[tuple[str, str], Sequence[Result]]) -> None:
    panel.set_theta_zero_location("N")  # type: ignore[attr-defined]
    panel.set_rlabel_position(180 / len(angles))  # type: ignore[attr-defined]  # between two spokes
    metrics = [
        f"100% − {members[0].metric}" if members[0].lower_is_better else members[0].metric
        for members in groups.values()
    ]
    panel.set_xticks(angles, [f"{task}\n{metric}" for (task, _), metric in zip(groups, metrics, strict=True)])
    panel.tick_params(axis="x", pad=10)
    for angle, text in zip(angles, panel.get_xticklabels(), strict=True):
        side = np.sin(angle)
        text.set_horizontalalignment("center" if abs(side) < 0.2 else "right" if side > 0 else "left")


def _complete(groups: Mapping[tuple[str, str], Sequence[Result]]) -> dict[str, list[Result]]:
    """Of each model that has all tasks its results in their order; the others are named in a warning."""
    if len(groups) < 3:
        names = ", ".join(task for task, _ in groups) or "none"
        raise UsageError(f"A radar plot takes three tasks counted in percent or more, got {names}. Try plot forest.")
    models: dict[str, dict[tuple[str, str], Result]] = {}
    for task, members in groups.items():
        for result in members:
            models.setdefault(result.label, {})[task] = result
    lacking = {
        label: ", ".join(task for task, metric in groups if (task, metric) not in by_task)
        for label, by_task in models.items()
        if len(by_task) < len(groups)
    }
    missing = "; ".join(f"{label} lacks {names}" for label, names in sorted(lacking.items()))
    if len(lacking) == len(models):
        raise UsageError(
            f"No model has all {len(groups)} tasks: {missing}. Choose tasks with --tasks, or try plot heatmap."
        )
    if lacking:
        logger.warning("Left out: %s.", missing)
    return {label: list(by_task.values()) for label, by_task in models.items() if label not in lacking}
