"""M2D-X: M2D beside an offline task, on one masked forward pass: M2D-AS, M2D-S and further pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from m2d_bench.encoders.vit import ViTConfig
from m2d_bench.errors import UsageError
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.masking import Mask
from m2d_bench.pretrain.method import StepResult, standardised
from m2d_bench.pretrain.methods import m2d
from m2d_bench.pretrain.predictor import take

FAMILIES = {"supervised": "m2d_as", "distillation": "m2d_s", "regularisation": "m2d_x"}
"""Prefix of the names of checkpoints by scenario, as released."""


@dataclass(frozen=True, kw_only=True)
class Arguments(m2d.Arguments):
    """Arguments of M2D-X: those of M2D, and of the offline task.

    Args:
        scenario: What the offline task is. `supervised`: the clips' labels (M2D-AS). `distillation`: frame features of
            a frozen teacher (M2D-S). `regularisation`: frame features of the starting weights, frozen (further
            pre-training).
        m2d_weight: λ_m2d, weight of the loss of M2D; 0 leaves it out.
        offline_weight: λ_off, weight of the offline loss; 0 leaves it out.
        offline_size: Numbers the offline task predicts for a frame: classes, or the width of the teacher's features. A
            run takes it from labels or teacher.
        teacher: Name of the teacher of a distillation; of a regularisation the starting weights, if none are named.
        teacher_layer: Layer of it; the last if None.

    Source: M2D-X (2024), section III-B.
    """

    scenario: Literal["supervised", "distillation", "regularisation"] = "distillation"
    m2d_weight: NonNegativeFloat = 1.0
    offline_weight: NonNegativeFloat = 1.0
    offline_size: NonNegativeInt = 0
    teacher: str | None = None
    teacher_layer: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.m2d_weight + self.offline_weight:
            raise UsageError("m2d_weight and offline_weight are both 0: nothing is left to train. Set one above 0.")
        unused = {"supervised": ("teacher", "teacher_layer"), "regularisation": ("teacher_layer",)}
        for name in unused.get(self.scenario, ()):
            if (value := getattr(self, name)) is not None:
                raise UsageError(
                    f"{name}={value} has no use in scenario={self.scenario}. Leave it out, or set it to null; a "
                    "distillation takes a teacher and a layer."
                )


class Method(m2d.Method):
    """M2D with `offline_predictor`, a linear layer from the online outputs of a patch column to the offline target."""

    arguments: Arguments

    def __init__(self, vit: ViTConfig, arguments: Arguments) -> None:
        super().__init__(vit, arguments)
        self.family = FAMILIES[arguments.scenario]
        if arguments.offline_weight:
            self.offline_predictor = nn.Linear(vit.grid_size[0] * vit.width, arguments.offline_size)

    def initialise(self, generator: torch.Generator) -> None:
        """Draws fresh weights, those of `offline_predictor` Xavier uniform."""
        super().initialise(generator)
        if self.arguments.offline_weight:
            nn.init.xavier_uniform_(self.offline_predictor.weight, generator=generator)
            nn.init.zeros_(self.offline_predictor.bias)

    def forward(self, batch: Batch, mask: Mask) -> StepResult:
        arguments = self.arguments
        tokens = self.encoder.embed(batch.log_mel)
        encoded = self.encode(take(tokens, mask.visible))
        prediction = self.predict(encoded, mask)
        weighted, losses, target = [], {}, None
        if arguments.m2d_weight or not self.training:  # held-out clips show it either way
            target = standardised(self.target(tokens.detach(), mask))
            losses["loss_m2d"] = m2d.target_loss(prediction.float(), target)
            weighted.append(arguments.m2d_weight * losses["loss_m2d"])
        if arguments.offline_weight:
            outputs = self.offline_predictor(self.columns(torch.cat([encoded[:, 1:], prediction], dim=1), mask))
            losses["loss_offline"] = self.offline_loss(outputs.float(), batch)
            weighted.append(arguments.offline_weight * losses["loss_offline"])
        losses = {"loss": torch.stack(weighted).sum(), **losses}
        return StepResult(losses, prediction.detach().float(), target, mask)

    def columns(self, outputs: Tensor, mask: Mask) -> Tensor:
        """Puts outputs in the mask's order back in place and joins those of a patch column.

        Args:
            outputs: Encoded visible patches, then predictions of the masked ones, [B, L, D].
            mask: The mask.

        Returns:
            [B, N_T, N_F·D].
        """
        n_freq, n_time = self.encoder.config.grid_size
        order = torch.cat([mask.visible, mask.masked], dim=1).argsort(dim=1)
        grid = take(outputs, order).unflatten(1, (n_freq, n_time))
        joined: Tensor = grid.transpose(1, 2).flatten(2)
        return joined

    def offline_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Loss of the offline task.

        Args:
            outputs: Of `offline_predictor`, [B, N_T, offline_size].
            batch: Holds the labels, or the teacher's features.

        Returns:
            Scalar: binary cross-entropy of the logits' mean over time, mean over clips and classes; or the loss of M2D
            against the standardised features, mean over frames and clips.
        """
        if self.arguments.scenario == "supervised":
            assert batch.labels is not None
            return binary_cross_entropy_with_logits(outputs.mean(1), batch.labels)
        assert batch.teacher_features is not None
        return m2d.target_loss(outputs, standardised(batch.teacher_features))

    def example_batch(self) -> Batch:
        """A batch of one sample with labels and features."""
        size, columns = self.arguments.offline_size, self.encoder.config.grid_size[1]
        return (
            super()
            .example_batch()
            ._replace(labels=torch.zeros(1, size), teacher_features=torch.zeros(1, columns, size))
        )
