"""Speech Commands V2: spoken words, 35 classes, the official lists (Warden 2018)."""

from pathlib import Path

from m2d_bench.tasks import folders, index
from m2d_bench.tasks.task import Entry, Layout, Task

_LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """Recordings in the folders of their words; those of neither list train."""
    splits = {file: split for split, name in _LISTS.items() for (file,) in index.read_words(root / name, 1)}
    words = [sound for sound in folders.find_sounds(root)[0] if not sound.startswith("_background_noise_/")]
    files = sorted({*words, *splits})
    return root, [index.entry(file, [file.split("/")[0]], splits.get(file, "train")) for file in files]


def layouts(version: int) -> tuple[Layout]:
    """Where a version of Speech Commands may lie."""
    name = f"speech_commands_v0.0{version}"
    names = (name, f"SpeechCommands/{name}", f"speech_commands_v{version}", "speech_commands", f"spcv{version}")
    return (Layout(folders=names, index=_LISTS["test"]),)


TASK = Task(
    name="spcv2",
    domain="speech",
    metric="accuracy",
    clip_seconds=1.0,
    n_classes=35,
    n_clips=105829,
    split_clips={"train": 84843, "valid": 9981, "test": 11005},
    layouts=layouts(2),
    lister=list_clips,
    source="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
)
