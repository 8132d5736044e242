"""Type checkers see the package's types from outside, and a wrong use of it is an error."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RIGHT = (ROOT / "tests" / "consumer.py").read_text(encoding="utf-8")
WRONG = {
    "name": ("from m2d_bench.results import report", "from m2d_bench.results import reports as report"),
    "module": ("import m2d_bench.hear_api as", "import m2d_bench.hear_apis as"),
    "field": ("seeds=3", "seed=3"),
    "too_many": ('report(runs, "md")', 'report(runs, "md", 3)'),
    "too_few": ("encoder.timestamp_embeddings(waveform)", "encoder.timestamp_embeddings()"),
    "returned": ("evaluate(data: Path) -> str", "evaluate(data: Path) -> int"),
}
CHECKERS = {"mypy": ("--strict", "--follow-imports=silent"), "pyright": ("--pythonpath", sys.executable)}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_consumer_is_checked_and_each_planted_mistake_is_found(checker, tmp_path):
    if not importlib.util.find_spec(checker):
        pytest.skip(f"{checker} is not installed: pip install 'm2d-bench[dev]'")
    programs = {"right": RIGHT, **{kind: RIGHT.replace(*change) for kind, change in WRONG.items()}}
    for kind, program in programs.items():
        assert (program == RIGHT) == (kind == "right")
        (tmp_path / f"{kind}.py").write_text(program, encoding="utf-8")
    installed = (Path(sysconfig.get_path("purelib")) / "m2d_bench" / "py.typed").is_file()
    tree = {} if installed else {"MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", checker, *CHECKERS[checker], *(f"{kind}.py" for kind in programs)]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **tree}, capture_output=True, text=True)
    errors = re.findall(r"(\w+)\.py:\d+.* error: ", done.stdout)
    assert set(errors) == set(WRONG), done.stdout + done.stderr
