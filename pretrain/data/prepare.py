"""Turns sound files into log-mel shards: in parallel, resumable, the same bytes for any number of jobs."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from m2d_bench import audio, tasks
from m2d_bench.encoders.frontend import N_MELS, LogMel
from m2d_bench.errors import AudioError, DataError, UsageError
from m2d_bench.files import sha256
from m2d_bench.pretrain.data import shards
from m2d_bench.pretrain.data.listing import Files
from m2d_bench.pretrain.data.parts import UNFINISHED, Part, PrepareSettings, write_parts
from m2d_bench.pretrain.data.shards import Index, TeacherFacts
from m2d_bench.pretrain.data.teachers import SpeechTeacher
from m2d_bench.settings import Compute, Storage, make_folder, replacing
from m2d_bench.tasks import dataset

logger = logging.getLogger(__name__)

_PLAN = "plan.json"
_ASKED = 100
"""Files whose headers are read to estimate the length of all."""
_LONG_SECONDS = 120
"""Files of which a teacher of base size takes gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` wrote.

    Args:
        folder: Where.
        index: Facts of the whole.
    """

    folder: Path
    index: Index


def prepare(sources: Sequence[Path], out: Path, settings: PrepareSettings, storage: Storage = Storage()) -> Prepared:
    """Turns sound files into log-mel shards with an index, see `m2d_bench.pretrain.data.shards`.

    Called again after an interruption it continues after the last finished shard; a finished folder is left as it is.

    Args:
        sources: Trees of sound files, or task:NAME: the files of a task, but for those of an official test split. Clips
            are named by their paths relative to their folders, or to what these have in common.
        out: Folder to write.
        settings: How.
        storage: Where tasks' data sets lie.

    Raises:
        UsageError: The folder was begun with other files or settings, is in use, or holds other shards; an unknown
            teacher or layer.
        DataError: No sound files, or none that can be read.
    """
    files = _list_files(sources, storage)
    teacher = None
    if settings.teacher:
        compute = Compute(
            device=settings.device, precision=settings.precision, trust_remote_code=settings.trust_remote_code
        )
        teacher = SpeechTeacher(settings.teacher, settings.layer, settings.sample_rate, compute)
    make_folder(out)
    with _locked(out):
        for leftover in out.glob(".*.tmp"):  # of a killed run
            leftover.unlink()
        plan: dict[str, object] = {
            "format": shards.FORMAT,
            "front_end": shards.FRONT_END,
            "sample_rate": settings.sample_rate,
            "n_mels": N_MELS,
            "hop_length": LogMel(settings.sample_rate).hop_length,
            "shard_mb": float(settings.shard_mb),
            "max_seconds": settings.max_seconds,
            "teacher": teacher and asdict(teacher.facts),
            "files": files.digest(),
        }
        _begin(out, files, plan)
        if not (out / shards.INDEX).exists():
            if teacher:
                logger.warning("%s", _size_of_features(files, teacher.facts, settings.max_seconds or math.inf))
            _finish(out, files, plan, write_parts(out, files, settings, teacher))
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
        return Prepared(folder=out, index=Index.read(out))


def _list_files(sources: Sequence[Path], storage: Storage) -> Files:
    """The sound files of all sources, each once, in order of their paths."""
    found = [_find_sounds(source, storage) for source in sources]
    root = Path(os.path.commonpath([os.path.abspath(folder) for folder, _, _ in found]))
    inside_root: set[str] = set()
    unlisted: dict[str, str] = {}
    for folder, sounds, failures in found:
        inside = os.path.relpath(os.path.abspath(folder), root).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        inside_root.update(prefix + path for path in sounds)
        unlisted.update((os.path.normpath(prefix + path), reason) for path, reason in failures)
    if not inside_root:
        where, looked_for = ", ".join(map(str, sources)), ", ".join(sorted(audio.suffixes()))
        denied = "".join(f" {root / path}: {reason}" for path, reason in unlisted.items())
        raise DataError(f"{where}: no sound files. Looked for {looked_for}, in subfolders too.{denied}")
    paths = sorted(inside_root)
    names = [root / path for path in paths]  # a broken link has size −1 and will be among the failures
    sizes = [os.path.getsize(name) if os.path.exists(name) else -1 for name in names]
    return Files(root=root, paths=paths, sizes=sizes, unlisted=sorted(unlisted.items()))


def _find_sounds(source: Path, storage: Storage) -> tuple[Path, Sequence[str], Sequence[tuple[str, str]]]:
    """A source's folder, its sound files there, and folders there that cannot be listed, with the reason."""
    kind, _, name = str(source).partition(":")
    if kind == "task":
        clips = dataset.find(tasks.get(name, storage), storage)
        return clips.root, [file for file, split in zip(clips.files, clips.splits, strict=True) if split != "test"], []
    if not source.is_dir():
        raise UsageError(
            f"{source}: no such folder. Name folders of sound files, or task:NAME, then the folder to write."
        )
    sounds, others, unlisted = audio.find_sounds(source)
    audio.warn_of_others(source, others)
    return source, sounds, unlisted


def _size_of_features(files: Files, teacher: TeacherFacts, max_seconds: float) -> str:
    """What a teacher's features of all files take on the disk, by the headers of some; and whether files are long."""
    some = files.paths[:: max(1, len(files.paths) // _ASKED)]
    seconds = []
    for path in some:
        with suppress(AudioError):
            seconds.append(min(max_seconds, audio.duration(files.root / path)))
    longest = max(seconds, default=0)
    hour = 3600 * 1000 / teacher.hop_ms * teacher.size * np.dtype(np.float16).itemsize / 1e9
    hours = sum(seconds) / max(1, len(seconds)) * len(files.paths) / 3600
    all_of_them = f"about {hour * hours:.2g} GB for {hours:.2g} hours"
    long = (
        f" A file is encoded in one piece, and there are some of {longest:.0f} s: where memory runs out, --jobs 1 "
        "takes one at a time, and --max-seconds cuts them."
    )
    size = f"Features of {teacher.name}: {hour:.2g} GB an hour of sound, {all_of_them}."
    return size + (long if longest > _LONG_SECONDS else "")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Locks the folder against other processes; the lock of a killed one is released."""
    try:
        with FileLock(out / ".prepare.lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(f"{out}: another process is preparing this folder. Wait for it, or name another.") from None


def _begin(out: Path, files: Files, plan: dict[str, object]) -> None:
    """Writes the plan of a new folder, or checks that a begun one has the same plan."""
    begun = next((path for path in (out / shards.INDEX, out / UNFINISHED / _PLAN) if path.exists()), None)
    if begun is None:
        if other := sorted(out.glob("*.tar")):
            raise UsageError(f"{out}: holds {other[0].name}, which was not begun by this command. Name a new folder.")
        shards.write_files(out, files.paths, files.sizes)
        with replacing(out / UNFINISHED / _PLAN) as file:
            file.write(json.dumps(plan).encode())
        return
    try:
        before = dict(json.loads(begun.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{begun}: not written by this command ({error}). Name a new folder.") from error
    if changed := [name for name in plan if name != "files" and _nameless(before.get(name)) != _nameless(plan[name])]:
        settings = ", ".join(f"{name}={before.get(name)} (now {plan[name]})" for name in changed)
        raise UsageError(f"{out}: was begun with {settings}. Give the same settings, or name a new folder.")
    if before.get("files") != plan["files"]:
        raise UsageError(
            f"{out}: was begun with other files: {_differences(out, files)}. Bring them back to what they were, or "
            "name a new folder."
        )


def _nameless(value: Any) -> Any:
    """A value of a plan; of a teacher what it is known by: the digest, not the name."""
    return {**value, "name": None} if isinstance(value, dict) else value


def _differences(out: Path, files: Files) -> str:
    """Describes how the files differ from those the folder was begun with."""
    before = shards.read_files(out)
    now = dict(zip(files.paths, files.sizes, strict=True))
    kinds = {
        "new": [path for path in now if path not in before],
        "gone": [path for path in before if path not in now],
        "changed in size": [path for path in now if path in before and before[path] != now[path]],
    }
    return "; ".join(
        f"{len(paths)} {kind} ({', '.join(paths[:3])}{', …' if len(paths) > 3 else ''})"
        for kind, paths in kinds.items()
        if paths
    )


def _finish(out: Path, files: Files, plan: dict[str, object], parts: Sequence[Part]) -> None:
    """Writes the index, its JSON last: with it the folder is finished."""
    failures = [*files.unlisted, *((files.paths[i], reason) for part in parts for i, reason in part.failures)]
    if failures:
        shards.write_failures(out, failures)
    rows = np.array(
        [
            (file, shard, (*stretches[0], 0), (*(stretches[1] if plan["teacher"] else (0, 0)), 0))
            for shard, part in enumerate(parts)
            for file, stretches in part.clips
        ],
        dtype=shards.ROW,
    )
    if not len(rows):
        raise DataError(f"{out}: none of the {len(files.paths)} files can be read; {shards.FAILURES} there says why.")
    blocks = np.stack([-(-rows[name]["frames"].astype(np.int64) // shards.BLOCK) for name in shards.ARRAYS], axis=1)
    firsts = np.cumsum(blocks).reshape(blocks.shape) - blocks
    for name, first in zip(shards.ARRAYS, firsts.T, strict=True):
        rows[name]["block"] = first
    checksums = np.frombuffer(bytes.fromhex("".join(part.checksums for part in parts)), shards.CHECKSUM)
    for name, array in ((shards.ROWS, rows), (shards.CHECKSUMS, checksums)):
        with replacing(out / name) as file:
            np.save(file, array)
    mean, std = shards.mean_and_std(part.sums for part in parts)
    identity = json.dumps(plan).encode() + rows.tobytes() + checksums.tobytes()
    facts = {
        "n_clips": len(rows),
        "n_frames": int(rows["log_mel"]["frames"].sum(dtype=np.int64)),
        "mean": mean,
        "std": std,
        "shard_bytes": tuple(part.size for part in parts if part.size),
        "sha256": {name: sha256(out / name) for name in (shards.ROWS, shards.CHECKSUMS, shards.FILES)},
        "failures": tuple(failures),
        "fingerprint": hashlib.sha256(identity).hexdigest()[:16],
    }
    with replacing(out / shards.INDEX) as file:
        file.write(Index(**plan, **facts).to_bytes())  # type: ignore[arg-type]
