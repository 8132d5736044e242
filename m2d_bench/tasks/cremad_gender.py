"""CREMA-D: the speakers' sex, speakers split as for their emotions (Cao et al. 2014)."""

from dataclasses import replace
from pathlib import Path

from m2d_bench.tasks import cremad, index
from m2d_bench.tasks.task import Entry, Layout, Part

DEMOGRAPHICS = "VideoDemographics.csv"


def list_clips(root: Path, sample_rate: int) -> tuple[Path, list[Entry]]:
    """The recordings of `cremad`, by the sex of their speakers."""
    table = index.read_columns(root / DEMOGRAPHICS, ["ActorID", "Sex"])
    sexes = dict(zip(table["ActorID"], table["Sex"], strict=True))
    folder, clips = cremad.list_clips(root, sample_rate)
    return folder, [index.entry(clip.file, [sexes.get(clip.file[:4], "")], clip.split) for clip in clips]


TASK = replace(
    cremad.TASK,
    name="cremad_gender",
    n_classes=2,
    layouts=(Layout(folders=cremad.FOLDERS, index=DEMOGRAPHICS),),
    parts=(
        *cremad.TASK.parts,
        Part(
            holds=(DEMOGRAPHICS,),
            files={f"https://raw.githubusercontent.com/CheyneyComputerScience/CREMA-D/master/{DEMOGRAPHICS}": ""},
        ),
    ),
    lister=list_clips,
)
