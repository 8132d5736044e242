"""Synthetic tasks in the cache: generated once, and checked before they are used."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from io import BytesIO
from pathlib import Path

import soundfile
from filelock import FileLock

from m2d_bench.cache.entries import mark_used
from m2d_bench.files import find, sha256
from m2d_bench.progress import track
from m2d_bench.registry import resolve
from m2d_bench.settings import make_cache, read_checked, write_checked, writing
from m2d_bench.tasks.synthetic.scene import SAMPLE_RATE
from m2d_bench.tasks.task import Layout, Task

logger = logging.getLogger(__name__)

LAYOUT = Layout(folders=(), index="index.csv", file="audio/{filename}")


def folder(task: Task, cache: Path) -> Path:
    """Folder of a synthetic task in the cache; generated there once, whole or not at all, and anew where damaged."""
    root = cache / "tasks" / f"{task.name}-v{task.version}"
    if not (damaged := _damaged(root)):  # nothing to write, so that the cache may be read-only
        mark_used(_manifest(root))
        return root
    if root.exists():
        what = f"{len(damaged)} files are missing or not as generated: {', '.join(damaged[:5])}"
        logger.warning("%s: %s. The task must be generated anew.", root, what)
    make_cache(cache)
    with writing(cache, round(task.n_clips * task.clip_seconds * SAMPLE_RATE * 2), "--cache"):
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{root}.lock"):
            if _damaged(root):
                partial = Path(f"{root}.part")
                shutil.rmtree(partial, ignore_errors=True)
                (partial / "audio").mkdir(parents=True)
                _write_clips(task, partial)
                digests = {file: sha256(partial / file) for file in find(partial)[0]}
                write_checked(_manifest(root), json.dumps(digests).encode())
                if root.exists():
                    shutil.rmtree(root)
                os.replace(partial, root)
    return root


def _manifest(root: Path) -> Path:
    """File beside the folder of a synthetic task that tells the SHA-256 of each of its files."""
    return root.with_name(f"{root.name}.json")


def _damaged(root: Path) -> list[str]:
    """Files of a synthetic task that are missing or not as they were generated."""
    manifest = read_checked(_manifest(root))
    digests = json.loads(manifest) if manifest else {_manifest(root).name: ""}
    return [file for file, digest in digests.items() if not _has(root / file, digest)]


def _has(path: Path, digest: str) -> bool:
    """Whether a file can be read and has this SHA-256."""
    try:
        return sha256(path) == digest
    except OSError:
        return False


def _write_clips(task: Task, folder: Path) -> None:
    clips = resolve(str(task.generator))()
    with (folder / LAYOUT.index).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "label", "fold"])
        for number, clip in enumerate(track(clips, f"Generating {task.name}", task.n_clips, "clips")):
            name, encoded = f"{number:05d}.wav", BytesIO()  # libsndfile itself does not say that a disk is full
            soundfile.write(encoded, clip.waveform, SAMPLE_RATE, subtype="PCM_16", format="WAV")
            (folder / "audio" / name).write_bytes(encoded.getvalue())
            writer.writerow([name, clip.label, clip.fold])
