"""Builds the audio that m2d_tiny is pre-trained on, from packages of Debian, and prepares it for `m2d-bench pretrain`.

    python examples/corpus/build.py FOLDER [--packages NAME …] [--not-in FOLDER …] [--minutes 3] [--seconds 10]

Needs Debian or Ubuntu with apt-get and dpkg-deb; nothing is installed. Packages are named in packages.csv beside this
file; one that cannot be fetched or unpacked is left out, and said. Killed, it goes on where it was when called again;
called again with more packages, it adds them.

Left out are files that cannot be decoded, that are shorter than 0.1 s or silent, and that are the same, byte by byte or
sample by sample, as one before or as a clip of an evaluation: of the built-in tasks or in a folder after --not-in. Of
each of the others at most so many minutes are taken; a package's files follow each other without a gap and are cut into
clips of so many seconds, so that all weigh by their length. FOLDER/log_mels is what `pretrain --data` reads.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
from tabulate import tabulate

from m2d_bench import archives, audio, tasks
from m2d_bench.errors import ArchiveError, M2DBenchError, UsageError, describe
from m2d_bench.parallel import map_ahead
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare
from m2d_bench.progress import track
from m2d_bench.settings import Storage, replacing
from m2d_bench.tasks import dataset, folders
from m2d_bench.tasks.contents import Content, Contents

SAMPLE_RATE = 16000
SHORTEST = 0.1
"""Seconds, of a file and of a clip."""
SILENCE = 1e-3
"""Peak below which a file is silent, −60 dB of full scale."""
PACKAGES = Path(__file__).with_name("packages.csv")
COLUMNS = ["package", "kind", "licence", "files", "unreadable", "short", "copies", "evaluated", "silent", "hours"]


def fetch(package: str, folder: Path) -> None:
    """Downloads and unpacks a package into folder/package, archives inside it too, whole or not at all.

    Raises:
        ArchiveError: apt-get does not download it, or an archive is broken.
    """
    unpacked, partial = folder / package, folder / f"{package}.part"
    if unpacked.exists():
        return
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    partial.mkdir(parents=True)
    try:
        status = subprocess.run(["apt-get", "download", package], cwd=partial, stdout=2).returncode  # stdout: the table
        downloaded = [*partial.glob("*.deb")]
        if status or len(downloaded) != 1:
            raise ArchiveError(
                f"apt-get download ended with status {status} and {len(downloaded)} .deb files. A fresh system needs "
                "apt-get update."
            )
        if subprocess.run(["dpkg-deb", "-x", *downloaded, partial]).returncode:
            raise ArchiveError(f"{downloaded[0].name}: dpkg-deb cannot unpack it.")
        downloaded[0].unlink()
        for archive in [*partial.rglob("*.pk3")]:
            with archives.open_zip(archive) as opened:
                opened.extractall(archive.with_suffix(""))
            archive.unlink()
        partial.rename(unpacked)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def evaluated(names: Sequence[str], evaluations: Sequence[Path], storage: Storage) -> set[str]:
    """Digests of bytes and samples of all clips of tasks and of the sound files of folders."""
    clips = [clip for name in names for clip in dataset.load(tasks.get(name, storage), storage).clip_contents]
    for folder in evaluations:
        if not folder.is_dir():
            reason = "is a file" if folder.exists() else "does not exist"
            raise UsageError(f"--not-in {folder}: {reason}. Name the folder of an evaluation's clips.")
        sounds, others = folders.find_sounds(folder)
        if not sounds:
            raise UsageError(f"--not-in {folder}: no sound files there. Name the folder of an evaluation's clips.")
        audio.warn_of_others(folder, others)
        clips += Contents(folder, storage.cache_root).of(sounds, folder.name)
    return {digest for clip in clips for digest in (clip.digest, clip.sound)} - {""}


def begin(folder: Path, settings: dict[str, object]) -> None:
    """Writes down what a corpus is made with; a UsageError where it was begun with something else."""
    path, text = folder / "settings.json", json.dumps(settings)
    if not path.exists():
        with replacing(path) as file:
            file.write(text.encode())
    elif (begun := path.read_text()) != text:
        raise UsageError(f"{folder}: was begun with {begun}, now {text}. Give the same options, or another folder.")


def reason_against(content: Content, before: set[str], evaluation: set[str]) -> str:
    """The column that counts a file which is left out, by what is in it; empty for one that is not."""
    digests = {content.digest, content.sound}
    if content.fault:
        return "unreadable"
    if content.seconds < SHORTEST:
        return "short"
    return "evaluated" if digests & evaluation else "copies" if digests & before else ""


def cut(waveforms: Iterator[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """Joins waveforms and cuts them into clips of so many samples; the last may be shorter."""
    rest = np.empty(0, np.float32)
    for waveform in waveforms:
        rest = np.concatenate([rest, waveform])
        while len(rest) >= samples:
            yield rest[:samples]
            rest = rest[samples:]
    if len(rest) >= SHORTEST * SAMPLE_RATE:
        yield rest


def write_clips(
    folder: Path, package: str, files: Sequence[str], minutes: float, seconds: float, counts: Counter[str]
) -> float:
    """Writes the clips of a package anew, and counts its files; returns hours."""
    root, out = folder / "packages" / package, folder / "clips" / package
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    def read(file: str) -> np.ndarray:
        return audio.read(root / file, SAMPLE_RATE, seconds=60 * minutes)

    def heard() -> Iterator[np.ndarray]:
        waveforms = map_ahead(read, files, 0, ahead=8)
        for waveform in track(waveforms, f"Cutting {package}", len(files), "files"):
            silent = np.abs(waveform).max() < SILENCE
            counts["silent" if silent else "files"] += 1
            if not silent:
                yield waveform

    samples = 0
    for number, clip in enumerate(cut(heard(), round(seconds * SAMPLE_RATE))):
        soundfile.write(out / f"{number:05d}.flac", clip, SAMPLE_RATE, subtype="PCM_16")
        samples += len(clip)
    return samples / SAMPLE_RATE / 3600


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none where there is no file."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def add_row(path: Path, row: dict[str, object]) -> None:
    """Adds a row to a CSV file, which begins with the columns' names."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def build(arguments: argparse.Namespace) -> None:
    """Writes the clips of every package that has no row in FOLDER/sources.csv yet, and then its row."""
    folder: Path = arguments.folder
    known = {row["package"]: row for row in read_table(PACKAGES)}
    done = [row["package"] for row in read_table(folder / "sources.csv")]
    evaluation = evaluated(arguments.tasks, arguments.not_in, Storage(cache=arguments.cache))
    digest = hashlib.sha256("".join(sorted(evaluation)).encode()).hexdigest()[:16]
    begin(folder, {"minutes": arguments.minutes, "seconds": arguments.seconds, "evaluation clips": digest})
    before: set[str] = set()
    for package in dict.fromkeys([*done, *arguments.packages]):  # copies of what is there already are left out too
        try:
            fetch(package, folder / "packages")
        except ArchiveError as error:
            outcome = "its clips stay" if package in done else "left out"
            print(f"{package}: cannot be fetched; {outcome}. {error}", file=sys.stderr)
            continue
        chosen, counts = [], Counter[str]()
        root = folder / "packages" / package
        files = folders.find_sounds(root)[0]
        for file, content in zip(files, Contents(root, folder / "cache").of(files, package), strict=True):
            reason = reason_against(content, before, evaluation)
            counts[reason] += 1
            before |= {content.digest, content.sound}
            if not reason:
                chosen.append(file)
        if package not in done:
            shutil.rmtree(folder / "log_mels", ignore_errors=True)  # of the packages so far
            hours = write_clips(folder, package, chosen, arguments.minutes, arguments.seconds, counts)
            facts = {"kind": "", "licence": "", **known.get(package, {}), **counts, "hours": f"{hours:.2f}"}
            add_row(folder / "sources.csv", {"package": package, **{name: facts.get(name, 0) for name in COLUMNS[1:]}})


def package_name(text: str) -> str:
    """A word of --packages, which names folders too."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a package, such as klettres-data")
    return text


def length(text: str, unit: int = 1) -> float:
    """A word of --seconds, or of another option whose unit is so many seconds."""
    with suppress(ValueError):
        if SHORTEST <= unit * float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 10, or is less than {SHORTEST} seconds")


def main() -> None:
    """Builds and prepares the corpus, and prints a table of its sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    packages = [row["package"] for row in read_table(PACKAGES)]
    parser.add_argument("--packages", nargs="+", type=package_name, default=packages)
    parser.add_argument("--not-in", nargs="+", type=Path, default=[], help="folders of an evaluation's clips")
    parser.add_argument("--tasks", nargs="*", default=tasks.BUILT_IN, help="whose clips are left out too")
    parser.add_argument("--minutes", type=lambda text: length(text, 60), default=3.0, help="taken of each file")
    parser.add_argument("--seconds", type=length, default=10.0, help="of a clip")
    parser.add_argument("--cache", type=Path, help="folder of the built-in tasks' clips")
    arguments = parser.parse_args()
    build(arguments)
    rows = read_table(arguments.folder / "sources.csv")
    if not rows:
        raise UsageError(f"{arguments.folder}: no package could be fetched, for the reasons above.")
    prepared = prepare([arguments.folder / "clips"], arguments.folder / "log_mels", PrepareSettings())
    print(tabulate(rows, headers="keys", tablefmt="github"))
    print(f"{sum(float(row['hours']) for row in rows):.1f} hours, {prepared.index.n_clips} clips in {prepared.folder}")


if __name__ == "__main__":
    try:
        main()
    except (M2DBenchError, OSError) as error:
        sys.exit(f"ERROR: {describe(error)}")
