"""Does M2D-X learn more than M2D from the same clips in the same steps, with and without background noise?

    python benchmarks/m2d_x.py FOLDER [--epochs 20] [--tasks …]

Trains four small encoders on the clips of the built-in task espeak_words: M2D and M2D-S, each with and without noise
of the task events, with the debug recipe on crops of 0.96 s; the teacher of M2D-S is a small HuBERT with random
weights, its features prepared once. Each is then evaluated by linear probes, six seeds, beside random weights. Prints
a Markdown table of means ± 95% confidence intervals. What FOLDER holds already is not computed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from m2d_bench import linear, tasks
from m2d_bench.encoders.huggingface import import_transformers
from m2d_bench.pretrain import recipe as recipes
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare
from m2d_bench.pretrain.inputs import Inputs
from m2d_bench.pretrain.run import RunSettings, pretrain
from m2d_bench.results.statistics import estimate, seed_means
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset

CLIPS, NOISE = "espeak_words", "task:events"
TASKS = ["espeak_words", "espeak_voice", "espeak_language", "gm_family", "gm_pitch", "events"]
RANDOM = "random:m2d_vit_tiny-80x96p16x16"
M2D = {"method": "m2d", "mask_ratio": 0.7, "ema_decay_start": 0.99, "ema_decay_end": 0.999}
DISTILLED = {**M2D, "method": "m2d_x", "scenario": "distillation", "offline_weight": 0.5, "teacher_layer": 2}
RUNS = {
    "M2D": (M2D, 0.0),
    "M2D, noise 0.2": (M2D, 0.2),
    "M2D-S": (DISTILLED, 0.0),
    "M2D-S, noise 0.2": (DISTILLED, 0.2),
}


def teacher(folder: Path) -> str:
    """A HuBERT of four blocks with random weights, written once."""
    if not (folder / "preprocessor_config.json").exists():
        transformers = import_transformers()
        torch.manual_seed(0)
        config = transformers.HubertConfig(
            hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, conv_dim=(128,) * 7
        )
        transformers.HubertModel(config).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return f"hf:{folder}"


def prepared(folder: Path) -> Path:
    """The clips as log-mels, with the teacher's features."""
    settings = PrepareSettings(teacher=teacher(folder / "hubert-random"), layer=2)
    sounds = dataset.load(tasks.get(CLIPS), Storage(), 16000).root
    return prepare([sounds], folder / "mels", settings).folder


def train(folder: Path, arguments: dict[str, object], noise_ratio: float, epochs: int) -> str:
    """Path of the checkpoint of a training, resumed where it stopped."""
    changes = {**arguments, "noise_ratio": noise_ratio, "epochs": epochs, "warmup_epochs": epochs // 10}
    changes["input_size"] = [80, 96]
    if "scenario" in arguments:
        changes["teacher"] = teacher(folder.parent / "hubert-random")
    clips = prepared(folder.parent)
    recipe = recipes.load("debug", changes=changes)
    inputs = Inputs(data=str(clips), noise=NOISE if noise_ratio else None)
    begun = any(folder.rglob("resume.pt"))
    settings = RunSettings(save_epochs=0, watch_epochs=0, held_out=0, workers=1, resume=begun)
    return str(pretrain(recipe, inputs, folder, settings))


def main() -> None:
    """Trains what is missing, evaluates, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    given = parser.parse_args()
    models = {"random weights": RANDOM}
    for number, (name, (arguments, noise_ratio)) in enumerate(RUNS.items()):
        models[name] = train(given.folder / str(number), arguments, noise_ratio, given.epochs)
    print(f"| | {' | '.join(given.tasks)} |\n|---|{'---:|' * len(given.tasks)}")
    for name, model in models.items():
        scores = []
        for run in linear(model, given.tasks, seeds=6, runs=given.folder / "runs"):
            found = estimate(list(seed_means(run).values()))
            scores.append(f"{100 * found.mean:.1f} ± {100 * (found.half_width or 0):.1f}")
        print(f"| {name} | {' | '.join(scores)} |", flush=True)


if __name__ == "__main__":
    main()
