"""The short table of runs: one line per run and metric."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from m2d_bench.errors import UsageError
from m2d_bench.results.records import PROBES, is_probe, variants
from m2d_bench.results.render import as_csv, interval, render_rows
from m2d_bench.results.statistics import UNITS, estimate, scale, seed_means
from m2d_bench.runs import Run, read

logger = logging.getLogger(__name__)

_REPRESENTATION = ("layer", "pooling", "encoding")


def summary(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """One row per run and metric: model, task, protocol, metric, unit, mean and ci95 in that unit, n seeds, seconds (of
    the run, on its first row).

    Runs without a finished seed are left out. Those that are no probes of this package's are told apart by the data and
    settings in which they differ.
    """
    runs, rows = list(runs), []
    differences = iter(variants([run for run in runs if not is_probe(run)]))
    for run in runs:
        model = _model(run, "" if is_probe(run) else next(differences))
        for rank, metric in enumerate((run.task["metric"], *run.task["other_metrics"])):
            scores = list(seed_means(run, metric).values())
            if not scores:
                continue
            about = {"model": model, "task": run.task_title, "protocol": run.protocol}
            rows.append({**about, **figures(metric, scores), "seconds": None if rank else _seconds(run)})
    return rows


def figures(metric: str, scores: Sequence[float]) -> dict[str, Any]:
    """The part of a row that tells scores: metric, unit, mean and ci95 in that unit, n."""
    result, factor = estimate(scores), scale(metric)
    return {
        "metric": metric,
        "unit": UNITS.get(metric, "%"),
        "mean": round(factor * result.mean, 2),
        "ci95": None if result.half_width is None else round(factor * result.half_width, 2),
        "n": result.n,
    }


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


def model_card(digest: str, folder: str | Path) -> dict[str, str]:
    """What a model card says of an encoder: the `model_card_kwargs` of `M2DEncoder.save_pretrained` and `push_to_hub`.

    Args:
        digest: The encoder's.
        folder: Root of the run records, or one of them.

    Returns:
        scores, a Markdown table of its runs, and commands, what repeats them.

    Raises:
        UsageError: No such folder, or no run of this encoder in it.
    """
    found, failures = read(Path(folder))
    for failure in failures:
        logger.warning("%s", failure)
    own = [run for run in found.values() if run.encoder["digest"] == digest]
    if not own:
        raise UsageError(
            f"{folder}: none of its {len(found)} run records is of the encoder {digest}. Evaluate it first, as it is "
            "going to be saved: m2d-bench linear, or m2d_bench.linear."
        )
    return {"scores": report(own, "md"), "commands": "\n".join(run.command for run in own if run.command)}


def _model(run: Run, difference: str) -> str:
    """The encoder's name, and what tells the run from others, or what of it was probed instead of its embedding."""
    asked = [f"{name}={run.settings[name]}" for name in _REPRESENTATION if name in run.settings]
    about = difference or (", ".join(asked) if run.protocol in PROBES else "")
    name: str = run.encoder["name"]
    return f"{name} ({about})" if about else name


def _seconds(run: Run) -> float | None:
    seconds = sum(run.seconds.values()) + sum(score.seconds for score in run.scores)
    return round(seconds, 1) if seconds else None  # nobody measured
