"""VocalSound: laughter, sighs, coughs, throat clearing, sneezes and sniffs, the official split (Gong et al. 2022)."""

from pathlib import Path

from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Part, Task

_AUDIO = ("audio_16k", "audio_44k", "data_44k")
_SPLITS = {"train": "tr", "valid": "val", "test": "te"}


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """The recordings of the lists by the kind of sound in their names: SPEAKER_0_cough.wav."""
    audio = next((name for name in _AUDIO if (root / name).is_dir()), _AUDIO[0])
    names = [
        (clip["wav"].rpartition("/")[2], split)
        for split, part in _SPLITS.items()
        for clip in index.read_json(root / f"datafiles/{part}.json")["data"]
    ]
    return root, [index.entry(f"{audio}/{name}", [Path(name).stem.split("_")[-1]], split) for name, split in names]


TASK = Task(
    name="vocalsound",
    domain="speech",
    metric="accuracy",
    clip_seconds=5.12,  # what the authors' baseline cuts and pads to
    n_classes=6,
    n_clips=21024,
    split_clips={"train": 15570, "valid": 1860, "test": 3594},
    layouts=(
        Layout(
            folders=("vs_release_16k", "vs_release_44k", "VocalSound_16k", "VocalSound"),
            index="datafiles/te.json",
        ),
    ),
    lister=list_clips,
    source="https://github.com/YuanGongND/vocalsound",
    parts=(
        Part(
            holds=("datafiles/te.json",),
            files={"https://www.dropbox.com/s/c5ace70qh1vbyzb/vs_release_16k.zip?dl=1": ""},
        ),
    ),
    licence="CC BY-SA 4.0",
)
