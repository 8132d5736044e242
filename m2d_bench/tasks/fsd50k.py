"""FSD50K: 200 sound events of Freesound clips, the official split (Fonseca et al. 2022)."""

from pathlib import Path

from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Task


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """The clips of the development and the evaluation set; the former is split."""
    tables = {
        part: index.read_columns(root / f"FSD50K.ground_truth/{part}.csv", columns)
        for part, columns in {"dev": ["fname", "labels", "split"], "eval": ["fname", "labels"]}.items()
    }
    return root, [
        index.entry(
            f"FSD50K.{part}_audio/{row['fname']}.wav",
            row["labels"].split(","),
            index.split_name(row["split"]) if part == "dev" else "test",
        )
        for part, table in tables.items()
        for row in table.to_dict("records")
    ]


TASK = Task(
    name="fsd50k",
    domain="environment",
    metric="mAP",
    multilabel=True,
    clip_seconds=7.6358,
    n_classes=200,
    n_clips=51197,
    split_clips={"train": 36796, "valid": 4170, "test": 10231},
    layouts=(Layout(folders=("FSD50K", "fsd50k"), index="FSD50K.ground_truth/dev.csv"),),
    lister=list_clips,
    source="https://zenodo.org/record/4060432",
)
