"""How fast are clips embedded, in fp32 and bf16, and does bf16 change anything?

    python benchmarks/embed.py [--model NAME] [--clips N] [--seconds S] [--device D] [--data ESC10]

Prints a Markdown table: clips a second (decoding apart), peak memory of the process, the cosine between the embeddings
of both precisions. With --data, linear evaluation of ESC-10 in both precisions as well.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from m2d_bench import linear
from m2d_bench.encoders import zoo
from m2d_bench.results import summary
from m2d_bench.settings import Compute


def measure(arguments: argparse.Namespace) -> None:
    """One precision in a process of its own, for its peak memory: prints clips a second, MiB, and saves embeddings."""
    encoder = zoo.load(arguments.model, compute=Compute(device=arguments.device, precision=arguments.worker))
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.randn(arguments.clips, round(arguments.seconds * encoder.sample_rate), generator=generator)
    waveforms *= torch.rand(len(waveforms), 1, generator=generator)
    batches = waveforms.split(arguments.batch_size)
    with torch.inference_mode():
        encoder.scene_embeddings(batches[0])
        start = time.perf_counter()
        embeddings = torch.cat([encoder.scene_embeddings(batch).cpu() for batch in batches])
        seconds = time.perf_counter() - start
    np.save(arguments.out, embeddings.numpy())
    peak = torch.cuda.max_memory_allocated() if encoder.vit.cls_token.is_cuda else 0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(len(waveforms) / seconds, peak / 2**20)


def main() -> None:
    """Runs both precisions in turn, twice, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:m2d_vit_base-80x608p16x16")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        measure(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
        memory = {}
        for precision in ("fp32", "bf16") * 2:
            out = f"{folder}/{precision}.npy"
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", precision, "--out", out]
            reply = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            rates[precision].append(float(reply[0]))
            memory[precision] = float(reply[1])
        fp32, bf16 = (torch.from_numpy(np.load(f"{folder}/{p}.npy")) for p in ("fp32", "bf16"))
        cosine = torch.cosine_similarity(fp32, bf16).min().item()
        ratio = max(rates["bf16"]) / max(rates["fp32"])
        print(f"{arguments.model}, {arguments.clips} clips of {arguments.seconds:g} s, best of two\n")
        print("| precision | clips/s | ratio | peak memory (MiB) | least cosine to fp32 |")
        print("|---|---:|---:|---:|---:|")
        print(f"| fp32 | {max(rates['fp32']):.1f} | 1.00 | {memory['fp32']:.0f} | 1 |")
        print(f"| bf16 | {max(rates['bf16']):.1f} | {ratio:.2f} | {memory['bf16']:.0f} | {cosine:.6f} |")
        if arguments.data:
            print("\n| precision | esc10, six seeds: mean ± 95% CI (%) | seconds |\n|---|---|---:|")
            for precision in ("fp32", "bf16"):
                storage = {"data": arguments.data, "cache": Path(folder), "runs": Path(folder) / "runs"}
                start = time.perf_counter()
                (row,) = summary(linear(arguments.model, "esc10", precision=precision, **storage))
                seconds = time.perf_counter() - start
                print(f"| {precision} | {row['mean']:.2f} ± {row['ci95']:.2f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
