"""The fine-tuning loop: one device, several under torchrun or Slurm; killed at any moment, it resumes.

All random draws depend on seed, fold and step alone. The head sees the features of the whole batch, however many
devices and accumulated parts they come from: its batch normalisation is that of the batch, so the training is the same
up to rounding, and a resumed one is the same to the bit where the device's arithmetic is.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torch.optim.swa_utils import get_ema_multi_avg_fn

from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.classifier import Classifier
from m2d_bench.evaluation import metrics
from m2d_bench.finetuning import network
from m2d_bench.finetuning.batches import ClipCache, Draws, StepSampler
from m2d_bench.tasks.task import Metric
from m2d_bench.training.augment import mask, mix, resize_crops
from m2d_bench.training.launch import from_first_process
from m2d_bench.training.loop import Step, TrainingLoop

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

BEST, LAST = "best.safetensors", "last.safetensors"
"""Files in a training's folder: the best epoch's model, and the last one's."""


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with soft labels, averaged over clips *and* classes: 1/C of the usual one.

    Args:
        logits: [N, C].
        targets: One-hot or mixed labels, [N, C].

    Source: protocol of M2D (2023), fine-tuning; the factor is part of its learning rates.
    """
    return -(targets * logits.log_softmax(1)).mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """How the epoch is chosen whose model is kept.

    Args:
        clips: Those it is scored on, [n]; None for the last epoch whatever it scores.
        test: Those that are tested then; may be the same.
        metric: How both are scored.
    """

    clips: Tensor | None
    test: Tensor
    metric: Metric


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The best epoch so far.

    Args:
        number: From 1.
        score: In the task's metric, on the clips that choose.
        logits: Of the test clips, [N, C] float32 on the CPU.
    """

    number: int
    score: float
    logits: Tensor


class Trainer(TrainingLoop):
    """A fine-tuning in progress.

    Args:
        fabric: Launched; holds devices and precision.
        classifier: What is trained, see `network.build`.
        sampler: What each step sees.
        clips: Waveforms of the task's clips.
        selection: How the epoch is chosen.
        folder: Where checkpoints go.
        compile: Whether the encoder is compiled.
    """

    backbone_type: type[nn.Module] = network.Backbone
    unreadable = "When it can be read again, go on with --resume; a file of other content begins the task anew."

    def __init__(
        self,
        fabric: Fabric,
        classifier: Classifier,
        sampler: StepSampler,
        clips: ClipCache,
        selection: Selection,
        folder: Path,
        *,
        compile: bool = False,
    ) -> None:
        super().__init__(fabric, folder, classifier, sampler.steps_per_epoch, sampler.recipe.epochs)
        self.classifier, self.sampler, self.clips = classifier, sampler, clips
        self.selection, self.recipe = selection, sampler.recipe
        self.scores: list[float] = []
        self.best: Epoch | None = None
        fabric.to_device(classifier)
        self.average = copy.deepcopy(classifier).requires_grad_(False) if self.recipe.ema_decay else None
        backbone: Any = self.backbone_type(classifier.encoder)
        if compile:
            torch._dynamo.config.recompile_limit = 64  # the shapes of patchout; torch 2.13 fails on dynamic ones
            backbone = torch.compile(backbone, dynamic=False)
        self.backbone = fabric.setup_module(backbone)
        self.optimizer = fabric.setup_optimizers(network.optimizer(classifier, self.recipe))
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has taken, with what was done before it was resumed."""
        return time.monotonic() - self._started

    def run(
        self,
        *,
        resume_minutes: float = 5.0,
        check_steps: int = 20,
        on_step: Callable[[Step], None] | None = None,
        on_epoch: Callable[[int, float | None], None] | None = None,
    ) -> Epoch:
        """Trains from the current step to the end.

        Args:
            resume_minutes: Minutes between files to resume from.
            check_steps: Steps between checks of losses and weights.
            on_step: Called after every step.
            on_epoch: Called after every epoch, with the step and its score.

        Returns:
            The best epoch, or the last.

        Raises:
            TrainingError: A loss or the weights are not finite.
            DataError: A clip cannot be read; the steps before are saved.
        """
        self._on_epoch = on_epoch
        self._batches = self.clips.prefetch(self.sampler, self._rows, self.step, self.total)
        self.fit(self.total, check_steps=check_steps, resume_minutes=resume_minutes, on_step=on_step)
        assert self.best is not None
        return self.best

    def train_step(self) -> Step:
        """One optimizer step, without waiting for the device."""
        return self._train(*next(self._batches))

    def _train(self, draws: Draws, own: Tensor, others: Tensor) -> Step:
        """One optimizer step. Nothing here waits for the device.

        The head's loss is that of the whole batch on every device; its gradient by the features goes back into the
        encoder part by part. Where there are several parts, the features are computed twice: first for the head.
        """
        recipe = self.recipe
        rate = self.set_learning_rate(recipe.learning_rate, recipe.warmup_epochs, recipe.end_rate)
        self.classifier.train()
        count, rows = len(draws.clips), self._rows(len(draws.clips))
        x = self._augmented(draws, rows, own, others)
        kept = [window[rows].to(x.device) for window in draws.kept]
        size = -(-len(rows) // self.recipe.accumulate)
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        alone = len(parts) == 1
        with torch.set_grad_enabled(alone):
            features = [self.backbone(x[part], [window[part] for window in kept]) for part in parts]
        batch = self._gathered(torch.cat(features).detach())[:count].requires_grad_()
        loss = self._loss(self.classifier.head(batch), self._targets(draws).to(x.device))
        (gradient,) = torch.autograd.grad(loss, batch, retain_graph=True)
        self.fabric.backward(loss)  # the head's gradients
        gradient = self._own(gradient) * self.fabric.world_size  # DDP takes the mean
        for part in parts:
            with self.fabric.no_backward_sync(self.backbone, enabled=part != parts[-1]):
                feature = features[0] if alone else self.backbone(x[part], [window[part] for window in kept])
                self.fabric.backward(feature, gradient=gradient[part])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self._follow(self.average, [(x[part], [window[part] for window in kept]) for part in parts], count)
        self.note_step(loss.detach(), None)
        return Step(number=self.step, clips=count, loss=loss.detach(), scalars={"lr": rate})

    @torch.no_grad()
    def _follow(self, average: Classifier, parts: list[tuple[Tensor, list[Tensor]]], count: int) -> None:
        """Moves the average on; its batch normalisation sees the features of its own encoder."""
        move = get_ema_multi_avg_fn(self.recipe.ema_decay)
        move(list(average.parameters()), list(self.classifier.parameters()), None)
        backbone = self.backbone_type(average.encoder)
        with self.fabric.autocast():
            features = [backbone(x, kept) for x, kept in parts]
        average.head.norm.train()(self._gathered(torch.cat(features))[:count])

    def _augmented(self, draws: Draws, rows: Tensor, own: Tensor, others: Tensor) -> Tensor:
        """Waveforms of this device's rows → augmented log-mel spectrograms, [m, 1, 80, frames]."""
        device, encoder = self.fabric.device, self.classifier.encoder
        own = own.to(device)
        if self.recipe.mixup:
            own = mix(own, others.to(device), draws.share[rows].to(device))
        with torch.no_grad():
            x, _ = encoder.log_mel(own, torch.full((len(own),), own.shape[1]))
            if self.recipe.frequency_mask or self.recipe.time_mask:
                x = mask(x, draws.masks[rows])
            return resize_crops(x, draws.crops[rows]) if self.recipe.random_resize_crop else x

    def _targets(self, draws: Draws) -> Tensor:
        """Labels of the whole batch, mixed as its waveforms are, [B, C] float32."""
        labels = self.sampler.labels[draws.clips]
        hot = labels.float() if labels.ndim == 2 else one_hot(labels, len(self.classifier.labels.classes)).float()
        return mix(hot, hot[draws.partner], draws.share)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        several = self.classifier.labels.multilabel
        return binary_cross_entropy_with_logits(logits, targets) if several else soft_cross_entropy(logits, targets)

    def _rows(self, count: int) -> Tensor:
        """This device's rows of so many; as many on every device, the last row repeated where they do not suffice."""
        per_device = -(-count // self.fabric.world_size)
        return (torch.arange(per_device) + self.fabric.global_rank * per_device).clamp(max=count - 1)

    def _gathered(self, rows: Tensor) -> Tensor:
        """The rows of all devices, one device after the other."""
        if self.fabric.world_size == 1:
            return rows
        return self.fabric.all_gather(rows).flatten(0, 1)  # type: ignore[union-attr]

    def _own(self, batch: Tensor) -> Tensor:
        """This device's rows of a batch, zero where a row was repeated."""
        per_device = -(-len(batch) // self.fabric.world_size)
        rows = batch[self.fabric.global_rank * per_device :][:per_device]
        return torch.nn.functional.pad(rows, (0, 0, 0, per_device - len(rows)))

    @property
    def evaluated(self) -> Classifier:
        """What is scored and saved: the classifier, or its moving average."""
        return self.average or self.classifier

    @torch.no_grad()
    def logits(self, clips: Tensor) -> Tensor:
        """Logits of clips from their start, without augmentation, [N, C] float32 on the CPU."""
        classifier = self.evaluated.eval()
        rows = clips[self._rows(len(clips))]
        size = max(1, -(-self.recipe.batch_size // (self.recipe.accumulate * self.fabric.world_size)))
        features = []
        for waveforms in self.clips.batches(rows, size):
            with self.fabric.autocast():
                features.append(classifier.encoder.scene_embeddings(waveforms))
        logits: Tensor = classifier.head(self._gathered(torch.cat(features))[: len(clips)].float())
        return logits.cpu()

    def finish_epoch(self) -> None:
        """Scores the epoch, and keeps its model if it is the best."""
        self.check()
        number, clips, test = self.epoch + 1, self.selection.clips, self.selection.test
        if clips is None:
            if number == self.recipe.epochs:
                self._keep(Epoch(number=number, score=nan, logits=self.logits(test)))
        else:
            logits = self.logits(clips)
            score = self.fabric.broadcast(metrics.score(self.selection.metric, logits, self.sampler.labels[clips]))
            self.scores.append(score)
            if self.best is None or score > self.best.score:
                self._keep(Epoch(number=number, score=score, logits=logits if clips is test else self.logits(test)))
        super().finish_epoch()
        if self._on_epoch:
            self._on_epoch(self.step, self.scores[-1] if self.scores else None)

    def _keep(self, epoch: Epoch) -> None:
        self.best = epoch
        self.save(BEST)

    def not_finite(self, step: int, context: None) -> str:
        """Message of a step whose loss, or whose weights, are not finite."""
        return (
            f"The loss or the weights of step {step} are not finite. {self.last_good}. Try a lower learning_rate than "
            f"{self.recipe.learning_rate:g}, or --precision fp32."
        )

    def save(self, name: str) -> None:
        """Writes the model with its head, whole or not at all."""
        from_first_process(self.fabric, lambda: self._write(self.folder / name))

    def _write(self, path: Path) -> None:
        checkpoint.save(network.merged(self.evaluated), path)

    def state(self) -> dict[str, Any]:
        """Weights, scores and the best epoch."""
        return {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "scores": self.scores,
            "best": None if self.best is None else asdict(self.best),
            "classifier": self.classifier.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restores what `save_resume` wrote."""
        super().resume(state)
        self.classifier.load_state_dict(state["classifier"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.epoch, self.scores = state["epoch"], list(state["scores"])
        self._started -= state["seconds"]
        self.best = Epoch(**state["best"]) if state["best"] else None
