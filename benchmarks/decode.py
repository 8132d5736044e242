"""How fast are sound files decoded and resampled, and how fast and in how much memory are two million clips indexed?

    python benchmarks/decode.py [--clips N] [--jobs J] [--repeats N] [--rows R] [--folder TMP]

Prints two Markdown tables. The first: seconds for so many clips of 10 s at 44.1 kHz → 16 kHz mono, by librosa.load one
after the other, and by m2d-bench with J threads. The second: what m2d-bench does for as2m before it opens the first
sound file, of which there are R, links to a few, laid out like AudioSet: 50 000 a folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import soundfile

from m2d_bench import audio
from m2d_bench.parallel import map_ahead
from m2d_bench.settings import Storage
from m2d_bench.tasks import as2m, dataset

RATE, SECONDS, FILES = 44100, 10, 4
FORMATS = ("ogg", "wav", "flac", "mp3")
PART, LINKS = 50_000, 60_000  # clips a folder, links a file


def write_sounds(folder: Path, suffix: str, channels: int) -> list[Path]:
    """A few files, each a chord in noise."""
    rng, times = np.random.default_rng(0), np.arange(RATE * SECONDS) / RATE
    paths = [folder / f"{channels}-{number}.{suffix}" for number in range(FILES)]
    for path in paths:
        waveform = 0.02 * rng.standard_normal((len(times), channels))
        for pitch in rng.uniform(100, 5000, (5, channels)):
            waveform += 0.1 * np.sin(2 * np.pi * times[:, None] * pitch)
        with soundfile.SoundFile(path, "w", RATE, channels) as file:
            for start in range(0, len(times), RATE):
                file.write(waveform[start : start + RATE])
    return paths


def load_all(clips: Sequence[Path]) -> None:
    """librosa's way, one after the other."""
    for clip in clips:
        librosa.load(clip, sr=16000)


def read_all(clips: Sequence[Path], jobs: int) -> None:
    """Ours, in threads."""
    for _ in map_ahead(partial(audio.read, sample_rate=16000), clips, jobs, 64):
        pass


def compare(clips: Sequence[Path], jobs: int, repeats: int) -> np.ndarray:
    """Seconds and CPU seconds of both, [2, 2], the best of some turns, so that other load meets them alike."""
    times = np.full((repeats, 2, 2), np.inf)
    both: tuple[Callable[[Sequence[Path]], None], ...] = (load_all, partial(read_all, jobs=jobs))
    for turn in times:
        for taken, decode in zip(turn, both, strict=True):
            taken[:] = -time.perf_counter(), -time.process_time()
            decode(clips)
            taken += time.perf_counter(), time.process_time()
    return np.asarray(times.min(0))


def write_audioset(folder: Path, rows: int) -> None:
    """Segments with one to three labels each, a tenth of them for evaluation, and links as their sound files."""
    rng = np.random.default_rng(0)
    numbers = rng.choice(527, (rows, 3))
    kinds = ("eval_segments", "balanced_train_segments", "unbalanced_train_segments")
    tables = {kind: (folder / f"{kind}.csv").open("w") for kind in kinds}
    for row in range(rows):
        kind = kinds[0 if row % 10 == 0 else 1 if row % 100 == 1 else 2]
        segment = f"{row:010d}x"
        labels = ",".join(f"/m/{number:05x}" for number in {row % 527, *numbers[row, : row % 3].tolist()})
        tables[kind].write(f'{segment}, 30.000, 40.000, "{labels}"\n')
        part = folder / kind / f"{kind}_part{row // PART:02d}"
        if row % PART in range(3):
            part.mkdir(parents=True, exist_ok=True)
        path = f"{part}/Y{segment}.wav"
        if row % LINKS == 0:
            sound = path
            soundfile.write(sound, np.zeros(160), 16000)
        else:
            os.link(sound, path)
    for table in tables.values():
        table.close()


def index(folder: Path) -> tuple[int, float, float, float]:
    """Clips, seconds, CPU seconds, and peak memory of this process in GB."""
    start, cpu_start = time.perf_counter(), time.process_time()
    clips = len(dataset.find_all(as2m.TASK, Storage(data=folder)).files)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return clips, wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Writes the files, reads them, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--folder", help="where to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        print("| format | channels | librosa.load, s | m2d-bench, s | ratio | librosa.load, CPU s | m2d-bench, CPU s |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for suffix in FORMATS if arguments.clips else ():
            for channels in (1, 2):
                paths = write_sounds(folder, suffix, channels)
                clips = [paths[clip % FILES] for clip in range(arguments.clips)]
                (theirs, their_cpu), (ours, our_cpu) = compare(clips, arguments.jobs, arguments.repeats)
                numbers = f"{theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} | {their_cpu:.2f} | {our_cpu:.2f}"
                print(f"| {suffix} | {channels} | {numbers} |", flush=True)
        (folder / "AudioSet").mkdir()
        write_audioset(folder / "AudioSet", arguments.rows)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            clips, wall, cpu, memory = pool.apply(index, (folder,))
        print("\n| clips in the index | seconds | CPU seconds | peak memory (GB) |\n|---:|---:|---:|---:|")
        print(f"| {clips} | {wall:.1f} | {cpu:.1f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
