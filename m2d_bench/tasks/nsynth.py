"""NSynth: instrument families of notes, 11 classes, the official split (Engel et al. 2017)."""

from functools import partial
from pathlib import Path

from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Part, Task


def list_notes(label: str, root: Path, _: int) -> tuple[Path, list[Entry]]:
    """The notes of all splits.

    Args:
        label: What of a note's description is its label.
        root: Folder of the data set.
    """
    return root, [
        index.entry(f"nsynth-{split}/audio/{note}.wav", [str(description.get(label, ""))], split)
        for split in ("train", "valid", "test")
        for note, description in index.read_json(root / f"nsynth-{split}/examples.json").items()
    ]


_FILES = "https://storage.googleapis.com/download.magenta.tensorflow.org/datasets/nsynth"

TASK = Task(
    name="nsynth",
    domain="music",
    metric="accuracy",
    clip_seconds=4.0,
    n_classes=11,
    n_clips=305979,
    split_clips={"train": 289205, "valid": 12678, "test": 4096},
    layouts=(Layout(folders=("nsynth",), index="nsynth-test/examples.json"),),
    lister=partial(list_notes, "instrument_family_str"),
    source="https://magenta.tensorflow.org/datasets/nsynth",
    parts=tuple(
        Part(holds=(name,), files={f"{_FILES}/{name}.jsonwav.tar.gz": ""})
        for name in ("nsynth-train", "nsynth-valid", "nsynth-test")
    ),
    licence="CC BY 4.0",
)
