"""Tables as text, Markdown, LaTeX, HTML, CSV or JSON: comparisons, and the short table of single runs.

In a comparison the best of a column is bold (text: ¹), the second underlined (text: ²); ≈ marks values that tie with
the best within the 95% interval of the difference, – a missing value. CSV and JSON have one record per cell, with
everything known about it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import TextWrapper
from typing import Any

from tabulate import tabulate

from m2d_bench.output import csv_text
from m2d_bench.registry import unknown
from m2d_bench.results.table import Column, Comparison, Mark, Row, Value
from m2d_bench.terminal import printable

FORMATS = ("text", "md", "csv", "json", "latex", "html")
MISSING = "–"


def check_format(style: str) -> None:
    """Raises a UsageError, before any work is done, unless the format is one of FORMATS."""
    if style not in FORMATS:
        raise unknown("format", style, FORMATS, f"these: {', '.join(FORMATS)}")


def interval(mean: float, half_width: float | None, decimals: int = 2, sign: str = "") -> str:
    """`mean ± half width`, or the mean alone without an interval; `sign` is "+" for differences."""
    text = f"{mean:{sign}.{decimals}f}".replace("-", "−")
    return text if half_width is None else f"{text} ± {half_width:.{decimals}f}"


@dataclass(frozen=True)
class _Markup:
    """How a format writes text, the best, the second, and a line break."""

    escape: Callable[[str], str]
    best: str
    second: str
    line: str


def _text(value: object) -> str:
    """On one line, and without what steers a terminal."""
    return printable(str(value).replace("\n", " "))


def _markdown(text: str) -> str:
    """As it reads: nothing becomes a tag, a cell, emphasis or a line."""
    text = printable(" ".join(html.escape(text, quote=False).split()))
    return re.sub(r"([\\|*`])", r"\\\1", text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "-": "-{}",  # else two are a dash
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"±": r"$\pm$", "≈": r"$\approx$", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--"},
    **{"−": "$-$", "…": r"\ldots{}", "α": r"$\alpha$", "[": "{[}"},
}

_MARKUP = {
    "text": _Markup(_text, "{} ¹", "{} ²", "\n"),
    "md": _Markup(_markdown, "**{}**", "<u>{}</u>", "<br>"),
    "latex": _Markup(_latex, r"\textbf{{{}}}", r"\underline{{{}}}", r" \\ "),
    "html": _Markup(html.escape, "<b>{}</b>", "<u>{}</u>", "<br>"),
}


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table as strings in one format's markup.

    Args:
        header: Headings of the columns.
        sections: Heading of each group of rows (or empty), and its rows.
        title: Above the table; empty for none.
        legend: Lines below the table.
        right_aligned: Columns of numbers, for LaTeX.
        heading_width: Characters of a heading's line in text.
    """

    header: list[str]
    sections: list[tuple[str, list[list[str]]]]
    title: str = ""
    legend: Sequence[str] = ()
    right_aligned: range = range(0)
    heading_width: int = 80


def render(comparison: Comparison, style: str, *, by_task: bool = False) -> str:
    """A comparison in one of FORMATS, with a row a model, or a row a task."""
    if style == "json":
        return json.dumps({"title": comparison.title, "cells": list(cells(comparison))}, indent=1, ensure_ascii=False)
    if style == "csv":
        return as_csv(list(cells(comparison)))
    return _FORMATS[style](_Renderer(comparison, _MARKUP[style], by_task).sheet())


def render_rows(header: Sequence[str], rows: Sequence[Sequence[object]], style: str) -> str:
    """A plain table as text, Markdown, LaTeX or HTML."""
    escape = _MARKUP[style].escape
    body = [["" if cell is None else escape(str(cell)) for cell in row] for row in rows]
    return _FORMATS[style](Sheet(header=list(map(escape, header)), sections=[("", body)] if body else []))


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows that have the same keys as CSV."""
    return csv_text(list(rows[0]) if rows else [], (row.values() for row in rows))


def cells(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """One record a cell that is not empty: where it stands, its number as shown and in parts, its source."""
    for place, row in enumerate(comparison.rows):
        for column in comparison.columns:
            if (value := row.values.get(column)) is None:
                continue
            mark = comparison.marks[place, column]
            difference = mark.difference
            yield {
                "model": row.model,
                "section": row.section,
                "params_millions": row.params_millions,
                "pretrain_data": row.pretrain_data,
                "protocol": column.protocol,
                "task": column.task,
                "metric": column.metric,
                "unit": column.unit,
                "higher_is_better": column.higher_is_better,
                "value": round(value.estimate.mean, 6),
                "ci95": _rounded(value.estimate.half_width),
                "n": None if value.printed else value.estimate.n,
                "printed": value.printed,
                "rank": mark.rank or None,
                "ties_with_best": mark.ties,
                "baseline": comparison.baseline,
                "difference": _rounded(difference.mean if difference else None),
                "difference_ci95": _rounded(difference.half_width if difference else None),
                "p_holm": _rounded(mark.p),
                "source": row.source,
                "note": "; ".join((*row.notes, *value.notes)),
            }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


class _Renderer:
    """Turns a comparison into a sheet in one format's markup."""

    def __init__(self, comparison: Comparison, markup: _Markup, by_task: bool) -> None:
        self.comparison, self.markup, self.by_task = comparison, markup, by_task
        self.details = [
            (name, heading)
            for name, heading in (("params_millions", "params (M)"), ("pretrain_data", "pre-training data"))
            if any(getattr(row, name) for row in comparison.rows)
        ]
        self.notes = list(dict.fromkeys(note for row in comparison.rows for note in _notes(row)))
        self.numbers = {note: number for number, note in enumerate(self.notes, 1)}
        self.decimals = {column: self._decimals(column) for column in comparison.columns}

    def sheet(self) -> Sheet:
        """A row a model, or a row a task."""
        return self._sheet_by_task() if self.by_task else self._sheet_by_model()

    def _sheet_by_model(self) -> Sheet:
        """A row a model and a column a task."""
        first = 1 + len(self.details)
        headings = [self.markup.line.join(map(self.markup.escape, lines)) for lines in self._headings()]
        return Sheet(
            title=self.comparison.title,
            header=["model", *(name for _, name in self.details), *headings, "source"],
            sections=self._sections(),
            legend=self._legend(),
            right_aligned=range(first, first + len(self.comparison.columns)),
        )

    def _sheet_by_task(self) -> Sheet:
        """A row a task and a column a model; the corner says what all tasks count, the last row how many runs."""
        headings = self._headings()
        shared = headings[0][1:] if len({tuple(counted) for _, *counted in headings}) == 1 else []
        labels = [self.markup.escape(", ".join(heading[:1] if shared else heading)) for heading in headings]
        models, *cells, _ = zip(*(row for _, rows in self._sections() for row in rows), strict=True)
        cells.append(tuple("–".join(map(str, _range(_counts(row)))) for row in self.comparison.rows))
        names = [*(name for _, name in self.details), *labels, "n"]
        return Sheet(
            title=self.comparison.title,
            header=[self.markup.escape(", ".join(shared) or "task"), *models],
            sections=[("", [[name, *line] for name, line in zip(names, cells, strict=True)])],
            legend=self._legend(),
            right_aligned=range(1, 1 + len(models)),
            heading_width=13,
        )

    def _headings(self) -> list[list[str]]:
        several_protocols = len({column.protocol for column in self.comparison.columns}) > 1
        return [self._heading(column, several_protocols) for column in self.comparison.columns]

    def _sections(self) -> list[tuple[str, list[list[str]]]]:
        """Neighbouring rows that have the same section."""
        numbered = enumerate(self.comparison.rows)
        return [
            (self.markup.escape(section), [self._row(number, row) for number, row in group])
            for section, group in groupby(numbered, key=lambda pair: pair[1].section)
        ]

    def _legend(self) -> list[str]:
        """What the marks mean, and the notes by number."""
        escape, markup = self.markup.escape, self.markup
        lines = [
            f"{markup.best.format('best')}, {markup.second.format('second')}; "
            + escape(f"≈ ties with the best (95% interval of the difference); {MISSING} none.")
        ]
        if self.comparison.baseline:
            lines.append(
                escape(
                    f"In parentheses: difference from {self.comparison.baseline} ± 95% interval, * where p < 0.05 "
                    "after Holm's correction."
                )
            )
        return lines + [escape(f"[{number}] {note}") for number, note in enumerate(self.notes, 1)]

    def _heading(self, column: Column, with_protocol: bool) -> list[str]:
        arrow = "↑" if column.higher_is_better else "↓"
        unit = f" {column.unit}" if column.unit else ""
        return [column.task, *([column.protocol] if with_protocol else []), f"{column.metric} {arrow}{unit}"]

    def _row(self, number: int, row: Row) -> list[str]:
        notes = sorted(self.numbers[note] for note in set(_notes(row)))
        model = row.model + (f" [{','.join(map(str, notes))}]" if notes else "")
        details = [getattr(row, name) for name, _ in self.details]
        values = [self._cell(row, column, self.comparison.marks.get((number, column))) for column in self.decimals]
        return [*map(self.markup.escape, (model, *details)), *values, self.markup.escape(_source(row))]

    def _cell(self, row: Row, column: Column, mark: Mark | None) -> str:
        escape, value, decimals = self.markup.escape, row.values.get(column), self.decimals[column]
        if value is None or mark is None:
            return escape(MISSING)
        text = escape(_shown(value, decimals))
        text = {1: self.markup.best, 2: self.markup.second}.get(mark.rank, "{}").format(text)
        if mark.ties:
            text += " " + escape("≈")
        if mark.difference:
            difference = interval(mark.difference.mean, mark.difference.half_width, decimals, "+")
            text += " " + escape(f"({difference}{'*' if mark.significant else ''})")
        if value.printed is None and len(_counts(row)) > 1 and not self.by_task:
            text += escape(f", n = {value.estimate.n}")
        return text

    def _decimals(self, column: Column) -> int:
        """As many as are printed in the column, two where nothing is."""
        printed = [
            value.printed.partition(" ")[0].partition(".")[2]
            for row in self.comparison.rows
            if (value := row.values.get(column)) and value.printed
        ]
        return max(map(len, printed), default=2)


def _notes(row: Row) -> list[str]:
    return [*row.notes, *(note for value in row.values.values() for note in value.notes)]


def _source(row: Row) -> str:
    """The paper and table, or how many runs are behind each cell of the row."""
    counts = _counts(row)
    return f"{row.source}, n = {counts.pop()}" if len(counts) == 1 else row.source


def _range(counts: set[int]) -> list[int]:
    """The least and the most, once where they are the same."""
    return sorted({min(counts), max(counts)} if counts else ())


def _counts(row: Row) -> set[int]:
    return {value.estimate.n for value in row.values.values() if value.printed is None}


def _shown(value: Value, decimals: int) -> str:
    return value.printed or interval(value.estimate.mean, value.estimate.half_width, decimals)


def _lines(sheet: Sheet) -> list[list[str]]:
    """Rows with the sections' headings between them."""
    blank = [""] * (len(sheet.header) - 1)
    return [line for section, rows in sheet.sections for line in ([[section, *blank]] if section else []) + rows]


class _HeadingWrapper(TextWrapper):
    """Lines may also end after a colon or a hyphen."""

    wordsep_re = re.compile(r"(\s+|(?<=[:-]))")


def _as_text(sheet: Sheet) -> str:
    if not sheet.sections and not sheet.title:
        return ""
    wrap = _HeadingWrapper(width=sheet.heading_width).wrap
    header = ["\n".join(part for line in heading.splitlines() for part in wrap(line)) for heading in sheet.header]
    body = tabulate(_lines(sheet), headers=header, tablefmt="simple", disable_numparse=True)
    return "\n".join(filter(None, [sheet.title, body, *sheet.legend]))


def _as_markdown(sheet: Sheet) -> str:
    body = tabulate(_lines(sheet), headers=sheet.header, tablefmt="pipe", disable_numparse=True)
    title = f"**{sheet.title}**" if sheet.title else ""
    return "\n\n".join(filter(None, [title, body, *sheet.legend]))


def _as_latex(sheet: Sheet) -> str:
    columns = "".join("r" if number in sheet.right_aligned else "l" for number in range(len(sheet.header)))
    body = []
    for section, rows in sheet.sections:
        body += [r"\midrule"]
        body += [rf"\multicolumn{{{len(sheet.header)}}}{{l}}{{\emph{{{section}}}}} \\"] if section else []
        body += [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            *([f"% {sheet.title}"] if sheet.title else []),
            "% needs \\usepackage{booktabs}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(rf"\shortstack{{{heading}}}" for heading in sheet.header) + r" \\",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"\\par\\smallskip {line}" for line in sheet.legend),
        ]
    )


def _as_html(sheet: Sheet) -> str:
    body = []
    for section, rows in sheet.sections:
        if section:
            body.append(f'<tr><th colspan="{len(sheet.header)}" scope="rowgroup">{section}</th></tr>')
        for first, *others in rows:
            body.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>")
    caption = f"<caption>{html.escape(sheet.title)}</caption>" if sheet.title else ""
    headings = "".join(f'<th scope="col">{heading}</th>' for heading in sheet.header)
    return "\n".join(
        [f"<table>{caption}", f"<thead><tr>{headings}</tr></thead>", "<tbody>", *body, "</tbody>", "</table>"]
        + [f"<p>{line}</p>" for line in sheet.legend]
    )


_FORMATS: dict[str, Callable[[Sheet], str]] = {
    "text": _as_text,
    "md": _as_markdown,
    "latex": _as_latex,
    "html": _as_html,
}
