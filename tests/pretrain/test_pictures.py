"""Pictures show what the step did: inputs, masks, reconstructions to the pixel, errors where they are."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

pytest.importorskip("matplotlib")

from m2d_bench.errors import UsageError
from m2d_bench.pretrain import pictures
from m2d_bench.pretrain.masking import Mask
from m2d_bench.pretrain.method import StepResult, standardised
from m2d_bench.pretrain.patches import to_patches

PATCH = (16, 16)


def step(x, prediction=None, target=None, n_visible=4):
    """A result whose predictions are the standardised pixels themselves, if no others are given."""
    batch = len(x)
    patches = (x.shape[2] // PATCH[0]) * (x.shape[3] // PATCH[1])
    order = torch.rand(batch, patches, generator=torch.Generator().manual_seed(0)).argsort(1)
    mask = Mask(order[:, :n_visible], order[:, n_visible:])
    index = mask.masked[..., None].expand(-1, -1, 256 * x.shape[1])
    own = standardised(to_patches(x, PATCH).gather(1, index))
    return StepResult({}, own if prediction is None else prediction, own if target is None else target, mask)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def masked_pixels(result, size):
    """True at masked pixels, [B, F, T], from the definition: index = f·N_T + t."""
    found = np.zeros((len(result.mask.masked), *size), dtype=bool)
    for sample, patches in enumerate(result.mask.masked.tolist()):
        for patch in patches:
            freq, time = divmod(patch, size[1] // PATCH[1])
            found[sample, freq * PATCH[0] :, time * PATCH[1] :][: PATCH[0], : PATCH[1]] = True
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_right_predictions_reconstruct_the_input(channels):
    x = 3 * noise(2, channels, 80, 64) - 5
    assert torch.allclose(pictures.reconstructed(x, step(x), PATCH), x, atol=1e-4)


def test_a_reconstruction_keeps_visible_pixels_and_predicts_the_patchs_mean_from_zeros():
    x = noise(2, 1, 80, 64)
    result = step(x)
    found = pictures.reconstructed(x, result._replace(prediction=torch.zeros_like(result.prediction)), PATCH)[:, 0]
    hidden = masked_pixels(result, (80, 64))
    assert torch.equal(found[~hidden], x[:, 0][~hidden])
    means = x.view(2, 5, 16, 4, 16).mean((2, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    assert torch.allclose(found[hidden], means[hidden], atol=1e-5)


def test_errors_stand_at_their_patches_and_are_those_of_the_loss():
    x = noise(3, 1, 80, 64)
    prediction, target = noise(3, 16, 8), noise(3, 16, 8).flip(0)
    result = step(x, prediction, target)
    found = pictures.prediction_errors(result, (5, 4))
    for sample in range(3):
        expected = torch.full((5, 4), torch.nan)
        for place, patch in enumerate(result.mask.masked[sample].tolist()):
            cosine = cosine_similarity(prediction[sample, place], target[sample, place], dim=0)
            expected[divmod(patch, 4)] = 2 - 2 * cosine
        assert torch.allclose(found[sample], expected, equal_nan=True, atol=1e-6)


def images(figure):
    """Arrays that are drawn, row by row."""
    return [np.ma.filled(panel.images[0].get_array().astype(float), np.nan) for panel in figure.axes if panel.images]


def test_reconstruction_draws_input_visible_part_and_prediction_of_the_first_four_samples():
    x = noise(6, 1, 80, 70)  # six frames past the last whole patch
    result = step(x[..., :64])
    hidden = masked_pixels(result, (80, 64))
    drawn = images(pictures.reconstruction(x, result, PATCH))
    assert len(drawn) == 12
    for sample in range(4):
        whole = x[sample, 0, :, :64].numpy()
        original, visible, restored = drawn[3 * sample : 3 * sample + 3]
        np.testing.assert_array_equal(original, whole)
        np.testing.assert_array_equal(visible, np.where(hidden[sample], np.nan, whole))
        np.testing.assert_allclose(restored, whole, atol=1e-4)


def test_error_map_draws_the_error_a_patch_on_one_scale_and_names_the_mean():
    x = noise(2, 1, 80, 64)
    result = step(x, noise(2, 16, 8), noise(2, 16, 8).flip(0))
    figure = pictures.error_map(x, result, PATCH)
    errors = pictures.prediction_errors(result, (5, 4)).numpy()
    panels = [panel for panel in figure.axes if panel.images][2::3]
    assert len(panels) == 2
    for panel, expected in zip(panels, errors, strict=True):
        np.testing.assert_allclose(np.ma.filled(panel.images[0].get_array(), np.nan), expected)
        assert panel.images[0].get_clim() == pytest.approx((0, np.nanmax(errors)))
        assert panel.get_title() == f"prediction error, mean {np.nanmean(expected):.3f}"


def test_images_are_drawn_in_colour_the_right_way_up_with_grey_for_masked_patches():
    x = noise(1, 3, 32, 48)
    result = step(x)
    figure = pictures.reconstruction(x, result, PATCH)
    original, visible, _ = images(figure)
    scaled = (x[0] - x[0].min()) / (x[0].max() - x[0].min())
    np.testing.assert_allclose(original, scaled.permute(1, 2, 0).numpy(), atol=1e-6)
    hidden = masked_pixels(result, (32, 48))[0]
    assert set(np.unique(visible[hidden])) == {0.75}
    np.testing.assert_allclose(visible[~hidden], original[~hidden], atol=1e-6)
    assert figure.axes[0].yaxis_inverted()
    assert not pictures.reconstruction(noise(1, 1, 32, 48), step(noise(1, 1, 32, 48)), PATCH).axes[0].yaxis_inverted()


def test_a_silent_clip_and_a_step_in_low_precision_are_drawn():
    x = torch.full((1, 1, 80, 64), -1.5)
    result = step(x)
    low = result._replace(prediction=result.prediction.bfloat16(), target=result.target.bfloat16())
    assert len(images(pictures.reconstruction(x.bfloat16(), low, PATCH))) == 3
    assert len(images(pictures.error_map(x.bfloat16(), low, PATCH))) == 3


@pytest.mark.parametrize("draw", [pictures.reconstruction, pictures.error_map])
def test_a_picture_is_the_same_bytes_each_time_without_metadata(tmp_path, draw):
    x = noise(2, 1, 80, 64)
    for name in ("a", "b"):
        pictures.save(draw(x, step(x), PATCH), tmp_path / "made" / f"{name}.png")
    first = (tmp_path / "made" / "a.png").read_bytes()
    assert first == (tmp_path / "made" / "b.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert b"tEXt" not in first
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["a.png", "b.png"]


def test_without_matplotlib_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'm2d-bench\[plots\]'"):
        pictures.check_installed()
