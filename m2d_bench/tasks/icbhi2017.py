"""ICBHI 2017: respiratory cycles, four classes, the official split of recordings (Rocha et al. 2019).

Cycles are faded, repeated to eight seconds and scored as in M2D-X (2024), section IV-E.
"""

from pathlib import Path

from m2d_bench.tasks import folders, index
from m2d_bench.tasks.task import Entry, Layout, Part, Task

_CLASSES = ("normal", "crackle", "wheeze", "both")
_SPLIT = "ICBHI_challenge_train_test.txt"
_FILES = "https://bhichallenge.med.auth.gr/sites/default/files/ICBHI_final_database"


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """The cycles of the recordings, which go by their names up to the device: the list has one device amiss."""
    recordings = {sound.rpartition("_")[0]: sound for sound in folders.find_sounds(root)[0]}
    clips = []
    for name, split in index.read_words(root / _SPLIT, 2):
        sound = recordings.get(name.rpartition("_")[0], f"{name}.wav")
        cycles = root / f"{sound.removesuffix('.wav')}.txt"
        for onset, offset, crackles, wheezes in index.read_words(cycles, 4):
            start, end = index.span(cycles, sound, (onset, offset))
            label = _CLASSES[(crackles == "1") + 2 * (wheezes == "1")]
            clips.append(index.entry(sound, [label], split)._replace(start=start, end=end))
    return root, clips


TASK = Task(
    name="icbhi2017",
    domain="other",
    metric="icbhi_score",
    other_metrics=("sensitivity", "specificity"),
    clip_seconds=8.0,
    fade_seconds=1 / 16,
    n_classes=4,
    n_clips=6898,
    split_clips={"train": 4142, "test": 2756},
    classes=_CLASSES,
    layouts=(
        Layout(
            folders=(
                "ICBHI_final_database",
                "ICBHI_final_database/audio_and_txt_files",
                "Respiratory_Sound_Database/audio_and_txt_files",
                "ICBHI",
                "icbhi2017",
            ),
            index=_SPLIT,
        ),
    ),
    lister=list_clips,
    source="https://bhichallenge.med.auth.gr/ICBHI_2017_Challenge",
    parts=(
        Part(holds=("101_*",), files={f"{_FILES}/ICBHI_final_database.zip": ""}, what="the recordings"),
        Part(holds=(_SPLIT,), files={f"{_FILES}/{_SPLIT}": ""}),
    ),
)
