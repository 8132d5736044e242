"""CREMA-D: acted emotions, six classes, speakers split as in M2D's papers (Cao et al. 2014).

Source: https://github.com/nttcslab/eval-audio-repr (evar/metadata/cremad.csv): the speakers that choose and test, and
the four clips that are left out.
"""

import re
from pathlib import Path

from m2d_bench.tasks import folders, index
from m2d_bench.tasks.task import Entry, Layout, Part, Task

_VALID = (1009, 1011, 1022, 1034, 1039, 1047, 1066, 1070, 1082)
_TEST = (
    *(1001, 1004, 1017, 1019, 1020, 1025, 1026, 1029, 1033, 1035),
    *(1042, 1044, 1050, 1053, 1056, 1058, 1060, 1069, 1083),
)
_SPLITS = {**dict.fromkeys(_VALID, "valid"), **dict.fromkeys(_TEST, "test")}
"""Speakers' splits; the others train."""

_LEFT_OUT = {"1006_TIE_NEU_XX.wav", "1013_WSI_DIS_XX.wav", "1017_IWW_FEA_XX.wav", "1040_ITH_SAD_XX.wav"}
"""Three recordings that are there under another emotion too, and one that was named amiss until 2022: …_X.wav."""


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """Recordings by the speaker and the emotion in their names."""
    folder = root / "AudioWAV" if (root / "AudioWAV").is_dir() else root
    clips = [
        (sound, words.groups())
        for sound in folders.find_sounds(folder)[0]
        if sound not in _LEFT_OUT and (words := re.fullmatch(r"(\d{4})_[A-Z]{3}_([A-Z]{3})_[A-Z]{2}\.wav", sound))
    ]
    return folder, [
        index.entry(sound, [emotion], _SPLITS.get(int(speaker), "train")) for sound, (speaker, emotion) in clips
    ]


FOLDERS = ("CREMA-D", "CREMA-D-master")

TASK = Task(
    name="cremad",
    domain="speech",
    metric="accuracy",
    clip_seconds=2.5,
    n_classes=6,
    n_clips=7438,
    split_clips={"train": 5155, "valid": 732, "test": 1551},
    layouts=(
        Layout(folders=FOLDERS, index="AudioWAV/1001_DFA_ANG_XX.wav"),
        Layout(folders=FOLDERS, index="1001_DFA_ANG_XX.wav"),
    ),
    lister=list_clips,
    source="https://github.com/CheyneyComputerScience/CREMA-D",
    parts=(
        Part(
            holds=("AudioWAV", "1001_DFA_ANG_XX.wav"),
            manual="https://github.com/CheyneyComputerScience/CREMA-D (git clone, with Git LFS)",
        ),
    ),
)
