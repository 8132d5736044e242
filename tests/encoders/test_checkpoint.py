"""Every released format is read strictly, and written back."""

import argparse
import pickle
import re
from dataclasses import replace

import pytest
import torch

from m2d_bench.cli import main
from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.errors import CheckpointError, UsageError
from tests.conftest import GOLDEN, random_checkpoint

NAME = "m2d_vit_tiny-80x208p16x16-230101-mr7"


@pytest.fixture
def state():
    return {**random_checkpoint(NAME).encoder, "norm_stats": torch.tensor([-7.0, 4.0])}


def write(tmp_path, content, name=NAME, file="checkpoint-300.pth"):
    (tmp_path / name).mkdir(exist_ok=True)
    path = tmp_path / name / file
    torch.save(content, path)
    return path


def test_plain_and_wrapped_checkpoints_are_the_same_encoder(tmp_path, state):
    plain = M2DEncoder.from_checkpoint(checkpoint.read(write(tmp_path, state)))
    wrapped = M2DEncoder.from_checkpoint(
        checkpoint.read(write(tmp_path, {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1)}))
    )
    assert plain.digest == wrapped.digest
    assert plain.config.norm_stats == (-7.0, 4.0)
    assert plain.config.name == NAME


def test_configuration_comes_from_the_tensors(tmp_path, state, caplog):
    path = write(tmp_path, state, name="m2d_vit_base-80x208p16x16")
    config = checkpoint.read(path).config
    assert (config.vit.width, config.vit.depth) == (192, 12)
    assert "the tensors count" in caplog.text


def test_sample_rate_and_odd_input_sizes_come_from_the_name(tmp_path):
    name = "m2d_as_vit_tiny-80x1001p16x16p32k-240413_AS-FT_enconly"
    config = checkpoint.read(write(tmp_path, random_checkpoint(name).encoder, name=name)).config
    assert config.sample_rate == 32000
    assert config.vit.input_size == (80, 1001)
    assert config.vit.grid_size == (5, 62)


def test_the_stem_counts_where_the_folder_says_nothing(tmp_path, state):
    assert checkpoint.read(write(tmp_path, state, name="any", file=f"{NAME}.pth")).config.name == NAME


def test_pretraining_and_clap_tensors_are_kept(tmp_path, state):
    extras = {
        "mask_token": torch.zeros(1, 1, 64),
        "decoder_blocks.layers.0.norm1.weight": torch.ones(64),
        "target_blocks.0.norm1.weight": torch.ones(192),
        "offline_predictor.weight": torch.ones(8, 192),
        "audio_proj.0.weight": torch.ones(4, 192),
        "audio_proj.2.bias": torch.ones(4),
        "text_proj.weight": torch.ones(4, 4),
    }
    found = checkpoint.read(write(tmp_path, {"model": {**state, **extras}}))
    assert "decoder_blocks.0.norm1.weight" in found.extras
    assert len(found.extras) == len(extras)


def test_missing_norm_stats_are_replaced_with_a_warning(tmp_path, state, caplog):
    del state["norm_stats"]
    assert checkpoint.read(write(tmp_path, state)).config.norm_stats == (-7.1, 4.2)
    assert "norm_stats" in caplog.text


@pytest.mark.parametrize(("inputs", "features"), [(192, "flat"), (960, "stacked")])
def test_evar_fine_tuned_checkpoints_give_encoder_and_head(tmp_path, state, inputs, features):
    wrapped = {f"module.ar.runtime.backbone.{key}": value for key, value in state.items()}
    wrapped |= {
        "module.ar.runtime.to_spec.mel_basis": torch.zeros(80, 201),
        "module.head.norm.running_mean": torch.zeros(inputs),
        "module.head.norm.running_var": torch.ones(inputs),
        "module.head.norm.num_batches_tracked": torch.tensor(3),
        "module.head.mlp.mlp.0.weight": torch.zeros(527, inputs),
        "module.head.mlp.mlp.0.bias": torch.zeros(527),
    }
    found = checkpoint.read(write(tmp_path, wrapped))
    assert found.config.features == features
    assert set(found.head) == {"running_mean", "running_var", "weight", "bias"}
    assert found.ignored == ("module.ar.runtime.to_spec.mel_basis",)
    assert M2DEncoder.from_checkpoint(found).scene_embedding_size == inputs
    copy = tmp_path / NAME / "copy.pth"
    checkpoint.save(found, copy)
    assert checkpoint.read(copy).head.keys() == found.head.keys()
    assert {key for key in wrapped if ".head." in key} - set(torch.load(copy)["model"]) == {
        "module.head.norm.num_batches_tracked"
    }


def test_norm_stats_are_found_wherever_a_wrapper_put_them(tmp_path, state):
    stats = state.pop("norm_stats")
    for prefix, place in (("module.", ""), ("module.ar.runtime.backbone.", "module."), ("", "")):
        wrapped = {f"{prefix}{key}": value for key, value in state.items()} | {f"{place}norm_stats": stats}
        assert checkpoint.read(write(tmp_path, wrapped)).config.norm_stats == (-7.0, 4.0)
    assert checkpoint.read(write(tmp_path, {**state, "norm_stats": [-7.0, 4.0]})).config.norm_stats == (-7.0, 4.0)


def test_upper_case_suffixes_are_read(tmp_path, state):
    assert checkpoint.read(write(tmp_path, state, file="C.PTH").parent).config.name == NAME


@pytest.mark.parametrize(
    "change",
    [
        {"norm_stats": torch.zeros(3)},
        {"norm_stats": torch.tensor([0.0, 0.0])},
        {"blocks.first.weight": torch.zeros(2)},
        {"patch_embed.proj.weight": torch.zeros(192, 256)},
        {"patch_embed.proj.weight": torch.zeros(100, 1, 16, 16)},
    ],
)
def test_malformed_tensors_are_said_to_be(tmp_path, state, change):
    with pytest.raises(CheckpointError, match="checkpoint-300"):
        checkpoint.read(write(tmp_path, {**state, **change}))


def test_head_of_another_width_is_refused(tmp_path, state):
    state |= {"head.mlp.mlp.0.weight": torch.zeros(10, 200), "head.mlp.mlp.0.bias": torch.zeros(10)}
    with pytest.raises(CheckpointError, match="takes 200 features"):
        checkpoint.read(write(tmp_path, state))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_what_is_saved_is_what_was_read(folder, suffix, tmp_path):
    found = checkpoint.read(folder)
    path = tmp_path / found.config.name / f"copy{suffix}"
    checkpoint.save(found, path)
    again = checkpoint.read(path)
    assert again.config == found.config
    for kind in ("encoder", "extras"):
        first, second = getattr(found, kind), getattr(again, kind)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert not list(path.parent.glob(".*"))


def test_safetensors_carry_their_configuration(tmp_path):
    found = random_checkpoint("m2d_s_vit_tiny-80x400p80x2p32k")
    path = tmp_path / "anything.safetensors"
    checkpoint.save(found, path)
    assert checkpoint.read(path).config == found.config


def test_missing_and_unexpected_keys_are_listed(tmp_path, state):
    del state["blocks.3.attn.qkv.bias"]
    state["blocks.4.attn.gate"] = torch.zeros(3)
    state["norm.weight"] = torch.ones(7)
    with pytest.raises(CheckpointError) as error:
        checkpoint.read(write(tmp_path, state))
    for text in ("missing: blocks.3.attn.qkv.bias", "unexpected: blocks.4.attn.gate", "norm.weight [7] instead of"):
        assert text in str(error.value)


def test_foreign_keys_are_listed(tmp_path, state):
    with pytest.raises(CheckpointError, match="adapter"):
        checkpoint.read(write(tmp_path, {**state, "adapter.weight": torch.zeros(2)}))


def test_name_that_states_another_patch_size_is_refused_unless_confirmed(tmp_path, state):
    path = write(tmp_path, state, name="m2d_s_vit_tiny-80x608p80x2-230220")
    with pytest.raises(CheckpointError, match=r"80×2.*16×16.*pass patch_size=\(16, 16\)"):
        checkpoint.read(path)
    assert checkpoint.read(path, patch_size=(16, 16)).config.vit.patch_size == (16, 16)


def test_name_that_states_another_input_size_is_refused(tmp_path, state):
    with pytest.raises(CheckpointError, match="608 frames"):
        checkpoint.read(write(tmp_path, state, name="m2d_vit_tiny-80x608p16x16"))


@pytest.mark.parametrize("shape", ["224x224p16x16", "128x608p16x16", "80x608p7x7", "80x10p16x16"])
def test_a_name_that_states_no_encoder_of_the_family_is_refused_with_the_files_name(tmp_path, state, shape):
    path = write(tmp_path, state, name=f"m2d_vit_tiny-{shape}")
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: ")):
        checkpoint.read(path)


def test_weights_with_nan_are_refused(tmp_path, state):
    state["norm.bias"] = state["norm.bias"] * float("nan")
    with pytest.raises(CheckpointError, match=r"NaN or infinity: norm\.bias"):
        checkpoint.read(write(tmp_path, state))


class Malicious:
    def __reduce__(self):
        return (open, ("pwned.txt", "w"))


def test_pickle_that_would_run_code_is_refused(tmp_path, state, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, {"model": state, "extra": Malicious()})
    with pytest.raises(CheckpointError, match="loaded safely"):
        checkpoint.read(path)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match="loaded safely"):
        checkpoint.read(plain)
    assert not (tmp_path / "pwned.txt").exists()


def test_broken_missing_and_foreign_files_get_a_message(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for file in ("cut.pth", "cut.safetensors", "other.pth", "list.pth", "gone.pth", "gone.onnx"):
        with pytest.raises(CheckpointError, match=file):
            checkpoint.read(tmp_path / file)
    with pytest.raises(CheckpointError, match="name one file"):
        checkpoint.read(tmp_path)


def test_unknown_settings_get_a_suggestion(tmp_path, state):
    with pytest.raises(UsageError, match="Did you mean features"):
        checkpoint.read(write(tmp_path, state), feature="flat")


def test_models_are_converted_both_ways_and_read_as_what_they_are(tmp_path, capsys):
    source = next(next(f for f in GOLDEN if f.name.startswith("m2d_vit")).glob("*.pth"))
    inside, back = tmp_path / "m.safetensors", tmp_path / source.parent.name / "back.pth"
    assert main(["models", "convert", str(source), str(inside)]) == 0
    assert main(["models", "convert", str(inside), str(back)]) == 0
    first, last = (torch.load(path, weights_only=True)["model"] for path in (source, back))
    assert set(first) == set(last)
    assert all(torch.equal(value, last[key]) for key, value in first.items() if key != "norm_stats")
    assert main(["models", "convert", str(source), str(tmp_path / "small.safetensors"), "--encoder-only"]) == 0
    assert not checkpoint.read(tmp_path / "small.safetensors").extras
    assert checkpoint.read(inside).config == replace(checkpoint.read(source).config, name=source.parent.name)
    capsys.readouterr()
    assert main(["models", "convert", "random:m2d_vit_tiny-80x208p16x16p32k", str(tmp_path / "x.pth")]) == 2
    assert "Name it m2d_vit_tiny-80x208p16x16p32k" in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_model_of_half_the_size_is_the_same_up_to_rounding(tmp_path, suffix):
    source = next(next(f for f in GOLDEN if f.name.startswith("m2d_vit")).glob("*.pth"))
    path = tmp_path / source.parent.name / f"half.{suffix}"
    path.parent.mkdir()
    assert main(["models", "convert", str(source), str(path), "--half", "--encoder-only"]) == 0
    before, after = checkpoint.read(source), checkpoint.read(path)
    assert path.stat().st_size == pytest.approx(2 * sum(t.numel() for t in before.encoder.values()), abs=16000)
    assert after.config == replace(before.config, name=after.config.name)
    for key, tensor in after.encoder.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before.encoder[key].half().float())


@pytest.mark.parametrize("kind", ["encoder", "extras", "head"])
def test_weights_too_large_for_half_the_size_are_named_before_a_file_is_written(tmp_path, capsys, state, kind):
    key = {"encoder": "blocks.0.mlp.fc1.weight", "extras": "mask_token", "head": "head.mlp.weight"}[kind]
    state[key] = torch.full_like(state.get(key, torch.ones(3, state["cls_token"].shape[-1])), -1e5)
    torch.save(state, tmp_path / "large.pth")
    assert main(["models", "convert", str(tmp_path / "large.pth"), str(tmp_path / "half.safetensors"), "--half"]) == 1
    assert f"{key.removeprefix('head.')}: reaches 1e+05, float16 only 65504" in capsys.readouterr().err
    assert not (tmp_path / "half.safetensors").exists()


def test_msm_mae_of_2022_is_read_with_biases_of_q_and_v_and_without_class_token(tmp_path, state, caplog):
    del state["cls_token"], state["norm_stats"]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    for key in [key for key in state if key.endswith("qkv.bias")]:
        del state[key]
        state[key.replace("qkv.bias", "q_bias")], state[key.replace("qkv.bias", "v_bias")] = torch.ones(2, 192)
    path = write(tmp_path, state, name="80x208p16x16_paper")
    found = checkpoint.read(path)
    assert "norm_stats=(mean, std)) gives others" in caplog.text
    assert "tensors count" not in caplog.text
    bias = found.encoder["blocks.0.attn.qkv.bias"]
    assert torch.equal(bias, torch.cat([torch.ones(192), torch.zeros(192), torch.ones(192)]))
    vit = M2DEncoder.from_checkpoint(found).vit
    assert [layer.shape for layer in vit(torch.zeros(2, 65, 192))] == [(2, 65, 192)] * 12
    caplog.clear()
    assert checkpoint.read(path, norm_stats=(-6.9, 4.5)).config.norm_stats == (-6.9, 4.5)
    assert "norm_stats" not in caplog.text
