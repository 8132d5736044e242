"""Probes on frozen features: a linear layer, nearest neighbours or logistic regression, for every seed and fold."""

# No postponed annotations here: the command line reads the types of ProbeSettings from another module's subclass.

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import one_hot

from m2d_bench.errors import DataError
from m2d_bench.evaluation.batched import fit_linear
from m2d_bench.evaluation.metrics import check_scorable, score
from m2d_bench.evaluation.problems import Outcome, ProbeResult, Problem
from m2d_bench.evaluation.settings import ProbeSettings
from m2d_bench.settings import Compute
from m2d_bench.tasks.splits import count_classes
from m2d_bench.tasks.task import Metric

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
REGULARISATIONS = (1e-3, 1e-2, 1e-1, 1.0)


def run_probes(
    features: Tensor,
    labels: Tensor,
    problems: Sequence[Problem],
    settings: ProbeSettings,
    *,
    metrics: Sequence[Metric],
    compute: Compute = Compute(device="cpu", precision="fp32"),
    on_result: Callable[[ProbeResult], None] = lambda result: None,
    progress: Callable[[int], None] = lambda epochs: None,
) -> list[ProbeResult]:
    """Train and test every problem.

    A linear probe's result depends on no other problem, up to rounding. On a CPU the problems of one seed are trained
    side by side and the seeds one after the other, so that what they touch stays in the cache; elsewhere as many as
    fit are trained at once, also those of several feature matrices (`Problem.view`). Memory: the features on the device
    (with bf16, a standardised bf16 copy), never a copy per problem.

    Args:
        features: One row a clip or a view of it, [N, D] fp32 or bf16, not standardised: each problem does that by its
            own training rows. Or parts of a clip [N, M, D], which a linear layer sees mixed under weights learned with
            it: frames by the attentive probe, layers by the linear one.
        labels: Class indices [N] int64 (trained by cross-entropy), or multi-hot [N, C] (by binary cross-entropy over
            clips and classes).
        problems: The runs; their rows index `features` and `labels`.
        settings: How to train.
        metrics: Score the test rows; the first one, on the validation rows, chooses the epoch.
        compute: Device of the linear probe (the others stay on the CPU), and precision of its training products;
            weights, Adam and all that is evaluated stay fp32. bf16 is several times faster where the processor
            multiplies it.
        on_result: Called with each result as soon as it is there.
        progress: Called with a number of epochs done; they add up to problems × `settings.epochs`.

    Returns:
        One result a problem, in the order of the problems.

    Raises:
        DataError: Features, labels or rows cannot be used as they are.
    """
    _check(features, labels, problems, metrics)
    if settings.probe in ("linear", "attentive"):
        outcomes = fit_linear(features, labels, problems, settings, metrics[0], compute, progress)
    else:
        outcomes = _fit_sklearn(features, labels, problems, settings, metrics[0], progress)
    results: dict[int, ProbeResult] = {}
    for outcome in outcomes:
        problem = problems[outcome.index]
        if not bool(outcome.logits.isfinite().all()):
            raise DataError(
                f"The probe diverged at seed {problem.seed}, fold {problem.fold}: its outputs are not finite. "
                f"Try a lower learning rate than {settings.learning_rate:g}, or --precision fp32."
            )
        results[outcome.index] = _result(problem, outcome, labels, metrics)
        on_result(results[outcome.index])
    return [results[index] for index in range(len(problems))]


def _result(problem: Problem, outcome: Outcome, labels: Tensor, metrics: Sequence[Metric]) -> ProbeResult:
    """What the test rows of a problem score."""
    truth = labels[problem.test].to(outcome.logits.device)
    main_score, *others = (score(metric, outcome.logits, truth) for metric in metrics)
    return ProbeResult(
        seed=problem.seed,
        fold=problem.fold,
        score=main_score,
        n_test=len(problem.test),
        view=problem.view,
        valid_scores=outcome.valid_scores,
        chosen=outcome.chosen,
        others=dict(zip(metrics[1:], others, strict=True)),
        logits=outcome.logits.cpu(),
    )


def _check(features: Tensor, labels: Tensor, problems: Sequence[Problem], metrics: Sequence[Metric]) -> None:
    """Refuse what would train on nonsense."""
    if features.ndim not in (2, 3) or features.dtype not in (torch.float32, torch.bfloat16):
        raise DataError(
            f"Features must be [N, D] or [N, M, D] float32 or bfloat16, got {list(features.shape)} {features.dtype}. "
            "Give one row a clip and convert with .float()."
        )
    _check_labels(labels, len(features))
    for start, part in enumerate(features.split(8192)):
        bad = ~part.flatten(1).isfinite().all(1)
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
                check_scorable(metric, labels[rows], count_classes(labels), f"The {split} split {where}")


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
    features: Tensor,
    labels: Tensor,
    problems: Sequence[Problem],
    settings: ProbeSettings,
    metric: Metric,
    progress: Callable[[int], None],
) -> Iterator[Outcome]:
    """Fit scikit-learn's probe to one problem after the other; see `run_probes` for the arguments."""
    candidates = _neighbours if settings.probe == "knn" else _regressions
    for index, problem in enumerate(problems):
        train, *others = (features[rows].float().cpu().numpy() for rows in (problem.train, problem.valid, problem.test))
        scaler = StandardScaler().fit(train)
        splits = [np.asarray(scaler.transform(split)) for split in (train, *others)]
        scores: list[float] = []
        best: tuple[Mapping[str, float], Tensor] | None = None
        for chosen, valid, test in candidates(splits, labels, problem.train):
            scores.append(score(metric, valid, labels[problem.valid]))
            if best is None or scores[-1] > max(scores[:-1]):
                best = chosen, test
        assert best is not None
        yield Outcome(index, best[0], scores, best[1])
        progress(settings.epochs)


def _neighbours(
    splits: list[np.ndarray], labels: Tensor, train_rows: Tensor
) -> Iterator[tuple[dict[str, float], Tensor, Tensor]]:
    """For each k, what share of a clip's k nearest training clips by cosine bears each label."""
    train, *others = splits
    n_classes = count_classes(labels)
    most = min(NEIGHBOURS[-1], len(train))
    searcher = NearestNeighbors(n_neighbors=most, metric="cosine").fit(train)
    nearest = [train_rows[torch.from_numpy(searcher.kneighbors(split, return_distance=False))] for split in others]
    votes = [torch.zeros(len(split), n_classes) for split in others]
    for k in range(1, most + 1):
        for count, rows in zip(votes, nearest, strict=True):
            neighbour_labels = labels[rows[:, k - 1]]
            count += neighbour_labels if labels.ndim == 2 else one_hot(neighbour_labels, n_classes)
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
            valid, test = _one_versus_rest(model, train, targets, others)
        else:
            model.fit(train, targets)
            valid, test = (torch.zeros(len(split), count_classes(labels), dtype=torch.float64) for split in others)
            for probabilities, split in zip((valid, test), others, strict=True):
                probabilities[:, model.classes_] = torch.from_numpy(model.predict_proba(split)).double()
        yield {"C": strength}, valid, test


def _one_versus_rest(
    model: LogisticRegression, train: np.ndarray, targets: np.ndarray, splits: list[np.ndarray]
) -> list[Tensor]:
    """What a regression a class decides of each split's clips, [n, C].

    A class that all training clips bear, or none, has the same decision for every clip.
    """
    decisions = [torch.from_numpy(targets[:1]).double().repeat(len(split), 1) for split in splits]
    for label, target in enumerate(targets.T):
        if target.min() < target.max():
            model.fit(train, target)
            for decided, split in zip(decisions, splits, strict=True):
                decided[:, label] = torch.from_numpy(model.decision_function(split))
    return decisions
