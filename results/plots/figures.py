"""What every figure shares: colours, panels, fonts, and files that are the same each time they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from m2d_bench.errors import UsageError
from m2d_bench.settings import make_folder, replacing

if TYPE_CHECKING:  # an extra: loaded by the functions that draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEANING = "mean and 95% confidence interval (Student's t) over n seeds"
"""What a point and its bar are, for titles."""

SUFFIXES = (".png", ".svg", ".pdf")

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that the colour-blind tell apart. Source: Okabe and Ito (2008), without the yellow, too pale for lines."""

_MARKERS = "osD^vPX*<>"
_METADATA = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_SETTINGS = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.titlesize": 12,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a figure is the same on every machine
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.fontsize": 9,
    "pdf.fonttype": 42,
    "savefig.dpi": 150,
    "svg.hashsalt": "m2d-bench",
    "text.parse_math": False,  # names may hold dollar signs
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


class Style(NamedTuple):
    """How a name is drawn."""

    color: str
    marker: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A colour and marker for each name, in alphabetical order; past the seventh colour, the marker changes."""
    return {
        name: Style(_COLOURS[index % len(_COLOURS)], _MARKERS[index // len(_COLOURS) % len(_MARKERS)])
        for index, name in enumerate(sorted(set(names)))
    }


@contextmanager
def styled() -> Iterator[None]:
    """Settings of matplotlib for the time of drawing."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):  # type: ignore[arg-type]
        yield


def panels(
    heights: Sequence[float], *, columns: int = 1, width: float, title: str, projection: str | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure of panels, row by row.

    Args:
        heights: Of each panel, in inches; a row takes its highest.
        columns: Panels side by side.
        width: Of a panel, in inches.
        title: Above all; wrapped where it is too wide.
        projection: Of the axes.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(heights))
    rows = [max(heights[start : start + columns]) for start in range(0, len(heights), columns)]
    figure = Figure(figsize=(columns * width, sum(rows) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns, height_ratios=rows)
    figure.suptitle("\n".join(fill(line, int(11 * columns * width)) for line in title.splitlines()))
    cells = [divmod(index, columns) for index in range(len(heights))]
    return figure, [figure.add_subplot(grid[row, column], projection=projection) for row, column in cells]


def legend(figure: Figure, axes: Sequence[Axes], columns: int = 1) -> None:
    """One legend below all panels, in alphabetical order; makes the figure higher by as much as it takes."""
    handles = {
        label: handle for panel in axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    names = sorted(handles)
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=columns, frameon=False)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * -(-len(names) // columns) + 0.1)


def check_output(path: Path) -> None:
    """Raises a UsageError, before any work is done, unless a figure can be written as this file."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: figures are written as {', '.join(SUFFIXES)}; got {path.suffix or 'no suffix'!r}.")
    if find_spec("matplotlib") is None:
        raise UsageError("Plots need matplotlib, which is not installed. Run pip install 'm2d-bench[plots]'.")
    make_folder(path.parent)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the path's suffix, whole or not at all; the same bytes each time.

    Raises:
        UsageError: Another suffix than those of SUFFIXES.
    """
    check_output(path)
    suffix = path.suffix.lower()
    with styled(), replacing(path) as file:
        figure.savefig(file, format=suffix[1:], metadata=_METADATA[suffix])
