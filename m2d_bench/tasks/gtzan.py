"""GTZAN: ten music genres, the fault-filtered split (Tzanetakis and Cook 2002; Kereliuk, Sturm and Larsen 2015)."""

from pathlib import Path

from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Task

_SPLIT_SOURCE = "https://github.com/jongpillee/music_dataset_split/tree/master/GTZAN_split"


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """The files of the lists, which name WAV files where the authors publish .au files."""
    suffix = ".au" if (root / "blues/blues.00000.au").is_file() else ".wav"
    return root, [
        index.entry(file.removesuffix(".wav") + suffix, [file.split("/")[0]], split)
        for split in ("train", "valid", "test")
        for (file,) in index.read_words(root / f"{split}_filtered.txt", 1, _SPLIT_SOURCE)
    ]


TASK = Task(
    name="gtzan",
    domain="music",
    metric="accuracy",
    clip_seconds=30.0,
    n_classes=10,
    n_clips=930,
    split_clips={"train": 443, "valid": 197, "test": 290},
    layouts=(
        Layout(
            folders=("genres", "genres_original", "Data/genres_original", "GTZAN/genres", "GTZAN", "gtzan"),
            index="test_filtered.txt",
            index_source=_SPLIT_SOURCE,
        ),
    ),
    lister=list_clips,
    source="http://marsyas.info/downloads/datasets.html",
)
