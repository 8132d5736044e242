"""Every layer × pooling × seed × fold in one command, against one after the other.

    python benchmarks/layers.py [--model NAME] [--task NAME] [--data DIR] [--poolings P …] [--sample N]

Prints a Markdown table in CPU seconds, over which other load on the machine has little power. "Command by command" runs
`linear` for single layers and poolings; "probe by probe" trains one DataLoader and one nn.Linear after the other. Both
are given what was encoded once; a tool that keeps no embeddings encodes for each, which is added. --sample pairs of
layer and pooling (and of the loop, their first seed) are run, evenly spread, and their time is scaled.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from linear import conventional  # lies beside this file

from m2d_bench import tasks
from m2d_bench.encoders import zoo
from m2d_bench.encoders.protocol import wrap
from m2d_bench.evaluation.embeddings import encode
from m2d_bench.evaluation.linear import _problems, linear
from m2d_bench.evaluation.representations import Representation, asked, kept_for
from m2d_bench.evaluation.settings import LinearSettings
from m2d_bench.results import layer_report
from m2d_bench.tasks import dataset

T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of all threads, and the result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Runs all sides and prints the tables."""
    model, task = arguments.model, arguments.task
    settings = LinearSettings(
        layer="all",
        pooling=tuple(arguments.poolings),
        seeds=arguments.seeds,
        precision=arguments.precision,
        data=arguments.data,
        cache=folder / "cache",
        runs=folder / "runs",
    )
    encoder = wrap(zoo.load(model, compute=settings))
    data = dataset.load(tasks.get(task), settings, encoder.sample_rate).readable()
    pairs = asked(settings, encoder)
    samples = round(data.task.clip_seconds * encoder.sample_rate)

    def embedded(pair: Representation):  # type: ignore[no-untyped-def]
        return encode(encoder, data, settings, settings, kept_for(encoder, [pair], samples))

    def loop(pair: Representation) -> None:
        features = embedded(pair)
        labels = torch.from_numpy(data.labels)[features.clips]
        for problem in _problems(data, features, [settings.first_seed], 1.0):
            conventional(features.features, labels, problem, "cpu")

    encoding, _ = timed(lambda: embedded(pairs[0]))
    probing, found = timed(lambda: linear(model, task, settings))
    chosen = pairs[:: max(1, len(pairs) // arguments.sample)]
    scale = len(pairs) / len(chosen)
    commands = loops = 0.0
    for number, pair in enumerate(chosen):
        single = replace(settings, layer=pair.layer, pooling=(pair.pooling,), runs=folder / f"runs{number}")
        commands += scale * timed(lambda single=single: linear(model, task, single))[0]
        loops += scale * arguments.seeds * timed(lambda pair=pair: loop(pair))[0]
    sides = {
        f"one command, {encoding:.0f} s of them encoding": encoding + probing,
        "command by command, encoding once": encoding + commands,
        "command by command, encoding for each": len(pairs) * encoding + commands,
        "probe by probe, encoding once": encoding + loops,
        "probe by probe, encoding for each layer and pooling": len(pairs) * encoding + loops,
    }
    print(
        f"{len(pairs)} layers and poolings × {arguments.seeds} seeds on {task}, {model}; all but the first row scaled"
    )
    print(f"from {len(chosen)} layers and poolings, and of the loop from their first seed\n")
    print("| what | CPU seconds | times one command |\n|---|---:|---:|")
    for label, total in sides.items():
        print(f"| {label} | {total:.0f} | {total / (encoding + probing):.1f} |")
    print(f"\n{layer_report(found, 'md')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:m2d_vit_tiny-80x208p16x16")
    parser.add_argument("--task", default="events")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--poolings", nargs="+", default=["mean", "mean+std", "max"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--sample", type=int, default=3)
    with tempfile.TemporaryDirectory() as folder:
        compare(parser.parse_args(), Path(folder))


if __name__ == "__main__":
    main()
