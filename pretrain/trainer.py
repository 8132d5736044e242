"""The training loop: one device, several under torchrun or Slurm; kill it at any moment and go on.

Everything drawn depends on the seed and the optimizer step alone: the order of the clips, their crops and the masks of
the whole effective batch, of which each device and accumulated batch takes its rows. So the same recipe gives the same
training, up to rounding, on any number of devices; and a resumed one is the same to the bit where the device's
arithmetic is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m2d_bench.errors import DataError, TrainingError, UsageError
from m2d_bench.pretrain import weights
from m2d_bench.pretrain.data import CropLoader, Crops, EpochSampler, Source
from m2d_bench.pretrain.masking import Mask
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.pretrain.recipe import Recipe
from m2d_bench.randomness import generator_of
from m2d_bench.training.loop import RESUME, agreed, last_good, stops, write_resume
from m2d_bench.training.schedules import learning_rate, scaled_rate

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)

_NAMED = 64  # clips of a batch in a message


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is known after an optimizer step, without waiting for the device.

    Args:
        number: Steps done.
        total: Steps of the whole training.
        loss: Mean over the effective batch, a scalar on the device.
        scalars: Learning rate, norm of the gradient, the parts of the loss, and what the method adds.
    """

    number: int
    total: int
    loss: Tensor
    scalars: Mapping[str, float | Tensor]


class Trainer:
    """A training in progress.

    Args:
        fabric: Launched; holds devices and precision.
        recipe: What is trained.
        source: The data, its normalisation known.
        folder: Where checkpoints go, named as released ones are.
        batch_size: Samples a device and accumulated batch; it divides the effective batch.
        workers: Processes that read the data, a device.
        compile: Whether the method is compiled.
        checkpoint_activations: Whether activations are computed again in the backward pass instead of kept.

    Raises:
        UsageError: Batch sizes that do not divide, or too few clips for one step.
    """

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        source: Source,
        folder: Path,
        *,
        batch_size: int,
        workers: int = 0,
        compile: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        self.fabric, self.recipe, self.source, self.folder = fabric, recipe, source, folder
        self.batch_size, self.workers = batch_size, workers
        if recipe.effective_batch % fabric.world_size:
            raise UsageError(
                f"effective_batch={recipe.effective_batch} is no multiple of {fabric.world_size} devices. Choose one "
                "that is, with --set effective_batch=…, or another number of devices."
            )
        self.accumulated, rest = divmod(recipe.effective_batch, batch_size * fabric.world_size)
        if rest or not self.accumulated:
            raise UsageError(
                f"effective_batch={recipe.effective_batch} is no multiple of batch_size={batch_size} × "
                f"{fabric.world_size} devices. Choose a batch size that divides it."
            )
        self.steps_per_epoch = (recipe.epoch_clips or source.n_clips) // recipe.effective_batch
        if not self.steps_per_epoch:
            raise UsageError(
                f"{recipe.epoch_clips or source.n_clips} clips an epoch are fewer than effective_batch="
                f"{recipe.effective_batch}. Choose a smaller one, or repeat the clips with --preset small."
            )
        self.total = self.steps_per_epoch * recipe.epochs
        self.step = 0
        self.method = recipe.build()
        self.method.initialise(generator_of(recipe.seed, "weights"))
        self.method.checkpoint_activations = checkpoint_activations
        self._compile = compile
        self._unchecked: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def prepare(self) -> None:
        """Moves the method to its device and makes the optimizer; after weights were loaded, if any."""
        module: Any = torch.compile(self.method) if self._compile else self.method
        self.module = self.fabric.setup_module(module)
        optimizer = torch.optim.AdamW(
            _groups(self.method, self.recipe.weight_decay),
            lr=0.0,
            betas=(self.recipe.beta1, self.recipe.beta2),
            fused=True,
        )
        self.optimizer: Any = self.fabric.setup_optimizers(optimizer)

    def run(
        self,
        *,
        limit_steps: int | None = None,
        save_epochs: int = 0,
        resume_steps: int = 1000,
        check_steps: int = 50,
        on_step: Callable[[Step], None] | None = None,
        on_saved: Callable[[Path, int], None] | None = None,
    ) -> Path:
        """Trains from where it stands to the end.

        Args:
            limit_steps: Stop after so many steps in all; the schedules stay those of the whole training.
            save_epochs: Epochs between checkpoints; 0 saves the last one alone.
            resume_steps: Steps between resume files.
            check_steps: Steps after which losses are looked at.
            on_step: Called after every step.
            on_saved: Called with every checkpoint written and its epoch.

        Returns:
            The last checkpoint.

        Raises:
            TrainingError: A loss is not finite.
        """
        last = self.total if limit_steps is None else min(self.total, limit_steps)
        saved: Path | None = None
        batches = self._batches() if self.step < last else iter(())
        with stops() as stopped:
            while self.step < last:
                step = self._train_or_save(batches)
                if on_step:
                    on_step(step)
                epoch, rest = divmod(self.step, self.steps_per_epoch)
                looks = self.step % check_steps == 0
                stop = agreed(self.fabric, stopped(), looks)
                due = not rest and bool(save_epochs) and epoch % save_epochs == 0
                keeps = due or stop or self.step >= last or self.step % resume_steps == 0
                if keeps or looks:
                    self.check()
                if due or self.step >= last:
                    saved = self.save()
                if keeps:
                    self.save_resume()
                if saved and on_saved and (due or self.step >= last):
                    on_saved(saved, epoch)
                if stop:
                    raise KeyboardInterrupt
        if saved is None and not self._path().exists():  # of a training that was at its end already
            self.save()
        return saved or self._path()

    def _train_or_save(self, batches: Iterator[Crops]) -> Step:
        """One step; where its files cannot be read, what was done before is kept."""
        try:
            return self._train(batches)
        except DataError as error:
            if self.fabric.world_size == 1:
                self.check()
                self.save_resume()
            raise DataError(
                f"{error} Mend or replace the file and go on with --resume; without it these would be other data."
            ) from error

    def _batches(self) -> Iterator[Crops]:
        """The batches from here to the end; an epoch is cut to whole steps."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        sampler = EpochSampler(
            n_clips=self.source.n_clips,
            batch_size=self.batch_size,
            seed=self.recipe.seed,
            epoch=epoch,
            epochs=self.recipe.epochs - epoch,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            start_batch=done * self.accumulated,
            epoch_clips=self.steps_per_epoch * self.recipe.effective_batch,
        )
        return iter(CropLoader(self.source, sampler, self.workers))

    def _train(self, batches: Iterator[Crops]) -> Step:
        """One optimizer step. Nothing here waits for the device."""
        number, rate = self.step, self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(int(generator_of(self.recipe.seed, number, self.fabric.global_rank).initial_seed()))
        masks = self.method.draw_mask(self.recipe.effective_batch, generator_of(self.recipe.seed, number, "masks"))
        losses, clips = [], []
        for part in range(self.accumulated):
            crops = next(batches)
            batch, mask = self.source.batch(crops, self.fabric.device), self._rows(masks, part)
            with self.fabric.no_backward_sync(self.module, enabled=part < self.accumulated - 1):
                result = self.module(batch, mask)
                self.fabric.backward(result.losses["loss"] / self.accumulated)
            losses.append(torch.stack([value.detach() for value in result.losses.values()]))
            clips.append(crops.clips)
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=self.recipe.clip_norm, error_if_nonfinite=False
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        means = torch.stack(losses).mean(0)
        own = dict(zip(result.losses, means.clone(), strict=True))["loss"]
        if self.fabric.world_size > 1:  # Fabric's all_reduce would wait for the device
            torch.distributed.all_reduce(means)
            means /= self.fabric.world_size
        parts = dict(zip(result.losses, means, strict=True))
        loss = parts.pop("loss")
        skips = self.fabric.strategy.precision.precision == "16-mixed"  # its scaler leaves such steps out
        sound = loss if norm is None or skips else loss + 0 * norm
        self._unchecked.append((self.step, sound, own, torch.cat(clips)))
        scalars = {"lr": rate, **parts, **self.method.after_step(number / max(1, self.total - 1))}
        if norm is not None:
            scalars["grad_norm"] = norm
        return Step(number=self.step, total=self.total, loss=loss, scalars=scalars)

    def _rate(self, number: int) -> float:
        return learning_rate(
            number,
            peak=scaled_rate(self.recipe.base_rate, self.recipe.effective_batch),
            warmup_steps=self.recipe.warmup_epochs * self.steps_per_epoch,
            total_steps=self.total,
        )

    def _rows(self, masks: Mask, part: int) -> Mask:
        """This device's rows of the effective batch's masks, for one accumulated batch."""
        start = (part * self.fabric.world_size + self.fabric.global_rank) * self.batch_size
        rows = slice(start, start + self.batch_size)
        own = [each[rows].contiguous() for each in masks]
        if self.fabric.device.type == "cuda":  # else copying would wait
            own = [each.pin_memory() for each in own]
        return Mask(*(each.to(self.fabric.device, non_blocking=True) for each in own))

    def check(self) -> None:
        """Looks at the losses since the last check; every device sees the same.

        Raises:
            TrainingError: One is not finite; its step, the clips of its batch and the last checkpoint are named.
        """
        if not self._unchecked:
            return
        finite = torch.stack([loss for _, loss, _, _ in self._unchecked]).isfinite().tolist()
        if not all(finite):
            number, _, own, clips = self._unchecked[finite.index(False)]
            names = self.source.names(clips.tolist())
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            here = "" if own.isfinite() else " on this device"
            raise TrainingError(
                f"The loss or the gradient of step {number} is not finite{here}. {last_good(self.folder)}. "
                f"Try a lower base_rate than {self.recipe.base_rate:g}, or --precision fp32. "
                f"Its batch: {', '.join(names[:_NAMED])}{more}"
            )
        self._unchecked.clear()

    def save(self) -> Path:
        """Writes a checkpoint in the released format: checkpoint-EPOCH.pth, in mid-epoch checkpoint-STEPsteps.pth."""
        path = self._path()
        if self.fabric.is_global_zero:
            norm_stats = self.source.norm_stats or (0.0, 1.0)
            weights.save(self.method, path, self.recipe.sample_rate, norm_stats)
        self.fabric.barrier()
        return path

    def _path(self) -> Path:
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        return self.folder / (f"checkpoint-{self.step}steps.pth" if rest else f"checkpoint-{epoch}.pth")

    def save_resume(self) -> None:
        """Writes all that is needed to go on, whole or not at all."""
        state = {
            "step": self.step,
            "recipe": self.recipe.values(),
            "data": self.source.fingerprint,
            "norm_stats": self.source.norm_stats,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # of fp16, the loss scale
        }
        write_resume(self.fabric, self.folder, state)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `save_resume` wrote; after `prepare`.

        Raises:
            UsageError: It is of another recipe, or of other data.
        """
        values, stored = self.recipe.values(), state["recipe"]
        differing = [name for name in {**values, **stored} if values.get(name) != stored.get(name)]
        if differing:
            listed = ", ".join(f"{name}: {stored.get(name)} then, {values.get(name)} now" for name in differing)
            raise UsageError(
                f"{self.folder / RESUME} is of another recipe: {listed}. Go on with the same, or elsewhere."
            )
        if state["data"] != self.source.fingerprint:
            raise UsageError(f"{self.folder / RESUME} is of other data. Go on with the same, or train elsewhere.")
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step = state["step"]


def _groups(method: MaskedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: biases and norms have none."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    plain = [parameter for parameter in trained if parameter.ndim == 1]
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
