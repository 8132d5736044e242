"""The reference tool's classes by their names: its numbers, its shapes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.checkpoint import Checkpoint
from m2d_bench.encoders.classifier import Head
from m2d_bench.encoders.drop_in import PortableM2D, RuntimeM2D
from m2d_bench.errors import CheckpointError, UsageError
from tests.conftest import GOLDEN, GOLDEN_INPUTS, golden_waveform, small_encoder
from tests.encoders.test_m2d import WITHOUT_NORM_STATS, noise, relative

FOLDERS = [folder for folder in GOLDEN if folder.name not in WITHOUT_NORM_STATS]


@pytest.fixture
def fine_tuned(tmp_path):
    """Writes the small encoder with a head of 3 classes; path and head."""

    def write(features="stacked"):
        encoder = small_encoder(features=features)
        head = Head(encoder.scene_embedding_size, 3).initialise(torch.Generator().manual_seed(0)).requires_grad_(False)
        head.norm.running_mean.fill_(0.1)
        found = Checkpoint(config=encoder.config, encoder=encoder.vit.state_dict(), head=head.state())
        checkpoint.save(found, tmp_path / "tuned.safetensors")
        return tmp_path / "tuned.safetensors", encoder, head.eval()

    return write


@pytest.mark.parametrize("kind", [PortableM2D, RuntimeM2D])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_method_gives_the_golden_numbers(folder, kind):
    model = kind(weight_file=next(folder.glob("*.pth")))
    golden = np.load(folder / "runtime.npz")
    for key in golden:
        waveform, expected = torch.from_numpy(golden_waveform(key)), torch.from_numpy(golden[key])
        features = expected[-1] if key.endswith("/layers") else expected
        assert features.shape[-1] == model.cfg.feature_d
        log_mel = model.to_feature(waveform)
        if (stored := f"{key.split('/')[0]}/log_mel") in GOLDEN_INPUTS:
            assert relative(log_mel, torch.from_numpy(GOLDEN_INPUTS[stored])) < 1e-4
        with torch.no_grad():
            embeddings, timestamps = model.get_timestamp_embeddings(waveform)
            for found in (model(waveform), model.encode(waveform), model.encode_lms(model.normalize_batch(log_mel))):
                assert relative(found, features) < 1e-4
            assert relative(embeddings, features) < 1e-4
            assert relative(model.get_scene_embeddings(waveform), features.mean(1)) < 1e-4
            if kind is RuntimeM2D and key.endswith("/layers"):
                layers = model.encode_lms(model.to_normalized_spec(waveform), return_layers=True)
                assert relative(torch.stack(layers), expected) < 1e-4
        assert timestamps.shape == embeddings.shape[:2]
        assert timestamps[0, 0] == 0
        end = timestamps[0, -1] + timestamps[0].diff().mean()
        assert end == pytest.approx(waveform.shape[1] / 16, rel=1e-4)


def test_flat_features_are_the_patches_of_each_window_in_the_order_of_the_transformer(tmp_path):
    encoder = small_encoder()
    checkpoint.save(Checkpoint(config=encoder.config, encoder=encoder.vit.state_dict()), tmp_path / "small.safetensors")
    model = PortableM2D(tmp_path / "small.safetensors", flat_features=True)
    log_mel = torch.nn.functional.pad(model.to_normalized_feature(noise(2, 16000 * 3)), (0, 3))  # 301 frames → 304
    with torch.no_grad():
        windows = [model.backbone(model.backbone.embed(window))[-1][:, 1:] for window in log_mel.split(208, dim=-1)]
        found = model.encode_lms(log_mel)
        averaged = model.encode_lms(log_mel, average_per_time_frame=True)
    assert found.shape == (2, 5 * 19, 128)
    assert torch.allclose(found, torch.cat(windows, 1), atol=1e-5)
    assert torch.allclose(averaged[:, :13], windows[0].unflatten(1, (5, 13)).mean(1), atol=1e-5)
    assert model.cfg.feature_d == 128


@pytest.mark.parametrize("features", ["stacked", "flat"])
def test_the_head_of_a_checkpoint_gives_its_logits(fine_tuned, features):
    path, encoder, head = fine_tuned(features)
    model, waveform = PortableM2D(path, num_classes=3), noise(2, 16000 * 3)
    with torch.no_grad():
        assert torch.allclose(model(waveform), head(encoder.scene_embeddings(waveform)), atol=1e-5)
        frames, timestamps = model.forward_frames(waveform)
    assert frames.shape == (*timestamps.shape, 3)
    assert PortableM2D(path).cfg.feature_d == 5 * 128  # without a head the features are stacked


def test_a_head_of_another_shape_is_refused(fine_tuned):
    path, _, _ = fine_tuned()
    with pytest.raises(CheckpointError, match=r"weight': \[3, 640\].*4 classes of 640 features take.*num_classes"):
        PortableM2D(path, num_classes=4)
    found = checkpoint.read(path)
    del found.head["running_mean"]
    checkpoint.save(found, path)
    with pytest.raises(CheckpointError, match="running_mean"):
        PortableM2D(path, num_classes=3)


@pytest.mark.parametrize("freeze_embed", [True, False])
def test_a_fresh_head_and_the_encoder_are_trained(small_model, freeze_embed):
    model = RuntimeM2D(SimpleNamespace(weight_file=small_model, freeze_embed=freeze_embed), num_classes=4).train()
    model(noise(2, 16000)).sum().backward()
    fixed = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    embedding = {"encoder.vit.patch_embed.proj.weight", "encoder.vit.patch_embed.proj.bias"}
    assert fixed == {"encoder.vit.pos_embed", *(embedding if freeze_embed else ())}
    assert model.head.weight.shape == (4, 640)


@pytest.mark.parametrize("setting", [{"training_mask": 0.5}, {"dur_frames": 501}])
def test_what_is_not_here_says_what_to_do(small_model, setting):
    for arguments in (
        {"weight_file": small_model, **setting},
        {"cfg": SimpleNamespace(weight_file=small_model, **setting)},
    ):
        with pytest.raises(UsageError, match=f"takes no {next(iter(setting))} here; m2d"):
            RuntimeM2D(**arguments)


@pytest.mark.parametrize("arguments", [{}, {"cfg": SimpleNamespace()}, {"cfg": SimpleNamespace(weight_file="")}])
def test_without_weights_it_says_how_to_name_them(arguments):
    with pytest.raises(UsageError, match="Pass weight_file, or a cfg"):
        RuntimeM2D(**arguments)
