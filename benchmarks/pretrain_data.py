"""How fast are sound files prepared, and random crops of 80×608 read from the shards, in how much memory?

    python benchmarks/pretrain_data.py [--clips N] [--seconds S] [--workers 0 1 2] [--batch-size B] [--folder TMP]

Generates a few sound files and links to them as so many clips, prepares them with one job and with all, and reads them
back from the page cache. Prints two Markdown tables: files a second; crops a second, that as a ratio to a plain loop of
np.load over the same arrays, one file each, and the memory of the worker processes (PSS: shared pages are divided among
those who share them). The goal is 5 000 crops a second on 16 cores in less than 4 GB.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from m2d_bench.encoders.frontend import N_MELS
from m2d_bench.pretrain.data import CropLoader, EpochSampler, open_source, shards
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare

FRAMES = 608


class Memory:
    """The largest proportional set size of all child processes together, in MiB, while it is open."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            children = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
            self.peak = max(self.peak, sum(map(pss, children)))


def pss(pid: str) -> float:
    """MiB of a process, 0 for one that has ended."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) / 1024 if found else 0


def write_sounds(folder: Path, clips: int, seconds: float) -> None:
    """Sixteen files of noise, and links to them."""
    rng = np.random.default_rng(0)
    for i in range(clips):
        path = folder / f"{i:07d}.wav"
        if i < 16:
            soundfile.write(path, rng.standard_normal(round(16000 * seconds)) * rng.random() * 0.3, 16000)
        else:
            path.symlink_to(f"{i % 16:07d}.wav")


def np_load_rate(folder: Path, prepared: Path) -> float:
    """Arrays a second of np.load over the clips as one file each, in random order, from the page cache."""
    folder.mkdir()
    for number, row in enumerate(np.load(prepared / shards.ROWS)):
        shard = prepared / shards.shard_name(row["shard"])
        values = np.fromfile(shard, np.float16, row["log_mel"]["frames"] * N_MELS, offset=row["log_mel"]["offset"])
        np.save(folder / f"{number}.npy", values.reshape(-1, N_MELS))
    paths = [folder / f"{number}.npy" for number in np.random.default_rng(0).permutation(number + 1)]
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        for path in paths:
            np.load(path)
        rates.append(len(paths) / (time.perf_counter() - start))
    return max(rates)


def reading(prepared: Path, workers: int, batch_size: int, crops: int) -> tuple[float, float]:
    """Crops a second after the first batch, the best of three epochs, and MiB of the workers."""
    source = open_source(prepared, FRAMES)
    rates = []
    with Memory() as memory:
        for epoch in range(3):
            sampler = EpochSampler(
                n_clips=source.n_clips, batch_size=batch_size, seed=0, epoch=epoch, epoch_clips=crops
            )
            stream = iter(CropLoader(source, sampler, workers))
            next(stream)
            start = time.perf_counter()
            done = sum(len(batch.clips) for batch in stream)
            rates.append(done / (time.perf_counter() - start))
    return max(rates), memory.peak


def main() -> None:
    """Prepares, reads and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2, 4, 8, 16])
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--crops", type=int, default=20_000, help="crops an epoch")
    parser.add_argument("--folder", help="where to write, about 0.5 MB a clip")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "audio").mkdir()
        write_sounds(folder / "audio", arguments.clips, arguments.seconds)
        print(f"{arguments.clips} clips of {arguments.seconds:g} s, {os.cpu_count()} cores\n")
        print("| jobs | files prepared/s |\n|---:|---:|")
        for jobs in sorted({1, os.cpu_count() or 1}):
            start = time.perf_counter()
            prepare([folder / "audio"], folder / f"prepared{jobs}", PrepareSettings(jobs=jobs))
            print(f"| {jobs} | {arguments.clips / (time.perf_counter() - start):.0f} |")
        prepared = folder / f"prepared{jobs}"
        plain = np_load_rate(folder / "arrays", prepared)
        print(f"\nnp.load of the same arrays: {plain:.0f}/s\n")
        print("| workers | crops/s | ratio to np.load | memory of the workers (MiB) |\n|---:|---:|---:|---:|")
        for workers in arguments.workers:
            rate, memory = reading(prepared, workers, arguments.batch_size, arguments.crops)
            print(f"| {workers} | {rate:.0f} | {rate / plain:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
