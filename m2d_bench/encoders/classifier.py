"""An encoder with a head on top: what fine-tuning trains, and what tells the classes of sound files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import Generator, Tensor, nn

from m2d_bench.encoders.checkpoint import Checkpoint, Labels
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.errors import CheckpointError

logger = logging.getLogger(__name__)

_AUDIOSET = 527
"""Classes of AudioSet, whose clips have several labels."""


_HEAD = {"running_mean", "running_var", "weight", "bias"}


class Head(nn.Module):
    """Batch normalisation without scale and shift, then a linear layer: features [B, D] → logits [B, C].

    Source: M2D-X (2024), fine-tuning details.
    """

    def __init__(self, features: int, n_classes: int) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm1d(features, affine=False)
        self.linear = nn.Linear(features, n_classes)

    def initialise(self, generator: Generator) -> Head:
        """Draws the weights, N(0, 0.01), on the CPU; biases are 0."""
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)
        return self

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(features))
        return logits

    def state(self) -> dict[str, Tensor]:
        """Its tensors under the names of `Checkpoint.head`, shared with it."""
        own = {**self.norm.state_dict(), **self.linear.state_dict()}
        del own["num_batches_tracked"]
        return own

    def load(self, state: dict[str, Tensor]) -> Head:
        """Takes the tensors of a `Checkpoint.head`."""
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

    def probabilities(self, features: Tensor) -> Tensor:
        """Scene embeddings [B, D] → class probabilities [B, C]: sigmoid if multi-label, else softmax."""
        logits: Tensor = self.head(features)
        return logits.sigmoid() if self.labels.multilabel else logits.softmax(1)


def build(
    found: Checkpoint,
    classes: Sequence[str] | None = None,
    multilabel: bool | None = None,
    clip_seconds: float | None = None,
) -> Classifier:
    """The classifier of a checkpoint with a head, frozen and in evaluation mode.

    Args:
        found: What was read.
        classes: Names of the head's outputs; by default those that the checkpoint says, else numbers.
        multilabel: Whether a clip may have several; by default what the checkpoint says, else whether they are as many
            as AudioSet's.
        clip_seconds: Duration that shorter clips are zero-padded to; by default what the checkpoint says, else none.

    Raises:
        CheckpointError: It has no head, or one for another number of features or classes.
    """
    name = found.config.name
    if not found.head:
        raise CheckpointError(
            f"{name} has no head, so it tells no classes. Fine-tune it with m2d-bench finetune, or name a fine-tuned "
            "model."
        )
    missing, unknown = sorted(_HEAD - set(found.head)), sorted(set(found.head) - _HEAD)
    if missing or unknown:
        raise CheckpointError(
            f"{name}: its head is of another kind than batch normalisation and a linear layer. Missing: "
            f"{', '.join(missing) or 'nothing'}; unknown: {', '.join(unknown) or 'nothing'}. Its encoder can be used."
        )
    encoder = M2DEncoder.from_checkpoint(found)
    n_classes, width = found.head["weight"].shape
    if width != encoder.scene_embedding_size:
        raise CheckpointError(
            f"{name}: its head takes {width} features, the encoder gives {encoder.scene_embedding_size} "
            f"({found.config.features})."
        )
    labels = _labels(found, n_classes, classes, multilabel)
    if clip_seconds is not None:
        labels = replace(labels, clip_seconds=clip_seconds)
    head = Head(width, n_classes).requires_grad_(False).load(found.head)
    return Classifier(encoder, head, labels).eval()


def _labels(found: Checkpoint, n_classes: int, classes: Sequence[str] | None, multilabel: bool | None) -> Labels:
    """What the outputs stand for: as said, else as saved, else numbers."""
    saved, name = found.labels, found.config.name
    if classes is None and saved is None:
        logger.warning(
            "%s does not name its %d classes; they are numbered. --classes FILE names them.", name, n_classes
        )
    if multilabel is None and saved is None:
        kind = "of several labels a clip, as AudioSet's" if n_classes == _AUDIOSET else "of one label a clip"
        logger.warning("%s does not say so, but its %d classes are taken to be %s.", name, n_classes, kind)
    numbers = tuple(map(str, range(n_classes)))
    names = tuple(classes) if classes is not None else saved.classes if saved else numbers
    if len(names) != n_classes:
        raise CheckpointError(f"{name}: its head has {n_classes} outputs, but {len(names)} class names were given.")
    guessed = saved.multilabel if saved else n_classes == _AUDIOSET
    return Labels(
        classes=names,
        multilabel=guessed if multilabel is None else multilabel,
        clip_seconds=saved.clip_seconds if saved else 0.0,
    )
