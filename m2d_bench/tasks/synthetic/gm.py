"""Notes of a General-MIDI SoundFont, by instrument family and by pitch; test instruments are unseen in training.

Folds are by program. Several programs of the SoundFont play the same recordings, so those lie in one fold or are left
out: no recording is heard in two folds. The families are NSynth's, as far as the SoundFont has five of a kind.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from m2d_bench.tasks.synthetic.scene import SAMPLE_RATE, Clip, Scene, record
from m2d_bench.tasks.synthetic.soundfont import SoundFont, general_midi

# Programs (0–127) of each family in each of the five folds.
FAMILIES: dict[str, tuple[tuple[int, ...], ...]] = {
    "bass": ((32,), (33, 36), (34, 37), (35,), (38,)),
    "brass": ((56,), (62, 63), (58, 60), (59,), (57, 61)),
    "flute": ((72,), (73, 78), (74,), (75, 76), (77, 79)),
    "guitar": ((24, 106), (25, 105), (26, 104), (27, 28), (29, 30)),
    "keyboard": ((0, 2), (4,), (5,), (7,), (6,)),
    "mallet": ((8, 13), (9, 12), (10, 108), (11,), (14, 114)),
    "organ": ((16,), (17, 18), (19,), (20, 21), (22,)),
    "reed": ((64, 109), (65, 68), (66, 69), (67, 70), (71, 111)),
    "string": ((40, 41), (42,), (43,), (44, 48), (50, 51)),
    "synth_lead": ((80,), (81,), (87,), (84,), (86,)),
}
# Seven neighbouring keys from the middle of each family's compass.
FAMILY_KEYS = {
    "bass": range(37, 44),
    "brass": range(55, 62),
    "flute": range(72, 79),
    "guitar": range(52, 59),
    "keyboard": range(57, 64),
    "mallet": range(73, 80),
    "organ": range(57, 64),
    "reed": range(57, 64),
    "string": range(57, 64),
    "synth_lead": range(63, 70),
}
FAMILY_CLIPS = 16
FAMILY_SCENE = Scene(seconds=1.5, snr=(15, 35), wet=(0, 0.4), channel=1, level=(0.3, 0.9))

# Programs with a clear pitch, by fold.
MELODIC = (
    (0, 24, 32, 40, 56, 60, 64, 72),
    (4, 26, 33, 42, 52, 57, 68, 73),
    (5, 10, 20, 34, 53, 58, 66, 74),
    (6, 11, 27, 35, 48, 61, 71, 79),
)
PITCH_KEYS = range(36, 60)
PITCH_SCENE = Scene(seconds=1.0, snr=(0, 20))
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def family() -> Iterator[Clip]:
    """Clips of `gm_family`: one note each, its key, velocity and length at random."""
    rng = np.random.default_rng(20_001)
    font = general_midi()
    for fold in range(5):
        for label, programs in FAMILIES.items():
            for number in range(FAMILY_CLIPS):
                program = programs[fold][number % len(programs[fold])]
                note = _note(font, program, int(rng.choice(FAMILY_KEYS[label])), (1.0, 1.4), rng)
                yield Clip(record(note, FAMILY_SCENE, rng), label, fold)


def pitch() -> Iterator[Clip]:
    """Clips of `gm_pitch`: each of the 24 keys once by each of the 32 programs."""
    rng = np.random.default_rng(20_002)
    font = general_midi()
    for fold, programs in enumerate(MELODIC):
        for key in PITCH_KEYS:
            label = f"{NAMES[key % 12]}{key // 12 - 1}"
            for program in programs:
                yield Clip(record(_note(font, program, key, (0.4, 1.0), rng), PITCH_SCENE, rng), label, fold)


def _note(font: SoundFont, program: int, key: int, held: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """One note of random velocity, held for a time within `held` in seconds and left to ring for 0.2 s; float32 [N]."""
    released = rng.uniform(*held)
    velocity = int(rng.integers(60, 111))
    return font.render(program, key, velocity, released + 0.2, SAMPLE_RATE, note_off=released)
