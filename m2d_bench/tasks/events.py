"""Everyday sound: ten classes from bell to wind.

Synthetic: made by signal processing with random parameters, in rooms and noise. The small counterpart of ESC-50; five
folds of independent clips.
"""

from m2d_bench.tasks.task import Folds, Task

TASK = Task(
    name="events",
    domain="environment",
    metric="accuracy",
    clip_seconds=2.0,
    n_classes=10,
    n_clips=700,
    folds=Folds(column="fold", count=5),
    generator="m2d_bench.tasks.synthetic.events:clips",
    source="made by m2d_bench itself",
)
