"""The papers' numbers: complete, sourced, in agreement with themselves, and shown as printed."""

import csv
import hashlib
import re
from collections import defaultdict
from statistics import fmean

import pytest

from m2d_bench.errors import UsageError
from m2d_bench.results.comparison import compare
from m2d_bench.results.papers import published
from m2d_bench.results.render import MISSING, cells, render

FOLDER = published.files("m2d_bench.results.papers")
TABLES = [f"m2dx-2024:{n}" for n in ("III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII", "XIII", "XIV")]
TABLES += [f"m2d-2023:{n}" for n in (1, 3, 4, 5, 6)] + ["msm-mae-2022:abstract"]


def test_every_table_is_there():
    assert published.names() == TABLES


def test_every_cell_has_source_table_and_a_readable_number():
    assert len(published.cells()) > 800
    for cell in published.cells():
        assert all((cell.source, cell.table, cell.protocol, cell.section, cell.model, cell.task, cell.metric)), cell
        assert re.fullmatch(r"(\d+(\.\d+)?)?", cell.value), cell
        assert re.fullmatch(r"(\d+(\.\d+)?)?", cell.ci95), cell
        assert not (cell.ci95 and not cell.value), cell
        assert cell.higher_is_better == (cell.metric not in ("PER", "EER")), cell


def test_every_task_is_described():
    with FOLDER.joinpath("tasks.csv").open(encoding="utf-8") as file:
        described = {row["task_id"] for row in csv.DictReader(file)}
    assert {cell.task for cell in published.cells()} <= described


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("results.csv", "fb60c63463b2cb21b7649166899542d1eaa7412eec229c754b71d43660436a7c"),
        ("tasks.csv", "a921c1669847bf612bcf1a587ee6f7f99a375b3e26a7d5773e6d049fedd5fa11"),
        ("finetune_settings.csv", "6d3a8abcc40509bb96da6d21ea148aa4f4db4d232a4add86d0d63c9a2d17b888"),
        ("pretrain_settings.csv", "ca49a5769bc8482197e69636038fb25d1c5758510ac439d17d8b2bd18f138544"),
    ],
)
def test_the_papers_tables_are_unchanged(name, digest):
    assert hashlib.sha256(FOLDER.joinpath(name).read_bytes()).hexdigest() == digest


def rows_of(cells_):
    rows = defaultdict(dict)
    for cell in cells_:
        rows[cell.source, cell.table, cell.section, cell.model, cell.pretrain_data][cell.protocol, cell.task] = cell
    return rows


def test_printed_averages_are_those_of_the_printed_cells():
    checked = 0
    for key, row in rows_of(published.cells()).items():
        members = [row.get(("linear", task)) for task in published.GROUPS["avg"]]
        average = row.get(("linear", "avg"))
        if average and average.value and all(member and member.value for member in members):
            # cells and average are each rounded to a tenth
            assert float(average.value) == pytest.approx(fmean(float(m.value) for m in members), abs=0.1), key
            checked += 1
        if score := row.get(("medical-finetune", "icbhi2017_score")):
            parts = [float(row["medical-finetune", f"icbhi2017_{part}"].value) for part in ("sp", "se")]
            assert float(score.value) == pytest.approx(fmean(parts), abs=0.011), key
            checked += 1
    assert checked == 20 + 16


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_reproduced_as_printed(name):
    expected = [cell for cell in published.table(name) if cell.value]
    found = list(cells(compare([], like=name)))
    assert len(found) == len(expected)
    keys = ("section", "model", "pretrain_data", "protocol", "task", "metric", "printed", "source")
    shown = {tuple(cell[key] for key in keys) for cell in found}
    for cell in expected:
        printed = cell.value + (f" ± {cell.ci95}" if cell.ci95 else "")
        source = f"{cell.source} {cell.table}"
        place = (cell.section, cell.model, cell.pretrain_data, cell.protocol, cell.task, cell.metric, printed, source)
        assert place in shown


@pytest.mark.parametrize("name", TABLES)
def test_the_text_table_has_the_papers_rows_columns_and_gaps(name):
    expected = published.table(name)
    comparison = compare([], like=name)
    order = list(dict.fromkeys((cell.protocol, cell.task) for cell in expected))
    assert [(column.protocol, column.task) for column in comparison.columns] == order
    assert [row.model for row in comparison.rows] == [key[3] for key in rows_of(expected)]
    lines = [line for line in render(comparison, "csv").splitlines()[1:] if line]
    assert len(lines) == sum(bool(cell.value) for cell in expected)
    gaps = len(comparison.rows) * len(order) - len(lines)
    assert sum(cell == MISSING for line in render(comparison, "text").splitlines() for cell in line.split()) == gaps + 1


def test_spread_that_no_paper_calls_an_interval_is_printed_and_not_used():
    comparison = compare([], like="m2dx-2024:XIV")
    assert all("±" in cell["printed"] and cell["ci95"] is None for cell in cells(comparison))
    assert not any(cell["ties_with_best"] for cell in cells(comparison))


def test_errors_are_best_when_low():
    comparison = compare([], like="m2dx-2024:X")
    best = {cell["task"]: cell["model"] for cell in cells(comparison) if cell["rank"] == 1}
    assert best["pr"] == best["asv"] == "WavLM Base"
    assert best["mus"] == "M2D/0.6, T=6.08s, patch size [lost]"


def test_a_misspelt_table_is_refused():
    with pytest.raises(UsageError, match="Did you mean m2dx-2024:III"):
        published.table("m2dx2024:III")


def test_notes_are_not_split_inside_parentheses():
    notes = {note for cell in published.table("m2dx-2024:XIII") for note in cell.notes}
    assert all(note.count("(") == note.count(")") for note in notes)
