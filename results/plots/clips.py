"""Clips → figures: a confusion matrix of kept predictions, a map of embeddings."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from m2d_bench.errors import DataError, UsageError
from m2d_bench.registry import unknown
from m2d_bench.results.plots.figures import legend, panels, styled, styles
from m2d_bench.results.plots.plot_data import KEEP
from m2d_bench.runs import Predictions, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

Method = Literal["pca", "tsne"]

_NO_LABEL = "(no label)"
_LABELS_SHOWN = 20
_CLASSES_WITH_NUMBERS = 60


@styled()
def confusion(run: Run, predictions: Sequence[Predictions]) -> Figure:
    """Confusion matrix, summed over seeds and folds: colours are shares of the true class, numbers are counts.

    Args:
        run: The record.
        predictions: Its predictions.

    Raises:
        UsageError: There are no predictions, or a clip may have several labels.
    """
    task = run.task_title
    if not predictions:
        raise UsageError(f"{run.encoder['name']} on {task} has no kept predictions. {KEEP}")
    if predictions[0].labels.ndim > 1:
        raise UsageError(f"{task}: a clip may have several labels; a confusion matrix takes one label a clip.")
    classes = [str(name) for name in predictions[0].classes]
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for fold in predictions:
        np.add.at(counts, (fold.labels, fold.scores.argmax(1)), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    seeds, folds = {fold.seed for fold in predictions}, {fold.fold for fold in predictions}
    side = min(max(5.0, 0.38 * len(classes)), 30.0)
    figure, (panel,) = panels(
        [side],
        width=side + 2.5,
        title=f"{run.encoder['name']}\n{task}, {run.protocol}: {counts.sum()} predictions,\n"
        f"summed over seeds (n = {len(seeds)}) and test folds ({len(folds)})",
    )
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=panel, label="share of the true class", shrink=0.7)
    if len(classes) <= _CLASSES_WITH_NUMBERS:
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "white" if shares[row, column] > 0.55 else "black"
            size = 8 if counts.max() < 1000 else 6
            panel.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=color)
    _name_classes(panel, classes)
    return figure


def _name_classes(panel: Axes, classes: Sequence[str]) -> None:
    """Names on both axes, as many as can be read."""
    ticks = range(0, len(classes), -(-len(classes) // 80))
    panel.set_xticks(ticks, [classes[tick] for tick in ticks], rotation=90)
    panel.set_yticks(ticks, [classes[tick] for tick in ticks])
    panel.set(xlabel="predicted class", ylabel="true class")
    panel.grid(visible=False)


def read_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    """Files' names and embeddings [N, D] that `m2d-bench embed` wrote.

    Raises:
        UsageError: Another suffix than .npz or .parquet, or .parquet without pyarrow.
        DataError: The file cannot be read, or holds other things.
    """
    if path.suffix not in (".npz", ".parquet"):
        raise UsageError(f"{path}: embeddings are read from the .npz or .parquet file that m2d-bench embed writes.")
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return arrays["files"].tolist(), arrays["embeddings"]
        import pandas as pd

        table = pd.read_parquet(path)
        return table["file"].tolist(), np.stack(table["embedding"].tolist())
    except ImportError as error:
        raise UsageError(f"{path}: reading Parquet needs pyarrow. Run pip install 'm2d-bench[parquet]'.") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path}: not what m2d-bench embed writes ({type(error).__name__}: {error}).") from error


def labels_of(files: Sequence[str], table: Path | None = None) -> list[str]:
    """A label for each file: from a table, by its path or its name; without a table, its folder's name.

    Args:
        files: Paths of the files.
        table: CSV file with the columns file_name and label.

    Raises:
        UsageError: The table lacks a column, or names none of the files.
    """
    if table is None:
        return [Path(file).parent.name or _NO_LABEL for file in files]
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            rows = [(row["file_name"], row["label"]) for row in csv.DictReader(lines)]
    except (KeyError, OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{table}: labels are read from a CSV file with columns file_name and label ({error})."
        ) from error
    by_path = dict(rows)
    by_name: dict[str, set[str]] = {}
    for name, label in rows:
        by_name.setdefault(Path(name).name, set()).add(label)
    unique = {name: labels.pop() for name, labels in by_name.items() if len(labels) == 1}
    labels = [by_path.get(file, unique.get(Path(file).name, _NO_LABEL)) for file in files]
    if missing := [file for file, label in zip(files, labels, strict=True) if label == _NO_LABEL]:
        if len(missing) == len(files):
            raise UsageError(f"{table}: names none of the {len(files)} files, such as {files[0]}.")
        logger.warning("%s: %d of %d files have no label, such as %s.", table, len(missing), len(files), missing[0])
    return labels


@styled()
def embedding_map(embeddings: np.ndarray, names: Sequence[str], method: Method = "pca") -> Figure:
    """Embeddings in two dimensions, coloured by label; past the most frequent labels, the others are grey.

    Args:
        embeddings: [N, D].
        names: A label each, [N].
        method: pca, or tsne.

    Raises:
        UsageError: Another method, or fewer than three embeddings.
    """
    points, axes_titles = _projected(embeddings, method)
    frequent = [name for name, _ in Counter(names).most_common() if name != _NO_LABEL][:_LABELS_SHOWN]
    look = styles(frequent)
    figure, (panel,) = panels(
        [6.5], width=7.5, title=f"{'PCA' if method == 'pca' else 't-SNE'} of n = {len(points)} embeddings"
    )
    of_point = np.array(names)
    others = ~np.isin(of_point, frequent)
    if others.any():
        count = len(set(of_point[others]))
        label = of_point[others][0] if count == 1 else f"({count} other labels)"
        panel.scatter(points[others, 0], points[others, 1], s=14, color="0.7", linewidths=0, label=label)
    for name in sorted(frequent):
        panel.scatter(
            points[of_point == name, 0],
            points[of_point == name, 1],
            s=18,
            color=look[name].color,
            marker=look[name].marker,
            linewidths=0,
            label=name,
        )
    panel.set(xlabel=axes_titles[0], ylabel=axes_titles[1])
    legend(figure, [panel], columns=3)
    return figure


def _projected(embeddings: np.ndarray, method: Method) -> tuple[np.ndarray, tuple[str, str]]:
    """Points [N, 2], and titles of the axes."""
    if method not in get_args(Method):
        raise unknown("method", method, get_args(Method), f"these: {', '.join(get_args(Method))}")
    if embeddings.ndim != 2 or len(embeddings) < 3 or embeddings.shape[1] < 2:
        raise UsageError(f"A map takes three embeddings of two numbers or more, got the shape {embeddings.shape}.")
    if method == "pca":
        from sklearn.decomposition import PCA

        pca = PCA(n_components=2, random_state=0)
        points = pca.fit_transform(embeddings.astype(np.float64))
        first, second = (
            f"PC {n}: {share:.1%} of the variance" for n, share in enumerate(pca.explained_variance_ratio_, 1)
        )
        return points, (first, second)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="random", random_state=0).fit_transform(embeddings.astype(np.float32))
    return points, ("t-SNE 1", f"t-SNE 2 (perplexity {perplexity:g}; distances between groups mean little)")
