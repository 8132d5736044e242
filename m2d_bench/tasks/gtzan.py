"""GTZAN: ten music genres, the fault-filtered split (Tzanetakis and Cook 2002; Kereliuk, Sturm and Larsen 2015)."""

from pathlib import Path

from m2d_bench.tasks import index
from m2d_bench.tasks.task import Entry, Layout, Part, Task

_SPLITS = "https://raw.githubusercontent.com/jongpillee/music_dataset_split/master/GTZAN_split"
_LISTS = {split: f"{split}_filtered.txt" for split in ("train", "valid", "test")}


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """The files of the lists, which name WAV files where the authors publish .au files."""
    suffix = ".au" if (root / "blues/blues.00000.au").is_file() else ".wav"
    return root, [
        index.entry(file.removesuffix(".wav") + suffix, [file.split("/")[0]], split)
        for split, name in _LISTS.items()
        for (file,) in index.read_words(root / name, 1)
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
            folders=(
                "genres",
                "genres_original",
                "Data/genres_original",
                "GTZAN/genres",
                "GTZAN/genres_original",
                "GTZAN",
            ),
            index=_LISTS["test"],
        ),
    ),
    lister=list_clips,
    source="http://marsyas.info/downloads/datasets.html",
    parts=(
        Part(
            holds=("blues",),
            files={
                "https://huggingface.co/datasets/marsyas/gtzan/resolve/main/data/genres.tar.gz": (
                    "md5:5b3d6dddb579ab49814ab86dba69e7c7"
                )
            },
        ),
        *(Part(holds=(name,), files={f"{_SPLITS}/{name}": ""}) for name in _LISTS.values()),
    ),
)
