"""How fast does fine-tuning go, and what does it take?

    python benchmarks/finetune.py [--models NAME …] [--recipes esc50 vc1] [--precisions fp32 bf16] [--batch-size N]
                                  [--accumulate N …] [--seconds S] [--steps N] [--device D] [--compile]

Prints a Markdown table: clips a second and peak memory for each model, recipe and precision, on random audio that lies
in memory: front end, augmentation, encoder, head and optimizer are measured, decoding is not.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from m2d_bench.encoders import zoo
from m2d_bench.encoders.checkpoint import Labels
from m2d_bench.encoders.frontend import LogMel
from m2d_bench.finetuning import network
from m2d_bench.finetuning import recipe as recipes
from m2d_bench.finetuning.batches import StepSampler
from m2d_bench.finetuning.trainer import Selection, Trainer
from m2d_bench.randomness import generator_of
from m2d_bench.training.launch import launch

CLASSES = tuple(map(str, range(50)))


def measure(arguments: argparse.Namespace) -> None:
    """One configuration, in a process of its own for its peak memory."""
    fabric = launch(arguments.device, arguments.precision)
    found = zoo.read(arguments.model)
    rate = found.config.sample_rate
    changes = {"batch_size": arguments.batch_size, "accumulate": arguments.parts}
    recipe = recipes.load(arguments.recipe, changes)
    samples = round(arguments.seconds * rate)
    frames = int(LogMel(rate).frame_counts(torch.tensor(samples)))
    labels = torch.arange(arguments.batch_size) % len(CLASSES)
    named = Labels(classes=CLASSES, multilabel=False, clip_seconds=arguments.seconds)
    classifier = network.build(found, recipe, named, frames, generator_of("weights"))
    clips = torch.arange(arguments.batch_size)
    sampler = StepSampler(recipe, labels, clips, classifier.encoder, frames, ("benchmark",))
    selection = Selection(clips=None, test=clips, metric="accuracy")
    trainer = Trainer(fabric, classifier, sampler, None, selection, Path("."), compile=arguments.compile)
    audio = 0.1 * torch.randn(arguments.batch_size, samples)

    def run(start: int, steps: int) -> float:
        started = time.perf_counter()
        for step in range(start, start + steps):
            trainer._train(sampler.draw(step), audio, audio.flip(0))
        trainer.check()  # waits for the device
        return steps * arguments.batch_size / (time.perf_counter() - started)

    run(0, arguments.warmup)
    speed = run(arguments.warmup, arguments.steps)
    cuda = fabric.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(speed, peak / 2**30)


def main() -> None:
    """Measures every configuration in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["random:m2d_vit_tiny-80x608p16x16", "random:m2d_vit_base-80x608p16x16"]
    parser.add_argument("--models", nargs="+", default=names)
    parser.add_argument("--recipes", nargs="+", default=["esc50", "vc1"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--accumulate", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    for hidden in ("--model", "--recipe", "--precision", "--parts"):
        parser.add_argument(hidden, help=argparse.SUPPRESS, type=int if hidden == "--parts" else str)
    arguments = parser.parse_args()
    if arguments.model:
        measure(arguments)
        return
    print("| model | recipe | parts | precision | clips/s | ratio | peak memory (GiB) |")
    print("|---|---|---:|---|---:|---:|---:|")
    for name in arguments.models:
        for recipe in arguments.recipes:
            first = None
            for parts in arguments.accumulate:
                for precision in arguments.precisions:
                    own = ["--model", name, "--recipe", recipe, "--precision", precision, "--parts", str(parts)]
                    words = [sys.executable, __file__, *sys.argv[1:], *own]
                    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                    speed, memory = map(float, done.stdout.split())
                    first = first or speed
                    row = (name, recipe, parts, precision, f"{speed:.1f}", f"{speed / first:.2f}", f"{memory:.2f}")
                    print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
