"""FSDnoisy18k: 20 sound events with noisy labels, the official split (Fonseca et al. 2019)."""

from pathlib import Path

from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Part, Task


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """The clips of both splits, noisy and clean ones."""
    return root, [
        index.entry(f"FSDnoisy18k.audio_{split}/{row['fname']}", [row["label"]], split)
        for split in ("train", "test")
        for row in index.read_columns(root / f"FSDnoisy18k.meta/{split}.csv", ["fname", "label"]).to_dict("records")
    ]


TASK = Task(
    name="fsdnoisy18k",
    domain="environment",
    metric="accuracy",
    clip_seconds=8.25,
    n_classes=20,
    n_clips=18532,
    split_clips={"train": 17585, "test": 947},
    layouts=(Layout(folders=("FSDnoisy18k",), index="FSDnoisy18k.meta/test.csv"),),
    lister=list_clips,
    source="https://zenodo.org/record/2529934",
    parts=tuple(
        Part(holds=(name,), files={f"https://zenodo.org/records/2529934/files/{name}.zip": checksum})
        for name, checksum in {
            "FSDnoisy18k.audio_train": "md5:34dc1d34ca44622af5bf439ceb6f0d55",
            "FSDnoisy18k.audio_test": "md5:1ac73d70b4ef3f81900d98c261a832de",
            "FSDnoisy18k.meta": "md5:96e27a4a63b7a2870522ddcedb5d8296",
        }.items()
    ),
    licence="CC BY; each clip has its own, CC BY or CC0",
)
