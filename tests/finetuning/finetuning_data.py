"""Small tasks and models to fine-tune: seconds on a CPU."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile

from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.checkpoint import Checkpoint
from tests.conftest import small_encoder

CLASSES = ("high", "low", "middle")
_HERTZ = {"high": 1500, "low": 250, "middle": 600}


def write_clips(root: Path, rows: list[tuple[str, str, str]], column: str, name: str = "tones") -> str:
    """A task `evar:PATH` of tones in noise, 0.6 s each; `rows` are files, their classes, and splits or folds."""
    path = root / "evar" / "metadata" / f"{name}.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label", column), *rows])
    folder = root / "work" / "16k" / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    time = np.arange(9600) / 16000
    for file_name, labels, _ in rows:
        waveform = 0.1 * rng.standard_normal(9600)
        for label in labels.split(","):
            waveform += 0.1 * np.sin(2 * np.pi * _HERTZ[label] * time + rng.uniform(0, 6))
        soundfile.write(folder / file_name, waveform, 16000)
    return f"evar:{path}"


def splits_task(root: Path, name: str = "tones") -> str:
    """Official splits: 30 clips to train on, 6 to choose by, 9 to test."""
    splits = ["train"] * 30 + ["valid"] * 6 + ["test"] * 9
    return write_clips(root, [(f"{i}.wav", CLASSES[i % 3], split) for i, split in enumerate(splits)], "split", name)


def folds_task(root: Path) -> str:
    """Three folds of twelve clips."""
    return write_clips(root, [(f"{i}.wav", CLASSES[i % 3], str(1 + i // 12)) for i in range(36)], "fold")


def labels_task(root: Path) -> str:
    """Clips of one label or two."""
    names = ["high", "low", "middle", "high,low", "low,middle"]
    splits = ["train"] * 20 + ["valid"] * 10 + ["test"] * 10
    return write_clips(root, [(f"{i}.wav", names[i % 5], split) for i, split in enumerate(splits)], "split", "several")


def write_model(folder: Path) -> Path:
    """A random encoder of width 128 and depth 2, windows of 48 frames, patches of 16×16."""
    encoder = small_encoder(frames=48)
    path = folder / "small.safetensors"
    checkpoint.save(Checkpoint(config=encoder.config, encoder=encoder.vit.state_dict()), path)
    return path


SMALL = {
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "batch_size": 12,
    "epochs": 4,
    "warmup_epochs": 1,
    "mixup": 0.3,
    "frequency_mask": 5,
    "time_mask": 5,
    "random_resize_crop": True,
    "patchout_ratio": 0.5,
}
"""Values of a recipe with everything in it, for these tasks."""
