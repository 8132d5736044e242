"""Hostile checkpoints and broken release archives: read as what they are, or refused in one message."""

from __future__ import annotations

import io
import random
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from damage.records import in_process
from damage.tally import MODEL, Tally
from m2d_bench.encoders import zoo

NAME = MODEL.removeprefix("random:")
ADVICE = ("weights_only", "\x1b", "can still be loaded")
"""What a message must not hold: torch's advice to read unsafely, and its colours."""


class Code:
    """A pickle that would run something."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def run(folder: Path, count: int, seed: int) -> Iterator[Tally]:
    """One tally, over `models show`."""
    rng, tally = random.Random(seed), Tally("models show: hostile checkpoints")
    folder.mkdir(exist_ok=True)
    state = {**zoo.read(MODEL).encoder, "norm_stats": torch.tensor([-7.1, 4.2])}
    file = io.BytesIO()
    torch.save({"model": state}, file)
    whole = file.getvalue()
    marker = folder / "ran"
    for number in range(count):
        path = folder / str(number) / NAME / "checkpoint-1.pth"
        path.parent.mkdir(parents=True)
        if number % 3 == 0:
            change, damaged = flip(whole, rng)
            path.write_bytes(damaged)
        else:
            change, content = mutate(state, rng, marker)
            torch.save(content, path)
        with deadline(60):
            done = in_process(["models", "show", str(path)])
        faults = done.faults()
        faults += [f"its message says {word!r}" for word in ADVICE if word in done.stderr]
        if number % 3 == 0 and done.code == 0:
            faults.append("damaged bytes were taken for whole")
        if done.code == 0 and not finite(path):
            faults.append("its embeddings are not finite")
        tally.refused += done.code != 0
        tally.expect(not faults, f"{change}: {'; '.join(faults)}")
        path.unlink()
    tally.check(not marker.exists(), "code in a pickle ran")
    yield tally


def flip(whole: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A file with a bit turned within a stored tensor, or cut short."""
    damaged = bytearray(whole)
    if rng.random() < 0.2:
        return "cut short", bytes(damaged[: rng.randrange(len(damaged))])
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        member = rng.choice([each for each in archive.infolist() if each.file_size > 100 and "/data/" in each.filename])
    name, extra = struct.unpack_from("<HH", whole, member.header_offset + 26)
    position = member.header_offset + 30 + name + extra + rng.randrange(member.file_size)
    damaged[position] ^= 1 << rng.randrange(8)
    return f"a bit of {member.filename}", bytes(damaged)


def mutate(state: dict[str, torch.Tensor], rng: random.Random, marker: Path) -> tuple[str, Any]:
    """Contents of a checkpoint that no trainer writes, and what is odd about them."""
    key = rng.choice(sorted(state))
    tensor = state[key]
    odd: dict[str, Any] = {
        "meta": tensor.to("meta"),
        "complex": tensor.to(torch.complex64),
        "bool": tensor.bool(),
        "int8": tensor.to(torch.int8),
        "nothing": torch.zeros(0),
        "no columns": tensor.new_zeros(0, *tensor.shape[1:]),
        "scalar": torch.tensor(1.0),
        "expanded": torch.zeros(1).expand(2**30, *tensor.shape[1:]) if tensor.ndim else torch.zeros(2),
        "transposed": tensor.transpose(0, -1),
        "one more dimension": tensor[None],
        "NaN": torch.full_like(tensor, float("nan")),
        "infinite": torch.full_like(tensor, float("inf")),
        "sparse": tensor.to_sparse(),
        "a text": "tensor",
        "None": None,
        "a list": tensor.flatten()[:3].tolist(),
        "code": Code(marker),
    }
    what = rng.choice([*odd, "missing", "a block too far", "renamed", "no dict", "nested"])
    if what == "missing":
        return f"{key} is missing", {"model": {name: value for name, value in state.items() if name != key}}
    if what == "a block too far":
        number = rng.choice((99, 10**6, 10**30, -1))
        return f"blocks.{number}", {"model": {**state, f"blocks.{number}.norm1.weight": torch.zeros(192)}}
    if what == "renamed":
        return f"{key} is renamed", {
            "model": {("x." if name == key else "") + name: value for name, value in state.items()}
        }
    if what == "no dict":
        return "no dict", rng.choice(([], None, 5, tensor, "text", {}, {"model": None}, {"model": []}, {1: tensor}))
    if what == "nested":
        return "nested", {"model": {"model": {"model": state}}}
    return f"{key} is {what}", {"model": {**state, key: odd[what]}}


def finite(path: Path) -> bool:
    """Whether a checkpoint that was read gives finite embeddings."""
    encoder = zoo.load(str(path), device="cpu")
    return bool(encoder.scene_embeddings(torch.randn(1, 16000)).isfinite().all())


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raises a TimeoutError in what takes longer."""

    def late(*arguments: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
