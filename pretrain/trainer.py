"""The pre-training loop: one device, several under torchrun or Slurm; killed at any moment, it resumes.

All random draws depend on the seed and the optimizer step alone: the order of the clips, their crops and the masks of
the whole effective batch, of which each device and accumulated batch takes its rows. So the same recipe gives the same
training, up to rounding, on any number of devices; and a resumed one is the same to the bit where the device's
arithmetic is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from m2d_bench.errors import UsageError
from m2d_bench.pretrain import weights
from m2d_bench.pretrain.data import CropLoader, Crops, EpochSampler, Source
from m2d_bench.pretrain.masking import Mask
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.pretrain.recipe import Recipe
from m2d_bench.randomness import generator_of
from m2d_bench.training.launch import failing_together
from m2d_bench.training.loop import RESUME, Step, TrainingLoop
from m2d_bench.training.schedules import scaled_rate

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

_NAMED = 64  # clips of a batch in a message

_KNOWN_BY_DIGEST = {"teacher", "teacher_layer"}
"""Values of a recipe that name what `Source.identities` compares."""


class Trainer(TrainingLoop):
    """A training in progress.

    Args:
        fabric: Launched; holds devices and precision.
        recipe: What is trained.
        source: The data, its normalisation known.
        folder: Where checkpoints go, named as released ones are.
        batch_size: Samples a device and accumulated batch; it divides the effective batch.
        workers: Processes that read the data, a device.

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
    ) -> None:
        self.recipe, self.source, self.batch_size, self.workers = recipe, source, batch_size, workers
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
        steps_per_epoch = (recipe.epoch_clips or source.n_clips) // recipe.effective_batch
        if not steps_per_epoch:
            raise UsageError(
                f"{recipe.epoch_clips or source.n_clips} clips an epoch are fewer than effective_batch="
                f"{recipe.effective_batch}. Choose a smaller one, or repeat the clips with --preset small."
            )
        self.method = recipe.build()
        self.method.initialise(generator_of(recipe.seed, "weights"))
        super().__init__(fabric, folder, self.method, steps_per_epoch, recipe.epochs)

    def prepare(self, *, compile: bool = False, checkpoint_activations: bool = False) -> None:
        """Moves the method to its device and makes the optimizer; after weights were loaded, if any.

        Args:
            compile: Whether the method is compiled.
            checkpoint_activations: Whether activations are computed again in the backward pass instead of kept.
        """
        self.method.checkpoint_activations = checkpoint_activations
        module: Any = torch.compile(self.method) if compile else self.method
        self.module = self.fabric.setup_module(module)
        optimizer = torch.optim.AdamW(
            _groups(self.method, self.recipe.weight_decay),
            lr=0.0,
            betas=(self.recipe.beta1, self.recipe.beta2),
            fused=True,
        )
        self.optimizer = self.fabric.setup_optimizers(optimizer)

    def run(
        self,
        *,
        limit_steps: int | None = None,
        save_epochs: int = 0,
        resume_steps: int = 1000,
        check_steps: int = 50,
        on_step: Callable[[Step], None] | None = None,
        on_saved: Callable[[Path], None] | None = None,
    ) -> Path:
        """Trains from the current step to the end.

        Args:
            limit_steps: Last step; the schedules stay those of the whole training.
            save_epochs: Epochs between checkpoints; 0 saves the last one alone.
            resume_steps: Steps between files to resume from.
            check_steps: Steps between checks of losses and weights.
            on_step: Called after every step.
            on_saved: Called with every checkpoint written.

        Returns:
            The last checkpoint.

        Raises:
            TrainingError: A loss or the weights are not finite.
            DataError: A file cannot be read; the steps before are saved.
        """
        self._save_epochs, self._on_saved = save_epochs, on_saved
        last = self.total if limit_steps is None else min(self.total, limit_steps)
        self._stream = self._batches() if self.step < last else iter(())
        try:
            self.fit(last, check_steps=check_steps, resume_steps=resume_steps, on_step=on_step)
        finally:
            del self._stream  # ends its workers
        if not self.checkpoint_path.exists():  # of a training that was at its end already
            self.save_checkpoint()
        return self.checkpoint_path

    def train_step(self) -> Step:
        """One optimizer step, without waiting for the device."""
        return self._train(self._stream)

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
        recipe, number = self.recipe, self.step
        rate = self.set_learning_rate(scaled_rate(recipe.base_rate, recipe.effective_batch), recipe.warmup_epochs)
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
        means = torch.stack(losses).mean(0)
        own = dict(zip(result.losses, means.clone(), strict=True))["loss"]
        if self.fabric.world_size > 1:  # Fabric's all_reduce would wait for the device
            torch.distributed.all_reduce(means)
            means /= self.fabric.world_size
        parts = dict(zip(result.losses, means, strict=True))
        loss = parts.pop("loss")
        skips = self.fabric.strategy.precision.precision == "16-mixed"  # its scaler leaves such steps out
        sound = loss if norm is None or skips else loss + 0 * norm
        self.note_step(sound, (own, torch.cat(clips)))
        scalars = {"lr": rate, **parts, **self.method.after_step(number / max(1, self.total - 1))}
        if norm is not None:
            scalars["grad_norm"] = norm
        return Step(number=self.step, clips=self.recipe.effective_batch, loss=loss, scalars=scalars)

    def _rows(self, masks: Mask, part: int) -> Mask:
        """This device's rows of the effective batch's masks, for one accumulated batch."""
        start = (part * self.fabric.world_size + self.fabric.global_rank) * self.batch_size
        rows = slice(start, start + self.batch_size)
        own = [indices[rows].contiguous() for indices in masks]
        if self.fabric.device.type == "cuda":  # else copying would wait
            own = [indices.pin_memory() for indices in own]
        return Mask(*(indices.to(self.fabric.device, non_blocking=True) for indices in own))

    def not_finite(self, step: int, context: tuple[Tensor, Tensor] | None) -> str:
        """Message of a step that is not finite, with the clips of its batch.

        Args:
            step: Its number.
            context: Loss and clips of this device's batches; None where only the weights are not finite.
        """
        if context is None:
            return (
                f"The weights after step {step} are not finite. {self.last_good}. Try a lower base_rate than "
                f"{self.recipe.base_rate:g}, or --precision fp32."
            )
        own_loss, clips = context
        names = self.source.names(clips.tolist())
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        here = "" if own_loss.isfinite() else " on this device"
        return (
            f"The loss or the gradient of step {step} is not finite{here}. {self.last_good}. Try a lower base_rate "
            f"than {self.recipe.base_rate:g}, or --precision fp32. Its batch: {', '.join(names[:_NAMED])}{more}"
        )

    @property
    def checkpoint_path(self) -> Path:
        """Path of a checkpoint of the current step: checkpoint-EPOCH.pth, in mid-epoch checkpoint-STEPsteps.pth."""
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        return self.folder / (f"checkpoint-{self.step}steps.pth" if rest else f"checkpoint-{epoch}.pth")

    def checkpoint_due(self) -> bool:
        """Whether an epoch ends after which a checkpoint is written."""
        epoch, rest = divmod(self.step, self.steps_per_epoch)
        return not rest and bool(self._save_epochs) and epoch % self._save_epochs == 0

    def save_checkpoint(self) -> None:
        """Writes a checkpoint in the released format."""
        with failing_together(self.fabric):
            if self.fabric.is_global_zero:
                norm_stats = self.source.norm_stats or (0.0, 1.0)
                weights.save(self.method, self.checkpoint_path, self.recipe.sample_rate, norm_stats)

    def save_progress(self, at_checkpoint: bool) -> None:
        """Writes a checkpoint where one is due, then the file to resume from."""
        if at_checkpoint:
            self.save_checkpoint()
        self.save_resume()
        if at_checkpoint and self._on_saved:
            self._on_saved(self.checkpoint_path)

    def state(self) -> dict[str, Any]:
        """Recipe, data and weights."""
        return {
            "recipe": self.recipe.values(),
            "data": self.source.identities,
            "norm_stats": self.source.norm_stats,
            "noise_norm_stats": self.source.noise_norm_stats,
            "method": self.method.state_dict(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restores what `save_resume` wrote; after `prepare`.

        Raises:
            UsageError: It is of another recipe, or of other data.
        """
        values, stored = self.recipe.values(), state["recipe"]
        names = [name for name in {**values, **stored} if name not in _KNOWN_BY_DIGEST]
        differing = [name for name in names if values.get(name) != stored.get(name)]
        if differing:
            listed = ", ".join(f"{name}: {stored.get(name)} then, {values.get(name)} now" for name in differing)
            raise UsageError(
                f"{self.folder / RESUME} is of another recipe: {listed}. Go on with the same, or elsewhere."
            )
        before, now = state["data"], self.source.identities
        if other := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
            raise UsageError(
                f"{self.folder / RESUME} is of other {' and '.join(other)}. Go on with the same, or train elsewhere."
            )
        self.method.load_state_dict(state["method"])
        super().resume(state)


def _groups(method: MaskedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay: biases and norms have none."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    plain = [parameter for parameter in trained if parameter.ndim == 1]
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
