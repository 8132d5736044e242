"""How long `m2d-bench table` takes over many run records, and how much memory: `python benchmarks/results.py`."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent))

from m2d_bench import runs
from tests.results.result_records import many


def main() -> None:
    """Writes the records, then reads them in a fresh process each time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as folder:
        for run in many(count):
            runs.add(run, Path(folder))
        rows = []
        for words in (["--help"], ["--format", "text"], ["--format", "json"]):
            command = [sys.executable, "-m", "m2d_bench.cli", "table", "--runs", folder, *words]
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            rows.append({"table": " ".join(words), "seconds": f"{seconds:.2f}", "peak so far (MiB)": f"{peak:.0f}"})
    print(f"{count} records of 30 scores\n{tabulate(rows, headers='keys', tablefmt='simple')}")


if __name__ == "__main__":
    main()
