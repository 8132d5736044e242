"""What `m2d-bench xares` can be told to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from m2d_bench.encoders import zoo
from m2d_bench.output import Flat, Names, Output
from m2d_bench.registry import resolve
from m2d_bench.settings import Storage, make_folder
from m2d_bench.xares_adapter import launcher
from m2d_bench.xares_adapter.launcher import RunnerSettings


def xares(
    *,
    model: str = zoo.DEFAULT,
    task_names: Annotated[tuple[str, ...], Parameter("--tasks"), Names] = (),
    settings: Annotated[RunnerSettings, Flat] = RunnerSettings(),
    runs_folder: Annotated[Path, Parameter(name="--runs")] = Path(str(Storage.runs)),
    cache: Path | None = None,
    trust_remote_code: Annotated[bool, Parameter(negative=())] = False,
    style: Annotated[str, Parameter(name="--format")] = "text",
) -> Output:
    """Run X-ARES' own runner in the current folder, and keep its scores as run records.

    Args:
        model: m2d_tiny, a released name, a path, your own FILE.py:NAME, …; see m2d-bench models.
        task_names: Names of X-ARES' task files without _task.py, separated by commas or spaces.
        settings: Options of X-ARES' runner.
        runs_folder: Folder for run records.
        cache: Folder for weights; else the environment's M2D_BENCH_CACHE, else the user's cache folder.
        trust_remote_code: Run the code that the repository of an hf: model holds. Read it first.
        style: text, md, csv, json, latex or html.
    """
    resolve("m2d_bench.results:check_format")(style)
    make_folder(runs_folder)
    records, failures = launcher.evaluate(
        model, task_names, runs_folder, settings, cache=cache, trust_remote_code=trust_remote_code
    )
    return Output(resolve("m2d_bench.results:report")(records, style) if records else "", tuple(failures))
