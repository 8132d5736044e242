"""Shared fixtures: golden arrays, small encoders, a miniature data set, and a cache of the tests' own."""

from __future__ import annotations

import csv
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests run in as many processes as cores

import numpy as np
import pytest
import soundfile

from m2d_bench.encoders.checkpoint import Checkpoint, parse_name, save
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.vit import ViT, ViTConfig, initialise
from tests.encoders import own_encoders

GOLDEN = sorted(path.parent for path in Path(__file__).parent.glob("golden/*/runtime.npz"))
"""Folders of small models and what the reference implementations computed from them (golden/README.md)."""

GOLDEN_INPUTS = np.load(Path(__file__).parent / "golden" / "inputs.npz")


def golden_waveform(key: str) -> np.ndarray:
    """Waveform [1, samples] of a golden array named CLIP_SAMPLES/…: the first samples of a stored clip."""
    clip, samples = key.split("/")[0].split("_")
    return GOLDEN_INPUTS[f"{clip}/waveform"][:, : int(samples)]


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No test reads or writes the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["M2D_BENCH_CACHE"] = str(folder)
    os.environ.pop("M2D_BENCH_DATA", None)
    return folder


@pytest.fixture
def unlistable(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes folders of these names ones that cannot be listed, for root too."""

    def deny(*names: str) -> None:
        def scandir(path: str | Path | int) -> object:
            if not isinstance(path, int) and Path(path).name in names:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", scandir)

    scan = os.scandir
    return deny


@pytest.fixture
def encoder_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder holds encoders of others; what they are imported as is forgotten afterwards."""
    monkeypatch.chdir(own_encoders.write(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("own", "scale", "hear_own"):
        sys.modules.pop(name, None)


def small_encoder(
    patch_size: tuple[int, int] = (16, 16), frames: int = 208, sample_rate: int = 16000, **settings: object
) -> M2DEncoder:
    """A random encoder of width 128 and depth 2."""
    import torch

    from m2d_bench.encoders.config import EncoderConfig

    vit = ViTConfig(width=128, depth=2, patch_size=patch_size, input_size=(80, frames))
    config = EncoderConfig(name="small", vit=vit, sample_rate=sample_rate, **settings)  # type: ignore[arg-type]
    weights = initialise(ViT(vit), torch.Generator().manual_seed(1)).state_dict()
    return M2DEncoder.from_checkpoint(Checkpoint(config=config, encoder=weights))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small encoder as a file; its embeddings are those the session's cache holds of `small_encoder()`."""
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    encoder = small_encoder()
    save(Checkpoint(config=encoder.config, encoder=encoder.vit.state_dict()), path)
    return path


def random_checkpoint(name: str) -> Checkpoint:
    """Random weights of a released name's architecture."""
    import torch

    config = parse_name(name)
    assert config is not None
    return Checkpoint(config=config, encoder=initialise(ViT(config.vit), torch.Generator().manual_seed(2)).state_dict())


def write_tones(
    root: Path, task_index: str = "meta/esc10.csv", clips: int = 400, suffix: str = ".wav", amplitude: float = 0.1
) -> Path:
    """A miniature of ESC-10's layout: 10 classes, each a tone in noise, half a second a clip, five folds."""
    classes = 10
    rng = np.random.default_rng(0)
    (root / "audio").mkdir(parents=True)
    (root / task_index).parent.mkdir(parents=True, exist_ok=True)
    with (root / task_index).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        for i in range(clips):
            label = i % classes
            time = np.arange(4000) / 8000
            wave = amplitude * np.sin(2 * np.pi * 200 * 1.3**label * time) + 0.1 * rng.standard_normal(4000)
            soundfile.write(root / "audio" / f"{i}{suffix}", wave, 8000)
            writer.writerow([f"{i}{suffix}", 1 + (i // classes) % 5, label, f"tone{label}", "True", i, "A"])
    return root


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root with a miniature of ESC-10."""
    root = tmp_path_factory.mktemp("data")
    write_tones(root / "esc10")
    return root
