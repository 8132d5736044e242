"""Spoken language: eight languages, test sentences unseen.

Synthetic: spoken by the formant synthesiser eSpeak NG, in rooms and noise, by the same voices in every language. The
small counterpart of VoxForge; five folds of two sentences, each fold the same sentences in every language.
"""

from m2d_bench.tasks.task import Folds, Task

TASK = Task(
    name="espeak_language",
    domain="speech",
    metric="accuracy",
    clip_seconds=2.0,
    n_classes=8,
    n_clips=640,
    folds=Folds(column="fold", count=5),
    generator="m2d_bench.tasks.synthetic.espeak:language",
    source="eSpeak NG in https://pypi.org/project/espeakng-loader",
)
