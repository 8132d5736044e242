"""Linear evaluation, all seeds and folds batched, against the conventional loop: one DataLoader, one layer at a time.

    python benchmarks/linear.py [--seeds 6] [--device cpu] [--quick] [--large]

Prints a Markdown table. Both sides run the protocol of the papers in full (Adam, batches of 200, up to 200 epochs,
early stopping) on the same splits of 2 000 synthetic clips in 50 classes. They run alternately, seed by seed, so that
other load on the machine meets both (on a GPU the batched side runs all seeds at once). --quick runs the loop on the
first seed only and scales its time; the table says so. --large measures peak memory on 300 000 × 3 840 bf16 features
instead.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from itertools import chain

import torch
from scipy import stats
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from m2d_bench.evaluation.probes import run_probes
from m2d_bench.evaluation.problems import Problem
from m2d_bench.evaluation.settings import ProbeSettings
from m2d_bench.settings import Compute
from m2d_bench.tasks.splits import draw_validation

N_CLIPS, N_CLASSES, N_FOLDS = 2000, 50, 5
SETTINGS = ProbeSettings()


def synthetic_clips(dim: int) -> tuple[Tensor, Tensor]:
    """Features [N, D] of classes that overlap, with unequal scales and offsets as an encoder's have; labels [N]."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N_CLIPS) % N_CLASSES
    centres = torch.randn(N_CLASSES, 64, generator=generator)
    hidden = centres[labels] + 2.2 * torch.randn(N_CLIPS, 64, generator=generator)
    features = hidden @ torch.randn(64, dim, generator=generator) / 8 + torch.randn(N_CLIPS, dim, generator=generator)
    scales = torch.rand(dim, generator=generator) + 0.1
    return features * scales + torch.randn(dim, generator=generator), labels


def cross_validation(labels: Tensor, seed: int) -> list[Problem]:
    """One problem a fold: the fold is tested, a tenth of the rest validates."""
    fold_of = torch.arange(N_CLIPS) // N_CLASSES % N_FOLDS
    generator = torch.Generator().manual_seed(seed)
    problems = []
    for fold in range(N_FOLDS):
        train, valid = draw_validation(labels, (fold_of != fold).nonzero().squeeze(1), 0.1, generator)
        problems.append(Problem(seed, str(fold + 1), train, valid, (fold_of == fold).nonzero().squeeze(1)))
    return problems


def conventional(features: Tensor, labels: Tensor, problem: Problem, device: str) -> float:
    """Test accuracy of one layer, trained the way it is usually written."""
    torch.manual_seed(problem.seed)
    scaler = StandardScaler().fit(features[problem.train].numpy())
    train, valid, test = (
        DataLoader(
            TensorDataset(torch.from_numpy(scaler.transform(features[rows].numpy())), labels[rows]),
            SETTINGS.probe_batch_size,
            shuffle=rows is problem.train,
        )
        for rows in (problem.train, problem.valid, problem.test)
    )
    layer = nn.Linear(features.shape[1], int(labels.max()) + 1).to(device)
    optimizer = torch.optim.Adam(layer.parameters(), SETTINGS.learning_rate, weight_decay=SETTINGS.weight_decay)
    loss_function = nn.CrossEntropyLoss()
    best_score, best_epoch, best_weights = -1.0, 0, {}
    for epoch in range(SETTINGS.epochs):
        for x, y in train:
            optimizer.zero_grad()
            loss_function(layer(x.to(device)), y.to(device)).backward()
            optimizer.step()
        valid_score = accuracy(layer, valid, device)
        if valid_score >= best_score:
            best_score, best_epoch = valid_score, epoch
            best_weights = {name: value.clone() for name, value in layer.state_dict().items()}
        elif epoch - best_epoch >= SETTINGS.patience:
            break
    layer.load_state_dict(best_weights)
    return accuracy(layer, test, device)


@torch.no_grad()
def accuracy(layer: nn.Linear, loader: DataLoader, device: str) -> float:
    hits = sum(int((layer(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in loader)
    return hits / len(loader.dataset)  # type: ignore[arg-type]


def batched(features: Tensor, labels: Tensor, problems: list[Problem], device: str, precision: str) -> list[float]:
    """Test accuracies of all problems by `run_probes`."""
    compute = Compute(device=device, precision=precision)
    results = run_probes(features, labels, problems, SETTINGS, metrics=["accuracy"], compute=compute)
    return [result.score for result in results]


def interval(accuracies: list[float]) -> str:
    """Mean over seeds ± 95% half width; a seed's score is its mean over folds."""
    scores = torch.tensor(accuracies, dtype=torch.float64).view(-1, N_FOLDS).mean(1) * 100
    if len(scores) == 1:
        return f"{scores.item():.2f} (n = 1)"
    half = stats.t.ppf(0.975, len(scores) - 1) * scores.std().item() / len(scores) ** 0.5
    return f"{scores.mean():.2f} ± {half:.2f} (n = {len(scores)})"


def compare(dim: int, n_seeds: int, device: str, quick: bool) -> list[str]:
    """Table rows of one width."""
    features, labels = synthetic_clips(dim)
    seeds = [cross_validation(labels, 42 + i) for i in range(n_seeds)]
    turns = [seeds] if device != "cpu" else [[problems] for problems in seeds]
    batched(features, labels, seeds[0][:1], device, "bf16")  # warm up the device
    seconds = {"loop": 0.0, "fp32": 0.0, "bf16": 0.0}
    scores: dict[str, list[float]] = {name: [] for name in seconds}
    for turn in turns:
        for problems in turn:
            if quick and scores["loop"]:
                break
            start = time.perf_counter()
            scores["loop"] += [conventional(features, labels, problem, device) for problem in problems]
            seconds["loop"] += time.perf_counter() - start
        for precision in ("fp32", "bf16"):
            start = time.perf_counter()
            scores[precision] += batched(features, labels, list(chain(*turn)), device, precision)
            seconds[precision] += time.perf_counter() - start
    scaled = f" (1 seed × {n_seeds}, scaled)" if quick and n_seeds > 1 else ""
    loop_seconds = seconds["loop"] * (n_seeds if quick else 1)
    return [
        f"| {dim} | {precision} | {loop_seconds:.1f}{scaled} | {seconds[precision]:.1f} "
        f"| {loop_seconds / seconds[precision]:.1f}{' (scaled)' if scaled else ''} "
        f"| {interval(scores['loop'])} | {interval(scores[precision])} |"
        for precision in ("fp32", "bf16")
    ]


def large(device: str) -> str:
    """Peak memory of six seeds on 300 000 × 3 840 bf16 features, three epochs each."""
    n, dim = 300_000, 3840
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(n, dim, dtype=torch.bfloat16)
    for part in features.split(10_000):
        part.copy_(torch.randn(part.shape, generator=generator))
    labels = torch.arange(n) % N_CLASSES
    rows = torch.randperm(n, generator=generator)
    splits = rows[:240_000], rows[240_000:270_000], rows[270_000:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    problems = [Problem(42 + i, "official", *splits) for i in range(6)]
    settings = ProbeSettings(epochs=3)
    compute = Compute(device=device, precision="bf16")
    run_probes(features, labels, problems, settings, metrics=["accuracy"], compute=compute)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gib = 2**20  # ru_maxrss counts KiB on Linux
    return (
        f"300 000 × 3 840 bf16 ({features.nbytes / 2**30:.2f} GiB), 6 seeds × 3 epochs: "
        f"peak resident {peak / gib:.2f} GiB, {before / gib:.2f} GiB before training; {seconds:.0f} s"
        + (f"; {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU" if device != "cpu" else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dims", type=int, nargs="+", default=[768, 3840])
    parser.add_argument("--quick", action="store_true", help="run the conventional loop on one seed and scale its time")
    parser.add_argument("--large", action="store_true", help="measure peak memory on 300 000 × 3 840 features instead")
    options = parser.parse_args()
    if options.large:
        print(large(options.device))
        return
    name = torch.cuda.get_device_name() if options.device != "cpu" else f"CPU, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{N_CLIPS} clips, {N_CLASSES} classes, {options.seeds} seeds × {N_FOLDS} folds; {name}; {versions}\n")
    print("| dims | precision | conventional, s | batched, s | ratio | conventional, % | batched, % |")
    print("|---|---|---|---|---|---|---|")
    for dim in options.dims:
        for row in compare(dim, options.seeds, options.device, options.quick):
            print(row, flush=True)


if __name__ == "__main__":
    main()
