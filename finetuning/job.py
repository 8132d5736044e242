"""Fine-tuning on one task: a training for each seed and fold, and their record."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Generator

from m2d_bench import runs
from m2d_bench.encoders import zoo
from m2d_bench.encoders.checkpoint import Labels
from m2d_bench.encoders.classifier import Classifier
from m2d_bench.encoders.frontend import LogMel
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.protocol import facts_of
from m2d_bench.errors import UsageError
from m2d_bench.evaluation import metrics
from m2d_bench.evaluation.metrics import check_scorable
from m2d_bench.finetuning import network
from m2d_bench.finetuning.batches import ClipCache, StepSampler
from m2d_bench.finetuning.recipe import Recipe
from m2d_bench.finetuning.settings import BestBy, FinetuneSettings
from m2d_bench.finetuning.trainer import BEST, LAST, Epoch, Selection, Trainer
from m2d_bench.progress import bar
from m2d_bench.randomness import generator_of
from m2d_bench.registry import unknown
from m2d_bench.runs import Predictions, Run, Score
from m2d_bench.settings import file_name, make_folder
from m2d_bench.tasks import dataset as datasets
from m2d_bench.tasks.dataset import Dataset
from m2d_bench.tasks.splits import VALIDATION_FRACTION, Split, draws_validation, folds, splits
from m2d_bench.tasks.task import Task
from m2d_bench.training.launch import failing_together, from_first_process
from m2d_bench.training.log import Log, StepReporter, ThroughputMeter
from m2d_bench.training.loop import RESUME, Step, read_resume

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric


class Job:
    """One task: a training for each seed and fold.

    Args:
        fabric: Launched.
        pretrained: What `read_model` gave.
        task: The task.
        recipe: How it is trained.
        settings: What is trained and where it runs.
        command: What the record says that was typed.
    """

    recipe_type: type[Recipe] = Recipe
    sampler_type: type[StepSampler] = StepSampler
    trainer_type: type[Trainer] = Trainer

    def __init__(
        self,
        fabric: Fabric,
        pretrained: Any,
        task: Task,
        recipe: Recipe,
        settings: FinetuneSettings,
        command: str,
    ) -> None:
        self.fabric, self.pretrained, self.recipe, self.settings = fabric, pretrained, recipe, settings
        with failing_together(fabric):
            dataset = datasets.load(task, settings, self.sample_rate, settings.jobs)
            self.dataset = dataset.readable(settings.on_bad_file)
        self.best_by = _best_by(self.dataset, settings)
        self.record = replace(self._blank_run(), command=command)

    @staticmethod
    def read_model(model: str | os.PathLike[str], settings: FinetuneSettings) -> Any:
        """The pre-trained model of a name."""
        return zoo.read(model, storage=settings)

    @property
    def sample_rate(self) -> int:
        """Hz of the clips."""
        rate: int = self.pretrained.config.sample_rate
        return rate

    @property
    def encoder_facts(self) -> dict[str, Any]:
        """What the record says of the pre-trained model."""
        return facts_of(M2DEncoder.from_checkpoint(self.pretrained))

    @property
    def view(self) -> dict[str, Any]:
        """What the record's settings say of a clip beside the recipe."""
        return {"clip_seconds": self.dataset.task.clip_seconds}

    def cache(self) -> ClipCache:
        """The clips, decoded."""
        return ClipCache(self.dataset, self.sample_rate, self.settings.jobs, self.settings.memory * 2**30)

    def classifier(self, labels: Labels, generator: Generator) -> tuple[Classifier, int]:
        """What is trained, with fresh weights where they are drawn, and the width of its input."""
        task = self.dataset.task
        samples = torch.tensor(round(task.clip_seconds * self.sample_rate))
        frames = int(LogMel(self.sample_rate).frame_counts(samples))
        classifier = network.build(self.pretrained, self.recipe, labels, frames, generator)
        _rename(classifier.encoder, task.name)
        return classifier, frames

    def run(self) -> Run:
        """Trains what is not finished, and returns the record with the scores asked for."""
        settings = self.settings
        seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
        wanted = [(seed, fold) for seed in seeds for fold in _folds(self.dataset, settings.folds)]
        finished = from_first_process(self.fabric, self._finished)
        missing = [key for key in wanted if key not in finished]
        clips = self.cache()
        for number, (seed, fold) in enumerate(missing, 1):
            drawn = splits(self.dataset, seed, draw=self.best_by == "valid")
            split = next(split for split in drawn if split.fold == fold)
            counter = f" ({number}/{len(missing)})" if len(missing) > 1 else ""
            self._train(seed, split, clips, f"{self.dataset.task.name} · seed {seed} · {_named(fold)}{counter}")
        done = from_first_process(self.fabric, lambda: runs.load_as(self.record, settings.runs_root))
        return replace(done, scores=tuple(score for score in done.scores if (score.seed, score.fold) in wanted))

    def _train(self, seed: int, split: Split, clips: ClipCache, title: str) -> None:
        """One training, from its first step or its last state, to its score in the record."""
        settings, fabric, folder = self.settings, self.fabric, self._folder(seed, split.fold)
        with ExitStack() as stack:
            from_first_process(fabric, lambda: stack.enter_context(_locked(folder)))
            state = from_first_process(fabric, lambda: _state(folder, settings))
            trainer = self._trainer(seed, split, clips, folder)
            if state:
                trainer.resume(state)
            with failing_together(fabric):
                log = Log(folder, resumed_at=trainer.step if state else None, rank=fabric.global_rank)
            with log:
                best = self._run(trainer, log, title)
            if settings.checkpoints == "all":
                trainer.save(LAST)
            from_first_process(fabric, lambda: self._finish(seed, split, best, trainer))

    def _finish(self, seed: int, split: Split, best: Epoch, trainer: Trainer) -> None:
        """Writes the record, and removes the files that are no longer needed."""
        runs.add(replace(self.record, scores=(self._score(seed, split, best, trainer),)), self.settings.runs_root)
        if self.settings.keep_predictions:
            runs.save_predictions(self.record, self.settings.runs_root, self._predictions(seed, split, best, trainer))
        (trainer.folder / RESUME).unlink(missing_ok=True)
        if self.settings.checkpoints == "none":
            (trainer.folder / BEST).unlink(missing_ok=True)

    def _folder(self, seed: int, fold: str) -> Path:
        """Folder of a training's models."""
        task_folder = self.record.path(Path(self.settings.out).expanduser()).with_suffix("")
        return task_folder / file_name(f"{seed}-{fold}")

    def _finished(self) -> set[tuple[int, str]]:
        """Seeds and folds in the record, with predictions where these are asked for; without those that --force began
        to train anew and --resume goes on with."""
        stored = runs.find(self.record, self.settings.runs_root)
        if self.settings.force or stored is None:
            return set()
        done = {(score.seed, score.fold) for score in stored.scores}
        if self.settings.keep_predictions:
            path = self.record.path(self.settings.runs_root)
            done &= {(predictions.seed, predictions.fold) for predictions in runs.load_predictions(path)}
        return {key for key in done if not (self.settings.resume and (self._folder(*key) / RESUME).exists())}

    def _trainer(self, seed: int, split: Split, clips: ClipCache, folder: Path) -> Trainer:
        """The training of a seed and fold, before its first step."""
        task, class_ids = self.dataset.task, torch.from_numpy(self.dataset.labels)
        labels = Labels(classes=self.dataset.classes, multilabel=class_ids.ndim == 2, clip_seconds=task.clip_seconds)
        if self.settings.compile:
            torch._dynamo.reset()  # the code of the model before is of no use
        self._check_scorable(split)
        classifier, width = self.classifier(labels, generator_of(seed, split.fold, "weights"))
        words, encoder = (seed, split.fold), classifier.encoder
        sampler = self.sampler_type(self.recipe, class_ids, split.train, encoder, width, words)
        selecting = {"valid": split.valid, "test": split.test, "last": None}[self.best_by]
        selection = Selection(clips=selecting, test=split.test, metric=task.metric)
        compile = self.settings.compile
        return self.trainer_type(self.fabric, classifier, sampler, clips, selection, folder, compile=compile)

    def _check_scorable(self, split: Split) -> None:
        """Raises a DataError where the clips that are scored hold too few labels for their metrics."""
        task, labels = self.dataset.task, torch.from_numpy(self.dataset.labels)
        what = f"{task.name}: the {{}} split of {_named(split.fold)}"
        if self.best_by == "valid":
            check_scorable(task.metric, labels[split.valid], task.n_classes, what.format("valid"))
        for metric in (task.metric, *task.other_metrics):
            check_scorable(metric, labels[split.test], task.n_classes, what.format("test"))

    def _run(self, trainer: Trainer, log: Log, title: str) -> Epoch:
        """Trains, with what is logged and shown."""
        settings, metric, epochs = self.settings, self.dataset.task.metric, self.recipe.epochs
        clips = epochs * trainer.sampler.epoch_clips
        meter = ThroughputMeter(total=clips, done=clips * trainer.step // trainer.total)

        def progress(step: Step) -> str:
            score = f" · {metric} {trainer.scores[-1]:.3f}" if trainer.scores else ""
            return (
                f"{title} · epoch {trainer.epoch + 1}/{epochs} · loss {float(step.loss):.4f}{score} · "
                f"lr {step.scalars['lr']:.2e}"
            )

        def on_epoch(step: int, score: float | None) -> None:
            if score is not None:
                with failing_together(self.fabric):
                    log.scalars(step, {f"{self.best_by}/{metric}": score})
            meter.skip()

        fabric, every, last = self.fabric, settings.log_steps, trainer.total
        with bar(title, last, "steps", done=trainer.step, shown=fabric.is_global_zero) as advance:
            report = StepReporter(
                fabric=fabric, log=log, meter=meter, advance=advance, every=every, last=last, describe=progress
            )
            return trainer.run(
                resume_minutes=settings.resume_minutes,
                check_steps=every,
                on_step=report,
                on_epoch=on_epoch,
            )

    def _score(self, seed: int, split: Split, best: Epoch, trainer: Trainer) -> Score:
        task, labels = self.dataset.task, torch.from_numpy(self.dataset.labels)[split.test]
        return Score(
            seed=seed,
            fold=split.fold,
            score=metrics.score(task.metric, best.logits, labels),
            n_test=len(split.test),
            seconds=round(trainer.seconds, 1),
            valid_score=best.score if self.best_by == "valid" else None,
            chosen={"epoch": best.number},
            others={metric: metrics.score(metric, best.logits, labels) for metric in task.other_metrics},
            per_class=metrics.per_class(best.logits, labels, self.dataset.classes),
        )

    def _predictions(self, seed: int, split: Split, best: Epoch, trainer: Trainer) -> Predictions:
        clips = split.test.numpy()
        return Predictions(
            seed=seed,
            fold=split.fold,
            clips=clips,
            labels=self.dataset.labels[clips],
            scores=best.logits.numpy(),
            valid_scores=np.asarray(trainer.scores if self.best_by == "valid" else []),
            classes=np.asarray(self.dataset.classes),
        )

    def _blank_run(self) -> Run:
        """The record, without scores."""
        drawn = self.best_by == "valid" and draws_validation(self.dataset)
        repeated = ["initialisation", "shuffling"]
        repeated += ["augmentation"] if self.recipe.augments() else []
        repeated += ["validation split"] if drawn else []
        devices = f" × {self.fabric.world_size}" if self.fabric.world_size > 1 else ""
        return Run(
            encoder=self.encoder_facts,
            task=self.dataset.facts,
            protocol="finetune",
            settings={
                **self.recipe.identity(),
                **self.view,
                "best_by": self.best_by,
                "precision": _PRECISIONS[self.fabric.strategy.precision.precision],
                "validation_fraction": VALIDATION_FRACTION if drawn else None,
                **({"left_out": self.dataset.left_out} if self.dataset.left_out else {}),
            },
            repeated=tuple(repeated),
            environment=runs.environment(f"{self.fabric.device}{devices}"),
        )


_PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}


def _rename(encoder: M2DEncoder, task: str) -> None:
    """Names a model that is fine-tuned, as released ones are: with its input size, and not as random any more."""
    config = encoder.config
    name = re.sub(r"-80x\d+p", f"-80x{config.vit.input_size[1]}p", config.name.removeprefix(zoo.RANDOM))
    encoder.config = replace(config, name=f"{name}_ft_{file_name(task)}")


def _named(fold: str) -> str:
    return "official split" if fold == "test" else f"fold {fold}"


def _best_by(dataset: Dataset, settings: FinetuneSettings) -> BestBy:
    """Split that chooses the epoch: as asked; else valid where the task has one, test otherwise."""
    if settings.best_by == "auto":
        return "test" if draws_validation(dataset) else "valid"
    return settings.best_by


def _folds(dataset: Dataset, asked: Sequence[str]) -> list[str]:
    """The folds to train.

    Raises:
        UsageError: One is not the task's.
    """
    own = folds(dataset)
    for fold in asked:
        if fold not in own:
            raise unknown("fold", fold, own, f"these: {', '.join(own)}")
    return [fold for fold in own if not asked or fold in asked]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a training's folder against other processes.

    Raises:
        UsageError: One is in there.
    """
    make_folder(folder)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{folder}: another process is training there. Wait for it, or give this one other --folds."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _state(folder: Path, settings: FinetuneSettings) -> dict[str, Any] | None:
    """State to resume from, if any.

    Raises:
        UsageError: There is an unfinished training that --resume was not asked for.
    """
    if settings.force and not settings.resume:
        (folder / RESUME).unlink(missing_ok=True)
    state = read_resume(folder)
    if state and not settings.resume:
        raise UsageError(
            f"{folder} holds a training at step {state['step']}. --resume goes on with it, --force begins anew."
        )
    return state
