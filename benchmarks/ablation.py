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
from m2d_bench.pretrain.data import Source, measure_norm_stats
from m2d_bench.pretrain.held_out import split
from m2d_bench.pretrain.inputs import Inputs, offline_task, open_clips, open_noise
from m2d_bench.pretrain.run import RunSettings, pretrain
from m2d_bench.results.statistics import seed_means
from m2d_bench.settings import Compute, Storage, file_name, make_folder
from m2d_bench.tasks import dataset
from m2d_bench.training.log import METRICS
from m2d_bench.training.recipes import parse


def open_checked(recipe: recipes.Recipe, inputs: Inputs) -> Source:
    """The clips to train on, or the error that would end the training before its first step."""
    source = open_clips(inputs, recipe, Storage(), "stop")
    open_noise(inputs, recipe, Storage(), "stop")
    offline_task(inputs, recipe, source, Compute(), Storage())
    _, source = split(source, RunSettings.held_out, recipe.seed)
    recipe.steps_per_epoch(source.n_clips)
    return source


def train(folder: Path, recipe: recipes.Recipe, inputs: Inputs) -> tuple[str, list[str]]:
    """Path of a recipe's checkpoint, and the last effective rank and loss of held-out clips."""
    settings = RunSettings(save_epochs=0, watch_epochs=1, workers=1, resume=any(folder.rglob("resume.pt")))
    path = pretrain(recipe, inputs, folder, settings)
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
    """Checks everything, trains what is missing, evaluates, and prints the table."""
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
    plain, *changed = (
        recipes.load(arguments.recipe, changes={**epochs, **parse(variant.split())})
        for variant in ["", *arguments.variants]
    )
    inputs = Inputs(data=arguments.data)
    settings = LinearSettings(seeds=arguments.seeds, runs=arguments.folder / "runs")
    chosen = tasks.get_all(",".join(arguments.tasks), settings)
    make_folder(arguments.folder)
    source, *_ = [open_checked(recipe, inputs) for recipe in changed]
    for task in chosen.values():
        dataset.load(task, settings, plain.sample_rate)
    random = f"random:{weights.name_of('m2d', plain.vit, plain.sample_rate, '')}"
    norm_stats = source.norm_stats or measure_norm_stats(source, workers=1)
    references = {"logmel": "logmel", random: zoo.load(random, norm_stats=norm_stats)}
    print(f"| variant | rank | loss | mean | {' | '.join(chosen)} |")
    print(f"|---|{'---:|' * (3 + len(chosen))}")
    for name, model in references.items():
        print(f"| {name} | – | – | {' | '.join(accuracies(model, list(chosen), settings))} |", flush=True)
    for variant, recipe in zip(arguments.variants, changed, strict=True):
        path, watched = train(arguments.folder / (file_name(variant) or "recipe"), recipe, inputs)
        scores = accuracies(path, list(chosen), settings)
        print(f"| {variant or arguments.recipe} | {' | '.join(watched + scores)} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (M2DBenchError, OSError) as error:
        sys.exit(f"ERROR: {describe(error)}")
