"""SPRSound: children's respiratory events, seven classes, the inter-patient test of BioCAS 2022 (Zhang et al. 2022).

Events are faded, repeated to eight seconds and scored as those of `icbhi2017`.
"""

import re
from pathlib import Path

from m2d_bench.errors import DataError
from m2d_bench.tasks import folders, index
from m2d_bench.tasks.task import Entry, Layout, Part, Task

_SOURCE = "https://github.com/SJTU-YONGFU-RESEARCH-GRP/SPRSound"
_ANNOTATIONS = {
    "train": r"(.*/)?train(2022|_classification)?_json/[^/]*\.json",
    "test": r".*inter_test_json/[^/]*\.json",
}
_KNOWN = tuple(
    f"{folder}/inter_test_json/40890405_3.3_0_p3_3655.json"
    for folder in (
        "releases/BioCAS2022/test2022_json",
        "BioCAS2022/test2022_json",
        "Classification/valid_classification_json/2022",
        "test_json",
    )
)
"""An annotation in the repository's layouts, from the newest to the oldest; some hold another one's files too."""


def list_clips(root: Path, _: int) -> tuple[Path, list[Entry]]:
    """The events of the annotations, whose recordings lie in other folders under the same names."""
    sounds, others = folders.find_sounds(root)
    recordings = {Path(sound).stem: sound for sound in sounds}
    return root, [
        clip
        for split, pattern in _ANNOTATIONS.items()
        for stem, file in {Path(file).stem: file for file in others if re.fullmatch(pattern, file)}.items()
        for clip in _events(root / file, recordings.get(stem, f"{stem}.wav"), split)
    ]


def _events(path: Path, sound: str, split: str) -> list[Entry]:
    """The events of an annotation, which tells milliseconds."""
    try:
        return [
            index.entry(sound, [event["type"]], split)._replace(
                start=float(event["start"]) / 1000, end=float(event["end"]) / 1000
            )
            for event in index.read_json(path)["event_annotation"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not an annotation with type, start and end of events: {error!r}.") from error


TASK = Task(
    name="sprsound",
    domain="other",
    metric="icbhi_score",
    other_metrics=("sensitivity", "specificity"),
    clip_seconds=8.0,
    fade_seconds=1 / 16,
    n_classes=7,
    n_clips=8085,
    split_clips={"train": 6656, "test": 1429},
    classes=("Normal", "Rhonchi", "Wheeze", "Stridor", "Coarse Crackle", "Fine Crackle", "Wheeze+Crackle"),
    layouts=tuple(Layout(folders=("SPRSound", "SPRSound-main", "SPRS"), index=known) for known in _KNOWN),
    lister=list_clips,
    source=_SOURCE,
    parts=(
        Part(holds=_KNOWN, files={f"{_SOURCE}/archive/45b0d5d435ff320c46585762fa1090afd0ebb318.zip": ""}),
    ),  # as in 2022, the commit that EVAR evaluates
)
