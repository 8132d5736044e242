"""Speech Commands V1: spoken words, 30 classes, the official lists (Warden 2017)."""

from dataclasses import replace

from m2d_bench.tasks import spcv2

TASK = replace(
    spcv2.TASK,
    name="spcv1",
    n_classes=30,
    n_clips=64721,
    split_clips={"train": 51088, "valid": 6798, "test": 6835},
    layouts=spcv2.layouts(1),
    source="http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
)
