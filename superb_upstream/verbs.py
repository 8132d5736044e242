"""`m2d-bench superb`: s3prl's runner, its statistics, and its experiment folders as run records."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from m2d_bench import runs
from m2d_bench.errors import M2DBenchError
from m2d_bench.output import Output
from m2d_bench.registry import resolve
from m2d_bench.settings import Storage, make_folder
from m2d_bench.superb_upstream import calcnorm, experiments, launcher

logger = logging.getLogger(__name__)

SUPERB = App(name="superb", help_flags=())  # the launcher answers -h


@SUPERB.default
def run(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
    """Run s3prl's run_downstream.

    Args:
        arguments: Ours and s3prl's.
    """
    return launcher.main(arguments)


@SUPERB.command(name="calcnorm", help_flags=("-h", "--help"))
def measure(
    *,
    task: str,
    data: str | None = None,
    cache: Path | None = None,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
) -> Output:
    """Measure mean and standard deviation of a task's training data, for -k or -g.

    Args:
        task: pr, ks, ic, sid, asv or er.
        data: Folder that holds the data sets as published (or M2D_BENCH_DATA).
        cache: Folder for lists of clips (or M2D_BENCH_CACHE).
        output: YAML file for -g; by default norm_stats-TASK.yaml.
    """
    path = output or Path(f"norm_stats-{task}.yaml")
    make_folder(path.expanduser().parent)
    statistics = calcnorm.calcnorm(task, Storage(data=data, cache=cache))
    calcnorm.write(statistics, task, path.expanduser())
    return Output(f"{task}: {statistics}\n-k NAME,{statistics.mean:.5f},{statistics.std:.5f}  or  -g {path}")


@SUPERB.command(name="import", help_flags=("-h", "--help"))
def import_experiments(
    folders: tuple[Path, ...],
    /,
    *,
    runs_folder: Annotated[Path, Parameter(name="--runs")] = Path(str(Storage.runs)),
    style: Annotated[str, Parameter(name="--format")] = "text",
) -> Output:
    """Read s3prl's experiment folders into run records and print them.

    Args:
        folders: Experiments, as given to superb -p (result/downstream/NAME for -n NAME).
        runs_folder: Folder for run records.
        style: text, md, csv, json, latex or html.
    """
    resolve("m2d_bench.results:check_format")(style)
    make_folder(runs_folder)
    records: dict[Path, runs.Run] = {}
    failures = []
    for folder in folders:
        try:
            run = runs.add(experiments.read(folder), runs_folder)
            records[run.path(runs_folder)] = run
        except (M2DBenchError, OSError) as error:
            failures.append(str(error))
    for path, run in records.items():
        n_folds, folds = run.task["n_folds"], Counter(seed for seed, _ in run.by_fold)
        for seed, count in folds.items():
            if count < n_folds:
                logger.warning("%s: seed %s: %s of %s folds; it counts when all are there.", path, seed, count, n_folds)
    text = resolve("m2d_bench.results:report")(records.values(), style) if records else ""
    return Output(text, tuple(failures))
