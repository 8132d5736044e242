"""An encoder with a head on top: what fine-tuning trains, and what tells the classes of sound files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from m2d_bench import audio
from m2d_bench.checkpoint import Checkpoint, Labels
from m2d_bench.embeddings import map_ahead
from m2d_bench.encoder import M2DEncoder
from m2d_bench.errors import AudioError, CheckpointError, UsageError
from m2d_bench.progress import track
from m2d_bench.settings import Compute

logger = logging.getLogger(__name__)

_AUDIOSET = 527
"""Classes of AudioSet, whose clips have several labels."""


class Head(nn.Module):
    """Batch normalisation without scale and shift, then a linear layer: features [B, D] → logits [B, C].

    Source: M2D-X (2024), fine-tuning details.
    """

    def __init__(self, features: int, n_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.linear = nn.Linear(features, n_classes)

    def initialise(self, generator: Generator) -> Head:
        """Draws the weights, N(0, 0.01), on the CPU; biases are 0."""
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)
        return self

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))

    def state(self) -> dict[str, Tensor]:
        """Its tensors under the names of `Checkpoint.head`."""
        found = {"running_mean": self.norm.running_mean, "running_var": self.norm.running_var}
        return {**found, **dict(self.linear.named_parameters())}  # type: ignore[dict-item]

    def load(self, state: dict[str, Tensor]) -> Head:
        """Takes the tensors of a `Checkpoint.head`."""
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(state[name])
        return self


class Classifier(nn.Module):
    """An encoder with a head.

    Args:
        encoder: What the features are of.
        head: Made for them.
        labels: What the head's outputs stand for.
    """

    def __init__(self, encoder: M2DEncoder, head: Head, labels: Labels) -> None:
        super().__init__()
        self.encoder, self.head, self.labels = encoder, head, labels

    def logits(self, waveform: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """[B, S] waveforms, see `M2DEncoder.scene_embeddings` → [B, C] float32."""
        return self.head(self.encoder.scene_embeddings(waveform, lengths))

    def probabilities(self, waveform: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """[B, S] waveforms → [B, C]: of each class alone if a clip may have several, else they sum to 1."""
        logits = self.logits(waveform, lengths)
        return logits.sigmoid() if self.labels.multilabel else logits.softmax(1)


def build(found: Checkpoint, labels: Labels | None = None) -> Classifier:
    """The classifier of a checkpoint with a head, frozen and in evaluation mode.

    Args:
        found: What was read.
        labels: What the head's outputs stand for, instead of what the checkpoint says.

    Raises:
        CheckpointError: It has no head, or one for another number of features or classes.
    """
    name = found.config.name
    if not found.head:
        raise CheckpointError(
            f"{name} has no head, so it tells no classes. Fine-tune it (m2d-bench finetune), or name a fine-tuned model."
        )
    encoder = found.build()
    n_classes, features = found.head["weight"].shape
    if features != encoder.scene_embedding_size:
        raise CheckpointError(
            f"{name}: its head takes {features} features, the encoder gives {encoder.scene_embedding_size} "
            f"({found.config.features})."
        )
    labels = labels or found.labels or _unnamed(name, n_classes)
    if len(labels.classes) != n_classes:
        raise CheckpointError(
            f"{name}: its head has {n_classes} outputs, {len(labels.classes)} class names were given."
        )
    head = Head(features, n_classes).load(found.head)
    return Classifier(encoder, head, labels).eval().requires_grad_(False)


def _unnamed(name: str, n_classes: int) -> Labels:
    """Numbers for names; as many classes as AudioSet has are taken for its own."""
    multilabel = n_classes == _AUDIOSET
    logger.warning(
        "%s does not name its %d classes, so they are numbers; --classes FILE names them. Probabilities are of %s.",
        *(name, n_classes, "each class alone, as AudioSet has so many" if multilabel else "one class in all"),
    )
    return Labels(classes=tuple(map(str, range(n_classes))), multilabel=multilabel, clip_seconds=0.0)


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of a head's outputs from a CSV file.

    Args:
        path: AudioSet's class_labels_indices.csv (columns index, mid, display_name), whose order is that of the mid, as
            in EVAR, where labels are sorted; or one with a column name, label or class, in the order of its column
            index or else of its lines; or one name a line without a header.

    Raises:
        UsageError: No such file, or no names in it.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no CSV file of class names: {error}") from error
    if "mid" in table.columns and "display_name" in table.columns:
        return tuple(table.sort_values("mid")["display_name"])
    for column in ("name", "label", "class", "display_name"):
        if column in table.columns:
            if "index" in table.columns:
                table = table.sort_values("index", key=pd.to_numeric)
            return tuple(table[column])
    if len(table.columns) == 1:
        return (str(table.columns[0]), *table.iloc[:, 0])
    raise UsageError(
        f"{path}: columns {', '.join(map(str, table.columns))}; class names stand in a column name, label, class or "
        "display_name, or alone, one a line."
    )


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
) -> Iterator[Prediction | AudioError]:
    """The most probable classes of sound files of any length and rate, in the order given.

    A file shorter than the clips the head was trained on is zero-padded to that, as they were; of a longer one the whole
    is encoded, window by window.

    Args:
        classifier: On its device.
        files: Sound files.
        compute: Decoding threads and batch size.
        top: Classes a file.

    Yields:
        A prediction, or what is wrong with the file.
    """
    rate = classifier.encoder.sample_rate
    least = round(classifier.labels.clip_seconds * rate)

    def read(file: Path) -> Tensor | AudioError:
        try:
            waveform = torch.from_numpy(audio.read(file, rate))
            return nn.functional.pad(waveform, (0, max(0, least - len(waveform))))
        except AudioError as error:
            return error

    waveforms = map_ahead(read, files, compute.jobs, 2 * compute.batch_size)
    for file, waveform in track(zip(files, waveforms, strict=True), "Predicting", len(files), "files"):
        if isinstance(waveform, AudioError):
            yield waveform
            continue
        with torch.inference_mode():
            found = classifier.probabilities(waveform[None])[0].cpu()
        most = found.topk(min(top, len(found)))
        names = tuple(classifier.labels.classes[place] for place in most.indices.tolist())
        yield Prediction(file=str(file), classes=names, probabilities=tuple(most.values.tolist()))


def relabelled(labels: Labels | None, classes: tuple[str, ...] | None, multilabel: bool | None) -> Labels | None:
    """Labels with what a user says instead; None where nothing is known and nothing said."""
    if classes is None and multilabel is None:
        return labels
    if labels is None:
        if classes is None:
            raise UsageError("The model does not name its classes, so name them with --classes FILE.")
        several = multilabel if multilabel is not None else len(classes) == _AUDIOSET
        return Labels(classes=classes, multilabel=several, clip_seconds=0.0)
    return replace(
        labels,
        classes=labels.classes if classes is None else classes,
        multilabel=labels.multilabel if multilabel is None else multilabel,
    )
