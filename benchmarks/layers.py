"""Every layer × pooling × seed × fold in one command, against one after the other.

    python benchmarks/layers.py [--model NAME] [--task NAME] [--data DIR] [--poolings P …] [--sample N]

Prints a Markdown table. "Command by command" runs `linear` for single layers and poolings, with a cache of its own for
each (as tools do that keep no embeddings) or with a shared one; "probe by probe" encodes once and trains one DataLoader
and one nn.Linear after the other. Of those, --sample pairs of layer and pooling (and of the loop, their first seed) are
run, evenly spread, and their time is scaled; the table says so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from linear import conventional  # lies beside this file

from m2d_bench import tasks
from m2d_bench.encoders import zoo
from m2d_bench.encoders.protocol import wrap
from m2d_bench.evaluation.embeddings import encode
from m2d_bench.evaluation.linear import _problems, linear
from m2d_bench.evaluation.representations import Representation, kept_for
from m2d_bench.evaluation.settings import LinearSettings
from m2d_bench.results import layer_report
from m2d_bench.runs import Run
from m2d_bench.tasks import dataset


def timed(model: str, task: str, settings: LinearSettings) -> tuple[float, list[Run]]:
    """Seconds of a command, and its records."""
    start = time.perf_counter()
    found = linear(model, task, settings)
    return time.perf_counter() - start, found


def probe_by_probe(model: str, task: str, settings: LinearSettings, pairs: list[tuple[int, str]]) -> float:
    """Seconds of the conventional loop over the folds of the first seed of these layers and poolings."""
    encoder = wrap(zoo.load(model, compute=settings))
    data = dataset.load(tasks.get(task), settings, encoder.sample_rate)
    seconds = 0.0
    for layer, pooling in pairs:
        samples = round(data.task.clip_seconds * encoder.sample_rate)
        kept = kept_for(encoder, [Representation(layer=layer, pooling=pooling)], samples)
        embedded = encode(encoder, data, settings, settings, kept)
        labels = torch.from_numpy(data.labels)[embedded.clips]
        start = time.perf_counter()
        for problem in _problems(data, embedded, [settings.first_seed], 1.0):
            conventional(embedded.features, labels, problem, "cpu")
        seconds += time.perf_counter() - start
    return seconds


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
    dataset.load(tasks.get(task), settings)  # generated or listed before anything is timed
    together, found = timed(model, task, settings)
    pairs = [(run.settings["layer"], run.settings["pooling"]) for run in found]
    chosen = pairs[:: max(1, len(pairs) // arguments.sample)]
    scale, seconds = len(pairs) / len(chosen), {"an own": 0.0, "a shared": 0.0}
    for number, (layer, pooling) in enumerate(chosen):
        single = replace(settings, layer=layer, pooling=(pooling,), runs=folder / f"runs{number}")
        seconds["a shared"] += scale * timed(model, task, single)[0]
        own = replace(single, cache=folder / f"cache{number}", runs=folder / f"own{number}")
        dataset.load(tasks.get(task), own)
        seconds["an own"] += scale * timed(model, task, own)[0]
    encoding = found[0].seconds["embedding"]
    loop = encoding + scale * arguments.seeds * probe_by_probe(model, task, settings, chosen)
    print(f"{len(pairs)} layers and poolings × {arguments.seeds} seeds on {task}, {model}\n")
    print("| what | seconds | times one command |")
    print("|---|---:|---:|")
    print(f"| one command, {encoding:.0f} s of them encoding | {together:.0f} | 1 |")
    for cache, total in seconds.items():
        label = f"command by command, {cache} cache ({len(chosen)} run, scaled)"
        print(f"| {label} | {total:.0f} | {total / together:.1f} |")
    label = f"probe by probe, encoding once ({len(chosen)} run, first seed, scaled)"
    print(f"| {label} | {loop:.0f} | {loop / together:.1f} |\n")
    print(layer_report(found, "md"))


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
