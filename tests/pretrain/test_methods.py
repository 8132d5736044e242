"""Each method's step gives the reference's loss, gradients and target network."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from m2d_bench.encoders import checkpoint, zoo
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
    "step_M2D_S_ViT.npz": ("m2d_x", {"mask_ratio": 0.6, "offline_size": 96, "m2d_weight": 0.7, "offline_weight": 0.3}),
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
    weights.load(method, str(path))
    (file,) = (key for key, value in STEPS.items() if value == (name, arguments))
    step = {"input": GOLDEN_INPUTS["step/log_mel"], "ids_shuffle": GOLDEN_INPUTS["step/ids_shuffle"]}
    step |= np.load(folder / file)
    if "frames" in step:
        step["input"] = step["frames"].swapaxes(1, 2)[:, None]
    return method, step


def sampled(tensor):
    """What is stored of a golden gradient or weight, see golden/README.md."""
    return tensor.flatten()[::61] if tensor.numel() > 1024 else tensor


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
    batch = batch_of(torch.from_numpy(arrays["input"]))
    if "target" in arrays:
        batch = batch._replace(teacher_features=torch.from_numpy(arrays["offline_target"]))
        method.target = lambda tokens, mask: torch.from_numpy(arrays["target"])
    result = method(batch, Mask(ids[:, :kept], ids[:, kept:]))
    for name, loss in result.losses.items():
        assert float(loss.detach()) == pytest.approx(float(arrays[name]), abs=1e-5), name
    result.losses["loss"].backward()
    parameters = {weights.released_key(key): value for key, value in method.named_parameters()}
    gradients = [key.removeprefix("grad/") for key in arrays if key.startswith("grad/")]
    assert len(gradients) > 5
    for key in gradients:
        expected = torch.from_numpy(arrays[f"grad/{key}"])
        assert relative(sampled(parameters[key].grad), expected) < 1e-3, key
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in method.parameters() if p.grad is not None]))
    assert float(norm) == pytest.approx(float(arrays["grad_norm"]), rel=1e-3)


@pytest.mark.parametrize(("folder", "name", "arguments"), CASES)
def test_number_of_visible_patches_is_the_references(folder, name, arguments):
    method, arrays = golden(folder, name, arguments)
    assert method.draw_mask(4).visible.shape == (4, int(arrays["len_keep"]))


@pytest.mark.parametrize(("folder", "name", "arguments"), [case for case in CASES if "msm_mae" not in case.values])
def test_target_moves_as_the_references(folder, name, arguments):
    decay = {"ema_decay_start": 0.99, "ema_decay_end": 0.99}
    method, _ = golden(folder, name, arguments)
    moved = methods.build(name, method.encoder.config, {**SMALL, **arguments, **decay})
    moved.load_state_dict(method.state_dict())
    state, stored = weights.released_state(moved), np.load(folder / "ema_0.99.npz")
    for key in stored:
        if key.startswith("before/"):
            sampled(state[key.removeprefix("before/")])[:] = torch.from_numpy(stored[key])
    assert moved.after_step(0.5) == {"ema_decay": 0.99}
    expected = [key for key in stored if not key.startswith("before/")]
    assert len(expected) == 2
    for key in expected:
        torch.testing.assert_close(sampled(state[key]), torch.from_numpy(stored[key]), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("folder", "name", "arguments"), CASES)
def test_checkpoints_come_back_tensor_for_tensor(folder, name, arguments, tmp_path):
    method, _ = golden(folder, name, arguments)
    path = tmp_path / folder.name / "checkpoint-7.pth"
    weights.save(method, path, 16000, (-6.9, 4.5))
    source = torch.load(next(folder.glob("checkpoint-*.pth")), weights_only=True)["model"]
    copied = torch.load(path, weights_only=True)["model"]
    assert set(copied) == set(source) or name == "m2d_x"  # of whose golden not all is stored
    for key, value in source.items():
        assert torch.equal(copied[key], value), key
    again = methods.build(name, method.encoder.config, {**SMALL, **arguments})
    weights.load(again, str(path))
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), method.state_dict().values(), strict=True)
    )


def m2d_golden():
    """The path of the golden M2D and the shape of its encoder."""
    path = next(next(folder for folder in GOLDEN if folder.name.startswith("m2d_vit")).glob("*.pth"))
    return str(path), checkpoint.read(path).config.vit


def test_what_of_another_method_fits_is_taken_and_said():
    path, vit = m2d_golden()
    method = methods.build("msm_mae", vit, SMALL)
    method.initialise(torch.Generator().manual_seed(0))
    fresh = method.predictor.pred.weight.clone()
    said = weights.load(method, path)
    assert "loaded: cls_token, pos_embed, patch_embed, blocks, norm" in said
    assert "fresh: decoder_pred; left over: decoder_pred, target_blocks, target_norm" in said
    assert torch.equal(method.predictor.pred.weight, fresh)
    state = torch.load(path, weights_only=True)["model"]
    assert torch.equal(method.encoder.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])
    narrow = methods.build("m2d", vit, {**SMALL, "predictor_width": 128})
    assert "fresh: mask_token, decoder_pos_embed, decoder_embed" in weights.load(narrow, path)


def test_an_encoder_alone_begins_a_method_and_its_target(tmp_path):
    path, vit = m2d_golden()
    alone = tmp_path / "m2d_vit_base-80x208p16x16-golden_enconly" / "weights.pth"
    stored = checkpoint.read(path)
    checkpoint.save(replace(stored, extras={}), alone)
    method = methods.build("m2d", vit, SMALL)
    method.initialise(torch.Generator().manual_seed(0))
    said = weights.load(method, str(alone))
    assert (
        "copied from the encoder: target_blocks, target_norm; fresh: mask_token, decoder_pos_embed, decoder_embed"
        in said
    )
    for online, target in zip(method.encoder.blocks.parameters(), method.target_blocks.parameters(), strict=True):
        assert torch.equal(online, target)


@pytest.mark.parametrize("frames", [96, 320])
def test_positions_of_another_length_are_cut_or_resized_as_the_encoder_does(frames):
    path, vit = m2d_golden()
    method = methods.build("m2d", replace(vit, input_size=(80, frames)), SMALL)
    method.initialise(torch.Generator().manual_seed(0))
    assert "cut or resized: pos_embed, decoder_pos_embed" in weights.load(method, path)
    expected = zoo.load(path, device="cpu").vit.positions(frames // 16)
    assert torch.equal(method.encoder.pos_embed[0, 1:], expected.flatten(0, 1))
    assert torch.equal(weights.encoder_of(path, method.encoder.config).pos_embed, method.encoder.pos_embed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 4}, "blocks.3.norm1.weight missing"),
        ({"width": 192}, "cls_token"),
        ({"patch_size": (16, 4)}, "patch_emb"),
    ],
)
def test_an_encoder_of_another_shape_is_refused(change, says):
    path, vit = m2d_golden()
    with pytest.raises(CheckpointError, match=f"does not fit the recipe's: .*{says}"):
        weights.load(methods.build("m2d", replace(vit, **change), SMALL), path)
    with pytest.raises(CheckpointError, match=f"does not fit the recipe's: .*{says}"):
        weights.encoder_of(path, replace(vit, **change))


ARGUMENTS = [
    pytest.param("m2d", {}, id="m2d"),
    pytest.param("msm_mae", {}, id="msm_mae"),
    pytest.param("m2d_x", {"scenario": "supervised", "offline_size": 3}, id="supervised"),
    pytest.param("m2d_x", {"scenario": "distillation", "offline_size": 7}, id="distillation"),
    pytest.param("m2d_x", {"scenario": "regularisation", "offline_size": 7, "m2d_weight": 0}, id="m2d-free"),
    pytest.param("m2d_x", {"offline_weight": 0}, id="offline-free"),
]


def batch_for(method, log_mel):
    """A batch with labels and a teacher's features as well."""
    size, generator = getattr(method.arguments, "offline_size", 1), torch.Generator().manual_seed(1)
    columns = method.encoder.config.grid_size[1]
    labels = torch.randint(2, (len(log_mel), size), generator=generator).float()
    features = torch.randn(len(log_mel), columns, size, generator=generator)
    return batch_of(log_mel)._replace(labels=labels, teacher_features=features)


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_no_gradient_reaches_the_target_and_every_other_weight_gets_one(name, arguments):
    method = methods.build(name, TINY, {**SMALL, **arguments})
    method.initialise(torch.Generator().manual_seed(0))
    method(batch_for(method, torch.randn(2, 1, 80, 96)), method.draw_mask(2)).losses["loss"].backward()
    for key, parameter in method.named_parameters():
        frozen = key.startswith("target_") or key.endswith("pos_embed")
        assert (parameter.grad is None) == frozen, key
        assert parameter.requires_grad != frozen, key


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_activation_checkpointing_changes_nothing(name, arguments):
    method = methods.build(name, TINY, {**SMALL, **arguments})
    method.initialise(torch.Generator().manual_seed(0))
    batch, mask = batch_for(method, torch.randn(2, 1, 80, 96)), method.draw_mask(2)
    other = copy.deepcopy(method)
    other.checkpoint_activations = True
    for each in (method, other):
        each(batch, mask).losses["loss"].backward()
    for first, second in zip(method.parameters(), other.parameters(), strict=True):
        assert first.grad is None or torch.equal(first.grad, second.grad)


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
@pytest.mark.parametrize(
    ("patch_size", "input_size", "channels"),
    [((16, 4), (80, 200), 1), ((80, 2), (80, 400), 1), ((80, 4), (80, 304), 1), ((16, 16), (80, 1001), 1),
     ((16, 16), (224, 224), 3)],
)  # fmt: skip
def test_every_patch_and_input_size_of_the_papers_trains(name, arguments, patch_size, input_size, channels):
    vit = ViTConfig(width=64, depth=1, patch_size=patch_size, input_size=input_size, channels=channels)
    method = methods.build(name, vit, {**SMALL, **arguments})
    method.initialise(torch.Generator().manual_seed(0))
    columns = input_size[1] // patch_size[1] * patch_size[1]
    result = method(batch_for(method, torch.randn(2, channels, input_size[0], columns)), method.draw_mask(2))
    assert result.losses["loss"].isfinite()
    assert result.target is None or result.prediction.shape == result.target.shape
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
