"""Speaker: twenty voices at different pitches and rates, test sentences unseen.

Synthetic: spoken by the formant synthesiser eSpeak NG, in rooms and noise. The small counterpart of VoxCeleb1; five
folds of four sentences.
"""

from m2d_bench.tasks.task import Folds, Task

TASK = Task(
    name="espeak_voice",
    domain="speech",
    metric="accuracy",
    clip_seconds=1.0,
    n_classes=20,
    n_clips=800,
    folds=Folds(column="fold", count=5),
    generator="m2d_bench.tasks.synthetic.espeak:voice",
    source="eSpeak NG in https://pypi.org/project/espeakng-loader",
)
