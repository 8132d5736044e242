"""The table of the built-in tasks: a row a task, models in their order, chance beside them, within 80 columns."""

import json
import re
from dataclasses import replace

import pytest

from m2d_bench import tasks
from m2d_bench.results.overview import overview
from tests.results.result_records import record

MODELS = ("m2d_tiny", "random:m2d_tiny", "logmel")


def built_in(model: str, mean: float, **settings):
    """Records of a model on the built-in tasks, whose intervals are as wide as they get."""
    for name in tasks.BUILT_IN:
        run = record(model, "esc50", mean, **settings)
        task = tasks.get(name)
        about = {"name": name, "domain": task.domain, "synthetic": True, "n_classes": task.n_classes}
        scores = tuple(replace(score, score=mean + 7 * (score.score - mean)) for score in run.scores)
        yield replace(run, task={**run.task, **about}, scores=scores)


def headings(lines):
    """Of the columns, each put together from its lines."""
    rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
    columns = [match.span() for match in re.finditer("-+", lines[rule])]
    return ["".join(line[slice(*span)].strip() for line in lines[1:rule]) for span in columns]


RUNS = [run for model, mean in zip(MODELS, (0.62, 0.60, 0.40), strict=True) for run in built_in(model, mean)]


def test_it_fits_into_80_columns_and_names_models_in_their_order_and_chance():
    lines = overview(RUNS).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Built-in synthetic tasks, linear probe; mean ± 95% interval over n seeds"
    assert headings(lines) == ["accuracy ↑ %", *MODELS, "chance"]
    cells = {name: values for name, *values in (re.split(" {2,}", line) for line in lines)}
    assert cells.keys() >= set(tasks.BUILT_IN)
    assert cells["events"] == cells["gm_family"] == ["62.0 ± 13.7 ¹", "60.0 ± 13.7 ²", "40.0 ± 13.7", "10.0"]
    assert cells["average (6 tasks)"] == ["62.0 ± 13.7 ¹", "60.0 ± 13.7 ²", "40.0 ± 13.7", "7.8"]
    assert cells["n"] == ["6", "6", "6"]


def test_long_names_of_models_take_several_lines():
    names = ("m2d_vit_base-80x608p16x16-221006-mr7", "hf:MIT/ast-finetuned-audioset-10-10-0.4593", "a_file_" * 6)
    lines = overview([run for name in names for run in built_in(name, 0.62)]).splitlines()
    assert max(map(len, lines)) <= 80
    assert headings(lines) == ["accuracy ↑ %", *names, "chance"]


def test_other_numbers_of_seeds_by_task_stand_in_one_row():
    mixed = [replace(run, scores=run.scores[: 5 * (number % 3 + 4)]) for number, run in enumerate(RUNS)]
    lines = overview(mixed).splitlines()
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if line.startswith("n ")).split()[1:] == ["4–6"] * 3


@pytest.mark.parametrize("style", ["csv", "json"])
def test_in_data_formats_every_number_is_said_to_be_of_synthetic_tasks(style):
    found = overview(RUNS, style)
    lines = found.splitlines()[1:] if style == "csv" else [json.dumps(cell) for cell in json.loads(found)["cells"]]
    assert len(lines) == 4 * 9
    assert all("synthetic tasks" in line for line in lines)


def test_a_task_that_failed_is_a_gap_and_settings_stand_behind_the_model():
    runs = [*RUNS[1:], *built_in("own.py:Own", 0.5, train_fraction=0.5)]
    text = overview(runs)
    assert "own.py:Own (train_fraction=0.5)" in headings(text.splitlines())
    assert "–" in next(line for line in text.splitlines() if line.startswith("events "))


@pytest.mark.parametrize("settings", [{}, {"train_fraction": 0.5}], ids=["full", "half"])
@pytest.mark.parametrize("means", [(0.62, 0.60), (0.02, 0.01), (0.62,)], ids=["above", "below", "alone"])
def test_chance_is_a_reference_and_not_ranked(means, settings):
    runs = [run for number, mean in enumerate(means) for run in built_in(MODELS[number], mean, **settings)]
    text, cells = overview(runs), json.loads(overview(runs, "json"))["cells"]
    assert {cell["rank"] for cell in cells if cell["model"] != "chance"} == set(range(1, len(means) + 1))
    assert {cell["rank"] for cell in cells if cell["model"] == "chance"} == {None}
    assert not any(line.rstrip().endswith(("¹", "²", "≈")) for line in text.splitlines())
