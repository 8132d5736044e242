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
from collections.abc import Sequence
from pathlib import Path

from m2d_bench import LinearSettings, linear, tasks, zoo
from m2d_bench.encoders.protocol import SceneEncoder
from m2d_bench.errors import M2DBenchError, describe
from m2d_bench.pretrain import recipe as recipes
from m2d_bench.pretrain import weights
from m2d_bench.pretrain.inputs import Inputs
from m2d_bench.pretrain.run import RunSettings, pretrain
from m2d_bench.results.statistics import seed_means
from m2d_bench.settings import file_name, make_folder
from m2d_bench.tasks import dataset
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


def accuracies(model: str | SceneEncoder, names: Sequence[str], settings: LinearSettings) -> list[str]:
    """Mean accuracy in % over the tasks, and of each."""
    scores = []
    for run in linear(model, names, settings):
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
    parser.add_argument("--tasks", nargs="+", default=tasks.BUILT_IN, help="separated by commas or spaces")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    epochs = {"epochs": arguments.epochs, "warmup_epochs": max(1, arguments.epochs // 10)}
    plain, *changed = (  # all are checked before the first is trained
        recipes.load(arguments.recipe, changes={**epochs, **parse(variant.split())})
        for variant in ["", *arguments.variants]
    )
    settings = LinearSettings(seeds=arguments.seeds, runs=arguments.folder / "runs")
    chosen = tasks.get_all(",".join(arguments.tasks), settings)
    for task in chosen.values():
        dataset.load(task, settings, plain.sample_rate)
    make_folder(arguments.folder)
    trained = [
        train(arguments.folder / (file_name(variant) or "recipe"), recipe, arguments.data)
        for variant, recipe in zip(arguments.variants, changed, strict=True)
    ]
    random = f"random:{weights.name_of('m2d', plain.vit, plain.sample_rate, '')}"
    norm_stats = zoo.read(trained[0][0]).config.norm_stats  # of the clips
    rows: list[tuple[str, str | SceneEncoder, list[str]]] = [
        ("logmel", "logmel", ["–", "–"]),
        (random, zoo.load(random, norm_stats=norm_stats), ["–", "–"]),
        *((variant or arguments.recipe, *row) for variant, row in zip(arguments.variants, trained, strict=True)),
    ]
    print(f"| variant | rank | loss | mean | {' | '.join(chosen)} |")
    print(f"|---|{'---:|' * (3 + len(chosen))}")
    for name, model, watched in rows:
        scores = accuracies(model, list(chosen), settings)
        print(f"| {name} | {' | '.join(watched + scores)} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (M2DBenchError, OSError) as error:
        sys.exit(f"ERROR: {describe(error)}")
