"""`m2d-bench finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from tabulate import tabulate

from m2d_bench.encoders import zoo
from m2d_bench.errors import UsageError
from m2d_bench.finetuning import recipe as own_recipes
from m2d_bench.finetuning import run
from m2d_bench.finetuning.settings import FinetuneSettings
from m2d_bench.output import Flat, Names, Output
from m2d_bench.registry import resolve
from m2d_bench.runs import Run, TasksFailed
from m2d_bench.training import recipes
from m2d_bench.training.launch import is_first_process


def finetune(
    *,
    model: str = zoo.DEFAULT,
    task_names: Annotated[tuple[str, ...], Parameter("--tasks"), Names] = (),
    recipe: str | None = None,
    epochs: int | None = None,
    changes: Annotated[tuple[str, ...], Parameter("--set", consume_multiple=True, negative=())] = (),
    style: Annotated[str, Parameter(name="--format")] = "text",
    settings: Annotated[FinetuneSettings, Flat] = FinetuneSettings(),
    list_recipes: Annotated[bool, Parameter("--list", negative=())] = False,
) -> Output:
    """Fine-tune an encoder on tasks: mean ± 95% CI over seeds.

    Args:
        model: m2d_tiny, a released name, a path, or random:NAME; see m2d-bench models. Of images, a path.
        task_names: Names separated by commas or spaces, see m2d-bench tasks; FOLDER or FILE.csv of your own; hear:PATH,
            evar:PATH, or images:FOLDER in ImageNet's layout.
        recipe: A recipe of the papers (--list), or a YAML file; by default the one of the task's name.
        epochs: Passes over the training clips.
        changes: Values of the recipe to change, NAME=VALUE: learning_rate=0.1 mixup=0.3.
        style: text, md, csv, json, latex or html.
        settings: What is trained and where it runs.
        list_recipes: List the recipes.
    """
    if list_recipes:
        return Output(_recipes())
    if not task_names:
        raise UsageError(
            "Which tasks? --tasks esc50, such as m2d-bench tasks lists; or FOLDER, FILE.csv, evar:PATH, hear:PATH, "
            "images:FOLDER."
        )
    render = resolve("m2d_bench.results:report")
    resolve("m2d_bench.results:check_format")(style)
    chosen = {**recipes.parse(changes), **({} if epochs is None else {"epochs": epochs})}
    failures: tuple[str, ...] = ()
    try:
        done = run.finetune(model, task_names, recipe, chosen, settings)
    except TasksFailed as error:
        done, failures = list(error.runs), error.messages
    if not is_first_process():
        return Output("", failures)  # the first process says it for all
    text = render(done, style) if any(run.done(run.task["n_folds"]) for run in done) else ""
    notes = "\n".join(_notes(done, settings)) if style == "text" else ""
    return Output("\n\n".join(part for part in (text, notes) if part), failures)


def _notes(done: list[Run], settings: FinetuneSettings) -> list[str]:
    """Folds without a mean, how epochs were chosen where that flatters, and where the models are."""
    notes = []
    for record in done:
        notes += _partial(record)
        if record.settings["best_by"] == "test":
            notes.append(
                f"{record.task_title}: the best epoch by its test score, the papers' convention where a task has no "
                "validation clips; --best-by valid chooses by clips that are not tested."
            )
        if settings.checkpoints != "none":
            notes.append(f"Models: {record.path(Path(settings.out).expanduser()).with_suffix('')}")
    return notes


def _partial(run: Run) -> list[str]:
    """Scores of seeds of which not all folds were trained: they have no mean, so that no table shows them."""
    n_folds = run.task["n_folds"]
    notes = []
    for seed in sorted({score.seed for score in run.scores} - run.done(n_folds)):
        folds = [score for score in run.scores if score.seed == seed]
        listed = ", ".join(f"{score.fold}: {score.score:.4f}" for score in folds)
        notes.append(f"{run.task_title}: seed {seed}, {len(folds)} of {n_folds} folds, {run.task['metric']} {listed}")
    return notes


def _recipes() -> str:
    shown = ("optimizer", "learning_rate", "batch_size", "epochs", "mixup", "patchout_ratio", "adjust_positions")
    rows = []
    for kind in (own_recipes.Recipe, own_recipes.ImageRecipe):
        for name in own_recipes.names(kind):
            values = own_recipes.load(name, kind=kind).identity()
            rows.append({"recipe": name, **{key.replace("_", " "): values.get(key, "") for key in shown}})
    return tabulate(rows, headers="keys", tablefmt="simple")
