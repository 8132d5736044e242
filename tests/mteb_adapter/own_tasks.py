"""Tasks in mteb's format over a data set in the Hub's: parquet files with a column of sound files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile

TASKS = """
from datasets import load_dataset
from mteb import TaskMetadata
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskPairClassification, AbsTaskRetrieval


def metadata(name, kind, main_score, splits=("test",), modalities=("audio",)):
    return TaskMetadata(
        name=name,
        description=name,
        type=kind,
        modalities=list(modalities),
        category="a2a",
        eval_splits=list(splits),
        eval_langs=["zxx-Zxxx"],
        main_score=main_score,
        dataset={"path": FOLDER, "revision": "1"},
    )


class Tones(AbsTaskClassification):
    metadata = metadata("Tones", "AudioClassification", "accuracy")
    input_column_name = "audio"
    samples_per_label = 2
    n_experiments = 3


class Folds(Tones):
    metadata = metadata("Folds", "AudioClassification", "accuracy", splits=("train",))
    is_cross_validation = True
    n_splits = 3


class Clusters(AbsTaskClustering):
    metadata = metadata("Clusters", "AudioClustering", "v_measure", splits=("train", "test"))
    input_column_name = "audio"
    label_column_name = "label"
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 8
    n_clusters = 3


class Pairs(AbsTaskPairClassification):
    metadata = metadata("Pairs", "AudioPairClassification", "max_ap")
    input1_column_name = "audio"
    input2_column_name = "audio2"
    label_column_name = "same"


class Search(AbsTaskRetrieval):
    metadata = metadata("Search", "Any2AnyRetrieval", "ndcg_at_10")

    def load_data(self, **kwargs):
        queries, corpus = (
            split.add_column("id", [str(row) for row in range(len(split))])
            for split in load_dataset(FOLDER, split=["test", "train"])
        )
        relevant = {
            query: {clip: 1 for clip, label in zip(corpus["id"], corpus["label"]) if label == wanted}
            for query, wanted in zip(queries["id"], queries["label"])
        }
        columns = ["id", "audio"]
        split = {"corpus": corpus.select_columns(columns), "queries": queries.select_columns(columns)}
        self.dataset = {"default": {"test": {**split, "relevant_docs": relevant, "top_ranked": None}}}
        self.data_loaded = True


class Captions(Tones):
    metadata = metadata("Captions", "AudioClassification", "accuracy", modalities=("audio", "text"))
"""


def sound(wave: np.ndarray, rate: int, kind: str = "wav") -> dict[str, object]:
    """A row's sound as the Hub's parquet files hold it."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind)
    return {"bytes": file.getvalue(), "path": f"clip.{kind}"}


def tone(label: int, seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A tone of its own for every label, in noise."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.1 * np.sin(2 * np.pi * 300 * 1.7**label * time) + 0.1 * rng.standard_normal(len(time))


def write(folder: Path, broken: bool = False) -> Path:
    """The data set and tasks.py, whose classes read it; the file. Clips differ in length, rate and format."""
    from datasets import Audio, Dataset

    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 9)):
        labels = [row % 3 for row in range(count)]
        sounds = [
            sound(tone(label, 0.2 + 0.02 * (row % 4), (8000, 16000)[row % 2], rng), (8000, 16000)[row % 2], "flac")
            for row, label in enumerate(labels)
        ]
        if broken:
            sounds[4]["bytes"] = sounds[4]["bytes"][:200]  # type: ignore[index]
        columns = {
            "audio": sounds,
            "audio2": sounds[1:] + sounds[:1],
            "label": labels,
            "same": [row % 2 for row in range(count)],
        }
        dataset = Dataset.from_dict(columns).cast_column("audio", Audio()).cast_column("audio2", Audio())
        (folder / "data").mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    file = folder / "tasks.py"
    file.write_text(TASKS.replace("FOLDER", repr(str(folder))))
    return file
