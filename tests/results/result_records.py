"""A fixed set of run records, and a large one, for the tests of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from m2d_bench.runs import Run, Score
from tests.test_runs import RUN

TASKS = {
    "esc50": ("environment", "accuracy", 5),
    "us8k": ("environment", "accuracy", 10),
    "gtzan": ("music", "accuracy", 1),
    "superb:pr": ("speech", "per", 1),
}


def record(
    model: str, task: str, mean: float, seeds: int = 6, protocol: str = "linear", digest: str = "", **settings: object
) -> Run:
    """A record whose seeds' means lie evenly around a mean, a hundredth apart."""
    domain, metric, folds = TASKS[task]
    scores = tuple(
        Score(
            seed=42 + s, fold=str(f), score=mean + (s - (seeds - 1) / 2) / 100 + (f - (folds - 1) / 2) / 50, n_test=40
        )
        for s in range(seeds)
        for f in range(folds)
    )
    return replace(
        RUN,
        encoder={"name": model, "digest": digest or f"{model:<16}"},
        task={**RUN.task, "name": task, "domain": domain, "metric": metric, "n_folds": folds},
        protocol=protocol,
        settings={**RUN.settings, **settings},
        scores=scores,
        command=f"m2d-bench linear --model {model} --tasks {task}",
    )


def _around(place: int, count: int) -> float:
    """Distance of a place from the middle."""
    return place - (count - 1) / 2


def fixed() -> list[Run]:
    """Two models on three tasks, one of them also with another setting and on an error rate."""
    return [
        record("m2d_a", "esc50", 0.90),
        record("m2d_a", "us8k", 0.80),
        record("m2d_a", "gtzan", 0.70, seeds=1),
        record("m2d_b", "esc50", 0.88),
        record("m2d_b", "us8k", 0.81),
        record("m2d_b & c_50%", "us8k", 0.805),
        record("m2d_b", "superb:pr", 0.06, protocol="superb"),
        record("m2d_a", "superb:pr", 0.05, protocol="superb"),
    ]


def many(count: int) -> Iterator[Run]:
    """Records of six seeds on five folds: a hundred tasks, as many models as it takes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        yield replace(
            RUN,
            encoder={"name": f"model{number // 100}", "digest": f"{number // 100:016d}", "config": {"width": 768}},
            task={**RUN.task, "name": f"task{number % 100}", "n_folds": 5},
            environment={"versions": {f"package{n}": "1.0" for n in range(10)}, "device": "cpu"},
            scores=tuple(
                Score(seed=s, fold=str(f), score=float(rng.random()), n_test=400, seconds=1.0, chosen={"epoch": 57})
                for s in range(6)
                for f in range(5)
            ),
        )
