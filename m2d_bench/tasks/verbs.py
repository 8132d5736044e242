"""`m2d-bench tasks`."""

# No postponed annotations here: the command line and pydantic read the types of CheckSettings.

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App
from pydantic import NonNegativeInt, PositiveFloat
from tabulate import tabulate

from m2d_bench import tasks
from m2d_bench.errors import M2DBenchError, UsageError, note
from m2d_bench.output import Flat, Output
from m2d_bench.settings import Storage
from m2d_bench.tasks import layouts
from m2d_bench.tasks.check import check
from m2d_bench.tasks.download import download
from m2d_bench.tasks.prepare import PrepareSettings, prepare
from m2d_bench.tasks.task import Task

TASKS = App(name="tasks", help="List the tasks; download their data sets, check or copy them.")


@dataclass(frozen=True, kw_only=True)
class CheckSettings(Storage):
    """How a task's data are checked.

    Args:
        clip_seconds: Seconds that clips are cut or padded to; by default the task's own.
        jobs: Threads that read the clips; 0 means one a core.
    """

    clip_seconds: PositiveFloat | None = None
    jobs: NonNegativeInt = 0


@TASKS.default
def list_tasks(*, storage: Annotated[Storage, Flat] = Storage()) -> Output:
    """List the tasks.

    Args:
        storage: Where the data sets lie.
    """
    rows = [
        {
            "task": task.name,
            "domain": task.domain,
            "metric": task.metric,
            "classes": task.n_classes,
            "clips": task.n_clips,
            "folds": task.folds.count if task.folds else "official split",
            "seconds": task.clip_seconds,
            "data": _whereabouts(task, storage.data_root),
        }
        for task in map(tasks.get, tasks.NAMES)
    ]
    text = tabulate(rows, headers="keys", tablefmt="simple")
    forms = tabulate(tasks.FORMS.items(), headers=("or", "what"), tablefmt="simple")
    return Output(f"{text}\n\n{forms}")


def _whereabouts(task: Task, data: Path | None) -> str:
    """Where a task's data lie and what is missing there, or where they come from."""
    if task.synthetic:
        return "synthetic, generated on first use"
    try:
        folder = layouts.home(task, data) if data else None
        if folder is None or not folder.is_dir():
            return f"not here; from {task.source}"
        missing = ", ".join(map(str, layouts.lacking(task, folder)))
    except OSError as error:
        return f"cannot be looked for: {note(error)}"
    return f"{folder}, lacks {missing}" if missing else str(folder)


@TASKS.command(name="download")
def download_tasks(*names: str, storage: Annotated[Storage, Flat] = Storage()) -> Output:
    """Download what is missing of tasks' data sets, from where their authors publish it.

    A download that broke off is continued, archives are unpacked and removed. What is not given to everybody is named.

    Args:
        names: Names of tasks, separated by commas or spaces.
        storage: The data folder is where the data sets go.
    """
    data, found = storage.data_root, tasks.get_all(",".join(names), storage)
    if data is None:
        raise UsageError(
            "Name the folder that is to hold the data sets: --data DIR, or the environment's M2D_BENCH_DATA."
        )
    folders, failures = [], []
    for task in found.values():
        try:
            folders.append(f"{task.name}: {download(task, data)}")
        except (M2DBenchError, OSError) as error:
            failures.append(note(error))
    return Output("\n".join(folders), tuple(failures))


@TASKS.command(name="check")
def check_task(name: str, /, *, settings: Annotated[CheckSettings, Flat] = CheckSettings()) -> Output:
    """Check a task's data: counts, missing and unreadable files, durations, the same sounds in several splits.

    Args:
        name: As --tasks of m2d-bench linear takes it: FOLDER and FILE.csv too.
        settings: Where the data lie, and how they are read.
    """
    return Output(*check(tasks.get(name, settings).lasting(settings.clip_seconds), settings, settings.jobs))


@TASKS.command(name="prepare")
def prepare_task(name: str, /, *, settings: Annotated[PrepareSettings, Flat] = PrepareSettings()) -> Output:
    """Copy a published data set at one sample rate, so that later evaluations need not decode and resample it.

    Args:
        name: The task.
        settings: What is copied where.
    """
    done = prepare(tasks.get(name, settings), settings)
    text = f"{done.to}: {done.files} sound files of {name} at {settings.sample_rate} Hz; evaluate with --data {done.to}"
    return Output(text, done.failures)
