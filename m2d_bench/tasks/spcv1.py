"""Speech Commands V1: spoken words, 30 classes, the official lists (Warden 2017)."""

from m2d_bench.tasks.spcv2 import list_clips
from m2d_bench.tasks.task import Layout, Part, Task

TASK = Task(
    name="spcv1",
    domain="speech",
    metric="accuracy",
    clip_seconds=1.0,
    n_classes=30,
    n_clips=64721,
    split_clips={"train": 51088, "valid": 6798, "test": 6835},
    layouts=(
        Layout(
            folders=(
                "speech_commands_v0.01",
                "SpeechCommands/speech_commands_v0.01",
                "speech_commands_v1",
                "speech_commands",
                "spcv1",
            ),
            index="testing_list.txt",
        ),
    ),
    lister=list_clips,
    source="http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
    parts=(
        Part(
            holds=("testing_list.txt",),
            files={
                "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.01.tar.gz": (
                    "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"
                )
            },
        ),
    ),
    licence="CC BY 4.0",
)
