"""How fast are sound files decoded and resampled, and how fast and in how much memory are two million clips indexed?

    python benchmarks/decode.py [--clips N] [--jobs J] [--rows R] [--folder TMP]

Prints two Markdown tables. The first: seconds for so many clips of 10 s at 44.1 kHz → 16 kHz mono, by librosa.load one
after the other, and by m2d-bench with J threads. The second: what `m2d-bench` does for as2m before it opens the first of
R sound files, which are links to one, laid out like AudioSet: 50 000 a folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import soundfile

from m2d_bench import audio
from m2d_bench.parallel import map_ahead
from m2d_bench.settings import Storage
from m2d_bench.tasks import as2m, dataset

RATE, SECONDS, FILES = 44100, 10, 16
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


def seconds(waveforms: Callable[[], Iterable[np.ndarray]]) -> float:
    """Wall-clock time until all were decoded, the better of two."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        for _ in waveforms():
            pass
        times.append(time.perf_counter() - start)
    return min(times)


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
        part.mkdir(parents=True, exist_ok=True)
        if row % LINKS == 0:
            sound = part / f"Y{segment}.wav"
            soundfile.write(sound, np.zeros(160), 16000)
        else:
            (part / f"Y{segment}.wav").hardlink_to(sound)
    for table in tables.values():
        table.close()


def index(folder: Path) -> tuple[int, float, float]:
    """Clips, seconds, and peak memory of this process in GB."""
    start = time.perf_counter()
    found = dataset.load(as2m.TASK, Storage(data=folder))
    return len(found.files), time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Writes the files, reads them, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--folder", help="where to write, about 10 GB of links")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        print("| format | channels | librosa.load, s | m2d-bench, s | ratio |\n|---|---:|---:|---:|---:|")
        for suffix in FORMATS if arguments.clips else ():
            for channels in (1, 2):
                paths = write_sounds(folder, suffix, channels)
                clips = [paths[clip % FILES] for clip in range(arguments.clips)]
                read = partial(audio.read, sample_rate=16000)
                theirs = seconds(lambda: (librosa.load(clip, sr=16000)[0] for clip in clips))
                ours = seconds(lambda: map_ahead(read, clips, arguments.jobs, 64))
                print(f"| {suffix} | {channels} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} |", flush=True)
        (folder / "AudioSet").mkdir()
        write_audioset(folder / "AudioSet", arguments.rows)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            clips, time_, memory = pool.apply(index, (folder,))
        print("\n| clips in the index | seconds | peak memory (GB) |\n|---:|---:|---:|")
        print(f"| {clips} | {time_:.1f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
