"""VoxForge: six languages, the split of M2D's papers over the submissions (MacLean 2018)."""

from m2d_bench.tasks.task import Layout, Part, Task

_SOURCE = "http://www.voxforge.org (evar/utils/download_voxforge.py of nttcslab/eval-audio-repr fetches it)"

TASK = Task(
    name="voxforge",
    domain="speech",
    metric="accuracy",
    clip_seconds=5.8,
    n_classes=6,
    n_clips=176428,
    split_clips={"train": 121281, "valid": 26684, "test": 28463},
    layouts=(
        Layout(
            folders=("voxforge",),
            index="voxforge.csv",
            file="{file_name}",
        ),
    ),
    source=_SOURCE,
    parts=(
        Part(
            holds=("voxforge.csv",),
            files={"https://raw.githubusercontent.com/nttcslab/eval-audio-repr/main/evar/metadata/voxforge.csv": ""},
        ),
        Part(holds=("*/wav",), manual=_SOURCE, what="the submissions"),
    ),
)
