"""Odd run records beside a good one: each is shown or named, and the good one always is shown."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from damage.tally import MODEL, QUICK, Finished, Tally, m2d_bench
from m2d_bench.cli import main

ODD: tuple[Any, ...] = (
    *(None, True, 5, -1, 1.5, 1e308, float("nan"), float("inf"), 10**400, "", "x" * 10_000, "../../../out", "\x1b[2J"),
    *([], [1], [[]], {}, {"a": {"b": 1}}, "=1+1", "\u202eabc", "\ud800"),
)
BYTES = (b"", b"{", b"[" * 100_000, b"null", b"[]", b"\xff\xfe{}", b"\0" * 100, b'"text"', b"{}", b"1e999")


def run(folder: Path, count: int, seed: int) -> Iterator[Tally]:
    """One tally, over table, runs list, runs merge and report."""
    words = ("linear", "--model", MODEL, "--tasks", "events", "--seeds", 1, "--epochs", 1, "--runs", "good", *QUICK)
    done = m2d_bench(*words, folder=folder)
    (good,) = (folder / "good").rglob("*.json")
    assert done.code == 0, done.stderr
    rng, tally = random.Random(seed), Tally("table, runs, report: odd records")
    original = json.loads(good.read_text())
    for number in range(count):
        runs = folder / f"odd{number}"
        relative = good.relative_to(folder / "good")
        (runs / relative).parent.mkdir(parents=True)
        (runs / relative).write_bytes(good.read_bytes())
        odd = runs / "odd" / relative.name
        odd.parent.mkdir()
        change = mutate(odd, original, rng)
        fault = next(filter(None, (judge(verb, runs) for verb in ("table", "list", "merge", "report"))), "")
        tally.expect(not fault, f"{change}: {fault}")
        tally.refused += "odd" in command("list", runs).stderr
    outside = [path for path in folder.parent.rglob("out*") if path.is_file() and folder not in path.parents]
    tally.check(not outside, f"written outside the folder: {outside}")
    yield tally


def mutate(path: Path, original: dict[str, Any], rng: random.Random) -> str:
    """Writes a record that is not as it should be; says how."""
    if rng.random() < 0.15:
        content = rng.choice(BYTES)
        path.write_bytes(content)
        return f"the bytes {content[:20]!r}"
    record = copy.deepcopy(original)
    node: Any = record
    keys: list[Any] = []
    while isinstance(node, dict | list) and node:
        key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        keys.append(key)
        if rng.random() < 0.4 or not isinstance(node[key], dict | list) or not node[key]:
            break
        node = node[key]
    if rng.random() < 0.2:
        del node[keys[-1]]
        change = "left out"
    else:
        node[keys[-1]] = rng.choice(ODD)
        change = repr(node[keys[-1]])[:40]
    path.write_text(json.dumps(record), errors="surrogatepass")
    return f"{'.'.join(map(str, keys))} {change}"


def judge(verb: str, runs: Path) -> str:
    """What a verb did wrong over this folder; nothing where it did right."""
    done = command(verb, runs)
    if faults := done.faults():
        return f"{verb}: {faults[0]}"
    shown = done.stdout + (runs / "report.html").read_text() if verb == "report" else done.stdout
    if verb != "merge" and MODEL not in shown:
        return f"{verb}: the good record is not shown"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", done.stdout + done.stderr):
        return f"{verb}: control characters reach the terminal"
    return ""


def command(verb: str, runs: Path) -> Finished:
    """A verb over a folder of records, in this process."""
    words = {
        "table": ["table", "--runs", str(runs)],
        "list": ["runs", "list", "--runs", str(runs)],
        "merge": ["runs", "merge", str(runs), "--into", str(runs.parent / "merged" / runs.name)],
        "report": ["report", str(runs), "-o", str(runs / "report.html")],
    }[verb]
    return in_process(words)


def in_process(words: list[str]) -> Finished:
    """The command line in this process; an exception that escapes it becomes a traceback in its stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = main(words)
        except BaseException as error:
            return Finished(-1, stdout.getvalue(), f"{stderr.getvalue()}\nTraceback: {type(error).__name__}: {error}")
    return Finished(code, stdout.getvalue(), stderr.getvalue())
