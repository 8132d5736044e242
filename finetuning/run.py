"""Fine-tuning on tasks: every seed and fold a training of its own, one record a task."""

# No postponed annotations here: the command line reads the types of FinetuneSettings.

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch

from m2d_bench import dataset as datasets
from m2d_bench import metrics, runs, tasks, zoo
from m2d_bench.checkpoint import Checkpoint, Labels
from m2d_bench.dataset import Dataset
from m2d_bench.encoder import facts_of
from m2d_bench.errors import M2DBenchError, TasksFailed, UsageError
from m2d_bench.finetuning import network
from m2d_bench.finetuning import recipe as own_recipes
from m2d_bench.finetuning.batches import Plan, Reader
from m2d_bench.finetuning.recipe import Recipe
from m2d_bench.finetuning.trainer import BEST, LAST, Epoch, Selection, Step, Trainer
from m2d_bench.frontend import LogMel
from m2d_bench.log import Log, Rate
from m2d_bench.output import Names
from m2d_bench.probes import generator_of
from m2d_bench.progress import bar
from m2d_bench.registry import unknown
from m2d_bench.runs import Predictions, Run, Score
from m2d_bench.settings import Storage, command_line, file_name, make_folder
from m2d_bench.splits import VALIDATION_FRACTION, Split, draws_validation, folds, splits
from m2d_bench.tasks.task import Task
from m2d_bench.training import RESUME, Precision, launch, read_resume

if TYPE_CHECKING:  # an extra
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)


Choice = Literal["valid", "test", "last"]


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(Storage):
    """What is trained and where it runs.

    Args:
        seeds: Number of runs.
        first_seed: Seed of the first run; the others follow.
        folds: Folds to train; all by default.
        best_by: What chooses the epoch that is tested. auto: the validation clips, or where the task has none the test
            clips, the papers' convention. valid: where there are none, a tenth of the training clips, as in linear
            evaluation. test. last: the last epoch, whatever it scores.
        device: auto (a GPU if there is one), cpu, cuda, …; several under torchrun or Slurm.
        precision: fp32, bf16, fp16, or auto: bf16 where the device multiplies it natively, else fp32.
        compile: Compile the encoder.
        jobs: Threads that decode audio; 0 means one a core.
        memory: GiB of decoded audio to keep in memory.
        out: Folder for checkpoints.
        checkpoints: Which to keep of a finished training: all (the best and the last), best or none.
        resume: Go on where an unfinished training stopped.
        force: Train finished seeds and folds anew.
        keep_predictions: Also keep what each test clip scored, beside the record.
        resume_steps: Steps between files to go on from.
        log_steps: Steps between records of the log.

    Raises:
        UsageError: A value is outside what is allowed.
    """

    seeds: int = 3
    first_seed: int = 42
    folds: Annotated[tuple[str, ...], Names] = ()
    best_by: Literal["auto", "valid", "test", "last"] = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    compile: bool = False
    jobs: int = 0
    memory: float = 2.0
    out: str | Path = "finetuned"
    checkpoints: Literal["all", "best", "none"] = "all"
    resume: bool = False
    force: bool = False
    keep_predictions: bool = False
    resume_steps: int = 500
    log_steps: int = 20

    def __post_init__(self) -> None:
        for name, minimum in {"seeds": 1, "jobs": 0, "memory": 0, "resume_steps": 1, "log_steps": 1}.items():
            if getattr(self, name) < minimum:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {minimum}.")
        for name, allowed in (("best_by", ("auto", "valid", "test", "last")), ("checkpoints", ("all", "best", "none"))):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it is one of {', '.join(allowed)}.")


def finetune(
    model: str | os.PathLike[str],
    task_names: str | Sequence[str],
    recipe: str | Path | None = None,
    recipe_changes: Mapping[str, Any] | None = None,
    settings: FinetuneSettings = FinetuneSettings(),
    **changes: Any,
) -> list[Run]:
    """Fine-tunes a model on tasks; finished seeds and folds are read from their records instead of trained.

    Args:
        model: A model's name, see `zoo.load`.
        task_names: Names of tasks (see `tasks.get`), as a list or separated by commas.
        recipe: Name of a recipe, or a YAML file; by default the task's own.
        recipe_changes: Values of the recipe to set.
        settings: What is trained and where it runs.
        changes: Fields of the settings to change, such as `seeds=1` or `data="/data"`.

    Returns:
        One record a task, with the scores of the seeds and folds asked for.

    Raises:
        UsageError, DataError, CheckpointError: Unknown model, task, recipe or setting; nothing was trained.
        TasksFailed: Some tasks failed, after the others were done; it carries their records.

    Source: M2D-X (2024), section IV-C and Table II.
    """
    known = [field.name for field in fields(FinetuneSettings)]
    for name in changes:
        if name not in known:
            raise unknown("setting", name, known, "m2d-bench finetune --help")
    settings = replace(settings, **changes)
    jobs = []
    for name, task in tasks.get_all(task_names).items():
        chosen = recipe or own_recipes.name_for(task.name)
        jobs.append((name, task, str(chosen), own_recipes.load(chosen, recipe_changes)))
    found = zoo.read(model, storage=settings)
    for folder in (settings.runs_root, Path(settings.out).expanduser()):
        make_folder(folder)
    fabric = launch(settings.device, settings.precision)
    done: list[Run] = []
    failures: dict[str, Exception] = {}
    for name, task, chosen, values in jobs:
        words = ["finetune", "--model", str(model), "--tasks", name, "--recipe", chosen]
        words += [word for key, value in (recipe_changes or {}).items() for word in ("--set", f"{key}={value}")]
        command = command_line(words, settings, leaving_out=("force", "resume"))
        try:
            job = _Job(fabric, found, task, Path(chosen).stem, values, settings, command)
            done.append(job.run())
        except (M2DBenchError, OSError, torch.OutOfMemoryError) as error:
            failures[task.name] = error
    if failures:
        raise TasksFailed(failures, done)
    return done


class _Job:
    """One task: its trainings, a seed and fold each."""

    def __init__(
        self,
        fabric: "Fabric",
        found: Checkpoint,
        task: Task,
        recipe_name: str,
        recipe: Recipe,
        settings: FinetuneSettings,
        command: str,
    ) -> None:
        self.fabric, self.found, self.recipe, self.settings = fabric, found, recipe, settings
        self.dataset = datasets.load(task, settings, found.config.sample_rate)
        self.choice = _choice(self.dataset, settings)
        self.record = replace(self._blank_run(recipe_name), command=command)

    def run(self) -> Run:
        """Trains what is not finished, and returns the record with the scores asked for."""
        first, folds = self.settings.first_seed, _folds(self.dataset, self.settings.folds)
        wanted = [(seed, fold) for seed in range(first, first + self.settings.seeds) for fold in folds]
        path = self.record.path(self.settings.runs_root)
        finished = self.fabric.broadcast(_finished(path, self.settings) if self.fabric.is_global_zero else set())
        missing = [each for each in wanted if each not in finished]
        reader = None
        for number, (seed, fold) in enumerate(missing, 1):
            reader = reader or Reader(
                self.dataset, self.found.config.sample_rate, self.settings.jobs, self.settings.memory * 2**30
            )
            drawn = splits(self.dataset, seed, draw=self.choice == "valid")
            split = next(each for each in drawn if each.fold == fold)
            place = f" ({number}/{len(missing)})" if len(missing) > 1 else ""
            self._train(seed, split, reader, f"{self.dataset.task.name} · seed {seed} · {_named(fold)}{place}")
        done = runs.load(path) if self.fabric.is_global_zero else self.record
        scores = tuple(score for score in done.scores if (score.seed, score.fold) in wanted)
        return self.fabric.broadcast(replace(done, scores=scores))

    def _train(self, seed: int, split: Split, reader: Reader, title: str) -> None:
        """One training, from where it stood, to its score in the record."""
        settings, fabric = self.settings, self.fabric
        folder = self.record.path(Path(settings.out).expanduser()).with_suffix("") / file_name(f"{seed}-{split.fold}")
        state = _state(folder, settings)
        trainer = self._trainer(seed, split, reader, folder)
        if state:
            trainer.resume(state)
        with Log(folder, resumed_at=trainer.step if state else None, rank=fabric.global_rank) as log:
            best = self._run(trainer, log, title)
        if settings.checkpoints == "all":
            trainer.save(LAST)
        if fabric.is_global_zero:
            runs.add(replace(self.record, scores=(self._score(seed, split, best, trainer),)), settings.runs_root)
            if settings.keep_predictions:
                runs.keep(self.record, settings.runs_root, self._predictions(seed, split, best, trainer))
            (folder / RESUME).unlink(missing_ok=True)
            if settings.checkpoints == "none":
                (folder / BEST).unlink(missing_ok=True)
        fabric.barrier()

    def _trainer(self, seed: int, split: Split, reader: Reader, folder: Path) -> Trainer:
        """The training of a seed and fold, before its first step."""
        dataset, config, recipe = self.dataset, self.found.config, self.recipe
        labels = torch.from_numpy(dataset.labels)
        samples = round(dataset.task.clip_seconds * config.sample_rate)
        frames = int(LogMel(config.sample_rate).frame_counts(torch.tensor(samples)))
        named = Labels(classes=dataset.classes, multilabel=labels.ndim == 2, clip_seconds=dataset.task.clip_seconds)
        if self.settings.compile:
            torch._dynamo.reset()  # the model before this one's code is not of use
        classifier = network.build(self.found, recipe, named, frames, generator_of(seed, split.fold, "weights"))
        name = f"{config.name}_ft_{dataset.task.name}"
        classifier.encoder.config = replace(classifier.encoder.config, name=name)
        plan = Plan(recipe, labels, split.train, classifier.encoder, frames, (seed, split.fold))
        chooses = {"valid": split.valid, "test": split.test, "last": None}[self.choice]
        selection = Selection(clips=chooses, test=split.test, metric=dataset.task.metric)
        return Trainer(self.fabric, classifier, plan, reader, selection, folder, compile=self.settings.compile)

    def _run(self, trainer: Trainer, log: Log, title: str) -> Epoch:
        """The loop, with what is logged and shown."""
        epochs, clips = self.recipe.epochs, self.recipe.epochs * trainer.plan.epoch_clips
        rate = Rate(total=clips, done=clips * trainer.step // trainer.total)
        metric, shown = self.dataset.task.metric, self.fabric.is_global_zero
        with bar(title, trainer.total, "steps", done=trainer.step, shown=shown) as advance:

            def on_step(step: Step) -> None:
                rate.update(step.clips)
                if step.number % self.settings.log_steps == 0 or step.number == trainer.total:
                    log.scalars(step.number, {"loss": step.loss, "lr": step.rate, **rate.scalars()})
                    score = "" if step.score is None else f" · {metric} {step.score:.3f}"
                    advance.describe(
                        f"{title} · epoch {step.epoch}/{epochs} · loss {float(step.loss):.4f}{score} · "
                        f"lr {step.rate:.2e} · {rate}"
                    )
                advance(1)

            def on_epoch(step: int, score: float | None) -> None:
                if score is not None:
                    log.scalars(step, {f"{self.choice}/{metric}": score})
                rate.skip()

            return trainer.run(
                resume_steps=self.settings.resume_steps,
                check_steps=self.settings.log_steps,
                on_step=on_step,
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
            valid_score=best.score if self.choice == "valid" else None,
            chosen={"epoch": best.number},
            others={metric: metrics.score(metric, best.logits, labels) for metric in task.other_metrics},
        )

    def _predictions(self, seed: int, split: Split, best: Epoch, trainer: Trainer) -> Predictions:
        clips = split.test.numpy()
        return Predictions(
            seed=seed,
            fold=split.fold,
            clips=clips,
            labels=self.dataset.labels[clips],
            scores=best.logits.numpy(),
            valid_scores=np.asarray(trainer.scores),
            classes=np.asarray(self.dataset.classes),
        )

    def _blank_run(self, recipe_name: str) -> Run:
        """The record, without scores."""
        values = {name: value for name, value in asdict(self.recipe).items() if name != "accumulate"}
        drawn = self.choice == "valid" and draws_validation(self.dataset)
        repeated = ("initialisation of the head", "shuffling", "augmentation")
        return Run(
            encoder=facts_of(self.found.build()),
            task=self.dataset.facts,
            protocol="finetune",
            settings={
                "recipe": recipe_name,
                **values,
                "clip_seconds": self.dataset.task.clip_seconds,
                "best_by": self.choice,
                "precision": _PRECISIONS[self.fabric.strategy.precision.precision],
                "validation_fraction": VALIDATION_FRACTION if drawn else None,
            },
            repeated=(*repeated, "validation split") if drawn else repeated,
            environment=runs.environment(str(self.fabric.device)),
        )


_PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}


def _named(fold: str) -> str:
    return "official split" if fold == "test" else f"fold {fold}"


def _choice(dataset: Dataset, settings: FinetuneSettings) -> Choice:
    """What chooses the epoch: as asked; else validation clips where there are some, the test's otherwise."""
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


def _finished(path: Path, settings: FinetuneSettings) -> set[tuple[int, str]]:
    """Seeds and folds that are in the record; where predictions are asked for, with theirs."""
    if settings.force or not path.exists():
        return set()
    done = {(score.seed, score.fold) for score in runs.load(path).scores}
    if settings.keep_predictions:
        done &= {(each.seed, each.fold) for each in runs.kept(path)}
    return done


def _state(folder: Path, settings: FinetuneSettings) -> dict[str, Any] | None:
    """What is gone on from.

    Raises:
        UsageError: There is an unfinished training that --resume was not asked for.
    """
    if settings.force:
        return None
    state = read_resume(folder)
    if state and not settings.resume:
        raise UsageError(
            f"{folder} holds a training at step {state['step']}. --resume goes on with it, --force begins anew."
        )
    return state
