"""AudioSet 20K: 527 sound events of YouTube clips, balanced training and evaluation segments (Gemmeke et al. 2017)."""

from functools import partial
from pathlib import Path

from m2d_bench.tasks import folders, index
from m2d_bench.tasks.task import Entry, Layout, Part, Task


def list_clips(train: tuple[str, ...], root: Path, _: int) -> tuple[Path, list[Entry]]:
    """Segments of which there is a sound file: ID.wav, YID.wav, ID_30000.wav, …, in whatever folder.

    Args:
        train: Sets of segments that train.
        root: Folder of the sound files and of the sets' CSV files, or their folder metadata.
    """
    tables = root if (root / "eval_segments.csv").is_file() else root / "metadata"
    labels: dict[str, tuple[str, ...]] = {}
    tested: dict[str, tuple[str, ...]] = {}
    for name in (*train, "eval_segments"):
        rows = index.read_rows(tables / f"{name}.csv", 4)
        tested = {segment: index.labels(mids.split(",")) for segment, _start, _end, mids in rows}
        labels |= tested
    clips: dict[str, str] = {}
    for sound in folders.find_sounds(root)[0]:
        name = sound.rpartition("/")[2]
        for segment in (name[:11], name[1:12]):
            if segment in labels:
                clips.setdefault(segment, sound)
    return root, [
        Entry(sound, labels[segment], "test" if segment in tested else "train") for segment, sound in clips.items()
    ]


_FOLDERS = ("AudioSet", "as")
_SOURCE = "https://research.google.com/audioset/download.html"
_FILES = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
_TRAIN = ("balanced_train_segments",)


def parts(*train: str) -> tuple[Part, ...]:
    """The sets of segments, and the sound files, which nobody publishes."""
    names = [f"{name}.csv" for name in ("eval_segments", *train)]
    return (
        *(Part(holds=(name, f"metadata/{name}"), files={f"{_FILES}/{name}": ""}) for name in names),
        Part(holds=("**/*.[afmow]*",), manual=f"YouTube, by the segments of {_SOURCE},", what="the sound files"),
    )


TASK = Task(
    name="as20k",
    domain="environment",
    metric="mAP",
    multilabel=True,
    clip_seconds=10.0,
    n_classes=527,
    n_clips=42118,
    split_clips={"train": 21940, "test": 20178},
    vanishing=True,
    layouts=tuple(Layout(folders=_FOLDERS, index=f"{folder}eval_segments.csv") for folder in ("", "metadata/")),
    lister=partial(list_clips, _TRAIN),
    source=_SOURCE,
    parts=parts(*_TRAIN),
)
