"""Data sets from where their authors publish them, into the data folder."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from filelock import FileLock

from m2d_bench import archives
from m2d_bench.download import discarding, fetch, verify
from m2d_bench.errors import ArchiveError, UsageError
from m2d_bench.settings import make_folder
from m2d_bench.tasks import layouts
from m2d_bench.tasks.task import Part, Task

logger = logging.getLogger(__name__)

_MANUAL = "fetch it elsewhere, put it there as it is and run this again"


def download(task: Task, data: Path) -> Path:
    """Downloads and unpacks what is missing of a task's data set; what is there is not touched.

    Args:
        task: The task.
        data: The data folder, made where it is missing.

    Returns:
        The folder of the data set.

    Raises:
        UsageError: The task has no published data set, or the folder cannot be made.
        DataError: A download fails or proves bad; or something is missing that only a person can get.
        StorageError: There is no room.
    """
    if not task.parts:
        raise UsageError(f"{task.name}: there is nothing to download, only published data sets. See m2d-bench tasks.")
    folder = layouts.home(task, data)
    if _wanted(task, folder):
        make_folder(folder)
        logger.warning("%s: licence: %s.", task.name, task.licence or f"see {task.source}")
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            for part in _wanted(task, folder):
                _install(part, folder)
    layouts.require(task, folder)
    return folder


def _wanted(task: Task, folder: Path) -> list[Part]:
    """The parts that are to be downloaded: missing ones, and those that were being moved into place when all ended."""
    parts = [part for part in task.parts if part.files]
    return [part for part in parts if not part.lies_in(folder) or _staging(_paths(part, folder)).exists()]


def _paths(part: Part, folder: Path) -> list[Path]:
    """Where the files of a part are downloaded to."""
    return [folder / PurePosixPath(urlsplit(url).path).name for url in part.files]


def _staging(paths: Sequence[Path]) -> Path:
    """Folder that an archive is unpacked into before its files are moved."""
    return paths[-1].with_name(f".{paths[-1].name}.unpacked")


def _install(part: Part, folder: Path) -> None:
    """Downloads a part, checks it and puts it into the data set's folder."""
    paths = _paths(part, folder)
    downloads = list(zip(paths, part.files.items(), strict=True))
    for path, (url, checksum) in downloads:
        fetch(url, path, manual=_MANUAL, option="--data")
        with discarding(url, path, _MANUAL):
            verify(path, checksum)
    path, (url, checksum) = downloads[-1]
    if not path.name.endswith(archives.SUFFIXES):
        return
    staging = _staging(paths)
    shutil.rmtree(staging, ignore_errors=True)
    with nullcontext() if checksum else discarding(url, path, _MANUAL):
        try:
            archives.unpack(paths, staging, _place, "--data")
            inside = _find(part, staging, path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            if part.lies_in(folder):  # in part
                staging.mkdir()
            raise
    _move(inside, folder)
    shutil.rmtree(staging)
    for path in paths:
        path.unlink()


def _place(name: str) -> str | None:
    """Where a file of an archive goes; what macOS adds and hidden files nowhere."""
    parts = PurePosixPath(name).parts
    return None if any(part == "__MACOSX" or (part[0] == "." and part != "..") for part in parts) else name


def _find(part: Part, staging: Path, archive: Path) -> Path:
    """The folder of an unpacked archive that is the data set's: where the part lies in it."""
    for folder, _, _ in os.walk(staging):
        if part.lies_in(Path(folder)):
            return Path(folder)
    raise ArchiveError(f"{archive}: holds no {' or '.join(part.holds)}.")


def _move(source: Path, target: Path) -> None:
    """Moves a folder or file; what is there under its name stays, but for files that have the same one."""
    if source.is_dir() and target.exists():
        for entry in source.iterdir():
            _move(entry, target / entry.name)
    else:
        os.replace(source, target)
