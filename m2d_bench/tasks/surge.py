"""Surge: 88 pitches of a synthesizer, its tones split as in M2D's papers (Turian et al. 2021)."""

from pathlib import Path

from m2d_bench.tasks import folders, index
from m2d_bench.tasks.task import Entry, Layout, Part, Task

_SPLITS = "dataset_surge_tone_splits.csv"


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """Notes in the folders of their tones."""
    table = index.read_columns(root / _SPLITS, ["tone", "split"])
    splits = dict(zip(table["tone"], table["split"], strict=True))
    notes = map(Path, folders.find_sounds(root)[0])
    return root, [index.entry(note.as_posix(), [note.stem], splits.get(note.parent.name, "")) for note in notes]


TASK = Task(
    name="surge",
    domain="music",
    metric="accuracy",
    clip_seconds=4.0,
    n_classes=88,
    n_clips=183392,
    split_clips={"train": 148896, "valid": 17160, "test": 17336},
    layouts=(
        Layout(
            folders=("surge",),
            index=_SPLITS,
        ),
    ),
    lister=list_clips,
    source="https://zenodo.org/record/4677097",
    parts=(
        Part(
            holds=("*-velocity64",),
            files={"https://zenodo.org/records/4677097/files/surge-velocity64-2K.tar": ""},
            what="the tones",
        ),
        Part(
            holds=(_SPLITS,),
            files={f"https://raw.githubusercontent.com/nttcslab/eval-audio-repr/main/evar/predefined/{_SPLITS}": ""},
        ),
    ),
)
