"""UrbanSound8K: urban sounds, ten classes, ten official folds (Salamon et al. 2014)."""

from m2d_bench.tasks.task import Folds, Layout, Part, Task

TASK = Task(
    name="us8k",
    domain="environment",
    metric="accuracy",
    clip_seconds=4.0,
    n_classes=10,
    n_clips=8732,
    split_clips={str(fold): clips for fold, clips in enumerate((873, 888, 925, 990, 936, 823, 838, 806, 816, 837), 1)},
    folds=Folds(column="fold", count=10),
    layouts=(
        Layout(
            folders=("UrbanSound8K", "us8k"),
            index="metadata/UrbanSound8K.csv",
            file="audio/fold{fold}/{slice_file_name}",
        ),
    ),
    label="class",
    source="https://urbansounddataset.weebly.com/urbansound8k.html",
    parts=(
        Part(
            holds=("metadata/UrbanSound8K.csv",),
            files={
                "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz": "md5:9aa69802bbf37fb986f71ec1483a196e"
            },
        ),
    ),
    licence="CC BY-NC 3.0",
)
