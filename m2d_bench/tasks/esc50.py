"""ESC-50: environmental sounds, 50 classes, five official folds (Piczak 2015)."""

from m2d_bench.tasks.task import Folds, Layout, Part, Task

LAYOUT = Layout(folders=("ESC-50-master", "ESC-50"), index="meta/esc50.csv", file="audio/{filename}")
PART = Part(
    holds=("meta/esc50.csv", "meta/esc10.csv"),
    files={"https://github.com/karolpiczak/ESC-50/archive/33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6.zip": ""},
)
LICENCE = "CC BY-NC 3.0"

TASK = Task(
    name="esc50",
    domain="environment",
    metric="accuracy",
    clip_seconds=5.0,
    n_classes=50,
    n_clips=2000,
    split_clips=dict.fromkeys("12345", 400),
    folds=Folds(column="fold", count=5),
    layouts=(LAYOUT,),
    label="category",
    source="https://github.com/karolpiczak/ESC-50",
    parts=(PART,),
    licence=LICENCE,
)
