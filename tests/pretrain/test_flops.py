"""FLOPs counted by hand, against PyTorch's counter on the modules themselves; peaks by a device's name."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from m2d_bench.encoders.vit import SIZES, Block, ViTConfig
from m2d_bench.pretrain import flops, method


def counted(step):
    """What PyTorch counts in a call; with SDPA as separate multiplications, for its counter knows no CPU kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def test_blocks_and_their_backward_pass_are_counted_exactly():
    blocks = nn.Sequential(*(Block(128, 2) for _ in range(3)))
    x = torch.randn(2, 17, 128, requires_grad=True)
    branch = flops.Branch(name="blocks", forward=flops.transformer_flops(17, 128, 3))
    assert counted(lambda: blocks(x)) == 2 * branch.forward
    assert counted(lambda: blocks(x).sum().backward()) == 2 * branch.flops


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
    x, mask = torch.randn(2, vit.channels, *vit.input_size), model.draw_mask(2)
    assert counted(lambda: model(x, mask).loss.backward()) == 2 * model.flops()


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
