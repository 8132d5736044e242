"""Does m2d-bench use or name everything it is given, whatever state it is in, and survive kill −9?

    python benchmarks/robustness.py [--only sounds records checkpoints archives kills] [--share 1.0] [--seed 0]

Damages sound files, run records, checkpoints and release archives at random, from a seed, and kills commands at random
moments. Prints a Markdown table: how many inputs were tried, named and refused, used, and treated wrongly; then each
wrong one. Exits 1 where there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from damage import archives, checkpoints, kills, records, sounds
from damage.tally import Tally, peak_gib

PARTS = {
    "sounds": (sounds.run, 1000),
    "records": (records.run, 200),
    "checkpoints": (checkpoints.run, 150),
    "archives": (archives.run, 20),
    "kills": (kills.run, 50),
}
MOST_GIB = 4.0


def main() -> int:
    """Tries, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs to try")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory() as name:
        for part in arguments.only:
            function, count = PARTS[part]
            folder = Path(name) / part
            folder.mkdir()
            start = time.monotonic()
            for tally in function(folder, max(1, round(count * arguments.share)), arguments.seed):
                tallies.append(tally)
                print(f"{tally.name}: {tally.tried} tried, {len(tally.wrong)} wrong", file=sys.stderr)
            print(f"{part}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    print("| tried | inputs | named and refused | used | wrong |")
    print("|---|---:|---:|---:|---:|")
    print("\n".join(tally.row() for tally in tallies))
    print(f"\nMost memory of a command: {peak_gib():.1f} GiB (below {MOST_GIB:g} is right). Seed {arguments.seed}.")
    for tally in tallies:
        print("\n".join(f"- {tally.name}: {complaint}" for complaint in tally.wrong))
    return int(any(tally.wrong for tally in tallies) or peak_gib() >= MOST_GIB)


if __name__ == "__main__":
    sys.exit(main())
