"""Builds the audio that m2d_tiny is pre-trained on, from packages of Debian, and prepares it for `m2d-bench pretrain`.

    python examples/corpus/build.py FOLDER [--packages NAME …] [--not-in FOLDER …] [--minutes 3] [--seconds 10]

Needs Debian or Ubuntu with apt-get and dpkg-deb; nothing is installed. Packages are named in packages.csv beside this
file; one that cannot be fetched or unpacked is left out, and named last, with exit status 1.
Killed, it goes on where it was when called again; called again with more packages, it adds them; a package whose clips
are not all there is cut again.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
from tabulate import tabulate

from m2d_bench import archives, audio, tasks
from m2d_bench.errors import ArchiveError, DataError, M2DBenchError, UsageError, describe
from m2d_bench.output import csv_text
from m2d_bench.parallel import map_ahead
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare
from m2d_bench.pretrain.data.shards import FAILURES
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
PACKAGE = r"[a-z0-9][a-z0-9+.-]+"
"""Names of packages, which name folders too."""
COUNTS = ["files", "unreadable", "short", "copies", "evaluated", "silent", "clips"]
COLUMNS = ["package", "kind", "licence", *COUNTS, "hours"]


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


def read_ahead(root: Path, files: Sequence[str], minutes: float) -> Iterator[np.ndarray]:
    """The first minutes of files, whose paths are relative to a package's folder."""

    def read(file: str) -> np.ndarray:
        return audio.read(root / file, SAMPLE_RATE, seconds=60 * minutes)

    return track(map_ahead(read, files, jobs=0, ahead=8), f"Cutting {root.name}", len(files), "files")


def write_clips(waveforms: Iterator[np.ndarray], out: Path, seconds: float) -> Counter[str]:
    """Cuts waveforms into clips of so many seconds, and writes all of them or none.

    Returns:
        Numbers of files that were cut, of silent ones, of clips and of the clips' samples.
    """
    counts, partial = Counter[str](), out.with_name(f".{out.name}")  # prepare passes over such names

    def heard() -> Iterator[np.ndarray]:
        for waveform in waveforms:
            silent = np.abs(waveform).max() < SILENCE
            counts["silent" if silent else "files"] += 1
            if not silent:
                yield waveform

    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    partial.mkdir(parents=True)
    for clip in cut(heard(), round(seconds * SAMPLE_RATE)):
        soundfile.write(partial / f"{counts['clips']:05d}.flac", clip, SAMPLE_RATE, subtype="PCM_16")
        counts.update(clips=1, samples=len(clip))
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return counts


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none where there is no file."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def read_sources(path: Path) -> dict[str, dict[str, str]]:
    """Rows of sources.csv by their package; none where there is no file, a DataError where it is damaged."""
    sources: dict[str, dict[str, str]] = {}
    try:
        for number, row in enumerate(read_table(path), start=1):
            if [*row] != COLUMNS or not re.fullmatch(PACKAGE, row["package"]) or row["package"] in sources:
                raise ValueError(f"row {number}")
            for name in COUNTS:
                int(row[name] or "")
            float(row["hours"] or "")
            sources[row["package"]] = row
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: is damaged ({error}). Delete it and start again with all packages; their clips are cut again "
            f"from {path.with_name('packages')}."
        ) from error
    return sources


def write_sources(path: Path, sources: Mapping[str, Mapping[str, str]]) -> None:
    """Writes sources.csv."""
    rows = ([row[name] for name in COLUMNS] for row in sources.values())
    with replacing(path) as file:
        file.write(f"{csv_text(COLUMNS, rows)}\n".encode())


def build(arguments: argparse.Namespace) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Cuts every package whose clips are not all there by FOLDER/sources.csv, and notes it there.

    Returns:
        Rows of sources.csv by their package, and which others were left out, with the reasons.

    Raises:
        DataError: sources.csv is damaged, there are clips without a row in it, or clips are lost and their package
            cannot be fetched.
    """
    folder: Path = arguments.folder
    known = {row["package"]: row for row in read_table(PACKAGES)}
    written = Counter(path.parent.name for path in (folder / "clips").glob("[!.]*/*.flac"))  # clips by their package
    sources = read_sources(folder / "sources.csv")
    evaluation = evaluated(arguments.tasks, arguments.not_in, Storage(cache=arguments.cache))
    digest = hashlib.sha256("".join(sorted(evaluation)).encode()).hexdigest()[:16]
    begin(folder, {"minutes": arguments.minutes, "seconds": arguments.seconds, "evaluation clips": digest})
    before: set[str] = set()
    left_out = []
    for package in dict.fromkeys([*sources, *arguments.packages]):  # copies of what is there already are left out too
        root, out = folder / "packages" / package, folder / "clips" / package
        done = package in sources and int(sources[package]["clips"]) == written[package]
        try:
            fetch(package, folder / "packages")
        except ArchiveError as error:
            if package in sources and not done:
                counted = sources[package]["clips"]
                raise DataError(
                    f"{out}: {written[package]} of {counted} clips are there; {package}: {error}"
                ) from error
            if done:
                print(f"{package}: cannot be fetched; its clips stay. {error}", file=sys.stderr)
            else:
                left_out.append(f"{package}: left out. {error}")
            continue
        chosen, counts = [], Counter[str]()
        files = folders.find_sounds(root)[0]
        for file, content in zip(files, Contents(root, folder / "cache").of(files, package), strict=True):
            if reason := reason_against(content, before, evaluation):
                counts[reason] += 1
            else:
                chosen.append(file)
            before |= {content.digest, content.sound}
        if not done:
            shutil.rmtree(folder / "log_mels", ignore_errors=True)  # of the packages so far
            counts += write_clips(read_ahead(root, chosen, arguments.minutes), out, arguments.seconds)
            facts = {"package": package, "kind": "", "licence": "", **known.get(package, {})}
            hours = counts["samples"] / SAMPLE_RATE / 3600
            sources[package] = {**facts, **{name: str(counts[name]) for name in COUNTS}, "hours": f"{hours:.2f}"}
            write_sources(folder / "sources.csv", sources)
    for package in written.keys() - sources.keys():
        raise DataError(
            f"{folder / 'clips' / package}: has no row in sources.csv. Add {package} to --packages, or delete that "
            "folder and log_mels."
        )
    return sources, left_out


def render(rows: Sequence[Mapping[str, str]]) -> str:
    """The table of the corpus's sources, with a last row of sums."""
    sums = {name: str(sum(int(row[name]) for row in rows)) for name in COUNTS}
    hours = f"{sum(float(row['hours']) for row in rows):.2f}"
    cells = [*rows, {"package": "**all**", "kind": "", "licence": "", **sums, "hours": hours}]
    align = ["left" if name in ("package", "kind", "licence") else "right" for name in COLUMNS]
    return tabulate(cells, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=align)


def package_name(text: str) -> str:
    """A word of --packages."""
    if not re.fullmatch(PACKAGE, text):
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
    folder: Path = arguments.folder
    sources, left_out = build(arguments)
    if not sources:
        raise UsageError("\n".join([f"{folder}: there is no package to cut.", *left_out]))
    prepared = prepare([folder / "clips"], folder / "log_mels", PrepareSettings())
    if failures := prepared.index.failures:
        named = "\n".join(f"{path}: {reason}" for path, reason in failures[:20])
        raise DataError(
            f"{prepared.folder}: without clips that cannot be read, {len(failures)} by {FAILURES} there:\n{named}\n"
            f"Delete the folders of their packages in {folder / 'clips'} and start again; they are cut again."
        )
    print(render([*sources.values()]))
    print(f"{prepared.index.n_clips} clips in {prepared.folder}")
    if left_out:
        raise DataError("\n".join(left_out))


if __name__ == "__main__":
    try:
        main()
    except (M2DBenchError, OSError) as error:
        sys.exit(f"ERROR: {describe(error)}")
