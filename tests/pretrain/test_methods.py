"""Each method's step gives the reference's loss, gradients and target network."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.vit import ViTConfig
from m2d_bench.errors import CheckpointError, UsageError
from m2d_bench.pretrain import method as methods
from m2d_bench.pretrain import weights
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.masking import Mask
from m2d_bench.pretrain.method import standardised
from m2d_bench.pretrain.methods.m2d import target_loss
from m2d_bench.pretrain.patches import from_patches, to_patches
from tests.conftest import GOLDEN, GOLDEN_INPUTS

SMALL = {"predictor_width": 64, "predictor_depth": 2, "predictor_heads": 2}
STEPS = {
    "step_M2DViT.npz": ("m2d", {}),
    "step_M2D_D2ViT.npz": ("m2d", {"target_input": "all"}),
    "step_MaskedAutoencoderViT.npz": ("msm_mae", {}),
}
CASES = [
    pytest.param(folder, *STEPS[path.name], id=path.stem)
    for folder in GOLDEN
    for path in sorted(folder.glob("step_*.npz"))
    if path.name in STEPS
]
TINY = ViTConfig(width=64, depth=2, patch_size=(16, 16), input_size=(80, 96))


def golden(folder, name, arguments):
    """The method with the golden weights, and the arrays of its step."""
    path = next(folder.glob("checkpoint-*.pth"))
    method = methods.build(name, checkpoint.read(path).config.vit, {**SMALL, **arguments})
    weights.load(method, path)
    (file,) = (key for key, value in STEPS.items() if value == (name, arguments))
    step = {"input": GOLDEN_INPUTS["step/log_mel"], "ids_shuffle": GOLDEN_INPUTS["step/ids_shuffle"]}
    return method, {**step, **np.load(folder / file)}


def batch_of(log_mel):
    """A batch with nothing but what every method needs."""
    index = torch.arange(len(log_mel))
    return Batch(log_mel=log_mel, clips=index, starts=torch.zeros_like(index))


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("folder", "name", "arguments"), CASES)
def test_step_is_the_references(folder, name, arguments):
    method, arrays = golden(folder, name, arguments)
    ids, kept = torch.from_numpy(arrays["ids_shuffle"]), int(arrays["len_keep"])
    result = method(batch_of(torch.from_numpy(arrays["input"])), Mask(ids[:, :kept], ids[:, kept:]))
    assert float(result.losses["loss"].detach()) == pytest.approx(float(arrays["loss"]), abs=1e-5)
    result.losses["loss"].backward()
    parameters = {weights.released_key(key): value for key, value in method.named_parameters()}
    gradients = [key.removeprefix("grad/") for key in arrays if key.startswith("grad/")]
    assert len(gradients) > 5
    for key in gradients:
        expected = torch.from_numpy(arrays[f"grad/{key}"])
        assert relative(parameters[key].grad, expected) < 1e-3, key
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in method.parameters() if p.grad is not None]))
    assert float(norm) == pytest.approx(float(arrays["grad_norm"]), rel=1e-3)


@pytest.mark.parametrize(("folder", "name", "arguments"), CASES)
def test_number_of_visible_patches_is_the_references(folder, name, arguments):
    method, arrays = golden(folder, name, arguments)
    assert method.draw_mask(4).visible.shape == (4, int(arrays["len_keep"]))


@pytest.mark.parametrize(("folder", "name", "arguments"), [case for case in CASES if "m2d" in case.values])
def test_target_moves_as_the_references(folder, name, arguments):
    decay = {"ema_decay_start": 0.99, "ema_decay_end": 0.99}
    method, _ = golden(folder, name, arguments)
    moved = methods.build(name, method.encoder.config, {**SMALL, **arguments, **decay})
    moved.load_state_dict(method.state_dict())
    assert moved.after_step(0.5) == {"ema_decay": 0.99}
    state = weights.released_state(moved)
    expected = np.load(folder / "ema_0.99.npz")
    assert len(expected) == 2
    for key in expected:
        torch.testing.assert_close(state[key], torch.from_numpy(expected[key]), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("folder", "name", "arguments"), CASES)
def test_checkpoints_come_back_tensor_for_tensor(folder, name, arguments, tmp_path):
    method, _ = golden(folder, name, arguments)
    path = tmp_path / folder.name / "checkpoint-7.pth"
    weights.save(method, path, 16000, (-6.9, 4.5))
    source = torch.load(next(folder.glob("checkpoint-*.pth")), weights_only=True)["model"]
    copied = torch.load(path, weights_only=True)["model"]
    assert set(copied) == set(source)
    for key, value in source.items():
        assert torch.equal(copied[key], value), key
    again = methods.build(name, method.encoder.config, {**SMALL, **arguments})
    weights.load(again, path)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), method.state_dict().values(), strict=True)
    )


def test_a_checkpoint_of_another_method_is_refused():
    folder = next(folder for folder in GOLDEN if folder.name.startswith("m2d_vit"))
    vit = checkpoint.read(next(folder.glob("*.pth"))).config.vit
    with pytest.raises(CheckpointError, match=r"left over: .*target_blocks"):
        weights.load(methods.build("msm_mae", vit, SMALL), next(folder.glob("*.pth")))
    with pytest.raises(CheckpointError, match="size mismatch"):
        weights.load(methods.build("m2d", vit, {**SMALL, "predictor_width": 128}), next(folder.glob("*.pth")))


@pytest.mark.parametrize("name", methods.names())
def test_no_gradient_reaches_the_target_and_every_other_weight_gets_one(name):
    method = methods.build(name, TINY, SMALL)
    method.initialise(torch.Generator().manual_seed(0))
    method(batch_of(torch.randn(2, 1, 80, 96)), method.draw_mask(2)).losses["loss"].backward()
    for key, parameter in method.named_parameters():
        frozen = key.startswith("target_") or key.endswith("pos_embed")
        assert (parameter.grad is None) == frozen, key
        assert parameter.requires_grad != frozen, key


@pytest.mark.parametrize("name", methods.names())
def test_activation_checkpointing_changes_nothing(name):
    method = methods.build(name, TINY, SMALL)
    method.initialise(torch.Generator().manual_seed(0))
    x, mask = torch.randn(2, 1, 80, 96), method.draw_mask(2)
    other = copy.deepcopy(method)
    other.checkpoint_activations = True
    for each in (method, other):
        each(batch_of(x), mask).losses["loss"].backward()
    for first, second in zip(method.parameters(), other.parameters(), strict=True):
        assert first.grad is None or torch.equal(first.grad, second.grad)


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize(
    ("patch_size", "input_size", "channels"),
    [((16, 4), (80, 200), 1), ((80, 2), (80, 400), 1), ((80, 4), (80, 304), 1), ((16, 16), (80, 1001), 1),
     ((16, 16), (224, 224), 3)],
)  # fmt: skip
def test_every_patch_and_input_size_of_the_papers_trains(name, patch_size, input_size, channels):
    vit = ViTConfig(width=64, depth=1, patch_size=patch_size, input_size=input_size, channels=channels)
    method = methods.build(name, vit, SMALL)
    method.initialise(torch.Generator().manual_seed(0))
    columns = input_size[1] // patch_size[1] * patch_size[1]
    result = method(batch_of(torch.randn(2, channels, input_size[0], columns)), method.draw_mask(2))
    assert result.losses["loss"].isfinite()
    assert result.prediction.shape == result.target.shape
    assert result.prediction.shape[1] == result.mask.masked.shape[1]


def test_pixels_of_a_patch_are_its_tile_channels_last():
    x = torch.randn(2, 3, 16, 12)
    found = to_patches(x, (8, 4))
    assert found.shape == (2, 6, 96)
    assert torch.equal(found[1, 4], x[1, :, 8:16, 4:8].permute(1, 2, 0).flatten())
    assert torch.equal(from_patches(found, x, (8, 4)), x)


def test_loss_of_m2d_is_the_squared_distance_of_unit_vectors():
    prediction, target = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    p, t = (v / v.norm(dim=-1, keepdim=True) for v in (prediction, target))
    assert float(target_loss(prediction, target)) == pytest.approx(float((p - t).square().sum(-1).mean()))


def test_standardised_patches_have_zero_mean_and_unit_unbiased_variance():
    found = standardised(torch.randn(2, 3, 64) * 5 + 3)
    assert float(mse_loss(found.mean(-1), torch.zeros(2, 3))) < 1e-10
    torch.testing.assert_close(found.var(-1), torch.ones(2, 3), atol=1e-4, rtol=0)


def test_the_targets_decay_moves_linearly():
    method = methods.build("m2d", TINY, SMALL)
    found = [method.after_step(progress)["ema_decay"] for progress in (0.0, 0.25, 1.0)]
    assert found == pytest.approx([0.99995, 0.99996, 0.99999])


def test_what_no_method_knows_is_refused():
    with pytest.raises(UsageError, match="Did you mean msm_mae"):
        methods.build("msm-mae", TINY, {})
    with pytest.raises(UsageError, match="Did you mean mask_ratio"):
        methods.build("m2d", TINY, {"maskratio": 0.5})
    with pytest.raises(UsageError, match="leaves 0 of 30"):
        methods.build("m2d", TINY, {"mask_ratio": 0.99}).draw_mask(1)
    with pytest.raises(UsageError, match=r"Unknown target_input 'some'\. See these: masked, all"):
        methods.build("m2d", TINY, {"target_input": "some"})
    with pytest.raises(UsageError, match="multiple of 4"):
        methods.build("m2d", TINY, {"predictor_width": 65})


def test_names_are_those_of_released_folders():
    vit = ViTConfig(width=768, depth=12, patch_size=(16, 16), input_size=(80, 608))
    assert weights.name_of("m2d", vit, 16000, "221006-mr7") == "m2d_vit_base-80x608p16x16-221006-mr7"
    assert weights.name_of("msm_mae", vit, 32000, "") == "msm_mae_vit_base-80x608p16x16p32k"
    with pytest.raises(CheckpointError, match="have no name"):
        weights.name_of("m2d", TINY, 16000, "")
