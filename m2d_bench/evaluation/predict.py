"""Sound files → their most probable classes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from tabulate import tabulate

from m2d_bench.encoders.classifier import Classifier
from m2d_bench.errors import UsageError
from m2d_bench.evaluation.embeddings import embed_files
from m2d_bench.output import csv_text
from m2d_bench.registry import unknown
from m2d_bench.settings import Compute

FORMATS = ("text", "csv", "jsonl")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a classifier says of a file.

    Args:
        file: The file.
        classes: The most probable classes, the first the most.
        probabilities: Theirs.
    """

    file: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict_files(
    classifier: Classifier, files: Sequence[Path], compute: Compute, top: int = 5
) -> tuple[list[Prediction], list[str]]:
    """The most probable classes of sound files of any length and rate.

    A file shorter than the clips the head was trained on is zero-padded to that, as they were; of a longer one the
    whole is encoded, window by window, and the features are averaged.

    Args:
        classifier: On its device.
        files: Sound files.
        compute: Batch size and decoding threads.
        top: Classes a file.

    Returns:
        A prediction for each file that could be read, in the order given; and a message for each other.
    """
    if top < 1:
        raise UsageError(f"top is {top}; it must be at least 1.")
    labels = classifier.labels
    done, features, failures = embed_files(classifier.encoder, files, compute, least_seconds=labels.clip_seconds)
    if not done:
        return [], failures
    with torch.inference_mode():
        found = classifier.probabilities(torch.from_numpy(features).float().to(classifier.encoder.device)).cpu()
    finite = found.isfinite().all(1)
    failures += [
        f"{file}: its class probabilities are NaN or infinite; the weights of the head are damaged."
        for file, whole in zip(done, finite.tolist(), strict=True)
        if not whole
    ]
    done = [file for file, whole in zip(done, finite.tolist(), strict=True) if whole]
    best = found[finite].topk(min(top, len(labels.classes)))
    predictions = [
        Prediction(
            file=str(file),
            classes=tuple(labels.classes[place] for place in places),
            probabilities=tuple(round(value, 6) for value in values),
        )
        for file, places, values in zip(done, best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return predictions, failures


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of a head's outputs from a CSV file.

    AudioSet's class_labels_indices.csv (columns index, mid, display_name) is taken in the order of its mid: EVAR, whose
    fine-tuned weights the released ones are, sorts its labels. Of another file it is a column name, label, class or
    display_name, in the order of a column index, else of the lines; or, without a header, one name a line.

    Raises:
        UsageError: No such file, or no names in it.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no CSV file of class names: {error}") from error
    if {"mid", "display_name"} <= set(table.columns):
        return tuple(table.sort_values("mid")["display_name"])
    for column in ("name", "label", "class", "display_name"):
        if column in table.columns:
            if "index" in table.columns:
                table = table.sort_values("index", key=lambda cells: pd.to_numeric(cells, errors="coerce"))
            return tuple(table[column])
    if len(table.columns) == 1:
        return (str(table.columns[0]), *table.iloc[:, 0])
    raise UsageError(
        f"{path}: has the columns {', '.join(map(str, table.columns))}. Class names stand in a column name, label, "
        "class or display_name, or alone, one a line."
    )


def check_format(style: str) -> None:
    """Raises a UsageError, before any work is done, unless the format is one of FORMATS."""
    if style not in FORMATS:
        raise unknown("format", style, FORMATS, f"these: {', '.join(FORMATS)}")


def render(predictions: Iterable[Prediction], style: str = "text") -> str:
    """Predictions as text or CSV, a line a file and class, or as JSON lines, a line a file."""
    if style == "jsonl":
        return "\n".join(json.dumps(asdict(each), ensure_ascii=False) for each in predictions)
    rows = [
        (each.file, rank, name, probability)
        for each in predictions
        for rank, (name, probability) in enumerate(zip(each.classes, each.probabilities, strict=True), 1)
    ]
    names = ("file", "rank", "class", "probability")
    if style == "csv":
        return csv_text(names, rows)
    cells = [("" if rank > 1 else name, label, f"{probability:.3f}") for name, rank, label, probability in rows]
    return tabulate(cells, ("file", "class", "probability"), tablefmt="simple", disable_numparse=True)
