"""mteb's results → run records."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from m2d_bench.errors import DataError
from m2d_bench.mteb_adapter.encoder import ORGANISATION
from m2d_bench.runs import Run, Score

logger = logging.getLogger(__name__)

PROTOCOL = "mteb"
META = "model_meta.json"
"""What mteb writes beside results, of the model."""


def read(path: Path, task: Any) -> Run:
    """The record of a task's result.

    Args:
        path: Of the JSON file, with model_meta.json beside it.
        task: The task or its class, or None where it is unknown: then the metric is the first that has the main score.

    Returns:
        The record, with mteb's main score of each experiment or, where it has none, of each split and subset. Their
        mean over folds and seeds is mteb's score of the task.

    Raises:
        DataError: No such result.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        metric = task.metadata.main_score if task else _metric(result["scores"])
        meta = json.loads((path.parent / META).read_text(encoding="utf-8"))
        scores = tuple(_scores(result["scores"], metric, getattr(task, "is_cross_validation", False)))
        return Run(
            encoder={"name": _name(meta["name"]), "digest": meta["revision"]},
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
    """The files of results under a folder: JSON with model_meta.json beside it; how many others there are is logged.

    Raises:
        DataError: There is none.
    """
    found = [path for path in sorted(folder.rglob("*.json")) if path.name != META]
    paths = [path for path in found if path.with_name(META).exists()]
    if not paths:
        raise DataError(
            f"{folder}: no results of mteb. It writes them as results/MODEL/REVISION/TASK.json; name results."
        )
    if len(paths) < len(found):
        logger.warning("%s: left out JSON files without %s beside them: %d", folder, META, len(found) - len(paths))
    return paths


def recorded(run: Run, among: Iterable[Run]) -> Run | None:
    """The record of the same result, whose task may be known better than from mteb's file alone; None if there is none.

    Args:
        run: As `read` gives it.
        among: Records there are.
    """
    own = (run.encoder["digest"], run.task["name"], PROTOCOL, run.settings)
    for other in among:
        same = (other.encoder["digest"], other.task["name"], other.protocol, other.settings) == own
        if same and f"{other.task['fingerprint']}-".startswith(f"{run.task['fingerprint']}-"):  # with a digest of code
            return other
    return None


def _name(name: str) -> str:
    """An encoder's name from mteb's of it; `model_meta` quotes ours."""
    return unquote(name.removeprefix(ORGANISATION)) if name.startswith(ORGANISATION) else name


def _metric(splits: Mapping[str, list[dict[str, Any]]]) -> str:
    """The first metric whose scores are the main ones."""
    every = [scores for subsets in splits.values() for scores in subsets]
    names = [name for name in every[0] if all(scores.get(name) == scores["main_score"] for scores in every)]
    return next((name for name in names if name != "main_score"), "main_score")


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
