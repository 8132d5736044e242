"""VoxForge: six languages, the split of M2D's papers over the submissions (MacLean 2018)."""

from m2d_bench.tasks.task import Layout, Task

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
            folders=("voxforge", "VoxForge"),
            index="voxforge.csv",
            file="{file_name}",
            index_source="https://github.com/nttcslab/eval-audio-repr (evar/metadata/voxforge.csv)",
        ),
    ),
    source="http://www.voxforge.org (evar/utils/download_voxforge.py of nttcslab/eval-audio-repr fetches it)",
)
