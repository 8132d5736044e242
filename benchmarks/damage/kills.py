"""Commands killed at any moment and started again: they end with what an undisturbed one ends with."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from damage.archives import NAME, Server, serving, weights, zipped
from damage.tally import MODEL, QUICK, Tally, command, surroundings

DOWNLOAD = """
import sys
from m2d_bench import cli
from m2d_bench.encoders import zoo
zoo.RELEASED[sys.argv[1]] = zoo.Release(sys.argv[1], "v0", "of this benchmark")
zoo._RELEASES = sys.argv[2]
sys.exit(cli.main(["models", "show", sys.argv[1]]))
"""


@dataclass(frozen=True)
class Job:
    """A command to kill.

    Args:
        name: Its verb.
        words: The command.
        again: What is added when it is started again.
        outcome: What it left in its folder, as something to compare.
    """

    name: str
    words: Sequence[str]
    again: Sequence[str]
    outcome: Callable[[Path], object]


def run(folder: Path, count: int, seed: int) -> Iterator[Tally]:
    """One tally a verb."""
    sounds = folder / "sounds"
    write_sounds(sounds)
    rng = random.Random(seed)
    with serving() as address:
        Server.content, Server.slow = zipped({f"{NAME}/checkpoint-300.pth": weights()}), True
        jobs = all_jobs(folder, sounds, address)
        for number, job in enumerate(jobs):
            share = count // len(jobs) + (number < count % len(jobs))
            yield kill(job, folder, share, rng)
        Server.slow = False


def all_jobs(folder: Path, sounds: Path, address: str) -> list[Job]:
    """The commands, small ones."""
    task = f"evar:{sounds}/evar/metadata/tones.csv"
    clips = sorted(map(str, (sounds / "work/16k/tones").glob("*.wav")))
    (folder / "recipe.yaml").write_text("{epochs: 20, batch_size: 12, learning_rate: 0.001, optimizer: adamw}")
    small = ("--set", "epochs=6", "warmup_epochs=1", "effective_batch=8", "--workers", "0", "--watch-epochs", "0")
    pretrain = ("pretrain", "--recipe", "debug", "--data", str(sounds), "--out", "out", *small)
    finetune = ("finetune", "--model", MODEL, "--tasks", task, "--recipe", str(folder / "recipe.yaml"), *QUICK)
    return [
        Job("linear", command("linear", "--model", MODEL, "--tasks", task, "--seeds", 4, *QUICK), (), scores),
        Job("prepare", command("prepare", sounds, "shards", "--jobs", 1, "--shard-mb", 0.05), (), bytes_of("shards")),
        Job("pretrain", command(*pretrain, "--resume-steps", 2, "--device", "cpu"), ("--resume",), last_weights),
        Job("finetune", command(*finetune, "--seeds", 1, "--resume-minutes", 0), ("--resume",), scores),
        Job("embed", command("embed", *clips, "-o", "all.npz", "--model", MODEL, *QUICK), (), arrays),
        Job("download", [sys.executable, "-c", DOWNLOAD, NAME, address], (), bytes_of("cache/weights")),
    ]


def kill(job: Job, folder: Path, times: int, rng: random.Random) -> Tally:
    """Kills a command so many times, each in a folder of its own, and ends it."""
    tally = Tally(f"{job.name}: kill −9, then the same command again")
    whole = folder / job.name
    whole.mkdir()
    start = time.monotonic()
    finish(job.words, whole, tally)
    seconds, expected = time.monotonic() - start, job.outcome(whole)
    for number in range(times):
        place = folder / f"{job.name}-{number}"
        place.mkdir()
        process = subprocess.Popen(job.words, cwd=place, env=surroundings(place), stdout=-3, stderr=-3)
        moment = rng.uniform(0.1, 1.0) * seconds
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        begun = any(place.iterdir())
        finish([*job.words, *(job.again if begun else ())], place, tally)
        tally.expect(job.outcome(place) == expected, f"{job.name} killed after {moment:.1f} s ends otherwise")
        shutil.rmtree(place)
    return tally


def finish(words: Sequence[str], folder: Path, tally: Tally) -> None:
    """Runs a command to its end."""
    done = subprocess.run(words, cwd=folder, env=surroundings(folder), capture_output=True, text=True, check=False)
    tally.check(done.returncode == 0, f"started again, it fails: {done.stderr[-300:]}")


def write_sounds(root: Path) -> None:
    """Thirty tones in EVAR's layout."""
    folder, metadata = root / "work" / "16k" / "tones", root / "evar" / "metadata" / "tones.csv"
    folder.mkdir(parents=True)
    metadata.parent.mkdir(parents=True)
    lines = ["file_name,label,split"]
    for number in range(30):
        wave = 0.1 * np.random.default_rng(number).standard_normal(16000)
        wave += 0.2 * np.sin(np.arange(16000) * (0.1 + 0.1 * (number % 3)))
        soundfile.write(folder / f"{number:02d}.wav", wave, 16000)
        lines.append(
            f"{number:02d}.wav,{'abc'[number % 3]},{'train' if number < 15 else 'valid' if number < 21 else 'test'}"
        )
    metadata.write_text("\n".join(lines) + "\n")


def scores(folder: Path) -> object:
    """Seed, fold and score of all records."""
    from m2d_bench import runs

    found = [runs.load(path) for path in sorted((folder / "runs").rglob("*.json"))]
    return [(score.seed, score.fold, score.score) for record in found for score in record.scores]


def bytes_of(name: str) -> Callable[[Path], object]:
    """Digest of each file below a folder, but for locks and logs."""

    def digests(folder: Path) -> object:
        files = sorted(path for path in (folder / name).rglob("*") if path.is_file() and path.suffix != ".lock")
        return [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]

    return digests


def last_weights(folder: Path) -> object:
    """Digest of the weights that a pre-training ended with."""
    (path,) = (folder / "out").rglob("checkpoint-6.pth")
    state = torch.load(path, weights_only=True)["model"]
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in state.items()}


def arrays(folder: Path) -> object:
    """Digest of what was embedded."""
    with np.load(folder / "all.npz") as stored:
        return {name: hashlib.sha256(stored[name].tobytes()).hexdigest() for name in ("files", "embeddings")}
