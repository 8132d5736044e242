"""Probes on frozen features: a linear layer, nearest neighbours or logistic regression, for every seed and fold."""

# No postponed annotations here: the command line reads the types of ProbeSettings from another module's subclass.

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from m2d_bench.errors import DataError, UsageError
from m2d_bench.linear_probe import fit_linear
from m2d_bench.metrics import score
from m2d_bench.tasks.task import Metric

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
REGULARISATIONS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How a probe is trained; the defaults are the papers' linear evaluation.

    Args:
        probe: `linear`, or scikit-learn's nearest neighbours (cosine) or logistic regression.
        learning_rate: Adam's.
        weight_decay: Adam's, added to the gradient (L2).
        probe_batch_size: Clips a step; an epoch's last batch may be smaller.
        epochs: Most epochs trained.
        patience: Epochs below the best validation score after which training stops; a tie counts as better.

    Raises:
        UsageError: A value is outside what is allowed.

    Source: M2D-X (2024), section IV-B.
    """

    probe: Literal["linear", "knn", "logreg"] = "linear"
    learning_rate: float = 3e-5
    weight_decay: float = 1e-8
    probe_batch_size: int = 200
    epochs: int = 200
    patience: int = 20

    def __post_init__(self) -> None:
        if self.probe not in ("linear", "knn", "logreg"):
            raise UsageError(f"Unknown probe {self.probe!r}. Allowed: linear, knn, logreg.")
        for name in ("probe_batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise UsageError(
                f"learning_rate is {self.learning_rate} and weight_decay {self.weight_decay}; "
                "the first must be above 0, the second not below."
            )


def generator_of(*words: object) -> Generator:
    """A fresh CPU generator for what these words name, such as a seed, a fold and a purpose."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:4], "little"))


@dataclass(frozen=True, eq=False)
class Problem:
    """One training run: one seed on one fold, or on the official split.

    Args:
        seed: Draws, with the fold, the initial weights and the order of the batches.
        fold: Name of the fold or split.
        train: Rows of the feature matrix to train on, [n] int64.
        valid: Rows that choose the epoch (or k, or C).
        test: Rows that are scored.
    """

    seed: int
    fold: str
    train: Tensor
    valid: Tensor
    test: Tensor

    def generator(self) -> Generator:
        """A fresh CPU generator that depends on seed and fold alone, so that every device draws the same."""
        return generator_of(self.seed, self.fold)


@dataclass(frozen=True)
class ProbeResult:
    """What one problem scored.

    Args:
        seed: The problem's.
        fold: The problem's.
        score: Test metric.
        n_test: Number of test rows.
        others: The other metrics' scores.
        valid_scores: Validation metric of each epoch, k or C tried.
        chosen: What validation chose, its best: `{"epoch": 57}` (from 1), `{"k": 5}` or `{"C": 0.1}`.
        logits: Scores of the test rows, larger with the belief in a class, [N, C] on the CPU.
    """

    seed: int
    fold: str
    score: float
    n_test: int
    valid_scores: Sequence[float]
    chosen: Mapping[str, float]
    others: Mapping[str, float]
    logits: Tensor = field(repr=False, compare=False)


def run_probes(
    features: Tensor,
    labels: Tensor,
    problems: Sequence[Problem],
    settings: ProbeSettings,
    *,
    metric: Metric,
    other_metrics: Sequence[Metric] = (),
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    on_result: Callable[[ProbeResult], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[ProbeResult]:
    """Train and test every problem.

    A linear probe's result depends on no other problem, up to rounding. On a CPU the problems of one seed are trained
    side by side and the seeds one after the other, so that what they touch stays in the cache; elsewhere all are
    trained at once. Memory: the features on the device (with bf16, a standardised bf16 copy), never a copy per problem.

    Args:
        features: One row a clip or a view of it, [N, D] fp32 or bf16, not standardised: each problem does that by its
            own training rows.
        labels: Class indices [N] int64 (trained by cross-entropy), or multi-hot [N, C] (by binary cross-entropy over
            clips and classes).
        problems: The runs; their rows index `features` and `labels`.
        settings: How to train.
        metric: Scores the test rows and, on the validation rows, chooses the epoch.
        other_metrics: What the test rows are scored by beside it.
        device: Where the linear probe is trained; the others stay on the CPU.
        precision: Of the linear probe's training products; weights, Adam and all that is evaluated stay fp32. bf16 is
            several times faster where the processor multiplies it.
        on_result: Called with each result as soon as it is there.
        progress: Called with a number of epochs done; they add up to problems × `settings.epochs`.

    Returns:
        One result a problem, in the order of the problems.

    Raises:
        DataError: Features, labels or rows cannot be used as they are.
    """
    _check(features, labels, problems, (metric, *other_metrics))
    results: dict[int, ProbeResult] = {}

    def report(index: int, chosen: Mapping[str, float], valid_scores: Sequence[float], test_logits: Tensor) -> None:
        problem = problems[index]
        if not bool(test_logits.isfinite().all()):
            raise DataError(
                f"The probe diverged at seed {problem.seed}, fold {problem.fold}: its outputs are not finite. "
                f"Try a lower learning rate than {settings.learning_rate:g}, or --precision fp32."
            )
        truth = labels[problem.test].to(test_logits.device)
        found, *others = (score(each, test_logits, truth) for each in (metric, *other_metrics))
        result = ProbeResult(
            problem.seed,
            problem.fold,
            found,
            len(problem.test),
            valid_scores,
            chosen,
            dict(zip(other_metrics, others, strict=True)),
            test_logits.cpu(),
        )
        results[index] = result
        if on_result:
            on_result(result)

    advance = progress or (lambda epochs: None)
    if settings.probe == "linear":
        fit_linear(features, labels, problems, settings, metric, torch.device(device), precision, report, advance)
    else:
        for index, problem in enumerate(problems):
            report(index, *_fit_sklearn(features, labels, problem, settings.probe, metric))
            advance(settings.epochs)
    return [results[index] for index in range(len(problems))]


def draw_validation(labels: Tensor, rows: Tensor, fraction: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Split rows at random into training and validation, every class with two clips or more in both.

    Validation is larger than the fraction where the classes need it. A clip that stands for several labels goes to
    validation if one of them needs it there, even where another label then misses training.

    Args:
        labels: Class indices [N], or multi-hot [N, C].
        rows: The rows to split, [n] int64.
        fraction: Share of the rows for validation, between 0 and 1.
        generator: Draws the split.

    Returns:
        Training rows and validation rows, each in the order of `rows`.

    Raises:
        DataError: There are fewer than two rows, or the fraction is not between 0 and 1.
    """
    n = len(rows)
    if n < 2 or not 0 < fraction < 1:
        raise DataError(
            f"Cannot draw a validation share of {fraction} from {n} clips: it takes two or more, and 0 to 1."
        )
    order = torch.randperm(n, generator=generator)
    shuffled = labels[rows[order]]
    place, label = shuffled.nonzero().unbind(1) if labels.ndim == 2 else (torch.arange(n), shuffled)
    n_classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    first = torch.full((n_classes,), n).scatter_reduce(0, label, place, "amin")
    last = torch.full((n_classes,), -1).scatter_reduce(0, label, place, "amax")
    needed = torch.zeros(n, dtype=torch.bool)
    needed[first[first < last]] = True
    kept = torch.zeros(n, dtype=torch.bool)
    kept[last[last >= 0]] = True
    free = (~needed & ~kept).nonzero().squeeze(1)
    missing = max(0, max(1, round(fraction * n)) - int(needed.sum()))
    needed[free[:missing]] = True
    valid = torch.zeros(n, dtype=torch.bool)
    valid[order[needed]] = True
    return rows[~valid], rows[valid]


def _check(features: Tensor, labels: Tensor, problems: Sequence[Problem], metrics: Sequence[Metric]) -> None:
    """Refuse what would train on nonsense."""
    if features.ndim != 2 or features.dtype not in (torch.float32, torch.bfloat16):
        raise DataError(
            f"Features must be [N, D] float32 or bfloat16, got {list(features.shape)} {features.dtype}. "
            "Give one row a clip and convert with .float()."
        )
    _check_labels(labels, len(features))
    for start, part in enumerate(features.split(8192)):
        bad = ~part.isfinite().all(1)
        if bad.any():
            row = start * 8192 + int(bad.nonzero()[0])
            raise DataError(f"Features of row {row} hold NaN or infinity. Look at that clip, or embed again with fp32.")
    for problem in problems:
        where = f"of seed {problem.seed}, fold {problem.fold}"
        for split in ("train", "valid", "test"):
            rows = getattr(problem, split)
            if len(rows) == 0:
                raise DataError(
                    f"The {split} split {where} is empty. Every problem needs clips to train, choose and test."
                )
            if int(rows.min()) < 0 or int(rows.max()) >= len(features):
                raise DataError(f"The {split} split {where} names rows outside the {len(features)} rows of features.")
            for metric in metrics if split == "test" else metrics[:1]:
                check_scorable(metric, labels[rows], _count_classes(labels), f"The {split} split {where}")


def check_scorable(metric: Metric, labels: Tensor, n_classes: int, what: str) -> None:
    """Raises a DataError, before anything is trained, where a metric is undefined for want of labels.

    Args:
        metric: One of `metrics`.
        labels: Class indices [N], or multi-hot [N, C].
        n_classes: C.
        what: The clips, as the message begins.
    """
    blank = torch.zeros(len(labels), n_classes)
    if (labels.ndim == 2 and not labels.any()) or math.isnan(score(metric, blank, labels)):
        raise DataError(f"{what} holds too few labels: {metric} is undefined there.")


def _check_labels(labels: Tensor, n_rows: int) -> None:
    if len(labels) != n_rows or labels.ndim not in (1, 2):
        raise DataError(
            f"Labels must be class indices [N], or multi-hot [N, C], with N = {n_rows}, the rows of features, "
            f"got {list(labels.shape)}."
        )
    if labels.ndim == 1 and (labels.dtype != torch.int64 or int(labels.min()) < 0):
        raise DataError(
            f"Class indices must be int64 from 0, got {labels.dtype} with minimum {labels.min().item()}. "
            "Number the classes 0, 1, 2, …"
        )
    if labels.ndim == 2 and not ((labels == 0) | (labels == 1)).all():
        raise DataError("Multi-hot labels must be 0 or 1 everywhere. Give 1 where a clip bears a label.")


def _fit_sklearn(
    features: Tensor, labels: Tensor, problem: Problem, probe: Literal["knn", "logreg"], metric: Metric
) -> tuple[dict[str, float], list[float], Tensor]:
    """What validation chose, the score of each candidate there, and the chosen one's logits [N, C] on the test rows."""
    train, *others = (features[rows].float().cpu().numpy() for rows in (problem.train, problem.valid, problem.test))
    scaler = StandardScaler().fit(train)
    splits = [scaler.transform(split) for split in (train, *others)]
    candidates = _neighbours if probe == "knn" else _regressions
    found: list[float] = []
    best: tuple[dict[str, float], Tensor] | None = None
    for chosen, valid, test in candidates(splits, labels, problem.train):
        found.append(score(metric, valid, labels[problem.valid]))
        if best is None or found[-1] > max(found[:-1]):
            best = chosen, test
    assert best is not None
    return best[0], found, best[1]


def _neighbours(
    splits: list[np.ndarray], labels: Tensor, train_rows: Tensor
) -> Iterator[tuple[dict[str, float], Tensor, Tensor]]:
    """For each k, what share of a clip's k nearest training clips by cosine bears each label."""
    train, *others = splits
    n_classes = _count_classes(labels)
    most = min(NEIGHBOURS[-1], len(train))
    searcher = NearestNeighbors(n_neighbors=most, metric="cosine").fit(train)
    nearest = [train_rows[torch.from_numpy(searcher.kneighbors(split, return_distance=False))] for split in others]
    votes = [torch.zeros(len(split), n_classes) for split in others]
    for k in range(1, most + 1):
        for count, rows in zip(votes, nearest, strict=True):
            found = labels[rows[:, k - 1]]
            count += found if labels.ndim == 2 else one_hot(found, n_classes)
        if k in NEIGHBOURS:
            valid, test = (count / k for count in votes)
            yield {"k": k}, valid, test


def _regressions(
    splits: list[np.ndarray], labels: Tensor, train_rows: Tensor
) -> Iterator[tuple[dict[str, float], Tensor, Tensor]]:
    """For each C, probabilities of the classes, or the labels' decision values if there may be several."""
    train, *others = splits
    targets = labels[train_rows].numpy()
    for strength in REGULARISATIONS:
        model = LogisticRegression(C=strength, max_iter=1000)
        if labels.ndim == 2:
            decide = OneVsRestClassifier(model).fit(train, targets).decision_function
            valid, test = (torch.from_numpy(decide(split)) for split in others)
        else:
            model.fit(train, targets)
            valid, test = (torch.zeros(len(split), _count_classes(labels), dtype=torch.float64) for split in others)
            for probabilities, split in zip((valid, test), others, strict=True):
                probabilities[:, model.classes_] = torch.from_numpy(model.predict_proba(split)).double()
        yield {"C": strength}, valid, test


def _count_classes(labels: Tensor) -> int:
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
