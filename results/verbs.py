"""`m2d-bench table` and `m2d-bench runs`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from tabulate import tabulate

from m2d_bench import runs
from m2d_bench.errors import M2DBenchError, UsageError
from m2d_bench.output import Flat, Output
from m2d_bench.progress import bar
from m2d_bench.results import folders
from m2d_bench.results.bootstrap import clip_interval
from m2d_bench.results.classes import class_report
from m2d_bench.results.comparison import Selection, compare
from m2d_bench.results.filter import ALL, Filter
from m2d_bench.results.folders import read_all
from m2d_bench.results.papers import published
from m2d_bench.results.plots.plot_data import labels
from m2d_bench.results.render import check_format, render
from m2d_bench.results.statistics import UNITS
from m2d_bench.settings import Storage, make_folder, replacing

DEFAULT = Path(str(Storage.runs))
RunsFolder = Annotated[Path, Parameter("--runs")]


def table(
    *,
    like: str | None = None,
    runs_folder: Annotated[Path | None, Parameter("--runs")] = None,
    selection: Annotated[Selection, Flat] = Selection(),
    style: Annotated[str, Parameter("--format")] = "text",
    output: Annotated[Path | None, Parameter(("--output", "-o"))] = None,
    list_tables: Annotated[bool, Parameter("--list", negative=())] = False,
) -> Output:
    """Compare runs, beside the papers' numbers if asked for.

    Args:
        like: A published table such as m2dx-2024:III, shown as printed with the runs' rows and columns beside it.
        runs_folder: Folder of run records; runs/ by default.
        selection: What is shown.
        style: text, md, csv, json, latex or html.
        output: File to write to instead of the terminal.
        list_tables: List the published tables.
    """
    if list_tables:
        return Output(_tables())
    check_format(style)
    records, failures = (
        ({}, []) if like and not runs_folder and not DEFAULT.exists() else runs.read(runs_folder or DEFAULT)
    )
    if not records and not like:
        raise UsageError(f"{runs_folder or DEFAULT}: no run records in it. Make some with m2d-bench linear.")
    text = render(compare(list(records.values()), selection, like), style)
    if output is None:
        return Output(text, tuple(failures))
    output = output.expanduser()
    with replacing(output) as file:
        file.write(f"{text}\n".encode())
    return Output(str(output), tuple(failures))


def _tables() -> str:
    rows = []
    for name in published.names():
        cells = published.table(name)
        rows.append(
            {
                "table": name,
                "protocols": ", ".join(dict.fromkeys(cell.protocol for cell in cells)),
                "models": len({(cell.section, cell.model, cell.pretrain_data) for cell in cells}),
                "tasks": ", ".join(dict.fromkeys(cell.task for cell in cells)),
            }
        )
    return tabulate(rows, headers="keys", tablefmt="simple")


RUNS = App(name="runs")


@RUNS.command(name="list")
def list_runs(*, runs_folder: RunsFolder = DEFAULT) -> Output:
    """List the records.

    Args:
        runs_folder: Folder of run records.
    """
    records, failures = runs.read(runs_folder)
    rows = [
        {
            "key": run.key,
            "model": run.encoder["name"],
            "task": run.task["name"],
            "protocol": run.protocol,
            "seeds": len(run.done(run.task["n_folds"])),
            "created": run.created,
        }
        for run in records.values()
    ]
    return Output(tabulate(rows, headers="keys", tablefmt="simple") if rows else "", tuple(failures))


@RUNS.command
def show(key: str, /, *, runs_folder: RunsFolder = DEFAULT) -> Output:
    """Show a record in full.

    Args:
        key: Its key, or the beginning of it; or its file.
        runs_folder: Folder of run records.
    """
    file = Path(key)
    records, failures = runs.read(file if file.is_file() else runs_folder)
    fitting = {path: run for path, run in records.items() if file.is_file() or run.key.startswith(key)}
    if len(fitting) != 1:
        raise UsageError(
            f"{key!r} is the key of {len(fitting)} records in {runs_folder}; name one. See m2d-bench runs list."
        )
    (path, run), *_ = fitting.items()
    return Output(json.dumps({"path": str(path), **asdict(run)}, indent=1), tuple(failures))


@RUNS.command
def bootstrap(*, runs_folder: RunsFolder = DEFAULT, shown: Annotated[Filter, Flat] = ALL, draws: int = 1000) -> Output:
    """Intervals over test clips drawn anew, of records that kept their predictions.

    Args:
        runs_folder: Folder of run records.
        shown: Which records.
        draws: How often the clips are drawn.
    """
    records, failures = read_all([runs_folder], shown)
    rows = []
    for (path, run), label in zip(records.items(), labels(list(records.values())), strict=True):
        try:
            with bar(f"Drawing clips of {run.task['name']}", draws, "draws") as advance:
                interval = clip_interval(run, runs.load_predictions(path), draws, advance)
        except M2DBenchError as error:
            failures.append(str(error))
            continue
        rows.append(
            {
                "model": label,
                "task": run.task["name"],
                "metric": f"{run.protocol} {run.task['metric']} ({UNITS.get(run.task['metric'], '%')})",
                "score": f"{interval.score:.2f}",
                "95% interval over clips": f"{interval.low:.2f} to {interval.high:.2f}",
                "clips": interval.n_clips,
                "seeds": interval.seeds,
            }
        )
    return Output(tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True), tuple(failures))


@RUNS.command
def classes(
    *,
    runs_folder: RunsFolder = DEFAULT,
    shown: Annotated[Filter, Flat] = ALL,
    style: Annotated[str, Parameter("--format")] = "text",
) -> Output:
    """Show what each class scores, of runs on tasks whose clips may have several labels: mAP, AUC and d'.

    Args:
        runs_folder: Folder of run records.
        shown: Which records.
        style: text, md, csv, json, latex or html.
    """
    check_format(style)
    records, failures = read_all([runs_folder], shown)
    told = [run for run in records.values() if any(score.per_class for score in run.scores)]
    if not told:
        raise UsageError(
            f"{runs_folder}: none of {len(records)} records tells what each class scores. Those of tasks whose clips "
            "may have several labels do; where they are older, run the command again with --force."
        )
    return Output(class_report(told, style), tuple(failures))


@RUNS.command
def export(*, output: Annotated[Path, Parameter(("--output", "-o"))], runs_folder: RunsFolder = DEFAULT) -> Output:
    """Write every raw score as a line of a .csv or .parquet file.

    Args:
        output: The file.
        runs_folder: Folder of run records.
    """
    folders.check_export(output)
    records, failures = runs.read(runs_folder)
    count = folders.export(records.values(), output.expanduser())
    return Output(f"{output}: {count} scores of {len(records)} records", tuple(failures))


@RUNS.command
def merge(folder: tuple[Path, ...], /, *, into: Path = DEFAULT) -> Output:
    """Add the records of other folders, such as those of another machine; they stay as they are.

    Args:
        folder: The other folders.
        into: The folder that takes them.
    """
    into = into.expanduser()
    make_folder(into)
    counts, failures = folders.merge(folder, into)
    return Output(f"{into}: {counts} scores added", tuple(failures))


@RUNS.command
def gc(*, runs_folder: RunsFolder = DEFAULT, dry_run: bool = False, hours: float = 1.0) -> Output:
    """Remove what killed runs left: half-written files, and predictions without a record.

    Args:
        runs_folder: Folder of run records.
        dry_run: List it only.
        hours: Age from which a file counts as left.
    """
    left = folders.leftovers(runs_folder.expanduser(), hours)
    if not dry_run:
        folders.remove(left)
    return Output("\n".join(map(str, left)) or f"{runs_folder}: nothing to remove")
