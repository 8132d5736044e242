"""The loop under every training: steps, checks, what is saved when, how it is stopped, and the file it resumes from."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from m2d_bench.errors import AudioError, DataError, TrainingError
from m2d_bench.settings import replacing
from m2d_bench.training.launch import failing_together
from m2d_bench.training.schedules import learning_rate
from m2d_bench.training.signals import StopSignal

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

RESUME = "resume.pt"
"""File in a training's folder that it resumes from."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Result of an optimizer step, known without waiting for the device.

    Args:
        number: Number of the step, from 1.
        clips: Clips of its batch, over all devices.
        loss: Mean over them, a scalar on the device.
        scalars: Learning rate under `lr`, and what else is logged.
    """

    number: int
    clips: int
    loss: Tensor
    scalars: Mapping[str, float | Tensor]


class TrainingLoop(ABC):
    """Base of the trainers.

    Args:
        fabric: Launched; holds devices and precision.
        folder: Where checkpoints and the file to resume from go.
        model: What is trained; its weights are checked.
        steps_per_epoch: Optimizer steps of an epoch.
        epochs: Epochs of the whole training.
    """

    unreadable = "Mend or replace the file and go on with --resume."
    """Ends the message of a file that cannot be read."""

    optimizer: Any  # Fabric's wrapper, which shows the optimizer's attributes

    def __init__(self, fabric: Fabric, folder: Path, model: nn.Module, steps_per_epoch: int, epochs: int) -> None:
        self.fabric, self.folder, self._model = fabric, folder, model
        self.steps_per_epoch, self.total = steps_per_epoch, steps_per_epoch * epochs
        self.step = 0
        self.epoch = 0
        """Finished epochs."""
        self._unchecked: list[tuple[int, Tensor, Any]] = []

    def fit(
        self,
        until: int,
        *,
        check_steps: int,
        resume_steps: int | None = None,
        resume_minutes: float = inf,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        """Trains from the current step.

        Args:
            until: Number of the last step.
            check_steps: Steps between checks of losses and weights; several devices look for a stop signal then.
            resume_steps: Steps between files to resume from.
            resume_minutes: Minutes between them.
            on_step: Called after every step.

        Raises:
            TrainingError: A loss or the weights are not finite; nothing was saved after that.
            DataError: A file cannot be read; the steps before are saved.
            KeyboardInterrupt: A signal asked for an end; the state is saved.
        """
        saved_at = time.monotonic()
        with StopSignal() as stop:
            while self.step < until or self.step == self._epoch_end:
                self._advance(on_step)
                at_check = self.step % check_steps == 0
                stopping = any_rank_wants_stop(self.fabric, stop.received, at_check)
                overdue = any_rank_wants_stop(self.fabric, time.monotonic() - saved_at >= 60 * resume_minutes, at_check)
                at_checkpoint = self.step >= until or self.checkpoint_due()
                saves = stopping or overdue or at_checkpoint or (resume_steps and self.step % resume_steps == 0)
                if at_check or saves:
                    self.check()
                if saves:
                    self.save_progress(at_checkpoint)
                    saved_at = time.monotonic()
                if stopping:
                    raise KeyboardInterrupt

    @property
    def _epoch_end(self) -> int:
        """Step at which the current epoch ends."""
        return (self.epoch + 1) * self.steps_per_epoch

    def _advance(self, on_step: Callable[[Step], None] | None) -> None:
        """One step, and the end of its epoch; where a file cannot be read, the steps before are saved."""
        try:
            if self.step < self._epoch_end:
                step = self.train_step()
                if on_step:
                    on_step(step)
            if self.step == self._epoch_end:
                self.finish_epoch()
        except (AudioError, DataError) as error:
            if self.fabric.world_size == 1:
                self.check()
                self.save_resume()
            raise DataError(f"{error} {self.unreadable}") from error

    @abstractmethod
    def train_step(self) -> Step:
        """One optimizer step, without waiting for the device; calls `note_step`."""

    def finish_epoch(self) -> None:
        """Ends an epoch."""
        self.epoch += 1

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is written at this step; one is always at the last."""
        return False

    def save_progress(self, at_checkpoint: bool) -> None:
        """Writes the file to resume from, and a checkpoint where one is due and the trainer has any."""
        self.save_resume()

    @abstractmethod
    def not_finite(self, step: int, context: Any) -> str:
        """Message of a step that is not finite.

        Args:
            step: Its number.
            context: What `note_step` was given of it; None where its loss was finite and the weights are not.
        """

    def note_step(self, loss: Tensor, context: Any) -> None:
        """Counts a step and keeps its loss until the next check.

        Args:
            loss: A scalar on the device, the same on every device.
            context: For `not_finite`.
        """
        self.step += 1
        self._unchecked.append((self.step, loss, context))

    def check(self) -> None:
        """Checks the losses since the last check, and the weights; every device comes to the same.

        Raises:
            TrainingError: One is not finite; its step and the last good state are named.
        """
        norm = torch.nn.utils.get_total_norm(self._model.parameters())
        steps, values, contexts = zip(*self._unchecked, (self.step, norm, None), strict=True)
        finite = torch.stack(values).isfinite().tolist()
        if not all(finite):
            first = finite.index(False)
            raise TrainingError(self.not_finite(steps[first], contexts[first]))
        self._unchecked.clear()

    @property
    def last_good(self) -> str:
        """The last state that was saved, for a message."""
        path = self.folder / RESUME
        return f"The last good state is {path}" if path.is_file() else "Nothing was saved before"

    def set_learning_rate(self, peak: float, warmup_epochs: int, end: float = 0.0) -> float:
        """Sets and returns the step's learning rate; a parameter group takes its `scale` of it, where it has one."""
        rate = learning_rate(
            self.step,
            peak=peak,
            warmup_steps=warmup_epochs * self.steps_per_epoch,
            total_steps=self.total,
            end=end,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        return rate

    def save_resume(self) -> None:
        """Writes all that is needed to resume, whole or not at all; the first process does, the others wait."""
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # of fp16, the loss scale
            **self.state(),
        }
        with failing_together(self.fabric):
            if self.fabric.is_global_zero:
                with replacing(self.folder / RESUME) as file:
                    torch.save(state, file)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restores what `save_resume` wrote."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step = state["step"]
        self.epoch = self.step // self.steps_per_epoch

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What is saved beside step, optimizer and precision."""


def any_rank_wants_stop(fabric: Fabric, wants_stop: bool, at_check: bool) -> bool:
    """Whether to stop: on one device at once; on several, signalled one by one, at the steps where all check."""
    if fabric.world_size == 1:
        return wants_stop
    if not at_check:
        return False
    flag = torch.tensor(float(wants_stop), device=fabric.device)
    torch.distributed.all_reduce(flag)
    return bool(flag)


def read_resume(folder: Path) -> dict[str, Any] | None:
    """State of a training to resume, or None.

    Raises:
        TrainingError: The file cannot be read.
    """
    path = folder / RESUME
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken pickle raises
        raise TrainingError(f"{path}: cannot be read ({error}). Remove it to start anew.") from error
    return state
