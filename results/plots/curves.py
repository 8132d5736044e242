"""Lines with a 95% band: score over a field of the records, and validation score over the epochs of a probe."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m2d_bench.errors import UsageError, note
from m2d_bench.results.plots.figures import MEANING, Style, check_output, legend, panels, save, styled, styles
from m2d_bench.results.plots.plot_data import KEEP, LAYER, axis_title, labels, limits, number, seed_scores, span
from m2d_bench.results.statistics import estimate, scale
from m2d_bench.runs import Predictions, Run
from m2d_bench.settings import file_name
from m2d_bench.terminal import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


@styled()
def curve(records: Sequence[Run], x: str) -> Figure:
    """Score over a numeric field of the records: a panel a task, a line and 95% band a model.

    Args:
        records: Run records; those without the field, or without a finished seed, are named in a warning.
        x: The field, see `plot_data.number`: `settings.train_fraction`, `mask_ratio`, `epoch`, …

    Raises:
        UsageError: Fewer than two values of the field, or two records of a model on a task with the same value.
    """
    usable, left_out = [], set()
    for run in records:
        if number(run, x) is not None and seed_scores(run):
            usable.append(run)
        else:
            left_out.add(f"{run.encoder['name']} on {run.task['name']}")
    values = sorted({number(run, x) or 0.0 for run in usable})
    if len(values) < 2:
        raise UsageError(
            f"A curve over {x} takes two values of it or more, got {', '.join(f'{v:g}' for v in values) or 'none'} in "
            f"{len(records)} records. Name a numeric field such as settings.train_fraction, mask_ratio or epoch."
        )
    if left_out:
        logger.warning("Without a finished seed or the field %s, left out: %s.", x, ", ".join(sorted(left_out)))
    lines = _lines(usable, x)
    look = styles(label for by_label in lines.values() for label in by_label)
    field = "layer" if x == LAYER else x
    counts = {len(scores) for by_label in lines.values() for line in by_label.values() for scores in line.values()}
    figure, axes = panels(
        [3.4] * len(lines), columns=2, width=5.5, title=f"Scores over {field}, n = {span(counts)}:\n{MEANING}"
    )
    for panel, ((task, metric), by_label) in zip(axes, lines.items(), strict=True):
        for label, line in by_label.items():
            _curve_line(panel, line, label, look[label])
        panel.set_title(task, loc="left")
        scores = [score for line in by_label.values() for of_seeds in line.values() for score in of_seeds]
        panel.set(xlabel=field, ylabel=axis_title(metric), ylim=limits(metric, *panel.get_ylim(), scores))
        if values[0] > 0 and values[-1] / values[0] >= 20 and x != LAYER:
            panel.set_xscale("log")
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.minorticks_off()
    legend(figure, axes)
    return figure


def _lines(usable: Sequence[Run], x: str) -> dict[tuple[str, str], dict[str, dict[float, tuple[float, ...]]]]:
    """Scores by task and metric, by label, by value of the field."""
    lines: dict[tuple[str, str], dict[str, dict[float, tuple[float, ...]]]] = {}
    ordered = sorted(zip(usable, labels(usable, x), strict=True), key=lambda pair: (pair[0].task_title, pair[1]))
    for run, label in ordered:
        line = lines.setdefault((run.task_title, run.task["metric"]), {}).setdefault(label, {})
        value = number(run, x) or 0.0
        if value in line:
            raise UsageError(
                f"Two records of {label} on {run.task['name']} have {x} = {value:g}; a curve takes one. Choose with "
                f"--models, --tasks or --protocol, or put the other's records elsewhere."
            )
        line[value] = seed_scores(run)
    return lines


def _curve_line(panel: Axes, line: Mapping[float, tuple[float, ...]], label: str, look: Style) -> None:
    values = sorted(line)
    estimates = [estimate(line[value]) for value in values]
    mean = np.array([estimated.mean for estimated in estimates])
    width = np.array([np.nan if estimated.half_width is None else estimated.half_width for estimated in estimates])
    panel.errorbar(values, mean, yerr=width, color=look.color, marker=look.marker, markersize=5, capsize=2, label=label)
    panel.fill_between(values, mean - width, mean + width, color=look.color, alpha=0.2, linewidth=0)


def draw_layers(runs: Sequence[Run], folder: Path) -> None:
    """Writes the curve over the layers of one encoder as `layers-MODEL.png` and says so; one layer alone is not drawn.

    A figure that cannot be written is a warning, for the scores are there without it.

    Args:
        runs: Their settings differ in layer and pooling alone.
        folder: Root of their records.
    """
    if len({run.settings["layer"] for run in runs if seed_scores(run)}) < 2:
        return
    path = folder / f"layers-{file_name(runs[0].encoder['name'])}.png"
    try:
        check_output(path)
        save(curve(runs, LAYER), path)
    except (UsageError, OSError) as error:
        logger.warning("Scores over layers are not drawn: %s", note(error))
    else:
        say(f"{path}: scores over layers")


@styled()
def learning(records: Sequence[tuple[Run, Sequence[Predictions]]]) -> Figure:
    """Validation score per epoch: a panel a task, a line and 95% band a model, each seed a faint line.

    A seed's curve is the mean over its folds, as long as all of them train; the mean is that of the seeds that still
    train, with a band while all of them do.

    Args:
        records: Run records, each with its kept predictions; those that have none, or whose validation did not choose
            an epoch, are counted in a warning.

    Raises:
        UsageError: None is left.
    """
    names = labels([run for run, _ in records])
    curves = [_seed_curves(run, kept) for run, kept in records]
    drawn = [
        (name, run, seed_curves)
        for name, (run, _), seed_curves in zip(names, records, curves, strict=True)
        if seed_curves
    ]
    if not drawn:
        raise UsageError(f"No kept predictions of a probe that trains by epochs, in {len(records)} records. {KEEP}")
    if len(drawn) < len(records):
        count = len(records) - len(drawn)
        logger.warning("%d records have no predictions kept of a probe that trains by epochs; left out.", count)
    look = styles(name for name, _, _ in drawn)
    groups = sorted({(run.task_title, run.task["metric"]) for _, run, _ in drawn})
    figure, axes = panels(
        [3.4] * len(groups),
        columns=2,
        width=5.5,
        title="Learning curves: mean over the seeds that still train, with its 95% confidence interval (Student's t)\n"
        "while all n do; faint: single seeds, means over their folds",
    )
    for panel, (task, metric) in zip(axes, groups, strict=True):
        members = [member for member in drawn if (member[1].task_title, member[1].task["metric"]) == (task, metric)]
        for name, _, seed_curves in sorted(members, key=lambda member: member[0]):
            _learning_lines(panel, seed_curves, name, look[name])
        panel.set_title(f"{task}  n = {span(len(seed_curves) for _, _, seed_curves in members)}", loc="left")
        scores = [score for _, _, seed_curves in members for seed_curve in seed_curves for score in seed_curve]
        ylim = limits(metric, *panel.get_ylim(), scores)
        panel.set(xlabel="epoch", ylabel=f"validation {axis_title(metric)}", ylim=ylim)
    legend(figure, axes)
    return figure


def _seed_curves(run: Run, predictions_of_folds: Sequence[Predictions]) -> list[np.ndarray]:
    """Of each whole seed the mean over its folds at each epoch, in the unit shown."""
    if any(score.chosen and "epoch" not in score.chosen for score in run.scores):
        return []
    folds: dict[int, list[np.ndarray]] = {}
    for predictions in predictions_of_folds:
        if len(predictions.valid_scores):
            folds.setdefault(predictions.seed, []).append(np.asarray(predictions.valid_scores, dtype=float))
    whole = [curves for _, curves in sorted(folds.items()) if len(curves) >= run.task["n_folds"]]
    cut = [np.stack([fold[: min(map(len, curves))] for fold in curves]) for curves in whole]
    return [scale(run.task["metric"]) * curves.mean(0) for curves in cut]


def _learning_lines(panel: Axes, seeds: Sequence[np.ndarray], name: str, look: Style) -> None:
    for seed in seeds:
        panel.plot(np.arange(1, len(seed) + 1), seed, color=look.color, alpha=0.25, linewidth=0.7)
    estimates = [estimate([s[e] for s in seeds if e < len(s)]) for e in range(max(map(len, seeds)))]
    epochs, mean = np.arange(1, len(estimates) + 1), np.array([estimated.mean for estimated in estimates])
    whole = [estimated.half_width if estimated.n == len(seeds) else None for estimated in estimates]
    width = np.array([np.nan if half_width is None else half_width for half_width in whole])
    every = max(1, len(estimates) // 8)
    panel.plot(epochs, mean, color=look.color, marker=look.marker, markersize=4, markevery=every, label=name)
    panel.fill_between(epochs, mean - width, mean + width, color=look.color, alpha=0.2, linewidth=0)
