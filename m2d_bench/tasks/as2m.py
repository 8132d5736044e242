"""AudioSet 2M: 527 sound events of YouTube clips, all training and the evaluation segments (Gemmeke et al. 2017)."""

from dataclasses import replace
from functools import partial

from m2d_bench.tasks import as20k

_TRAIN = ("balanced_train_segments", "unbalanced_train_segments")

TASK = replace(
    as20k.TASK,
    name="as2m",
    n_clips=2025310,
    split_clips={"train": 2005132, "test": 20178},
    lister=partial(as20k.list_clips, _TRAIN),
    parts=as20k.parts(*_TRAIN),
)
