"""Do several `m2d-bench linear` on one machine stand in each other's way, and what does waiting cost one alone?

    python benchmarks/processes.py [--processes 1 2 3] [--repeats 3] [--spins default 0 1000 …]

Prints a Markdown table of wall-clock seconds: a row for each GOMP_SPINCOUNT (turns an OpenMP thread spins before it
sleeps; `default` is m2d-bench's, `unset` libgomp's own), a column for each number of processes started at once.
Settings take turns within each repeat, so that other load on the machine meets them alike; each cell is the median.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASK = "events"
COMMAND = (sys.executable, "-m", "m2d_bench.cli", "linear", "--tasks", TASK)


def environment(spins: str) -> dict[str, str]:
    """This process's environment with one setting of OpenMP's waiting."""
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    if spins == "unset":  # 300000 is libgomp's own default; naming it keeps m2d-bench from setting another
        return {**plain, "GOMP_SPINCOUNT": "300000"}
    return plain if spins == "default" else {**plain, "GOMP_SPINCOUNT": spins}


def seconds(count: int, spins: str, folder: Path) -> float:
    """Wall-clock time until `count` processes, each with a cache and records of its own, are done."""
    started = []
    for number in range(count):
        own = Path(tempfile.mkdtemp(dir=folder))
        shutil.copytree(folder / "cache" / "tasks", own / "tasks")
        words = [*COMMAND, "--cache", str(own), "--runs", str(own / "runs"), "--first-seed", str(42 + number)]
        started.append(words)
    start = time.perf_counter()
    running = [
        subprocess.Popen(words, env=environment(spins), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for words in started
    ]
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(errors.decode())
    return time.perf_counter() - start


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--spins", nargs="+", default=["unset", "0", "default"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm_up = [*COMMAND, "--cache", str(folder / "cache"), "--runs", str(folder / "runs"), "--seeds", "1"]
        subprocess.run(warm_up, check=True, capture_output=True)  # generates the task
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(arguments.repeats):
            for count in arguments.processes:
                for spins in arguments.spins:
                    times.setdefault((spins, count), []).append(seconds(count, spins, folder))
    print(f"| GOMP_SPINCOUNT | {' | '.join(f'{count} at once' for count in arguments.processes)} |")
    print(f"|---|{'---:|' * len(arguments.processes)}")
    for spins in arguments.spins:
        cells = [f"{statistics.median(times[spins, count]):.1f}" for count in arguments.processes]
        print(f"| {spins} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
