"""Spoken word: ten digits and ten commands, test speakers unseen.

Synthetic: spoken by the formant synthesiser eSpeak NG, in rooms and noise. The small counterpart of Speech Commands
(SPCV2); five folds of six speakers (accent and variant of the voice).
"""

from m2d_bench.tasks.task import Folds, Task

TASK = Task(
    name="espeak_words",
    domain="speech",
    metric="accuracy",
    clip_seconds=1.0,
    n_classes=20,
    n_clips=600,
    folds=Folds(column="fold", count=5),
    generator="m2d_bench.tasks.synthetic.espeak:words",
    source="eSpeak NG in https://pypi.org/project/espeakng-loader",
)
