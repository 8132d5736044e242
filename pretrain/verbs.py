"""The commands of pre-training: `prepare` and `pretrain`."""

# No postponed annotations here: the command line reads the types of Choice.

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from tabulate import tabulate

from m2d_bench.errors import UsageError
from m2d_bench.output import Flat, Output
from m2d_bench.pretrain import recipe as own_recipes
from m2d_bench.pretrain import run
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare as prepare_shards
from m2d_bench.pretrain.inputs import Inputs
from m2d_bench.pretrain.recipe import Recipe
from m2d_bench.pretrain.run import RunSettings
from m2d_bench.settings import Storage
from m2d_bench.training import recipes
from m2d_bench.training.launch import is_first_process
from m2d_bench.values import Checked

_NAMED = 20  # failures on stderr; the file has them all


@dataclass(frozen=True, kw_only=True)
class Choice(Checked):
    """Which recipe, and what of it is changed.

    Args:
        recipe: A recipe of the papers (--list), or a YAML file.
        teacher: Model whose features M2D-S learns, such as hf:facebook/hubert-base-ls960; of further pre-training the
            same as --init.
        layer: Layer of the teacher, from 1; by default the last.
        preset: audioset, librispeech or small: epochs and batches for 2 million, 281 thousand, or ten thousand clips
            and less.
        epochs: Passes over the data.
        changes: Values of the recipe to change, NAME=VALUE: epochs=100 mask_ratio=0.6.
    """

    recipe: str = "m2d_base"
    teacher: str | None = None
    layer: int | None = None
    preset: str | None = None
    epochs: int | None = None
    changes: Annotated[tuple[str, ...], Parameter("--set", consume_multiple=True, negative=())] = ()

    def load(self) -> Recipe:
        """The recipe with its changes; a UsageError where there is none."""
        short = {"epochs": self.epochs, "teacher": self.teacher, "teacher_layer": self.layer}
        named = {name: value for name, value in short.items() if value is not None}
        return own_recipes.load(self.recipe, self.preset, {**recipes.parse(self.changes), **named})


def pretrain(
    *,
    choice: Annotated[Choice, Flat] = Choice(),
    inputs: Annotated[Inputs, Flat] = Inputs(),
    out: Path = Path("pretrained"),
    settings: Annotated[RunSettings, Flat] = RunSettings(),
    task_data: Path | None = None,
    cache: Path | None = None,
    runs_folder: Annotated[Path, Parameter("--runs")] = Path(str(Storage.runs)),
    list_recipes: Annotated[bool, Parameter("--list", negative=())] = False,
) -> Output:
    """Pre-train an encoder: MSM-MAE, M2D or M2D-X, from a folder of audio to a checkpoint in the released format.

    Args:
        choice: What is trained.
        inputs: What it begins from.
        out: Folder in which the checkpoint's folder is made.
        settings: Where it runs.
        task_data: Folder of the data sets of --tasks; else the environment's M2D_BENCH_DATA.
        cache: Cache folder of tasks.
        runs_folder: Folder for run records of --tasks.
        list_recipes: List the recipes.
    """
    if list_recipes:
        return Output(_recipes())
    recipe, teacher = choice.load(), choice.teacher
    if teacher and inputs.init not in (None, teacher) and recipe.arguments.get("scenario") == "regularisation":
        raise UsageError(
            f"Further pre-training begins from its teacher; got --init {inputs.init} and --teacher {teacher}. Name one."
        )
    storage = Storage(data=task_data, cache=cache, runs=runs_folder)
    path = run.pretrain(recipe, inputs, out.expanduser(), settings, storage)
    if not is_first_process():
        return Output("")  # the first process says it for all
    hint = f"\nEvaluate it: m2d-bench linear --model {path}" if recipe.channels == 1 else ""
    return Output(f"{path}{hint}")


def _recipes() -> str:
    rows = []
    for name in own_recipes.names():
        values = own_recipes.load(name)
        (freq, time), (patch_freq, patch_time) = values.input_size, values.patch_size
        rows.append(
            {
                "recipe": name,
                "method": values.method,
                "size": values.size,
                "input": f"{freq}×{time}",
                "patches": f"{patch_freq}×{patch_time}",
                "mask ratio": values.arguments["mask_ratio"],
                "epochs": values.epochs,
                "batch": values.effective_batch,
            }
        )
    return tabulate(rows, headers="keys", tablefmt="simple")


def prepare(
    paths: tuple[Path, ...],
    /,
    *,
    settings: Annotated[PrepareSettings, Flat] = PrepareSettings(),
    data: Path | None = None,
    cache: Path | None = None,
) -> Output:
    """Turn sound files into log-mel shards for pre-training: `m2d-bench prepare AUDIO … OUT`.

    An interrupted run goes on where it was when it is started again. Files and folders that cannot be read are named at
    the end and in OUT/failures.csv; the others are written.

    Args:
        paths: Folders of sound files, searched with their subfolders, or task:NAME, the clips of a task but for an
            official test split; and last the folder to write.
        settings: How.
        data: Folder of the data sets of task:NAME; else the environment's M2D_BENCH_DATA.
        cache: Cache folder of tasks.
    """
    if len(paths) < 2:
        raise UsageError("Name at least one folder of sound files, then the folder to write: prepare AUDIO … OUT.")
    *sources, out = (path.expanduser() for path in paths)
    index = prepare_shards(sources, out, settings, Storage(data=data, cache=cache)).index
    hours = index.n_frames * index.hop_length / index.sample_rate / 3600
    text = (
        f"{out}: {index.n_clips} clips, {hours:.1f} hours at {index.sample_rate} Hz, {len(index.shard_bytes)} shards, "
        f"mean {index.mean:.4f}, std {index.std:.4f}"
    )
    failures = [f"{path}: {reason}" for path, reason in index.failures[:_NAMED]]
    if (more := len(index.failures) - _NAMED) > 0:
        failures.append(f"{more} more cannot be read, see {out / 'failures.csv'}.")
    return Output(text, tuple(failures))
