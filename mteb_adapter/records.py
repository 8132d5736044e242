"""mteb's results → run records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from m2d_bench.errors import DataError
from m2d_bench.mteb_adapter.encoder import ORGANISATION
from m2d_bench.runs import Run, Score

PROTOCOL = "mteb"
META = "model_meta.json"
"""What mteb writes beside results, of the model."""


def read(path: Path, task: Any) -> Run:
    """The record of a task's result.

    Args:
        path: Of the JSON file, with model_meta.json beside it.
        task: The task or its class, or None where it is unknown: then only main scores are read.

    Returns:
        The record, with mteb's main score of each experiment or, where it has none, of each split and subset. Their
        mean over folds and seeds is mteb's score of the task.

    Raises:
        DataError: No such result.
    """
    metric = task.metadata.main_score if task else "main_score"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        meta = json.loads((path.parent / META).read_text(encoding="utf-8"))
        scores = tuple(_scores(result["scores"], metric, getattr(task, "is_cross_validation", False)))
        return Run(
            encoder={"name": meta["name"].removeprefix(ORGANISATION), "digest": meta["revision"]},
            task={
                "name": result["task_name"],
                "version": 1,
                "metric": metric,
                "other_metrics": (),
                "domain": "other",
                "synthetic": False,
                "n_folds": len({score.fold for score in scores}),
                "fingerprint": result["dataset_revision"],
            },
            protocol=PROTOCOL,
            settings={"harness": "mteb", "mteb": result["mteb_version"], **(meta.get("experiment_kwargs") or {})},
            repeated=("drawn clips",) if len({score.seed for score in scores}) > 1 else (),
            scores=scores,
            seconds={"evaluation": result["evaluation_time"] or 0.0},
            created=_iso(result.get("date")),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: no result of mteb with {META} beside it ({type(error).__name__}: {error})."
        ) from error


def results(folder: Path) -> list[Path]:
    """The files of results under a folder.

    Raises:
        DataError: There is none.
    """
    if paths := [path for path in sorted(folder.rglob("*.json")) if path.name != META]:
        return paths
    raise DataError(f"{folder}: no results of mteb. It writes them as results/MODEL/REVISION/TASK.json; name results.")


def _scores(splits: Mapping[str, list[dict[str, Any]]], metric: str, cross_validation: bool) -> Iterator[Score]:
    """Every raw score, as `AbsTaskClassification` and `AbsTaskClustering` give them; of other tasks one a subset."""
    for split, subsets in splits.items():
        for scores in subsets:
            fold = split if scores["hf_subset"] == "default" else f"{split}/{scores['hf_subset']}"
            experiments = [each[metric] for each in scores.get("scores_per_experiment", ()) if metric in each]
            levels = scores.get(f"{metric}s")  # v_measures
            if experiments and cross_validation:
                yield from (_score(0, f"{fold}/{number}", score) for number, score in enumerate(experiments, 1))
            elif experiments:
                yield from (_score(seed, fold, score) for seed, score in enumerate(experiments))
            elif isinstance(levels, Mapping):
                for level, drawn in levels.items():
                    yield from (_score(seed, f"{fold}/{level}", score) for seed, score in enumerate(drawn))
            else:
                yield _score(0, fold, scores["main_score"])


def _score(seed: int, fold: str, score: float) -> Score:
    return Score(seed=seed, fold=fold, score=float(score), n_test=0)


def _iso(timestamp: float | None) -> str:
    return "" if timestamp is None else datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="seconds")
