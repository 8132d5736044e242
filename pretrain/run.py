"""A pre-training run, from data and recipe to a checkpoint: devices, data, loop, log and held-out evaluation."""

# No postponed annotations here: the command line reads the types of RunSettings.

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from m2d_bench import runs, tasks
from m2d_bench.errors import UsageError, naming_option
from m2d_bench.evaluation.linear import linear
from m2d_bench.output import Names
from m2d_bench.pretrain import weights
from m2d_bench.pretrain.data import Source, measure_norm_stats
from m2d_bench.pretrain.flops import peak_flops
from m2d_bench.pretrain.held_out import HeldOutMonitor, split
from m2d_bench.pretrain.inputs import Inputs, load_start, offline_task, open_clips, open_noise, with_noise
from m2d_bench.pretrain.recipe import Recipe
from m2d_bench.pretrain.trainer import Trainer
from m2d_bench.progress import bar
from m2d_bench.runs import TasksFailed
from m2d_bench.settings import Compute, OnBadFile, Storage, file_name, make_folder, replacing
from m2d_bench.tasks import dataset
from m2d_bench.training.launch import Precision, failing_together, from_first_process, launch
from m2d_bench.training.log import Log, StepReporter, ThroughputMeter
from m2d_bench.training.loop import RESUME, Step, read_resume
from m2d_bench.values import Checked

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Checked):
    """Where a pre-training runs. Only `held_out` and `on_bad_file` change its result, others but by rounding.

    Args:
        device: auto (a GPU if there is one), cpu, cuda, …; several under torchrun or Slurm.
        precision: fp32, bf16, fp16, or auto: bf16 where the device multiplies it natively, else fp32.
        batch_size: Samples a device at a time; 0: the effective batch over all devices, at most 512. What is missing to
            the effective batch is accumulated.
        workers: Processes a device that read; -1: one a core, shared between the devices, at most 8.
        compile: Compile the method.
        checkpoint_activations: Compute activations again in the backward pass: less memory, a third more time.
        limit_steps: Stop after so many steps; the schedules stay those of the whole training.
        save_epochs: Epochs between checkpoints; 0: the last alone.
        resume_steps: Steps between files to go on from.
        log_steps: Steps between records of the log.
        watch_epochs: Epochs between looks at the features of held-out clips; 0: never.
        held_out: Clips that are kept out of training for that; at most a tenth of them. 0 trains on all.
        on_bad_file: A file that cannot be read ends the training (stop), or another takes its place (skip).
        tasks: Tasks of linear evaluation at every checkpoint.
        resume: Go on where a training in this folder stopped.
        tag: Ends the name of the checkpoint's folder; by default the masking ratio, mr7 for 0.7.
        wandb: Project of Weights & Biases to log to as well.
        trust_remote_code: Run the code that the repository of an hf: teacher holds. Read it first.
    """

    device: str = "auto"
    precision: Precision = "auto"
    batch_size: NonNegativeInt = 0
    workers: Annotated[int, Field(ge=-1)] = -1
    compile: bool = False
    checkpoint_activations: bool = False
    limit_steps: PositiveInt | None = None
    save_epochs: NonNegativeInt = 50
    resume_steps: PositiveInt = 500
    log_steps: PositiveInt = 20
    watch_epochs: NonNegativeInt = 10
    held_out: NonNegativeInt = 256
    on_bad_file: OnBadFile = "stop"
    tasks: Annotated[tuple[str, ...], Names] = ()
    resume: bool = False
    tag: str | None = None
    wandb: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tag is not None and file_name(self.tag) != self.tag:
            raise UsageError(f"tag is {self.tag!r}; it takes letters, digits and _.=-, as part of a folder's name.")


def pretrain(
    recipe: Recipe, inputs: Inputs, out: Path, settings: RunSettings = RunSettings(), storage: Storage = Storage()
) -> Path:
    """Trains a recipe on data.

    Args:
        recipe: What is trained.
        inputs: Data, and what is seen beside them.
        out: Folder in which the checkpoint's folder is made.
        settings: Where it runs.
        storage: Cache and data of tasks, and the folder of their run records.

    Returns:
        The last checkpoint.

    Raises:
        UsageError, DataError, CheckpointError: Something named is unknown, missing or does not fit.
        TrainingError: A loss is not finite, or the state to go on from cannot be read.
    """
    for name in settings.tasks:  # before the hours, not after them
        dataset.load(tasks.get(name, storage), storage, recipe.sample_rate)
    fabric = launch(settings.device, settings.precision)
    with failing_together(fabric):
        source = open_clips(inputs, recipe, storage, settings.on_bad_file)
        noise = open_noise(inputs, recipe, storage, settings.on_bad_file)
        recipe, taught = offline_task(inputs, recipe, source, _compute(fabric, settings), storage)
        folder = out / name_of(recipe, settings.tag)
        make_folder(folder)
        state = _state(folder, settings.resume)
    held_out, source = split(source, settings.held_out, recipe.seed)
    workers = _workers(settings, fabric.world_size)
    _measure(fabric, inputs, source, noise, state or {}, workers)
    source = with_noise(taught(source), noise, recipe)
    monitored = with_noise(taught(held_out), noise, recipe) if held_out else None
    trainer = Trainer(
        fabric,
        recipe,
        source,
        folder,
        batch_size=settings.batch_size or _batch_size(recipe.effective_batch // fabric.world_size),
        workers=workers,
    )
    if not state:
        load_start(trainer.method, inputs, recipe, storage)
    trainer.prepare(compile=settings.compile, checkpoint_activations=settings.checkpoint_activations)
    if state:
        trainer.resume(state)
    with failing_together(fabric):
        _write_down(fabric, folder, recipe, inputs, settings, source)
        log = Log(
            folder,
            resumed_at=trainer.step if state else None,
            rank=fabric.global_rank,
            wandb=settings.wandb,
            config=recipe.values(),
        )
    with log:
        return _run(trainer, monitored, log, settings, storage)


def name_of(recipe: Recipe, tag: str | None) -> str:
    """Name of the checkpoint's folder, as released ones are called."""
    with torch.device("meta"):
        family = recipe.build().family
    if tag is None:
        tag = f"mr{recipe.arguments['mask_ratio']:g}".replace("0.", "") if "mask_ratio" in recipe.arguments else ""
    return weights.name_of(family, recipe.vit, recipe.sample_rate, tag)


def _run(trainer: Trainer, held_out: Source | None, log: Log, settings: RunSettings, storage: Storage) -> Path:
    """Trains, with what is logged and shown."""
    fabric, recipe = trainer.fabric, trainer.recipe
    peak, last = peak_flops(fabric.device), min(trainer.total, settings.limit_steps or trainer.total)
    meter = ThroughputMeter(
        total=last * recipe.effective_batch,
        done=trainer.step * recipe.effective_batch,
        flops_per_clip=trainer.method.flops(),
        peak=peak and peak * fabric.world_size,
    )
    monitor = None
    with failing_together(fabric):
        if held_out and settings.watch_epochs and fabric.is_global_zero:
            monitor = HeldOutMonitor(trainer.method, held_out, fabric.device, log, recipe.seed)
    with bar("Pre-training", last, "steps", done=trainer.step, shown=fabric.is_global_zero) as advance:
        every = settings.log_steps
        report = StepReporter(
            fabric=fabric, log=log, meter=meter, advance=advance, every=every, last=last, describe=_progress
        )

        def on_step(step: Step) -> None:
            report(step)
            epoch, rest = divmod(step.number, trainer.steps_per_epoch)
            watches = settings.watch_epochs and not rest
            if watches and (epoch % settings.watch_epochs == 0 or step.number == trainer.total):
                with failing_together(fabric):
                    if monitor:
                        monitor.evaluate(step.number)
                meter.skip()

        def on_saved(path: Path) -> None:
            with failing_together(fabric):
                if settings.tasks and fabric.is_global_zero:
                    _evaluate(path, trainer, log, settings, storage)
            meter.skip()

        return trainer.run(
            limit_steps=settings.limit_steps,
            save_epochs=settings.save_epochs,
            resume_steps=settings.resume_steps,
            check_steps=settings.log_steps,
            on_step=on_step,
            on_saved=on_saved,
        )


def _progress(step: Step) -> str:
    ema = f" · ema {step.scalars['ema_decay']:.5f}" if "ema_decay" in step.scalars else ""
    return f"loss {float(step.loss):.4f} · lr {step.scalars['lr']:.2e}{ema}"


def _evaluate(path: Path, trainer: Trainer, log: Log, settings: RunSettings, storage: Storage) -> None:
    """Linear evaluation of a checkpoint; three seeds, for a curve. A task that fails is named; training goes on."""
    try:
        done = linear(
            str(path),
            settings.tasks,
            seeds=3,
            device=str(trainer.fabric.device),
            data=storage.data,
            cache=storage.cache,
            runs=storage.runs,
        )
    except TasksFailed as error:
        logger.warning("%s: %s", path.name, error)
        done = list(error.runs)
    for run in done:
        scores = [score.score for score in run.scores]
        log.scalars(trainer.step, {f"linear/{run.task['name']}": sum(scores) / len(scores)})


def _batch_size(samples: int) -> int:
    """Largest divisor of a device's samples, up to 512."""
    return max((size for size in range(1, min(512, samples) + 1) if samples % size == 0), default=1)


def _state(folder: Path, resume: bool) -> dict[str, Any] | None:
    """State to resume from, if any.

    Raises:
        UsageError: There is a training that --resume was not asked for.
    """
    state = read_resume(folder)
    if state and not resume:
        raise UsageError(
            f"{folder} holds a training at step {state['step']}. --resume goes on with it; else name another --out, "
            "or --tag."
        )
    if resume and not state:
        logger.warning("%s: no %s to resume from; training begins anew.", folder, RESUME)
    return state


def _workers(settings: RunSettings, world_size: int) -> int:
    return settings.workers if settings.workers >= 0 else min(8, max(1, (os.cpu_count() or 1) // max(1, world_size)))


def _measure(
    fabric: "Fabric", inputs: Inputs, source: Source, noise: Source | None, state: Mapping[str, Any], workers: int
) -> None:
    """Mean and std of the clips and of the noise: those of the state, else of what was prepared, else measured."""
    with naming_option("--data", inputs.data):
        source.norm_stats = _norm_stats(fabric, source, state.get("norm_stats"), workers)
    if noise:
        noise.skipped = source.skipped  # so that workers, too, tell of noise that they skip
        with naming_option("--noise", inputs.noise):
            noise.norm_stats = _norm_stats(fabric, noise, state.get("noise_norm_stats"), workers)


def _norm_stats(fabric: "Fabric", source: Source, stored: Sequence[float] | None, workers: int) -> tuple[float, float]:
    """What is stored, else known, else measured by the first process for all."""
    known = stored or source.norm_stats
    mean, std = from_first_process(fabric, lambda: known or measure_norm_stats(source, workers=workers))
    return float(mean), float(std)


def _compute(fabric: "Fabric", settings: RunSettings) -> Compute:
    """What a teacher runs on: what the training does."""
    precision = settings.precision if settings.precision != "fp16" else "auto"
    return Compute(device=str(fabric.device), precision=precision, trust_remote_code=settings.trust_remote_code)


def _write_down(
    fabric: "Fabric", folder: Path, recipe: Recipe, inputs: Inputs, settings: RunSettings, source: Source
) -> None:
    """Recipe, inputs, settings and versions, for people."""
    if fabric.is_global_zero:
        values = {
            "recipe": recipe.values(),
            "inputs": {**asdict(inputs), "identities": source.identities},
            "settings": asdict(settings),
            "world_size": fabric.world_size,
            "environment": runs.environment(str(fabric.device)),
        }
        with replacing(folder / "config.json") as file:
            file.write(json.dumps(values, indent=1, default=str).encode())
