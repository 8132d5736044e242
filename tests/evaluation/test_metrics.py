from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from m2d_bench.errors import UsageError
from m2d_bench.evaluation.metrics import OF_CLASSES, batched_scores, per_class, score
from m2d_bench.tasks.task import Metric


def multilabel_split(n: int, ties: bool, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, 6, generator=generator) < 0.3).float()
    labels[0] = 1
    logits = torch.randn(n, 6, generator=generator) + labels
    return (logits.mul(2).round() if ties else logits), labels


@pytest.mark.parametrize("ties", [False, True])
def test_map_equals_sklearn_with_and_without_ties(ties: bool) -> None:
    logits, labels = multilabel_split(301, ties)
    expected = average_precision_score(labels.numpy(), logits.numpy(), average="macro")
    assert score("mAP", logits, labels) == pytest.approx(expected, abs=1e-12)


def test_map_of_constant_scores_is_the_share_of_positives() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert score("mAP", torch.zeros(4, 2), labels) == pytest.approx((0.25 + 0.75) / 2)


def test_map_leaves_out_classes_without_positives() -> None:
    logits, labels = multilabel_split(50, ties=False)
    empty = labels.clone()
    empty[:, 2] = 0
    kept = [0, 1, 3, 4, 5]
    expected = average_precision_score(labels[:, kept].numpy(), logits[:, kept].numpy(), average="macro")
    assert score("mAP", logits, empty) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(score("mAP", logits, torch.zeros_like(labels)))


@pytest.mark.parametrize("ties", [False, True])
def test_aucroc_and_d_prime_equal_sklearn_and_scipy(ties: bool) -> None:
    logits, labels = multilabel_split(301, ties)
    areas = roc_auc_score(labels.numpy(), logits.numpy(), average=None)
    assert score("aucroc", logits, labels) == pytest.approx(areas.mean(), abs=1e-12)
    assert score("d_prime", logits, labels) == pytest.approx((2**0.5 * norm.ppf(areas)).mean(), abs=1e-9)


def test_aucroc_leaves_out_classes_without_positives_or_negatives() -> None:
    logits, labels = multilabel_split(50, ties=False)
    labels[:, 2], labels[:, 4] = 0, 1
    kept = [0, 1, 3, 5]
    expected = roc_auc_score(labels[:, kept].numpy(), logits[:, kept].numpy(), average="macro")
    assert score("aucroc", logits, labels) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(score("aucroc", logits, torch.ones_like(labels)))


def test_each_class_alone_equals_sklearn_and_scipy_and_their_mean_is_the_score() -> None:
    logits, labels = multilabel_split(301, ties=True)
    names = ["owl", "Wren", "/m/09x0r", "a, b", "カエル", "6"]
    found = per_class(logits, labels, names)
    assert list(found) == names
    for name, truth, scores in zip(names, labels.T.numpy(), logits.T.numpy(), strict=True):
        area = roc_auc_score(truth, scores)
        expected = (average_precision_score(truth, scores), area, 2**0.5 * norm.ppf(area))
        assert found[name] == pytest.approx(dict(zip(("mAP", "aucroc", "d_prime"), expected, strict=True)), abs=6e-6)
    for metric in OF_CLASSES:
        mean = sum(values[metric] for values in found.values()) / 6
        assert score(metric, logits, labels) == pytest.approx(mean, abs=6e-6)


def test_what_a_class_cannot_be_scored_in_is_left_out() -> None:
    logits, labels = multilabel_split(50, ties=False)
    labels[:, 0], labels[:, 1] = 0, 1
    found = per_class(logits[:, :3], labels[:, :3], "abc")
    assert (found["a"], found["b"], list(found["c"])) == ({}, {"mAP": 1.0}, list(OF_CLASSES))
    assert per_class(logits, labels.argmax(1), "abcdef") == {}


def test_d_prime_of_a_faultless_ranking_is_finite() -> None:
    labels = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    assert score("d_prime", labels, labels) == pytest.approx(2**0.5 * norm.ppf(1 - 0.5 / 4))
    assert score("d_prime", -labels, labels) == pytest.approx(-(2**0.5) * norm.ppf(1 - 0.5 / 4))


@pytest.mark.parametrize("metric", ["mAP", "aucroc", "d_prime"])
def test_class_indices_are_scored_as_one_hot(metric: str) -> None:
    logits, labels = multilabel_split(60, ties=True)
    index = labels.argmax(-1)
    assert score(metric, logits, index) == score(metric, logits, torch.nn.functional.one_hot(index, 6))


def test_chroma_accuracy_forgives_octaves() -> None:
    logits = torch.eye(30)[[0, 12, 13, 5, 29]]
    assert score("chroma_accuracy", logits, torch.tensor([12, 0, 2, 5, 17])) == 0.8
    assert score("accuracy", logits, torch.tensor([12, 0, 2, 5, 17])) == 0.2


def test_accuracy_of_several_labels_counts_the_first() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    assert score("accuracy", logits, torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])) == 0.5


def test_accuracy_equals_sklearn() -> None:
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 7
    assert score("accuracy", logits, labels) == accuracy_score(labels, logits.argmax(-1))


def test_sensitivity_counts_the_abnormal_and_specificity_the_normal() -> None:
    logits, labels = torch.eye(4)[[0, 0, 1, 1, 2, 0]], torch.tensor([0, 0, 0, 1, 3, 2])
    found = {metric: score(metric, logits, labels) for metric in ("sensitivity", "specificity", "icbhi_score")}
    assert found == pytest.approx({"sensitivity": 1 / 3, "specificity": 2 / 3, "icbhi_score": 0.5})
    assert math.isnan(score("icbhi_score", logits, torch.ones(6, dtype=torch.int64)))


@pytest.mark.parametrize("metric", get_args(Metric))
def test_padding_changes_no_score(metric: str) -> None:
    splits = [multilabel_split(n, ties=True, seed=n) for n in (40, 23, 31)]
    if metric not in ("mAP", "aucroc", "d_prime"):
        splits = [(logits, labels.argmax(-1)) for logits, labels in splits]
    padded_logits = torch.full((3, 40, 6), 99.0)
    padded_labels = torch.ones(3, 40, *splits[0][1].shape[1:], dtype=splits[0][1].dtype)
    padded_logits[:, :, 1] = 100.0
    present = torch.zeros(3, 40, dtype=torch.bool)
    for i, (logits, labels) in enumerate(splits):
        padded_logits[i, : len(logits)], padded_labels[i, : len(labels)], present[i, : len(labels)] = (
            logits,
            labels,
            True,
        )
    together = batched_scores(metric, padded_logits, padded_labels, present)
    assert together.tolist() == pytest.approx([score(metric, *split) for split in splits], abs=1e-12)


def test_unknown_metric_is_named() -> None:
    with pytest.raises(UsageError, match=r"Unknown metric 'f1'.*accuracy, mAP"):
        score("f1", torch.zeros(2, 2), torch.zeros(2))


class _NoFloat64(TorchDispatchMode):
    """A device without float64, as MPS is."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not any(
            each.dtype == torch.float64 and each.device.type == "mps"
            for each in tree_leaves(result)
            if isinstance(each, torch.Tensor)
        )
        return result


@pytest.mark.parametrize("metric", get_args(Metric))
def test_no_float64_goes_to_mps(metric):
    with FakeTensorMode(), _NoFloat64():
        logits, labels = torch.zeros(2, 6, 3, device="mps"), torch.ones(2, 6, 3, device="mps")
        scores = batched_scores(metric, logits, labels, torch.ones(2, 6, dtype=torch.bool, device="mps"))
    assert scores.dtype == torch.float64
    assert scores.device.type == "cpu"
