"""What `m2d-bench evar` can be told to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from m2d_bench import runs
from m2d_bench.errors import UsageError
from m2d_bench.output import Flat, Output
from m2d_bench.registry import resolve
from m2d_bench.settings import Storage, make_folder

EVAR = App(name="evar")


@EVAR.default
def run(
    script: str,
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True)],
    evar: Path,
) -> int:
    """Run a script of a clone of EVAR with our representation classes; the clone stays untouched.

    Args:
        script: lineareval, finetune or 2pass_lineareval.
        arguments: The script's: CONFIG TASK and its options. CONFIG may be m2d_bench, m2d_s_bench, m2d_as_bench,
            m2d_32k_bench, msm_mae_bench, encoder_bench (any encoder), or the name of one of the clone's.
        evar: The clone.
    """
    resolve("m2d_bench.evar_adapters.clone:run")(evar, script, arguments)
    return 0


@EVAR.command
def install(path: Path, /) -> Output:
    """Add our classes and settings to a clone, for those who run its scripts themselves.

    Args:
        path: The clone.
    """
    return Output("\n".join(map(str, resolve("m2d_bench.evar_adapters.clone:install")(path))))


@EVAR.command
def uninstall(path: Path, /) -> Output:
    """Remove what install added, byte for byte.

    Args:
        path: The clone.
    """
    return Output("\n".join(map(str, resolve("m2d_bench.evar_adapters.clone:uninstall")(path))))


@EVAR.command
def export(
    task: str,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    sample_rate: int = 16000,
    storage: Annotated[Storage, Flat] = Storage(),
) -> Output:
    """Write a task of ours in EVAR's layout: evar/metadata/TASK.csv and work/16k/TASK/.

    Args:
        task: A name of m2d-bench tasks.
        output: A clone of EVAR, or any folder.
        sample_rate: Hz of the clips.
        storage: Where the task's data lie.
    """
    make_folder(output.expanduser())
    written = resolve("m2d_bench.evar_adapters.metadata:export")(task, output.expanduser(), storage, sample_rate)
    return Output(str(written))


@EVAR.command
def results(
    files: tuple[Path, ...],
    /,
    *,
    runs_folder: Annotated[Path, Parameter(name="--runs")] = Path(str(Storage.runs)),
    style: Annotated[str, Parameter(name="--format")] = "text",
) -> Output:
    """Read EVAR's results/scores.csv and ft-scores.csv into run records and print them.

    Args:
        files: Those files.
        runs_folder: Folder for run records.
        style: text, md, csv, json, latex or html.
    """
    resolve("m2d_bench.results:check_format")(style)
    if not files:
        raise UsageError("Which files? Name CLONE/results/scores.csv or ft-scores.csv.")
    make_folder(runs_folder)
    imported: dict[Path, runs.Run] = {}
    failures: list[str] = []
    for file in files:
        records, unread = resolve("m2d_bench.evar_adapters.scores:read")(file)
        failures += unread
        for record in records:
            imported[record.path(runs_folder)] = runs.add(record, runs_folder)
    return Output(resolve("m2d_bench.results:report")(imported.values(), style) if imported else "", tuple(failures))
