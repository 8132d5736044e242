"""How fast does pre-training go, and how much of the device does it use?

    python benchmarks/pretrain.py [--recipes m2d_base msm_mae_base] [--batch-size N] [--steps N] [--device D]
                                  [--precisions fp32 bf16] [--compile] [--variants "NAME=VALUE …" …]
    python benchmarks/pretrain.py --scenarios [supervised regularisation distillation precomputed] […]

Prints a Markdown table: clips a second, peak memory, model FLOP/s and their share of the device's peak, for each recipe
and precision, on random input that lies on the device: reading is measured by benchmarks/pretrain_data.py. FLOPs are
those of the model, see pretrain/flops.py. A variant is a recipe with changes, those of `pretrain --set` ("" for none);
its values hold no space: "patch_size=[16,8] size=small". No GPU has been measured yet.

With --scenarios, of M2D-X on ten-second clips of noise: clips a second, peak memory, and the share of the time that
goes by before the step: log-mels and the teacher. The teacher of a distillation is a HuBERT of base size with random
weights, once on the fly and once with features that were prepared.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch

from m2d_bench.encoders.huggingface import import_transformers
from m2d_bench.errors import M2DBenchError, describe
from m2d_bench.pretrain import recipe as recipes
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.data import Crop, Crops, Source
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare
from m2d_bench.pretrain.flops import peak_flops
from m2d_bench.pretrain.inputs import Inputs, offline_task, open_clips
from m2d_bench.pretrain.trainer import Trainer
from m2d_bench.settings import Compute, Storage
from m2d_bench.training.launch import launch
from m2d_bench.training.recipes import parse

SCENARIOS = {"supervised": "m2d_as_base", "regularisation": "m2d_x_icbhi2017", "distillation": "m2d_s_base_400"}
START = "random:m2d_vit_base-80x200p16x4"


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


def changed(recipe: str, variant: str, batch_size: int) -> recipes.Recipe:
    """A recipe with the changes of a variant, its steps of so many samples."""
    return recipes.load(recipe, changes={"effective_batch": batch_size, **parse(variant.split())})


def measure(arguments: argparse.Namespace) -> None:
    """One recipe in one precision, in a process of its own for its peak memory."""
    recipe = changed(arguments.recipe, arguments.variant, arguments.batch_size)
    fabric = launch(arguments.device, arguments.precision)
    steps = arguments.warmup + arguments.steps
    columns = recipe.input_size[1] // recipe.patch_size[1] * recipe.patch_size[1]
    source = Noise(steps * recipe.effective_batch, (recipe.channels, recipe.input_size[0], columns))
    trainer = Trainer(fabric, recipe, source, Path("."), batch_size=recipe.effective_batch)
    trainer.prepare(compile=arguments.compile)
    batches = trainer._batches()

    def finish() -> float:
        trainer.check()  # waits for the device
        return time.perf_counter()

    for _ in range(arguments.warmup):
        trainer._train(batches)
    started = finish()
    for _ in range(arguments.steps):
        trainer._train(batches)
    rate = arguments.steps * recipe.effective_batch / (finish() - started)
    cuda = fabric.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    flops = rate * trainer.method.flops()
    most = peak_flops(fabric.device)
    print(rate, peak / 2**30, flops / 1e12, f"{100 * flops / most:.1f}" if most else "–")


def scenario(arguments: argparse.Namespace) -> None:
    """One scenario of M2D-X, in a process of its own."""
    name, folder = arguments.scenario, Path(arguments.folder)
    kind = "distillation" if name == "precomputed" else name
    recipe, teacher = SCENARIOS[kind], f"hf:{folder / 'hubert'}"
    changes = {"effective_batch": arguments.batch_size, "noise_ratio": 0.0}
    changes |= {"distillation": {"teacher": teacher}, "regularisation": {"teacher": START}}.get(kind, {})
    recipe = recipes.load(recipe, changes=changes)
    clips = folder / ("mels" if name == "precomputed" else "clips")
    if name == "precomputed" and not clips.exists():
        prepare([folder / "clips"], clips, PrepareSettings(teacher=teacher, layer=9, device=arguments.device))
    inputs = Inputs(data=str(clips), labels=folder / "labels.csv" if kind == "supervised" else None)
    fabric = launch(arguments.device, arguments.precision)
    compute = Compute(device=str(fabric.device), precision=arguments.precision)
    source = open_clips(inputs, recipe, Storage(), "stop")
    recipe, taught = offline_task(inputs, recipe, source, compute, Storage())
    source.norm_stats = (-7.0, 4.0)
    source = taught(source)
    trainer = Trainer(fabric, recipe, source, Path("."), batch_size=arguments.batch_size)
    trainer.prepare()
    batches, before = trainer._batches(), [0.0]
    inner = source.batch

    def timed(crops: Crops, device: torch.device) -> Batch:
        started = time.perf_counter()
        batch = inner(crops, device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        before[0] += time.perf_counter() - started
        return batch

    source.batch = timed  # type: ignore[method-assign]
    for _ in range(arguments.warmup):
        trainer._train(batches)
    trainer.check()
    started, before[0] = time.perf_counter(), 0.0
    for _ in range(arguments.steps):
        trainer._train(batches)
    trainer.check()
    seconds = time.perf_counter() - started
    cuda = fabric.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(arguments.steps * arguments.batch_size / seconds, peak / 2**30, 100 * before[0] / seconds)


def write_clips(folder: Path, count: int) -> None:
    """Ten-second clips of noise with labels, and a HuBERT of base size with random weights."""
    transformers = import_transformers()
    rng = np.random.default_rng(0)
    (folder / "clips").mkdir()
    for number in range(count):
        soundfile.write(folder / "clips" / f"{number}.wav", rng.normal(0, 0.1, 160000), 16000)
    rows = "".join(f"{number}.wav,{number % 10}\n" for number in range(count))
    (folder / "labels.csv").write_text(f"file_name,label\n{rows}")
    torch.manual_seed(0)
    transformers.HubertModel(transformers.HubertConfig()).save_pretrained(folder / "hubert")
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / "hubert")


def in_own_process(*words: str) -> list[str]:
    """What this script prints when called with these words too; where it fails, so does this process."""
    done = subprocess.run([sys.executable, *sys.argv, *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:  # it has said why
        sys.exit(done.returncode)
    return done.stdout.split()


def compare_scenarios(arguments: argparse.Namespace) -> None:
    """Measures the scenarios in turn and prints their table."""
    print("| scenario | recipe | precision | clips/s | peak memory (GiB) | before the step (%) |")
    print("|---|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        write_clips(Path(folder), (arguments.steps + arguments.warmup) * arguments.batch_size)
        for name in arguments.scenarios:
            for precision in arguments.precisions:
                words = in_own_process("--scenario", name, "--folder", folder, "--precision", precision)
                rate, memory, share = map(float, words[-3:])
                recipe = SCENARIOS["distillation" if name == "precomputed" else name]
                print(f"| {name} | {recipe} | {precision} | {rate:.2f} | {memory:.2f} | {share:.0f} |", flush=True)


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
    parser.add_argument("--variants", nargs="+", default=[""])
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--scenarios", nargs="*")
    parser.add_argument("--scenario", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.recipe:
        measure(arguments)
        return
    if arguments.scenario:
        scenario(arguments)
        return
    if arguments.scenarios is not None:
        arguments.scenarios = arguments.scenarios or [*SCENARIOS, "precomputed"]
        compare_scenarios(arguments)
        return
    compared = [*product(arguments.recipes, arguments.variants)]
    for recipe, variant in compared:  # all are checked before the first is measured
        changed(recipe, variant, arguments.batch_size)
    print("| recipe | variant | precision | clips/s | ratio | peak memory (GiB) | TFLOP/s | utilisation (%) |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for recipe, variant in compared:
        first = None
        for precision in arguments.precisions:
            words = in_own_process("--recipe", recipe, "--variant", variant, "--precision", precision)
            rate, memory, flops, share = words[-4:]
            first = first or float(rate)
            row = f"{float(rate):.1f} | {float(rate) / first:.2f} | {float(memory):.2f} | {float(flops):.3f} | {share}"
            print(f"| {recipe} | {variant} | {precision} | {row} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (M2DBenchError, OSError) as error:
        sys.exit(f"ERROR: {describe(error)}")
