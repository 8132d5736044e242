"""FSD50K: 200 sound events of Freesound clips, the official split (Fonseca et al. 2022)."""

from pathlib import Path

from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Part, Task


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


_FILES = "https://zenodo.org/records/4060432/files/FSD50K"

TASK = Task(
    name="fsd50k",
    domain="environment",
    metric="mAP",
    multilabel=True,
    clip_seconds=7.6358,
    n_classes=200,
    n_clips=51197,
    split_clips={"train": 36796, "valid": 4170, "test": 10231},
    layouts=(Layout(folders=("FSD50K",), index="FSD50K.ground_truth/dev.csv"),),
    lister=list_clips,
    source="https://zenodo.org/record/4060432",
    parts=(
        Part(
            holds=("FSD50K.dev_audio",),
            files={
                f"{_FILES}.dev_audio.z01": "md5:faa7cf4cc076fc34a44a479a5ed862a3",
                f"{_FILES}.dev_audio.z02": "md5:8f9b66153e68571164fb1315d00bc7bc",
                f"{_FILES}.dev_audio.z03": "md5:1196ef47d267a993d30fa98af54b7159",
                f"{_FILES}.dev_audio.z04": "md5:d088ac4e11ba53daf9f7574c11cccac9",
                f"{_FILES}.dev_audio.z05": "md5:81356521aa159accd3c35de22da28c7f",
                f"{_FILES}.dev_audio.zip": "md5:c480d119b8f7a7e32fdb58f3ea4d6c5a",
            },
        ),
        Part(
            holds=("FSD50K.eval_audio",),
            files={
                f"{_FILES}.eval_audio.z01": "md5:3090670eaeecc013ca1ff84fe4442aeb",
                f"{_FILES}.eval_audio.zip": "md5:6fa47636c3a3ad5c7dfeba99f2637982",
            },
        ),
        Part(
            holds=("FSD50K.ground_truth",),
            files={f"{_FILES}.ground_truth.zip": "md5:ca27382c195e37d2269c4c866dd73485"},
        ),
    ),
    licence="CC BY 4.0; each clip has its own",
)
