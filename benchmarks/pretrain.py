"""How fast does pre-training go, and how much of the device does it use?

    python benchmarks/pretrain.py [--recipes m2d_base msm_mae_base] [--batch-size N] [--steps N] [--device D]
                                  [--precisions fp32 bf16] [--compile]

Prints a Markdown table: clips a second, peak memory, model FLOP/s and their share of the device's peak, for each recipe
and precision, on random input that lies on the device: reading is measured by benchmarks/pretrain_data.py. FLOPs are
those of the model, see pretrain/flops.py. No GPU has been measured yet.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from m2d_bench.pretrain import recipe as recipes
from m2d_bench.pretrain.data import Crop, Source
from m2d_bench.pretrain.flops import peak_flops
from m2d_bench.pretrain.trainer import Trainer
from m2d_bench.training.launch import launch


class Noise(Source):
    """As many random clips as asked for; a batch of them is drawn once and stays on the device."""

    norm_stats = (0.0, 1.0)
    fingerprint = "noise"

    def __init__(self, n_clips: int, shape: tuple[int, ...]) -> None:
        self.n_clips, self._shape = n_clips, shape
        self._values: torch.Tensor | None = None

    def path(self, index: int) -> str:
        return str(index)

    def read(self, index: int, rng: np.random.Generator) -> Crop:
        return Crop(np.zeros(1, np.float32), 0)

    def log_mel(self, values: torch.Tensor) -> torch.Tensor:
        if self._values is None or len(self._values) != len(values):
            self._values = torch.randn(len(values), *self._shape, device=values.device)
        return self._values


def measure(arguments: argparse.Namespace) -> None:
    """One recipe in one precision, in a process of its own for its peak memory."""
    recipe = recipes.load(arguments.recipe, changes={"effective_batch": arguments.batch_size})
    fabric = launch(arguments.device, arguments.precision)
    steps = arguments.warmup + arguments.steps
    columns = recipe.input_size[1] // recipe.patch_size[1] * recipe.patch_size[1]
    source = Noise(steps * arguments.batch_size, (recipe.channels, recipe.input_size[0], columns))
    trainer = Trainer(fabric, recipe, source, Path("."), batch_size=arguments.batch_size, compile=arguments.compile)
    trainer.prepare()
    batches = trainer._batches()

    def finish() -> float:
        trainer.check()  # waits for the device
        return time.perf_counter()

    for _ in range(arguments.warmup):
        trainer._train(batches)
    started = finish()
    for _ in range(arguments.steps):
        trainer._train(batches)
    rate = arguments.steps * arguments.batch_size / (finish() - started)
    cuda = fabric.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    flops = rate * trainer.method.flops()
    most = peak_flops(fabric.device)
    print(rate, peak / 2**30, flops / 1e12, f"{100 * flops / most:.1f}" if most else "–")


def main() -> None:
    """Measures every recipe and precision in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=["m2d_tiny", "m2d_small", "m2d_base", "msm_mae_base"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recipe:
        measure(arguments)
        return
    print("| recipe | precision | clips/s | ratio | peak memory (GiB) | TFLOP/s | utilisation (%) |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for recipe in arguments.recipes:
        first = None
        for precision in arguments.precisions:
            words = [*sys.argv, "--recipe", recipe, "--precision", precision]
            done = subprocess.run([sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True)
            rate, memory, flops, share = done.stdout.split()[-4:]
            first = first or float(rate)
            row = f"{float(rate):.1f} | {float(rate) / first:.2f} | {float(memory):.2f} | {float(flops):.3f} | {share}"
            print(f"| {recipe} | {precision} | {row} |", flush=True)


if __name__ == "__main__":
    main()
