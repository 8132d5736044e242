"""Augmentations against slow NumPy references, and the distributions they draw from."""

import numpy as np
import pytest
import torch
from scipy import stats

from m2d_bench.randomness import generator_of
from m2d_bench.training.augment import draw_crops, draw_masks, draw_mixup, mask, mix, resize_crops


def generator(word=0):
    return generator_of("augment", word)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 2.0])
def test_every_sample_has_a_share_of_its_own_from_the_beta_distribution(alpha):
    partner, share = draw_mixup(4000, alpha, generator())
    assert stats.kstest(share.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert sorted(partner.tolist()) == list(range(4000))
    assert len(share.unique()) > 3000


def test_without_alpha_nothing_is_mixed():
    partner, share = draw_mixup(8, 0.0, generator())
    assert partner.tolist() == list(range(8))
    assert share.tolist() == [1.0] * 8


def test_mixing_is_that_of_a_loop_over_samples():
    x, y = torch.randn(6, 50), torch.rand(6, 3)
    partner, share = draw_mixup(6, 0.5, generator())
    for each in (x, y):
        expected = np.stack(
            [share[i].item() * each[i].numpy() + (1 - share[i].item()) * each[partner[i]].numpy() for i in range(6)]
        )
        np.testing.assert_allclose(mix(each, each[partner], share), expected, rtol=1e-5, atol=1e-6)


def test_bands_have_every_width_up_to_the_given_one_and_lie_inside():
    edges = draw_masks(20_000, (80, 501), (30, 192), generator())
    for first, last, length, most in ((0, 1, 80, 30), (2, 3, 501, 192)):
        widths = edges[:, last] - edges[:, first]
        assert set(widths.tolist()) == set(range(most + 1))
        assert stats.chisquare(np.bincount(widths)).pvalue > 0.001
        assert edges[:, first].min() == 0
        assert edges[:, last].max() == length


def test_bands_wider_than_the_spectrogram_are_cut_to_it():
    edges = draw_masks(100, (80, 20), (30, 192), generator())
    assert int((edges[:, 3] - edges[:, 2]).max()) == 20


def test_masking_is_that_of_a_loop():
    x = torch.randn(5, 1, 80, 60)
    edges = draw_masks(5, (80, 60), (30, 40), generator())
    expected = x.clone().numpy()
    for i, (low, high, start, end) in enumerate(edges.tolist()):
        expected[i, :, low:high] = 0
        expected[i, :, :, start:end] = 0
    np.testing.assert_array_equal(mask(x, edges), expected)


def test_crops_lie_in_the_virtual_area_and_have_the_published_scales():
    boxes = draw_crops(20_000, (80, 200), generator())
    top, left, height, width = boxes.unbind(1)
    assert (int(height.min()), int(height.max())) == (48, 80)  # 0.6 … 1.5, cut to the area's 1.0
    assert (int(width.min()), int(width.max())) == (120, 299)  # 0.6 … 1.5
    assert int((top + height).max()) == 80
    assert int((left + width).max()) == 300
    assert (int(top.min()), int(left.min())) == (0, 0)


def cubic(t, a=-0.75):
    """Cubic convolution kernel."""
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def resized(row, size):
    """One row resized, corner on corner, its ends repeated beyond them."""
    scale = (len(row) - 1) / (size - 1)
    found = []
    for place in range(size):
        source = place * scale
        taps = range(int(np.floor(source)) - 1, int(np.floor(source)) + 3)
        found.append(sum(cubic(source - tap) * row[np.clip(tap, 0, len(row) - 1)] for tap in taps))
    return np.array(found)


def test_resize_crop_is_that_of_a_slow_reference():
    x = torch.randn(3, 1, 16, 20)
    boxes = draw_crops(3, (16, 20), generator(3))
    for sample, (top, left, height, width), found in zip(
        x.numpy(), boxes.tolist(), resize_crops(x, boxes), strict=True
    ):
        area = np.zeros((16, 30))
        area[:, 5:25] = sample[0]
        crop = area[top : top + height, left : left + width]
        wide = np.stack([resized(row, 20) for row in crop])
        expected = np.stack([resized(column, 16) for column in wide.T]).T
        np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def test_a_crop_of_a_ramp_is_the_ramp_stretched():
    ramp = torch.arange(100.0).expand(1, 1, 80, 100).clone()
    found = resize_crops(ramp, torch.tensor([[0, 25 + 20, 80, 60]]))[0, 0]  # frames 20 … 79 of the input
    expected = 20 + np.arange(100) * 59 / 99
    np.testing.assert_allclose(found[40], expected, atol=0.15)  # of frames: a cubic of a = -0.75 bends a ramp a little
    np.testing.assert_allclose(found, found[:1].expand(80, 100), atol=1e-3)
    np.testing.assert_allclose(found[:, [0, -1]], np.broadcast_to([20, 79], (80, 2)), atol=1e-3)


def test_the_whole_input_as_a_crop_is_the_input():
    x = torch.randn(2, 1, 80, 100)
    torch.testing.assert_close(resize_crops(x, torch.tensor([[0, 25, 80, 100]] * 2)), x)
    assert not torch.equal(resize_crops(x, torch.tensor([[0, 0, 80, 150]] * 2)), x)


def test_what_is_drawn_depends_on_the_generator_alone():
    for draw in (lambda g: draw_mixup(9, 0.4, g)[1], lambda g: draw_masks(9, (80, 99), (9, 9), g)):
        assert torch.equal(draw(generator(1)), draw(generator(1)))
        assert not torch.equal(draw(generator(1)), draw(generator(2)))
