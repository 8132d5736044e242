"""What `m2d-bench plot` can be told to do: a verb a kind of figure, written as .png, .svg or .pdf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from m2d_bench import runs
from m2d_bench.errors import UsageError
from m2d_bench.output import Flat, Output
from m2d_bench.results.filter import ALL, Filter
from m2d_bench.results.folders import read_all, read_predictions
from m2d_bench.results.plots import clips, curves, scores
from m2d_bench.results.plots.clips import Method
from m2d_bench.results.plots.figures import check_output, save
from m2d_bench.results.plots.plot_data import labels
from m2d_bench.runs import Run
from m2d_bench.settings import Storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT = App(name="plot", help="Draw run records and embeddings: .png, .svg or .pdf.")

Places = Annotated[tuple[Path, ...], Parameter(name="RUNS", negative=())]
File = Annotated[Path, Parameter(name=("--output", "-o"))]
Shown = Annotated[Filter, Flat]
RUNS = (Path(str(Storage.runs)),)


def _of_scores(draw: Callable[[Sequence[Run]], Figure], summary: str) -> None:
    """Adds a verb that draws records and takes nothing else."""

    def verb(folders: Places = RUNS, /, *, output: File, shown: Shown = ALL) -> Output:
        return _draw(draw, folders, output, shown)

    verb.__doc__ = f"""{summary}

    Args:
        folders: Folders of run records, or single records.
        output: The figure.
        shown: Which records are shown.
    """
    PLOT.command(verb, name=draw.__name__)


_of_scores(scores.forest, "Scores with 95% intervals: a panel per task, a row per model.")
_of_scores(scores.heatmap, "Models × tasks, mean ± half width in each cell.")
_of_scores(scores.radar, "A spoke per task, a line per model that has them all; three tasks or more.")


@PLOT.command
def curve(folders: Places = RUNS, /, *, x: str, output: File, shown: Shown = ALL) -> Output:
    """Score over a numeric field of the records: label efficiency, masking ratios, epochs of pre-training.

    Args:
        folders: Folders of run records, or single records.
        x: settings.train_fraction, another dotted path in the record, mask_ratio or epoch (from the model's name).
        output: The figure.
        shown: Which records are shown.
    """
    return _draw(lambda records: curves.curve(records, x), folders, output, shown)


@PLOT.command
def learning(folders: Places = RUNS, /, *, output: File, shown: Shown = ALL) -> Output:
    """Validation score per epoch, of runs that kept their predictions.

    Args:
        folders: Folders of run records, or single records.
        output: The figure.
        shown: Which records are shown.
    """
    check_output(output)
    records, failures = read_all(folders, shown)
    predicted, unread = read_predictions(records)
    save(curves.learning(predicted), output)
    return Output(str(output), (*failures, *unread))


@PLOT.command
def confusion(
    folders: Places = RUNS,
    /,
    *,
    output: File,
    model: str | None = None,
    task: str | None = None,
    protocol: str = "",
) -> Output:
    """Confusion matrix of one record that kept its predictions.

    Args:
        folders: The record, or folders of run records in which one fits.
        output: The figure.
        model: Name or pattern of the encoder.
        task: Name of the task.
        protocol: linear, knn, finetune, …
    """
    check_output(output)
    shown = Filter(models=(model,) if model else (), tasks=(task,) if task else (), protocol=protocol)
    records, failures = read_all(folders, shown)
    if len(records) > 1:
        named = zip(records.items(), labels(list(records.values())), strict=True)
        listed = "\n".join(f"  {path}: {label} on {run.task['name']}" for (path, run), label in named)
        raise UsageError(f"A confusion matrix is of one record; {len(records)} fit. Name one of these files:\n{listed}")
    ((path, run),) = records.items()
    save(clips.confusion(run, runs.load_predictions(path)), output)
    return Output(str(output), tuple(failures))


@PLOT.command
def embeddings(
    file: Path,
    /,
    *,
    output: File,
    method: Method = "pca",
    label_table: Annotated[Path | None, Parameter("--labels")] = None,
) -> Output:
    """Map of what m2d-bench embed wrote.

    Args:
        file: .npz or .parquet.
        output: The figure.
        method: pca, or tsne.
        label_table: CSV file with columns file_name and label; without it, a file's folder is its label.
    """
    check_output(output)
    files, vectors = clips.read_embeddings(file)
    save(clips.embedding_map(vectors, clips.labels_of(files, label_table), method), output)
    return Output(str(output))


def _draw(draw: Callable[[Sequence[Run]], Figure], folders: Sequence[Path], output: Path, shown: Filter) -> Output:
    check_output(output)
    records, failures = read_all(folders, shown)
    save(draw(list(records.values())), output)
    return Output(str(output), tuple(failures))
