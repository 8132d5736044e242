from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from m2d_bench.errors import DataError, UsageError
from m2d_bench.evaluation import batched, maps
from m2d_bench.evaluation.metrics import score
from m2d_bench.evaluation.probes import run_probes
from m2d_bench.evaluation.problems import ProbeResult, Problem
from m2d_bench.evaluation.settings import ProbeSettings
from m2d_bench.settings import Compute
from m2d_bench.tasks.splits import draw_validation

FAST = ProbeSettings(learning_rate=3e-3, weight_decay=1e-3, probe_batch_size=32, epochs=25, patience=5)


def clips(n: int = 260, dim: int = 24, classes: int = 4, multilabel: bool = False) -> tuple[Tensor, Tensor]:
    """Features with offsets and scales far from standard, one column constant; labels they half explain."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, dim, generator=generator)
    belief = hidden[:, :classes] + 0.7 * torch.randn(n, classes, generator=generator)
    labels = (belief > 0.5).float() if multilabel else belief.argmax(1)
    features = hidden * torch.linspace(0.1, 30, dim) + torch.linspace(-50, 50, dim)
    features[:, -1] = 7.0
    return features, labels


def problem(seed: int = 42, fold: str = "1", n_train: int = 170, n_clips: int = 260) -> Problem:
    rows = torch.randperm(n_clips, generator=torch.Generator().manual_seed(seed))
    return Problem(seed, fold, rows[:n_train], rows[180:220], rows[220:])


def plain_loop(
    features: Tensor, labels: Tensor, problem: Problem, settings: ProbeSettings, metric: str
) -> tuple[list[float], float, int, Tensor]:
    """Validation scores, test score, best epoch and its test logits: the protocol written for one problem."""
    scaler = StandardScaler().fit(features[problem.train].numpy())
    scaled = torch.from_numpy(scaler.transform(features.numpy()))
    generator = problem.generator()
    dim, classes = features.shape[1], labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    layer = nn.Linear(dim, classes)
    drawn = torch.empty(classes * dim + classes).uniform_(-(dim**-0.5), dim**-0.5, generator=generator)
    layer.load_state_dict({"weight": drawn[: classes * dim].view(classes, dim), "bias": drawn[classes * dim :]})
    optimizer = torch.optim.Adam(layer.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    loss_function = nn.CrossEntropyLoss() if metric == "accuracy" else nn.BCEWithLogitsLoss()
    valid_scores: list[float] = []
    best_epoch, test_logits = 0, torch.empty(0)
    for epoch in range(1, settings.epochs + 1):
        order = problem.train[torch.randperm(len(problem.train), generator=generator)]
        for rows in order.split(settings.probe_batch_size):
            optimizer.zero_grad()
            loss_function(layer(scaled[rows]), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            valid_scores.append(score(metric, layer(scaled[problem.valid]), labels[problem.valid]))
            if valid_scores[-1] == max(valid_scores):
                best_epoch, test_logits = epoch, layer(scaled[problem.test])
        if epoch - best_epoch >= settings.patience:
            break
    return valid_scores, score(metric, test_logits, labels[problem.test]), best_epoch, test_logits


def linear_logits(
    features: Tensor,
    labels: Tensor,
    problems: list[Problem],
    settings: ProbeSettings,
    metric: str,
    precision: str = "fp32",
) -> list[Tensor]:
    """Test logits of each problem's best epoch."""
    compute = Compute(device="cpu", precision=precision)
    outcomes = batched.fit_linear(features, labels, problems, settings, metric, compute, lambda epochs: None)
    return [outcome.logits for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]


@pytest.mark.parametrize("metric", ["accuracy", "mAP"])
def test_batched_problems_equal_a_plain_loop_over_each(metric: str) -> None:
    features, labels = clips(multilabel=metric == "mAP")
    problems = [problem(42, "1", 170), problem(42, "2", 97), problem(42, "3", 64), problem(43, "1", 33)]
    results = run_probes(features, labels, problems, FAST, metrics=[metric])
    logits = linear_logits(features, labels, problems, FAST, metric)
    for each, result, found in zip(problems, results, logits, strict=True):
        valid_scores, test_score, best_epoch, expected = plain_loop(features, labels, each, FAST, metric)
        assert (result.seed, result.fold, result.n_test) == (each.seed, each.fold, 40)
        assert result.chosen == {"epoch": best_epoch}
        assert list(result.valid_scores) == pytest.approx(valid_scores, abs=1e-6)
        assert result.score == pytest.approx(test_score, abs=1e-6)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def parts_of_clips(parts: int = 3, multilabel: bool = False) -> tuple[Tensor, Tensor]:
    """Features [N, M, D] of which the second part alone says something of the labels."""
    features, labels = clips(multilabel=multilabel)
    others = torch.randn(len(features), parts, features.shape[1], generator=torch.Generator().manual_seed(2))
    others[:, 1] = features
    return others * torch.linspace(1, 5, parts)[:, None] + 2, labels


class Mixture(nn.Module):
    """What the probes that mix parts compute, written for one problem."""

    def __init__(self, shape: tuple[int, int], classes: int, attentive: bool, generator: torch.Generator) -> None:
        super().__init__()
        parts, dim = shape
        self.attentive = attentive
        self.linear = nn.Linear(dim, classes)
        drawn = torch.empty(classes * dim + classes).uniform_(-(dim**-0.5), dim**-0.5, generator=generator)
        self.linear.load_state_dict(
            {"weight": drawn[: classes * dim].view(classes, dim), "bias": drawn[classes * dim :]}
        )
        self.mixing = nn.Parameter(torch.zeros(dim if attentive else parts))

    def forward(self, x: Tensor) -> Tensor:
        logits = (x * self.mixing).mean(2) if self.attentive else self.mixing.expand(len(x), -1)
        weights = (batched.MIXING_LEARNING_RATE / FAST.learning_rate * logits).softmax(1)
        return self.linear((weights[:, :, None] * x).sum(1))


def mixture_after(
    features: Tensor, labels: Tensor, each: Problem, attentive: bool, metric: str
) -> tuple[Mixture, Tensor]:
    """The mixture after FAST.epochs epochs, and its test logits."""
    columns = features.shape[2] if attentive else features[0].numel()
    scaler = StandardScaler().fit(features[each.train].reshape(-1, columns).numpy())
    scaled = torch.from_numpy(scaler.transform(features.reshape(-1, columns).numpy())).view(features.shape)
    generator = each.generator()
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    model = Mixture(features.shape[1:], classes, attentive, generator)
    optimizer = torch.optim.Adam(model.parameters(), FAST.learning_rate, weight_decay=FAST.weight_decay)
    loss_function = nn.CrossEntropyLoss() if metric == "accuracy" else nn.BCEWithLogitsLoss()
    for _ in range(FAST.epochs):
        order = each.train[torch.randperm(len(each.train), generator=generator)]
        for rows in order.split(FAST.probe_batch_size):
            optimizer.zero_grad()
            loss_function(model(scaled[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval(), model(scaled[each.test]).detach()


@pytest.mark.parametrize("metric", ["accuracy", "mAP"])
@pytest.mark.parametrize("probe", ["linear", "attentive"])
def test_batched_mixtures_equal_a_plain_loop_over_each(
    probe: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = parts_of_clips(multilabel=metric == "mAP")
    problems = [problem(42, "1", 170), problem(42, "2", 97), problem(43, "1", 33)]
    rising = itertools.count()
    monkeypatch.setattr(batched, "MIXING_LEARNING_RATE", 9e-3)
    monkeypatch.setattr(
        batched, "batched_scores", lambda metric, logits, *_: torch.full((len(logits),), float(next(rising)))
    )
    compute, settings = Compute(device="cpu", precision="fp32"), replace(FAST, probe=probe)
    outcomes = list(batched.fit_linear(features, labels, problems, settings, metric, compute, lambda epochs: None))
    for outcome in outcomes:
        model, expected = mixture_after(features, labels, problems[outcome.index], probe == "attentive", metric)
        torch.testing.assert_close(outcome.logits, expected, atol=2e-3, rtol=1e-3)
        weights = [outcome.chosen[f"layer {n}"] for n in (1, 2, 3)] if probe == "linear" else []
        if weights:
            assert weights == pytest.approx((3 * model.mixing).softmax(0).tolist(), abs=1e-3)
            assert max(weights) - min(weights) > 0.05


def test_mixtures_in_bf16_stay_near_fp32() -> None:
    features, labels = parts_of_clips()
    features += 300
    settings = replace(FAST, epochs=4)
    for probe in ("linear", "attentive"):
        exact, rounded = (
            linear_logits(features, labels, [problem()], replace(settings, probe=probe), "accuracy", precision)[0]
            for precision in ("fp32", "bf16")
        )
        assert 0 < (exact - rounded).abs().max() < 0.1 * exact.std()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("side_by_side", [True, False])
def test_problems_on_several_feature_matrices_equal_those_on_each_alone(
    precision: str, side_by_side: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side as on a GPU, too."""
    one, labels = clips()
    matrices = [one, one.flip(0) * 100, one + 500]
    problems = [problem(42, "1", 170), problem(42, "2", 97)]
    stacked = [
        replace(
            each, train=each.train + 260 * view, valid=each.valid + 260 * view, test=each.test + 260 * view, view=view
        )
        for each in problems
        for view in range(3)
    ]
    groups = batched._groups
    if side_by_side:
        monkeypatch.setattr(batched, "_groups", lambda problems, _, size: groups(problems, torch.device("meta"), size))
    together = linear_logits(torch.cat(matrices), labels.repeat(3), stacked, FAST, "accuracy", precision)
    monkeypatch.undo()
    for each, logits in zip(stacked, together, strict=True):
        original = problems[0] if each.fold == "1" else problems[1]
        alone = linear_logits(matrices[each.view], labels, [original], FAST, "accuracy", precision)[0]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)


def test_no_more_problems_are_trained_side_by_side_than_fit() -> None:
    problems = [replace(problem(seed), view=view) for seed in (42, 43) for view in (0, 1)]
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert batched._groups(problems, cpu, 1) == [[0], [1], [2], [3]]
    assert batched._groups(problems, other, 1) == [[0, 1, 2, 3]]
    assert batched._groups(problems, other, 2**30) == [[0, 1], [2, 3]]
    assert batched._groups(problems, other, 2**40) == [[0], [1], [2], [3]]


def test_bf16_stays_near_fp32_whatever_the_features_offset() -> None:
    features, labels = clips()
    features += 300
    problems = [problem(42, "1"), problem(42, "2", 97)]
    settings = replace(FAST, epochs=6)
    exact = linear_logits(features, labels, problems, settings, "accuracy")
    rounded = linear_logits(features, labels, problems, settings, "accuracy", "bf16")
    for one, other in zip(exact, rounded, strict=True):
        assert 0 < (one - other).abs().max() < 0.05 * one.std()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["clips", "layers", "frames"])
def test_features_too_large_for_the_memory_are_not_copied_and_score_the_same(
    kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = clips() if kind == "clips" else parts_of_clips()
    settings = replace(FAST, probe="attentive" if kind == "frames" else "linear", epochs=6)
    problems = [problem(42, "1"), problem(42, "2", 97)]
    in_memory = linear_logits(features, labels, problems, settings, "accuracy", precision)
    monkeypatch.setattr(maps, "LARGE", 0)
    monkeypatch.setattr(batched, "_ROWS", 37)
    stores: list[Tensor] = []
    store = batched._store
    monkeypatch.setattr(batched, "_store", lambda *arguments: stores.append(store(*arguments)) or stores[-1])
    mapped = linear_logits(features, labels, problems, settings, "accuracy", precision)
    assert stores[0].data_ptr() == features.data_ptr()
    for one, other in zip(in_memory, mapped, strict=True):
        atol = 1e-5 if precision == "fp32" else 0.05 * float(one.std())
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-5)


def test_a_result_does_not_depend_on_its_batch_mates() -> None:
    features, labels = clips()
    mates = [problem(42, str(fold), n) for fold, n in enumerate((170, 33, 129))]
    together = linear_logits(features, labels, mates, FAST, "accuracy")
    backwards = linear_logits(features, labels, mates[::-1], FAST, "accuracy")[::-1]
    for mate, one, other in zip(mates, together, backwards, strict=True):
        alone = linear_logits(features, labels, [mate], FAST, "accuracy")[0]
        torch.testing.assert_close(one, alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(other, alone, atol=1e-5, rtol=1e-4)


def test_seed_and_fold_both_change_the_draw() -> None:
    draws = {torch.rand(1, generator=problem(seed, fold).generator()).item() for seed in (42, 43) for fold in "12"}
    assert len(draws) == 4


@pytest.fixture(params=["in memory", "mapped"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes any features for ones that fit the memory, or that do not and are read in several parts."""
    if request.param == "mapped":
        monkeypatch.setattr(maps, "LARGE", 0)
        monkeypatch.setattr(batched, "_ROWS", 37)


@pytest.mark.usefixtures("anywhere")
def test_columns_constant_in_training_are_centred_but_not_scaled() -> None:
    features, _ = clips()
    features[200:, 3] += 1000
    features[:200, 3] = 0.1
    shift, scale = batched._standardisation(features, torch.arange(200))
    expected = StandardScaler().fit(features[:200].numpy()).transform(features.numpy())
    torch.testing.assert_close(features * scale + shift, torch.from_numpy(expected), atol=1e-4, rtol=1e-5)
    assert scale[3] == scale[-1] == 1


def test_the_best_epoch_is_tested_and_patience_stops_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation scores are dictated: one problem peaks in epoch 5, the other in epoch 3 and again in epoch 4."""
    scripts = {170: [0.1, 0.2, 0.9, 0.9, 0.8, 0.1, 0.2, 1.0], 97: [0.1, 0.2, 0.3, 0.4, 0.5, 0.4, 0.3, 0.4, 1.0]}
    epochs = {n: itertools.count() for n in scripts}
    trained: list[list[int]] = []
    validate = batched._BatchedProbes._validate

    def dictated(self: batched._BatchedProbes, epoch: int) -> list[int]:
        lengths = [len(rows) for rows in self.train]
        trained.append(lengths)
        scores = torch.tensor([scripts[n][next(epochs[n])] for n in lengths])
        monkeypatch.setattr(batched, "batched_scores", lambda *_: scores)
        return validate(self, epoch)

    features, labels = clips()
    problems = [problem(42, "1", 97), problem(42, "2", 170)]
    monkeypatch.setattr(batched._BatchedProbes, "_validate", dictated)
    settings, compute = replace(FAST, patience=3), Compute(device="cpu", precision="fp32")
    trainings = batched.fit_linear(features, labels, problems, settings, "accuracy", compute, lambda epochs: None)
    outcomes = sorted(trainings, key=lambda outcome: outcome.index)
    assert [(outcome.chosen["epoch"], round(max(outcome.valid_scores), 3)) for outcome in outcomes] == [
        (5, 0.5),
        (4, 0.9),
    ]
    assert trained == [[170, 97]] * 7 + [[97]]
    monkeypatch.undo()
    for outcome, trained_on, (peak, last) in zip(outcomes, problems, ((5, 8), (4, 7)), strict=True):
        best, latest = (logits_after(features, labels, trained_on, epochs) for epochs in (peak, last))
        torch.testing.assert_close(outcome.logits, best, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(outcome.logits, latest, atol=1e-2)


def logits_after(features: Tensor, labels: Tensor, each: Problem, epochs: int) -> Tensor:
    """Test logits after exactly so many epochs."""
    rising = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched, "batched_scores", lambda *_: torch.tensor([float(next(rising))]))
        return linear_logits(features, labels, [each], replace(FAST, epochs=epochs, patience=99), "accuracy")[0]


def test_results_are_reported_as_they_come_and_returned_in_order() -> None:
    features, labels = clips()
    problems = [problem(seed, fold) for fold in "12" for seed in (43, 42)]
    reported: list[ProbeResult] = []
    advanced: list[int] = []
    results = run_probes(
        features, labels, problems, FAST, metrics=["accuracy"], on_result=reported.append, progress=advanced.append
    )
    assert [(r.seed, r.fold) for r in results] == [(p.seed, p.fold) for p in problems]
    assert [r.seed for r in reported] == [43, 43, 42, 42]
    assert sum(advanced) == len(problems) * FAST.epochs


@pytest.mark.parametrize("metric", ["accuracy", "mAP"])
@pytest.mark.parametrize("probe", ["knn", "logreg"])
def test_other_probes_beat_chance_and_say_what_validation_chose(probe: str, metric: str) -> None:
    features, labels = clips(multilabel=metric == "mAP")
    settings = ProbeSettings(probe=probe)
    (result,) = run_probes(features, labels, [problem()], settings, metrics=[metric])
    chance = 0.25 if metric == "accuracy" else labels.mean().item()
    assert chance + 0.1 < result.score <= 1
    assert list(result.chosen) == [{"knn": "k", "logreg": "C"}[probe]]


def standardised(features: Tensor, each: Problem) -> list[np.ndarray]:
    """What scikit-learn's probes see of training, validation and test."""
    scaler = StandardScaler().fit(features[each.train].numpy())
    return [scaler.transform(features[rows].numpy()) for rows in (each.train, each.valid, each.test)]


def several_labels() -> tuple[Tensor, Tensor]:
    """Features and labels, of which one stands at every clip and one at none."""
    features, labels = clips(multilabel=True)
    return features, torch.cat([labels, torch.ones(len(labels), 1), torch.zeros(len(labels), 1)], 1)


def test_scores_of_several_labels_are_the_mean_of_the_neighbours_labels() -> None:
    features, labels = several_labels()
    each = problem()
    train, valid, test = (rows / np.linalg.norm(rows, axis=1)[:, None] for rows in standardised(features, each))

    def scored(rows: np.ndarray, k: int) -> Tensor:
        nearest = np.argsort(-(rows @ train.T), axis=1)[:, :k]
        return torch.stack([labels[each.train[of_clip]].mean(0) for of_clip in nearest])

    by_k = {k: score("mAP", scored(valid, k), labels[each.valid]) for k in (1, 3, 5, 10, 20, 50)}
    best = max(by_k, key=by_k.__getitem__)
    (result,) = run_probes(features, labels, [each], ProbeSettings(probe="knn"), metrics=["mAP"])
    assert result.chosen == {"k": best}
    assert list(result.valid_scores) == pytest.approx(list(by_k.values()))
    torch.testing.assert_close(result.logits, scored(test, best))


@pytest.mark.filterwarnings("ignore:Label")
def test_a_regression_a_label_is_scikit_learns_one_versus_rest() -> None:
    features, labels = several_labels()
    each = problem()
    train, valid, test = standardised(features, each)
    decide = {
        strength: OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000))
        .fit(train, labels[each.train].numpy())
        .decision_function
        for strength in (1e-3, 1e-2, 1e-1, 1.0)
    }
    by_strength = {
        strength: score("mAP", torch.from_numpy(of(valid)), labels[each.valid]) for strength, of in decide.items()
    }
    best = max(by_strength, key=by_strength.__getitem__)
    (result,) = run_probes(features, labels, [each], ProbeSettings(probe="logreg"), metrics=["mAP"])
    assert result.chosen == {"C": best}
    assert list(result.valid_scores) == pytest.approx(list(by_strength.values()))
    np.testing.assert_allclose(result.logits, decide[best](test), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("probe", ["knn", "logreg"])
def test_a_single_label_that_clips_may_lack_is_scored_like_several(probe: str) -> None:
    features, labels = clips(multilabel=True)
    settings = replace(FAST, probe=probe)
    (result,) = run_probes(features, labels[:, :1], [problem()], settings, metrics=["mAP", "aucroc"])
    assert result.logits.shape == (40, 1)
    assert result.others["aucroc"] > 0.7


def test_nearest_neighbours_survive_tiny_training_sets_and_missing_classes() -> None:
    features, labels = clips()
    few = Problem(42, "1", torch.tensor([0, 1, 2]), torch.arange(10, 40), torch.arange(40, 90))
    (result,) = run_probes(features, labels, [few], ProbeSettings(probe="knn"), metrics=["accuracy"])
    assert result.chosen["k"] in (1, 3)
    two = torch.cat([(labels == c).nonzero()[:20, 0] for c in (1, 3)])
    missing = Problem(42, "1", two, torch.arange(10, 40), torch.arange(40, 90))
    (result,) = run_probes(features, labels, [missing], ProbeSettings(probe="logreg"), metrics=["accuracy"])
    assert result.score <= (torch.isin(labels[40:90], torch.tensor([1, 3]))).float().mean() + 1e-6


@pytest.mark.parametrize("multilabel", [False, True])
def test_validation_holds_every_class_and_its_share(multilabel: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(500, generator=generator)[:400]
    labels = torch.randint(0, 30, (500,), generator=generator)
    if multilabel:
        labels = (torch.rand(500, 30, generator=generator) < 0.05).float()
    train, valid = draw_validation(labels, rows, 0.1, generator)
    assert sorted(torch.cat([train, valid]).tolist()) == sorted(rows.tolist())
    assert 40 <= len(valid) <= 52 if multilabel else len(valid) == 40
    hot = labels if multilabel else nn.functional.one_hot(labels)
    several = hot[rows].sum(0) >= 2
    assert several.sum() == 30
    assert (hot[valid].sum(0)[several] > 0).all()


def test_validation_leaves_single_clips_and_one_of_each_class_to_training() -> None:
    labels = torch.tensor([0] * 50 + [1] * 2 + [2])
    for seed in range(30):
        train, valid = draw_validation(labels, torch.arange(53), 0.6, torch.Generator().manual_seed(seed))
        assert len(valid) == 32
        assert set(labels[train].tolist()) == {0, 1, 2}
        assert set(labels[valid].tolist()) == {0, 1}


def test_validation_depends_on_the_generator_alone() -> None:
    labels = torch.arange(100) % 5
    draw = lambda seed: draw_validation(labels, torch.arange(100), 0.1, torch.Generator().manual_seed(seed))[1]  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_bad_input_is_refused_with_what_is_wrong() -> None:
    features, labels = clips()
    good = problem()
    spoilt = features.clone()
    spoilt[123, 4] = torch.nan
    empty = replace(good, valid=torch.tensor([], dtype=torch.int64))
    outside = replace(good, test=torch.tensor([0, 260]))
    for wrong, message in (
        ((spoilt, labels, [good]), "row 123 hold NaN"),
        ((features.double(), labels, [good]), "float64"),
        ((features, labels[:-1], [good]), r"N = 260.*got \[259\]"),
        ((features, labels - 1, [good]), "minimum -1"),
        ((features, labels, [empty]), "valid split of seed 42, fold 1 is empty"),
        ((features, labels, [outside]), "outside the 260 rows"),
    ):
        with pytest.raises(DataError, match=message):
            run_probes(*wrong, FAST, metrics=["accuracy"])
    with pytest.raises(DataError, match="multi-hot"):
        run_probes(features, labels[:, None, None], [good], FAST, metrics=["mAP"])
    hot = nn.functional.one_hot(labels)
    with pytest.raises(DataError, match="0 or 1"):
        run_probes(features, hot * 2, [good], FAST, metrics=["mAP"])
    with pytest.raises(DataError, match="mAP is undefined"):
        run_probes(features, torch.zeros_like(hot), [good], FAST, metrics=["mAP"])
    with pytest.raises(DataError, match="two or more"):
        draw_validation(labels, torch.tensor([3]), 0.1, torch.Generator())


def test_other_metrics_are_scored_beside_the_first_and_change_nothing() -> None:
    features, labels = clips(classes=14)
    (alone,) = run_probes(features, labels, [problem()], FAST, metrics=["mAP"])
    (found,) = run_probes(features, labels, [problem()], FAST, metrics=("mAP", "accuracy", "chroma_accuracy", "aucroc"))
    assert replace(found, others={}) == alone
    assert list(found.others) == ["accuracy", "chroma_accuracy", "aucroc"]
    assert found.others["chroma_accuracy"] >= found.others["accuracy"] > 0.1
    assert alone.others == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": "svm"}, "'svm'.*linear, knn, logreg, attentive"),
        ({"probe_batch_size": 0}, "probe_batch_size is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ProbeSettings(**changes)
