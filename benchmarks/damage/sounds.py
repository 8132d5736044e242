"""Damaged sound files through embed, predict, prepare and linear: each file is used or named, and never both."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from damage.tally import MODEL, QUICK, Finished, Tally, m2d_bench
from m2d_bench.encoders import checkpoint, zoo
from m2d_bench.encoders.checkpoint import Labels
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.pretrain.data.opening import open_source

ENCODINGS = (
    ("wav", "PCM_16"),
    ("wav", "PCM_24"),
    ("wav", "FLOAT"),
    ("flac", "PCM_16"),
    ("ogg", "VORBIS"),
    ("mp3", "MPEG_LAYER_III"),
    ("aiff", "PCM_16"),
)
CLASSES = ("low", "high")
AT_ONCE = 200
"""Files a command is given."""


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A kind of damage, and the file with it."""
    kind = rng.choice(
        ("none", "cut", "cut", "bits", "bytes", "zeros", "header", "inserted", "removed", "appended", "empty")
    )
    damaged, size = bytearray(data), len(data)
    start = rng.randrange(size)
    length = rng.randint(1, max(1, size // 8))
    if kind == "cut":
        damaged = damaged[: rng.randint(size // 10, 8 * size // 10)]
    elif kind == "bits":
        for _ in range(rng.randint(1, 20)):
            damaged[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        damaged[start : start + length] = rng.randbytes(min(length, size - start))
    elif kind == "zeros":
        damaged[start : start + length] = bytes(min(length, size - start))
    elif kind == "header":
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(64, size))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == "inserted":
        damaged[start:start] = rng.randbytes(length)
    elif kind == "removed":
        del damaged[start : start + length]
    elif kind == "appended":
        damaged += rng.randbytes(length)
    elif kind == "empty":
        damaged.clear()
    return kind, bytes(damaged)


def write_files(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Damaged sound files, each with the kind of its damage."""
    rng, kinds = random.Random(seed), {}
    for number in range(count):
        suffix, subtype = rng.choice(ENCODINGS)
        rate = rng.choice((8000, 16000, 22050, 44100))
        time = np.arange(int(rate * rng.uniform(0.5, 2))) / rate
        tone = 0.3 * np.sin(2 * np.pi * (300 if number % 2 else 1200) * time)
        noise = 0.01 * np.random.default_rng(number).standard_normal((len(time), rng.choice((1, 1, 2))))
        name = f"{number:04d}.{suffix}"
        soundfile.write(folder / name, tone[:, None] + noise, rate, subtype=subtype)
        kinds[name], damaged = mutate((folder / name).read_bytes(), rng)
        (folder / name).write_bytes(damaged)
    return kinds


def run(folder: Path, count: int, seed: int) -> Iterator[Tally]:
    """One tally a verb."""
    sounds = folder / "work" / "16k" / "damaged"  # EVAR's layout, so that linear reads the same files
    sounds.mkdir(parents=True)
    kinds = write_files(sounds, count, seed)
    names = sorted(kinds)
    batches = [names[start : start + AT_ONCE] for start in range(0, count, AT_ONCE)]

    embed = Tally("embed: damaged sound files")
    for number, batch in enumerate(batches):
        output = folder / f"{number}.npz"
        paths = [sounds / name for name in batch]
        done = m2d_bench("embed", *paths, "-o", output, "--model", MODEL, *QUICK, folder=folder)
        with np.load(output) as arrays:
            used = {Path(file).name for file in arrays["files"]}
            embed.check(bool(np.isfinite(arrays["embeddings"]).all()), "a row that is not finite")
        judge(embed, done, batch, used, kinds)
    yield embed

    classifier = write_classifier(folder)
    predict = Tally("predict: damaged sound files")
    for batch in batches:
        paths = [sounds / name for name in batch]
        done = m2d_bench("predict", classifier, *paths, "--format", "jsonl", *QUICK, folder=folder)
        lines = [json.loads(line, parse_constant=lambda name: float("nan")) for line in done.stdout.splitlines()]
        predict.check(
            all(np.isfinite(line["probabilities"]).all() for line in lines), "a probability that is not finite"
        )
        judge(predict, done, batch, {Path(line["file"]).name for line in lines}, kinds)
    yield predict

    prepare = Tally("prepare: damaged sound files")
    done = m2d_bench("prepare", sounds, folder / "shards", "--jobs", 1, folder=folder)
    done = replace(done, stderr=done.stderr + (folder / "shards" / "failures.csv").read_text())  # which names all
    source = open_source(folder / "shards", frames=208)
    judge(prepare, done, names, {Path(source.path(clip)).name for clip in range(source.n_clips)}, kinds)
    yield prepare

    yield from linear(folder, names, kinds)


def linear(folder: Path, names: list[str], kinds: dict[str, str]) -> Iterator[Tally]:
    """Linear evaluation over the same files: refused whole by default, done without the bad ones where asked."""
    metadata = folder / "evar" / "metadata" / "damaged.csv"
    metadata.parent.mkdir(parents=True)
    with metadata.open("w", newline="") as file:
        rows = [(name, CLASSES[int(name[:4]) % 2], f"{1 + int(name[:4]) // 2 % 3}") for name in names]
        csv.writer(file).writerows([("file_name", "label", "fold"), *rows])
    words = ("linear", "--model", MODEL, "--tasks", f"evar:{metadata}", "--seeds", 1, "--epochs", 3, *QUICK)
    tally = Tally("linear: damaged sound files")
    stopped = m2d_bench(*words, folder=folder)
    skipped = m2d_bench(*words, "--on-bad-file", "skip", "--runs", "skipped", folder=folder)
    judge(tally, stopped, names, set(names) - named(stopped, names), kinds)
    tally.check(not list((folder / "runs").rglob("*.json")), "a score although files were bad and not to be skipped")
    tally.check(skipped.code == 0, f"no score with --on-bad-file skip: {skipped.stderr[-300:]}")
    records = [path.read_text() for path in (folder / "skipped").rglob("*.json")]
    for name in named(stopped, names):
        tally.check(any(name in record for record in records), f"{name}: skipped, and the record does not say so")
    yield tally


def named(done: Finished, names: list[str]) -> set[str]:
    """The files that a command named on stderr as not used."""
    said = set(re.findall(r"\b\d{4}\.(?:wav|flac|ogg|mp3|aiff)\b", done.stderr))
    return {name for name in names if name in said}


def judge(tally: Tally, done: Finished, names: list[str], used: set[str], kinds: dict[str, str]) -> None:
    """Each file is used or named; whole ones are used, and those cut short are not."""
    refused = named(done, names)
    for fault in done.faults():
        tally.check(False, fault)
    tally.refused += len(refused)
    for name in names:
        kind, suffix = kinds[name], name[-3:]
        fault = ""
        if name in used and name in refused:
            fault = "used, and named as not used"
        elif name not in used and name not in refused:
            fault = "left out without a word"
        elif kind == "none" and name in refused:
            fault = "whole, and refused"
        elif kind in ("cut", "empty") and name in used:
            fault = "less than announced, and taken for whole"
        tally.expect(not fault, f"{name} ({kind}, {suffix}): {fault}")


def write_classifier(folder: Path) -> Path:
    """A random fine-tuned model."""
    model = zoo.read(MODEL)
    features = M2DEncoder.from_checkpoint(model).scene_embedding_size
    head = {
        "running_mean": torch.zeros(features),
        "running_var": torch.ones(features),
        "weight": torch.randn(2, features, generator=torch.Generator().manual_seed(0)),
        "bias": torch.zeros(2),
    }
    labels = Labels(classes=CLASSES, multilabel=False, clip_seconds=1.0)
    path = folder / "classifier.safetensors"
    checkpoint.save(checkpoint.Checkpoint(config=model.config, encoder=model.encoder, head=head, labels=labels), path)
    return path
