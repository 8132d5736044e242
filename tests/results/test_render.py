"""Every format, compared with stored tables; `python -m tests.results.test_render` writes them anew."""

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from m2d_bench.results.comparison import Selection, compare
from m2d_bench.results.render import cells, render
from tests.results.result_records import fixed

FOLDER = Path(__file__).parent / "tables"
SUFFIXES = {"text": "txt", "md": "md", "latex": "tex", "html": "html", "csv": "csv", "json": "json"}
TABLES = {
    "own": ((), None, ""),
    "like": (("m2d_*", "M2D/0.7", "ATST Base", "DeLoRes-M"), "m2dx-2024:III", "M2D/0.7"),
}


def rendered(name: str, style: str) -> str:
    models, like, baseline = TABLES[name]
    tasks = ("esc50", "us8k", "gtzan", "avg") if like else ()
    return render(compare(fixed(), Selection(models=models, tasks=tasks, baseline=baseline), like), style) + "\n"


@pytest.mark.parametrize("style", SUFFIXES)
@pytest.mark.parametrize("name", TABLES)
def test_format_is_the_stored_one(name, style):
    assert rendered(name, style) == (FOLDER / f"{name}.{SUFFIXES[style]}").read_text(encoding="utf-8")


def test_csv_and_json_hold_every_number_and_its_source():
    expected = list(cells(compare(fixed(), like="m2dx-2024:III")))
    assert json.loads(render(compare(fixed(), like="m2dx-2024:III"), "json"))["cells"] == expected
    rows = list(csv.DictReader(io.StringIO(render(compare(fixed(), like="m2dx-2024:III"), "csv"))))
    assert [float(row["value"]) for row in rows] == [cell["value"] for cell in expected]
    assert all(row["source"] for row in rows)


def test_html_escapes_what_models_are_called():
    found = render(compare(fixed()), "html")
    assert "m2d_b &amp; c_50%" in found
    assert "m2d_b & c" not in found


def test_markdown_has_as_many_cells_in_every_line():
    lines = [line for line in rendered("like", "md").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("name", [*TABLES, "m2dx-2024:XIII", "m2dx-2024:X"])
def test_latex_compiles(name, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    table = rendered(name, "latex") if name in TABLES else render(compare([], like=name), "latex")
    source = f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{table}\\end{{document}}\n"
    (tmp_path / "table.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "table.log").read_text(errors="replace")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for table in TABLES:
        for style, suffix in SUFFIXES.items():
            (FOLDER / f"{table}.{suffix}").write_text(rendered(table, style), encoding="utf-8")
