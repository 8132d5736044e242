"""Run records → one HTML file that needs nothing else: table, forest plots, every raw score behind them."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from m2d_bench.errors import UsageError
from m2d_bench.output import Output
from m2d_bench.results.classes import class_summary, class_table
from m2d_bench.results.comparison import compare
from m2d_bench.results.folders import read_all
from m2d_bench.results.ranking import marks_of
from m2d_bench.results.records import OURS, train_fraction, variants
from m2d_bench.results.render import interval, render
from m2d_bench.results.statistics import Estimate, higher_is_better, scale, seed_means
from m2d_bench.results.summary import summary
from m2d_bench.results.table import Column, Row, Value
from m2d_bench.runs import Run
from m2d_bench.settings import Storage, make_folder, replacing


def report(
    folders: tuple[Path, ...] = (Path(str(Storage.runs)),),
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"))] = Path("report.html"),
    like: str | None = None,
) -> Output:
    """Write run records as one HTML file: sortable table, plots, every raw score.

    Args:
        folders: Folders of run records, or single records.
        output: The file, named .html.
        like: A published table to show them beside as well, such as m2dx-2024:III.
    """
    output = output.expanduser()
    if output.suffix != ".html":
        raise UsageError(f"{output}: a report is one .html file. Name it so: -o {output.with_suffix('.html')}")
    records, failures = read_all(folders)
    make_folder(output.parent)
    now = datetime.now(timezone.utc).isoformat(sep=" ", timespec="seconds")
    beside = _beside(list(records.values()), like) if like else ""
    page = build(list(records.values()), created=now, failures=failures, extra_html=beside)
    with replacing(output) as file:
        file.write(page.encode("utf-8", "xmlcharrefreplace"))  # undecodable bytes of a file's name
    return Output(f"{output}: {_count(len(records), 'record')}", tuple(failures))


def build(records: Sequence[Run], *, created: str, failures: Sequence[str] = (), extra_html: str = "") -> str:
    """The report as one HTML page. The same arguments give the same text.

    Args:
        records: What is shown. Those without a finished seed are named above the table instead.
        created: Time to print under the title.
        failures: Messages about files that could not be read, to be shown as well.
        extra_html: Fragment to stand before the table of runs, taken as it is.

    Raises:
        UsageError: There are no records.
    """
    if not records:
        raise UsageError("No run records to report on. m2d-bench linear writes them; name their folder.")
    rows = _rows(records)
    parts = {
        "title": escape(_title(records)),
        "created": escape(created),
        "notices": _notices(records, failures),
        "extra": extra_html,
        "rows": "\n".join(map(_table_row, rows)),
        "data": _data(records, rows),
    }
    template = files("m2d_bench.results.html_report").joinpath("report.html").read_text(encoding="utf-8")
    # In one pass: what is inserted stays as it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _beside(records: Sequence[Run], like: str) -> str:
    """The runs in a published table."""
    table = render(compare(records, like=like), "html")
    heading = "Beside the papers"
    frame = f'<div class="scroll" role="region" aria-label="{heading}" tabindex="0">{table}</div>'
    return f"<section><h2>{heading}</h2>{frame}</section>"


def _rows(records: Sequence[Run]) -> list[dict[str, Any]]:
    """The summary's rows with what the page needs besides, by task and metric, the best mean first."""
    rows, ranked = [], []
    for number, (run, variant) in enumerate(zip(records, variants(records), strict=True)):
        model = run.encoder["name"] + (f" ({variant})" if variant else "")
        repeated = ", ".join(run.repeated)
        about = {"model": model, "key": run.key, "created": run.created, "repeated": repeated, "record": number}
        for row in summary([run]):
            scores: dict[Hashable, float] = {
                seed: scale(row["metric"]) * score for seed, score in seed_means(run, row["metric"]).items()
            }
            seeds = [round(score, 4) for score in scores.values()]
            rows.append({**row, **about, "lower": not higher_is_better(row["metric"]), "seeds": seeds})
            ranked.append(_ranked_row(rows[-1], scores, train_fraction(run)))
    columns = list(dict.fromkeys(column for row in ranked for column in row.values))
    for (number, _), mark in marks_of(ranked, columns, None).items():
        rows[number]["best"] = mark.rank == 1
    return sorted(rows, key=lambda row: (row["task"], row["metric"], row["mean"] if row["lower"] else -row["mean"]))


def _ranked_row(row: Mapping[str, Any], scores: Mapping[Hashable, float], fraction: float) -> Row:
    """A row of the summary as the ranking of the comparison tables takes it."""
    column = Column(
        protocol=row["protocol"],
        task=row["task"],
        metric=row["metric"],
        unit=row["unit"],
        higher_is_better=not row["lower"],
    )
    value = Value(estimate=Estimate(row["mean"], row["ci95"], row["n"]), scores=scores)
    return Row(model=row["model"], source=OURS, values={column: value}, train_fraction=fraction)


def _table_row(row: Mapping[str, Any]) -> str:
    """One row of the table in its HTML, whose columns are the template's."""
    arrow, direction = ("↓", "lower") if row["lower"] else ("↑", "higher")
    metric = escape(row["metric"] + (f" ({row['unit']})" if row["unit"] else ""))
    seconds = "" if row["seconds"] is None else row["seconds"]
    texts = [escape(row[name]) for name in ("task", "protocol")]
    texts.append(f'<span>{metric} <span role="img" aria-label="{direction} is better">{arrow}</span></span>')
    mean = interval(row["mean"], row["ci95"])
    texts += [f"<strong>{mean}</strong>" if row["best"] else mean, str(row["n"]), escape(row["repeated"]), str(seconds)]
    texts += [escape(row["created"][:10]), row["key"]]
    return f'<tr><th scope="row">{escape(row["model"])}</th>' + "".join(f"<td>{text}</td>" for text in texts) + "</tr>"


def _data(records: Sequence[Run], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows and records as JSON that cannot end its script element; what records have in common is written once."""
    pool: dict[str, int] = {}  # JSON text → its place

    def place(value: Any) -> int:
        return pool.setdefault(_json(value), len(pool))

    texts = []
    for run in records:
        shared = [place(value) for value in (run.encoder, run.task, run.settings, run.environment)]
        scores = [
            [s.seed, s.fold, s.score, s.n_test, s.valid_score, s.chosen, round(s.seconds, 3), s.others]
            for s in run.scores
        ]
        header, lines = class_table(class_summary([run]))
        classes = [line[3:] for line in (header, *lines)]  # the page names the run
        texts.append(_json([*shared, run.seconds, run.command, run.schema, scores, classes]))
    data = f'{{"rows":{_json(rows)},"records":[{",".join(texts)}],"pool":[{",".join(pool)}]}}'
    return data.replace("<", "\\u003c")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, default=str)


def _title(records: Sequence[Run]) -> str:
    models, tasks = ({getattr(run, part)["name"] for run in records} for part in ("encoder", "task"))
    counts = {"record": records, "model": models, "task": tasks}
    return ", ".join(_count(len(counted), noun) for noun, counted in counts.items())


def _notices(records: Sequence[Run], failures: Sequence[str]) -> str:
    """What a reader should know before the numbers: unread files, unfinished records, tasks that are not the same."""
    versions: dict[str, set[tuple[Any, Any]]] = {}
    for run in records:
        versions.setdefault(run.task["name"], set()).add((run.task["version"], run.task["fingerprint"]))
    mixed = sorted(name for name, found in versions.items() if len(found) > 1)
    return (
        _notice("Files that could not be read", failures)
        + _notice("Records without a finished seed", [_named(run) for run in records if not seed_means(run)])
        + _notice("Tasks whose version or clips differ between records, or are not known", mixed)
    )


def _named(run: Run) -> str:
    return f"{run.encoder['name']} · {run.task['name']} · {run.protocol} · {run.key}"


def _notice(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    texts = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<details class="notice" open><summary>{title}: {len(items)}</summary><ul>{texts}</ul></details>\n'


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
