"""EVAR's metadata: its CSV files as tasks of ours, and ours as CSV files of its."""

from __future__ import annotations

import csv
from pathlib import Path

import soundfile

from m2d_bench import audio, tasks
from m2d_bench.progress import track
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset as datasets
from m2d_bench.tasks import evar


def export(task: str, folder: Path, storage: Storage = Storage(), sample_rate: int = 16000) -> Path:
    """Writes a task in EVAR's layout: `evar/metadata/TASK.csv`, and its clips under `work/16k/TASK/`, or under the
    data folder that the clone names.

    Args:
        task: A name of `m2d_bench.tasks`.
        folder: A clone of EVAR, or any folder.
        storage: Where the task's data lie.
        sample_rate: Hz of the clips written; clips that are there already stay.

    Returns:
        The CSV file, with file_name, label and fold or split.

    Raises:
        UsageError: Unknown task.
        DataError, AudioError: Its data cannot be found or read.
    """
    dataset = datasets.load(tasks.get(task, storage), storage, sample_rate)
    name = dataset.task.name.replace(":", "_")
    path = folder / "evar" / "metadata" / f"{name}.csv"
    clips = evar.sound_folder(path, evar.read_definition(path).folder, sample_rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    column = "fold" if dataset.task.folds else "split"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", column])
        for clip in track(range(len(dataset.files)), f"Exporting {name}", len(dataset.files), "clips"):
            source, span = Path(dataset.files[clip]), dataset.span_name(clip)
            target = clips / (source.with_name(f"{source.stem}_{span}.wav") if span else source.with_suffix(".wav"))
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                start, end = dataset.spans[clip].tolist()
                waveform = audio.read(dataset.root / source, sample_rate, offset=start, seconds=end - start)
                soundfile.write(target, waveform, sample_rate, subtype="PCM_16")
            writer.writerow([target.relative_to(clips), ",".join(dataset.labels_of(clip)), dataset.splits[clip]])
    return path
