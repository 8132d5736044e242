"""VoxCeleb1: speaker identification, 1251 speakers, the official list (Nagrani et al. 2017)."""

from pathlib import Path

from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Part, Task

_PARTS = ("wav", "vox1_dev_wav/wav", "vox1_test_wav/wav", "dev/wav", "test/wav")
_SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html"
_SPLITS = {"1": "train", "2": "valid", "3": "test"}


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """The lines of the list; speakers of its archives for development and test lie together or apart."""
    parts = {path.name: part for part in reversed(_PARTS) for path in (root / part).glob("id*")}
    lines = index.read_words(root / "iden_split.txt", 2)
    clips = [(number, file, file.split("/")[0]) for number, file in lines]
    return root, [
        index.entry(f"{parts.get(speaker, 'wav')}/{file}", [speaker], _SPLITS.get(number, number))
        for number, file, speaker in clips
    ]


TASK = Task(
    name="vc1",
    domain="speech",
    metric="accuracy",
    clip_seconds=8.2,
    n_classes=1251,
    n_clips=153516,
    split_clips={"train": 138361, "valid": 6904, "test": 8251},
    layouts=(
        Layout(
            folders=("VoxCeleb1", "VoxCeleb1 Dataset", "VoxCeleb", "vox1", "vc1"),
            index="iden_split.txt",
        ),
    ),
    lister=list_clips,
    source=_SOURCE,
    parts=(
        Part(
            holds=("iden_split.txt",),
            files={
                "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt": (
                    "sha256:3c1d792d4058861cd476a27cc942c824f7e9df812864115a7c2b12df97edfbbf"
                )
            },
        ),
        Part(holds=_PARTS, manual=f"{_SOURCE}, whose form asks who you are,", what="the recordings"),
    ),
)
