"""FLOPs as counted by hand and as counted on the modules themselves; peaks by a device's name."""

from math import prod

import pytest
import torch
from torch import nn

from m2d_bench.encoders.vit import SIZES, Block, ViTConfig
from m2d_bench.pretrain import flops, method
from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.flops import count_flops
from m2d_bench.pretrain.masking import n_visible


def block_flops(tokens, width, depth):
    """By hand: 24·n·D² of the linear layers, 4·n²·D of the attention, in each block."""
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


def step_flops(vit, *, mask_ratio, predicted, target_patches):
    """By hand, of a sample: three times the forward pass, twice for an input without gradient, once for the target."""
    patches = prod(vit.grid_size)
    visible = n_visible(patches, mask_ratio)
    projection = 2 * patches * vit.channels * prod(vit.patch_size) * vit.width
    encoder = block_flops(1 + visible, vit.width, vit.depth)
    ends = 2 * (1 + visible) * vit.width * 64 + 2 * (patches - visible) * 64 * predicted
    target = block_flops(1 + target_patches, vit.width, vit.depth) if target_patches else 0
    return 2 * projection + 3 * (encoder + ends + block_flops(1 + patches, 64, 2)) + target


def test_blocks_and_their_backward_pass_are_counted_exactly():
    blocks = nn.Sequential(*(Block(128, 2) for _ in range(3)))
    x = torch.randn(2, 17, 128, requires_grad=True)
    assert count_flops(lambda: blocks(x)) == 2 * block_flops(17, 128, 3)
    assert count_flops(lambda: blocks(x).sum().backward()) == 2 * 3 * block_flops(17, 128, 3)


@pytest.mark.parametrize(
    ("name", "target_input", "mask_ratio", "shape"),
    [
        ("msm_mae", None, 0.75, ((16, 16), (80, 208), 1)),
        ("m2d", "masked", 0.7, ((16, 16), (80, 208), 1)),
        ("m2d", "masked", 0.6, ((80, 4), (80, 203), 1)),
        ("m2d", "all", 0.7, ((16, 16), (80, 208), 1)),
        ("m2d", "masked", 0.75, ((16, 16), (64, 64), 3)),
    ],
)
def test_a_step_of_every_method_is_counted_exactly(name, target_input, mask_ratio, shape):
    vit = ViTConfig(width=128, depth=3, patch_size=shape[0], input_size=shape[1], channels=shape[2])
    arguments = {"mask_ratio": mask_ratio, "predictor_width": 64, "predictor_depth": 2, "predictor_heads": 2}
    model = method.build(name, vit, arguments | ({"target_input": target_input} if target_input else {}))
    index = torch.arange(2)
    batch = Batch(log_mel=torch.randn(2, vit.channels, *vit.input_size), clips=index, starts=index)
    mask = model.draw_mask(2)
    assert count_flops(lambda: model(batch, mask).losses["loss"].backward()) == 2 * model.flops()
    pixels, masked = vit.channels * prod(vit.patch_size), mask.masked.shape[1]
    target_patches = {None: 0, "masked": masked, "all": prod(vit.grid_size)}[target_input]
    predicted = pixels if name == "msm_mae" else vit.width
    by_hand = step_flops(vit, mask_ratio=mask_ratio, predicted=predicted, target_patches=target_patches)
    assert model.flops() == by_hand


def test_the_papers_base_model_takes_84_billion_operations_a_clip():
    """By hand: encoder 58 tokens, predictor 191, target 134; 190 patches of 256 pixels."""
    width, depth = SIZES["base"]
    vit = ViTConfig(width=width, depth=depth, patch_size=(16, 16), input_size=(80, 608))
    projection = 2 * 2 * 190 * 256 * 768
    encoder = 3 * 12 * (24 * 58 * 768**2 + 4 * 58**2 * 768)
    predictor = 3 * (2 * 58 * 768 * 512 + 8 * (24 * 191 * 512**2 + 4 * 191**2 * 512) + 2 * 133 * 512 * 768)
    target = 12 * (24 * 134 * 768**2 + 4 * 134**2 * 768)
    with torch.device("meta"):
        model = method.build("m2d", vit, {"mask_ratio": 0.7})
    assert model.flops() == projection + encoder + predictor + target
    assert model.flops() == pytest.approx(84.5e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 3090 Ti", 80e12),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_devices_peak_is_found_by_whole_words_of_its_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops.peak_flops("cuda:0") == peak


def test_a_cpu_has_no_peak():
    assert flops.peak_flops("cpu") is None
