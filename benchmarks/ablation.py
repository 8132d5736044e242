"""Which values of a recipe learn most in a short pre-training?

    python benchmarks/ablation.py DATA FOLDER [--recipe m2d_tiny_cpu] [--epochs 12] [--variants "NAME=VALUE …" …]

Pre-trains the recipe once for each variant, a few changes as `pretrain --set` takes them ("" for none; their values
hold no space: "patch_size=[16,8] size=small"), on DATA as `pretrain --data` takes it; evaluates each by linear probes,
beside log-mel and random weights; and prints a Markdown table: effective rank and loss of held-out clips, mean accuracy
and each task's. What FOLDER holds already is not computed again, and a killed training goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from m2d_bench import linear, tasks
from m2d_bench.errors import M2DBenchError
from m2d_bench.pretrain import recipe as recipes
from m2d_bench.pretrain import weights
from m2d_bench.pretrain.inputs import Inputs
from m2d_bench.pretrain.run import RunSettings, pretrain
from m2d_bench.results.statistics import seed_means
from m2d_bench.settings import file_name
from m2d_bench.training.log import METRICS
from m2d_bench.training.recipes import parse


def train(folder: Path, recipe: recipes.Recipe, data: str) -> tuple[str, list[str]]:
    """Path of a recipe's checkpoint, and the last effective rank and loss of held-out clips."""
    settings = RunSettings(save_epochs=0, watch_epochs=1, workers=1, resume=any(folder.rglob("resume.pt")))
    path = pretrain(recipe, Inputs(data=data), folder, settings)
    records = map(json.loads, (path.parent / METRICS).read_text().splitlines())
    held_out = [record for record in records if "held_out/loss" in record]
    if not held_out:  # too few clips
        return str(path), ["–", "–"]
    return str(path), [f"{held_out[-1]['held_out/effective_rank']:.1f}", f"{held_out[-1]['held_out/loss']:.4f}"]


def accuracies(model: str, arguments: argparse.Namespace) -> list[str]:
    """Mean accuracy in % over the tasks, and of each."""
    scores = []
    for run in linear(model, arguments.tasks, seeds=arguments.seeds, runs=arguments.folder / "runs"):
        means = seed_means(run).values()
        scores.append(100 * sum(means) / len(means))
    return [f"{score:.1f}" for score in (sum(scores) / len(scores), *scores)]


def main() -> None:
    """Trains what is missing, evaluates, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="m2d_tiny_cpu")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--variants", nargs="+", default=[""])
    parser.add_argument("--tasks", nargs="+", default=list(tasks.BUILT_IN))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    epochs = {"epochs": arguments.epochs, "warmup_epochs": max(1, arguments.epochs // 10)}
    plain, *changed = (  # all are checked before the first is trained
        recipes.load(arguments.recipe, changes={**epochs, **parse(variant.split())})
        for variant in ["", *arguments.variants]
    )
    print(f"| variant | rank | loss | mean | {' | '.join(arguments.tasks)} |")
    print(f"|---|{'---:|' * (3 + len(arguments.tasks))}")
    random = f"random:{weights.name_of('m2d', plain.vit, plain.sample_rate, '')}"
    for model in ("logmel", random):
        print(f"| {model} | – | – | {' | '.join(accuracies(model, arguments))} |", flush=True)
    for variant, recipe in zip(arguments.variants, changed, strict=True):
        path, watched = train(arguments.folder / (file_name(variant) or "recipe"), recipe, arguments.data)
        print(f"| {variant or arguments.recipe} | {' | '.join(watched + accuracies(path, arguments))} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except M2DBenchError as error:
        sys.exit(f"ERROR: {error}")
