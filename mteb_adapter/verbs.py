"""What `m2d-bench mteb` can be told to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from tabulate import tabulate

from m2d_bench import runs
from m2d_bench.encoders import zoo
from m2d_bench.errors import M2DBenchError
from m2d_bench.mteb_adapter import evaluation, records, tasks
from m2d_bench.mteb_adapter.evaluation import MTEBSettings
from m2d_bench.output import Flat, Names, Output
from m2d_bench.registry import resolve
from m2d_bench.runs import TasksFailed
from m2d_bench.settings import Storage, make_folder

MTEB = App(name="mteb")


@MTEB.default
def run(
    *,
    model: str = zoo.DEFAULT,
    task_names: Annotated[tuple[str, ...], Parameter("--tasks"), Names] = (),
    style: Annotated[str, Parameter(name="--format")] = "text",
    settings: Annotated[MTEBSettings, Flat] = MTEBSettings(),
) -> Output:
    """Have mteb evaluate an encoder on its audio-only tasks; finished ones are not run again.

    Args:
        model: m2d_tiny, a released name, a path, your own FILE.py:NAME, …; see m2d-bench models.
        task_names: Names separated by commas or spaces, see m2d-bench mteb tasks; or your own FILE.py:CLASS.
        style: text, md, csv, json, latex or html.
        settings: What the encoder runs on, and the folders.
    """
    render = resolve("m2d_bench.results:report")
    resolve("m2d_bench.results:check_format")(style)
    try:
        return Output(render(evaluation.evaluate(model, task_names, settings), style))
    except TasksFailed as error:
        return Output(render(error.runs, style) if error.runs else "", error.messages)


@MTEB.command(name="tasks")
def list_tasks() -> Output:
    """List mteb's audio-only tasks and benchmarks."""
    rows = [
        {
            "task": name,
            "type": task.metadata.type,
            "metric": task.metadata.main_score,
            "data set": task.metadata.dataset["path"],
        }
        for name, task in sorted(tasks.known().items())
    ]
    groups = [{"benchmark": name, "tasks": len(names)} for name, names in tasks.benchmarks().items()]
    return Output("\n\n".join(tabulate(table, headers="keys", tablefmt="simple") for table in (rows, groups)))


@MTEB.command(name="import")
def import_results(
    folder: Path,
    /,
    *,
    runs_folder: Annotated[Path, Parameter(name="--runs")] = Path(str(Storage.runs)),
    style: Annotated[str, Parameter(name="--format")] = "text",
) -> Output:
    """Read a folder of mteb's results into run records and print them.

    Args:
        folder: What mteb writes, results/MODEL/REVISION/TASK.json, or a part of it.
        runs_folder: Folder for run records.
        style: text, md, csv, json, latex or html.
    """
    resolve("m2d_bench.results:check_format")(style)
    make_folder(runs_folder)
    imported: list[runs.Run] = []
    failures: list[str] = []
    there = runs.read(runs_folder)[0].values()
    for path in records.results(folder.expanduser()):
        try:
            run = records.read(path, tasks.find(path.stem))
            imported.append(records.recorded(run, there) or runs.add(run, runs_folder))
        except M2DBenchError as error:
            failures.append(str(error))
    return Output(resolve("m2d_bench.results:report")(imported, style) if imported else "", tuple(failures))
