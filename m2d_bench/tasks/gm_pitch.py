"""Pitch of a note: 24 keys, C2 to B3, test instruments unseen.

Synthetic: played from the sampled instruments of the General-MIDI SoundFont in the pretty_midi wheel, in rooms and
noise. The small counterpart of Surge; four folds of eight programs, and no recording is heard in two folds.
"""

from m2d_bench.tasks.task import Folds, Task

TASK = Task(
    name="gm_pitch",
    domain="music",
    metric="accuracy",
    clip_seconds=1.0,
    n_classes=24,
    n_clips=768,
    folds=Folds(column="fold", count=4),
    generator="m2d_bench.tasks.synthetic.gm:pitch",
    source="TimGM6mb.sf2 in https://pypi.org/project/pretty_midi",
)
