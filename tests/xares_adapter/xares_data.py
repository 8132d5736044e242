"""Miniatures of X-ARES' data: WebDataset archives as published at Zenodo, of short tones."""

import io

import numpy as np
import soundfile
import webdataset

RATE = 16000


def write_task(folder, key, classes, splits):
    """A task's folder in X-ARES' `env/`, marked as downloaded.

    Args:
        folder: The task's folder.
        key: Name of the label in the clips' JSON.
        classes: Labels; each is a tone.
        splits: Name of each archive, and its number of clips.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, clips in splits.items():
        with webdataset.TarWriter(str(folder / f"{name}.tar")) as archive:
            for i in range(clips):
                tone = 0.3 * np.sin(2 * np.pi * 200 * 2 ** (i % len(classes)) * np.arange(RATE // 2) / RATE)
                file = io.BytesIO()
                soundfile.write(file, tone + 0.1 * rng.standard_normal(len(tone)), RATE, format="WAV")
                label = {key: classes[i % len(classes)]}
                archive.write({"__key__": f"{name}_{i}", "wav": file.getvalue(), "json": label})
    (folder / ".audio_tar_ready").touch()


def write_env(root):
    """`env/` with a task that trains a head, and one that has a kNN score as well."""
    splits = {"fsd18_train_0": 12, "fsd18_test_0": 8}
    write_task(root / "env" / "fsdkaggle2018", "sound", ["Cello", "Knock"], splits)
    splits = {"train_0": 16, "valid_0": 8, "test_0": 8}
    write_task(root / "env" / "vocalsound", "label", ["sigh", "cough", "sneeze"], splits)
    return root
