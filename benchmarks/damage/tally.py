"""How a kind of damage is counted: what was tried, what went right, what did not and why."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

MODEL = "random:m2d_vit_tiny-80x208p16x16"
QUICK = ("--device", "cpu", "--precision", "fp32")


@dataclass
class Tally:
    """A row of the table.

    Args:
        name: What was tried.
        tried: Number of inputs.
        wrong: A line for each that was not treated right.
        refused: Inputs that were named and left out, or refused.
    """

    name: str
    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: int = 0

    def expect(self, right: bool, complaint: str) -> None:
        """Counts one input."""
        self.tried += 1
        if not right:
            self.wrong.append(complaint)

    def check(self, right: bool, complaint: str) -> None:
        """Counts nothing, but a fault where it is one: rules about a whole command."""
        if not right:
            self.wrong.append(complaint)

    def row(self) -> str:
        """A line of the Markdown table."""
        return f"| {self.name} | {self.tried} | {self.refused} | {self.tried - self.refused} | {len(self.wrong)} |"


@dataclass(frozen=True)
class Finished:
    """A command that has ended: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str

    def faults(self, codes: Sequence[int] = (0, 1)) -> list[str]:
        """What no command may show, whatever it was given."""
        lines = self.stderr.splitlines()
        found = [f"exit code {self.code}: {lines[-1] if lines else ''}"] if self.code not in codes else []
        if "Traceback" in self.stderr or "--verbose" in self.stderr:  # an error nobody foresaw
            found.append(f"an unforeseen error: {lines[-1]}")
        return found


def m2d_bench(*words: object, folder: Path, timeout: float = 1800, **environment: str) -> Finished:
    """Runs the command line in a process of its own."""
    done = subprocess.run(
        command(*words),
        cwd=folder,
        env=surroundings(folder, **environment),
        capture_output=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def command(*words: object) -> list[str]:
    """`m2d-bench …` of this interpreter."""
    return [sys.executable, "-m", "m2d_bench.cli", *map(str, words)]


def surroundings(folder: Path, **environment: str) -> dict[str, str]:
    """The environment of a command: its cache in the folder, sources from where this process has them."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, "M2D_BENCH_CACHE": str(folder / "cache"), **environment}


def peak_gib() -> float:
    """The most memory that any command so far has held."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
