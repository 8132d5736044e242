"""Signs of collapse, against closed forms and NumPy."""

import numpy as np
import pytest
import torch

from m2d_bench.errors import TrainingError, UsageError
from m2d_bench.pretrain.features import diagnose


def equal_spread(n, width, k, mean=0.0):
    """Features whose centred singular values are k times the same, and a common mean."""
    draw = np.random.default_rng(0).standard_normal
    left = np.linalg.qr(np.column_stack([np.ones(n), draw((n, k))]))[0][:, 1:]  # orthogonal to the mean
    right = np.linalg.qr(draw((width, k)))[0]
    return torch.from_numpy(3 * left @ right.T + mean)


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize(("n", "width", "k"), [(50, 12, 12), (50, 12, 5), (50, 12, 1), (8, 30, 7), (8, 30, 3)])
def test_k_directions_of_equal_spread_have_rank_k_and_the_area_of_the_closed_form(n, width, k, mean):
    features = equal_spread(n, width, k, mean)
    found = diagnose(features)
    assert found["effective_rank"] == pytest.approx(k)
    assert found["explained_variance_area"] == pytest.approx((2 * width - k + 1) / (2 * width))


@pytest.mark.parametrize(("n", "width"), [(40, 6), (6, 40), (2, 1)])
def test_random_features_agree_with_the_singular_values_of_numpy(n, width):
    features = np.random.default_rng(1).standard_normal((n, width)) * np.arange(1, width + 1)
    found = np.linalg.svd(features - features.mean(0), compute_uv=False)
    found = found[found > 1e-9]
    share, variances = found / found.sum(), found**2 / (found**2).sum()
    curve = np.concatenate([variances.cumsum(), np.ones(width - len(found))])
    expected = {
        "effective_rank": np.exp(-(share * np.log(share)).sum()),
        "explained_variance_area": curve.mean(),
        "feature_std": features.std(0, ddof=1).mean(),
    }
    assert diagnose(torch.from_numpy(features)) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(50, 8), (3, 200), (3000, 40)])
def test_constant_features_have_no_rank_however_their_mean_rounds(dtype, shape):
    row = torch.linspace(-1, 1000.1, shape[1]).to(dtype)
    found = diagnose(row.expand(shape))
    assert found["effective_rank"] == 0
    assert found["explained_variance_area"] == 1
    assert found["feature_std"] == pytest.approx(0, abs=1e-9)


def test_one_dominating_direction_brings_rank_and_area_near_one():
    features = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    isotropic = diagnose(features)
    dominated = diagnose(features * torch.tensor([1e4] + [1.0] * 15))
    assert isotropic["effective_rank"] > 15.9
    assert isotropic["explained_variance_area"] == pytest.approx(17 / 32, abs=0.02)
    assert 1 < dominated["effective_rank"] < 1.05
    assert 1 - 1e-5 < dominated["explained_variance_area"] <= 1


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_rank_and_area_do_not_depend_on_the_scale_even_where_squares_leave_the_range(scale):
    found = diagnose(equal_spread(20, 6, 4) * scale)
    assert found["effective_rank"] == pytest.approx(4)
    assert found["explained_variance_area"] == pytest.approx(9 / 12)


def test_features_of_a_training_step_in_low_precision_are_taken_as_they_are():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    assert diagnose(features) == diagnose(features.detach().double())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused_with_their_number(value):
    features = torch.ones(4, 3)
    features[1:3, 0] = value
    with pytest.raises(TrainingError, match=r"NaN or infinite values in 2 of 4 rows"):
        diagnose(features)


@pytest.mark.parametrize("shape", [(4,), (1, 3), (0, 3), (4, 0), (2, 3, 4)])
def test_another_shape_is_refused(shape):
    with pytest.raises(UsageError, match=r"\[N, D\] with two rows or more"):
        diagnose(torch.ones(shape))
