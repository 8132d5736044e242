"""A metadata file of EVAR, with the sound files of its clone, as a task.

    CLONE/evar/metadata/TASK.csv     columns file_name, label, and split (train, valid, test) or fold
    CLONE/evar/ds_tasks.py           _defs = {"TASK": [folds, unit seconds, data folder or None, …], …}
    CLONE/work/{16k,32k,…}/FOLDER/   the sound files; FOLDER is TASK where no data folder is named

Several labels in one cell, separated by commas, make a task multi-label. Older clones tell it by an activation too,
softmax or sigmoid, before the data folder.

Source: https://github.com/nttcslab/eval-audio-repr
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from m2d_bench import tasks
from m2d_bench.errors import DataError, UsageError
from m2d_bench.settings import Storage
from m2d_bench.tasks import index
from m2d_bench.tasks.contents import durations
from m2d_bench.tasks.task import Entry, Lister, Task

logger = logging.getLogger(__name__)

_RATES = (16000, 22000, 32000, 44100, 48000)
_DAY = 86400
_FORM = "[folds, unit seconds, data folder or None, …]"


class Definition(NamedTuple):
    """What a clone says of a task.

    Args:
        folder: Name of the folder of its sound files.
        seconds: Unit duration.
        multilabel: Whether it says that a clip may have several labels.
        fault: Why it says nothing but the task's name.
    """

    folder: str
    seconds: float = 0.0
    multilabel: bool = False
    fault: str = ""


def read(path: str, storage: Storage) -> Task:
    """The task of a metadata file.

    Args:
        path: The CSV file.
        storage: Its cache remembers the clips' durations, where the unit duration is their mean.

    Raises:
        UsageError: No such file.
        DataError: Not a metadata file, or its sound files are missing.
    """
    file = Path(path).expanduser().resolve()
    column, clips = _clips(file)
    definition = read_definition(file)
    lister = partial(_list, clips, definition.folder)
    seconds, source = definition.seconds, "evar/ds_tasks.py"
    if definition.fault:
        seconds, source = _undeclared_seconds(file, lister, storage.cache_root)
        logger.warning(
            "%s. Clips of %s are cut or padded to %.4g s (%s), or to --clip-seconds.",
            *(definition.fault, file.stem, seconds, source),
        )
    return Task.listed(
        clips,
        column,
        multilabel=definition.multilabel,
        name=f"evar:{file.stem}",
        clip_seconds=seconds,
        clip_seconds_source=source,
        lister=lister,
        folder=str(file),
        source=str(file),
    )


def read_definition(file: Path) -> Definition:
    """What the clone of a metadata file says of its task in `ds_tasks.py`, which is parsed and never run."""
    path, task = file.parent.parent / "ds_tasks.py", file.stem
    try:
        match _value(path, task):
            case [_, int() | float() as seconds, *others] if 0 < seconds <= _DAY:
                words = [word for word in others if isinstance(word, str) and word not in ("softmax", "sigmoid")]
                return Definition("".join(words[:1]) or task, float(seconds), "sigmoid" in others)
            case value:
                raise ValueError(f"{task!r}: {value!r:.100} is not {_FORM}")
    except (MemoryError, RecursionError):
        return Definition(task, fault=f"{path}: nested too deeply to be parsed")
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        return Definition(task, fault=f"{path}: {error}")


def names(clone: Path) -> list[str]:
    """The tasks that a clone lists in `ds_tasks.py`; none where that cannot be parsed."""
    try:
        return list(_definitions(clone / "evar" / "ds_tasks.py"))
    except (OSError, SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return []


def sound_folder(file: Path, name: str, sample_rate: int) -> Path:
    """Where a clone keeps sound files.

    Args:
        file: A metadata file of the clone.
        name: Of the folder.
        sample_rate: Hz.
    """
    return file.parent.parent.parent / "work" / f"{sample_rate // 1000}k" / name


def published(name: str) -> Task | None:
    """Our task of the data set that EVAR calls so, if it is one of ours."""
    name = {"as": "as2m"}.get(name, name)
    return tasks.get(name) if name in tasks.NAMES else None


def _value(path: Path, task: str) -> object:
    """The value of a task in the dictionary `_defs` of a Python file.

    Raises:
        OSError, SyntaxError, ValueError, TypeError, MemoryError, RecursionError: There is none, or it is no literal.
    """
    values = _definitions(path)
    if task not in values:
        raise ValueError(f"its _defs = {{…}} does not list {task!r}")
    try:
        return ast.literal_eval(values[task])
    except ValueError:
        raise ValueError(f"{task!r}: {ast.unparse(values[task]):.100} is not {_FORM} in plain values") from None


def _definitions(path: Path) -> dict[str, ast.expr]:
    """The dictionary `_defs` of a Python file, its values as they stand there. Raises as `_value` does."""
    if not path.is_file():
        raise ValueError("no such file")
    return {
        str(key.value): value
        for statement in ast.parse(path.read_bytes(), path.name).body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict)
        if "_defs" in map(ast.unparse, statement.targets)
        for key, value in zip(statement.value.keys, statement.value.values, strict=True)
        if isinstance(key, ast.Constant)
    }


def _undeclared_seconds(file: Path, lister: Lister, cache: Path) -> tuple[float, str]:
    """Unit duration in seconds where the clone declares none, and what says so: a task of ours, else the clips."""
    if ours := published(file.stem):
        return ours.clip_seconds, f"task {ours.name}"
    seconds = durations(*lister(file, _RATES[0]), cache)
    return sum(seconds) / len(seconds), "mean of the clips"


def _list(clips: Sequence[Entry], name: str, file: Path, sample_rate: int) -> tuple[Path, Sequence[Entry]]:
    """The folder of the sound files at a rate, or the next higher, or the highest; and the clips.

    Raises:
        DataError: No sound files.
    """
    folders = {rate: folder for rate in _RATES if (folder := sound_folder(file, name, rate)).is_dir()}
    if not folders:
        raise DataError(
            f"{file}: no sound files. EVAR keeps them in {sound_folder(file, name, _RATES[0])}, at 16 kHz; its "
            "Preparing-datasets.md says how to make them."
        )
    rate = next((rate for rate in folders if rate >= sample_rate), max(folders))
    if rate != sample_rate:
        logger.warning("%s: no copy at %s Hz; the one at %s Hz is resampled.", file.stem, sample_rate, rate)
    return folders[rate], clips


def _clips(file: Path) -> tuple[str, list[Entry]]:
    """The column that says fold or split, and the clips."""
    if not file.is_file():
        raise UsageError(f"{file}: no such file; name a metadata file of EVAR, such as CLONE/evar/metadata/esc50.csv.")
    columns, clips = index.read_clips(file)
    column = next((name for name in ("split", "fold") if name in columns), None)
    if column is None:
        raise DataError(f"{file}: neither a column split nor a column fold beside {', '.join(columns.values())}.")
    return column, clips
