"""ESC-10: the ten-class subset of ESC-50, five official folds (Piczak 2015); alone in Ogg or inside ESC-50."""

from dataclasses import replace

from m2d_bench.tasks.esc50 import LAYOUT, LICENCE, PART
from m2d_bench.tasks.task import Folds, Layout, Task

TASK = Task(
    name="esc10",
    domain="environment",
    metric="accuracy",
    clip_seconds=5.0,
    n_classes=10,
    n_clips=400,
    split_clips=dict.fromkeys("12345", 80),
    folds=Folds(column="fold", count=5),
    layouts=(
        Layout(folders=("esc10", "ESC-10", "ESC-10-master"), index="meta/esc10.csv", file="audio/{filename}"),
        replace(LAYOUT, where=("esc10", "True")),
    ),
    label="category",
    source="https://github.com/karolpiczak/ESC-50",
    parts=(PART,),
    licence=LICENCE,
)
