"""NSynth: pitches of notes, the 128 MIDI numbers, the official split (Engel et al. 2017)."""

from dataclasses import replace
from functools import partial

from m2d_bench.tasks import nsynth

TASK = replace(
    nsynth.TASK,
    name="nsynth_pitch",
    other_metrics=("chroma_accuracy",),
    n_classes=128,
    classes=tuple(map(str, range(128))),
    lister=partial(nsynth.list_notes, "pitch"),
)
