"""Instrument family of a note: ten of NSynth's families, test instruments unseen.

Synthetic: played from the sampled instruments of the General-MIDI SoundFont in the pretty_midi wheel, in rooms and
noise. The small counterpart of NSynth; five folds by program, and no recording is heard in two folds.
"""

from m2d_bench.tasks.task import Folds, Task

TASK = Task(
    name="gm_family",
    domain="music",
    metric="accuracy",
    clip_seconds=1.5,
    n_classes=10,
    n_clips=800,
    folds=Folds(column="fold", count=5),
    generator="m2d_bench.tasks.synthetic.gm:family",
    source="TimGM6mb.sf2 in https://pypi.org/project/pretty_midi",
)
