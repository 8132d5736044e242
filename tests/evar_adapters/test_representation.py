"""The representation classes under EVAR's contract, with a stand-in of its base class."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from m2d_bench.encoders import zoo
from m2d_bench.encoders.checkpoint import Labels
from m2d_bench.encoders.patchout import draw_patches
from m2d_bench.errors import CheckpointError, UsageError
from m2d_bench.settings import Compute
from tests.evar_adapters.evar_clone import write_clone

M2D = "random:m2d_vit_tiny-80x208p16x16"
BASE = {
    "weight_file": M2D,
    "feature_d": 0,
    "sample_rate": 16000,
    "n_fft": 400,
    "hop_size": 160,
    "n_mels": 80,
    "f_min": 50,
    "f_max": 8000,
    "mean": None,
    "std": None,
    "output_layers": [-1],
}


@pytest.fixture
def classes(tmp_path, monkeypatch):
    """`representation` over a stand-in of EVAR's base class."""
    monkeypatch.syspath_prepend(str(write_clone(tmp_path / "clone")))
    for name in [name for name in sys.modules if name.split(".")[0] == "evar"]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.reload(importlib.import_module("m2d_bench.evar_adapters.representation"))
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "evar"]:
        del sys.modules[name]


def noise(rows=2, samples=40000):
    return torch.rand(rows, samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


def encoder(name=M2D, **settings):
    return zoo.load(name, device="cpu", precision="fp32", **settings)


@pytest.mark.parametrize("name", ["AR_M2D", "AR_M2D_S", "AR_M2D_AS", "AR_MSM_MAE"])
@pytest.mark.parametrize("flat", [False, True])
def test_features_are_the_cores(classes, name, flat):
    cfg = {**BASE, "flat_features": flat}
    ar = getattr(classes, name)(cfg).eval()
    core = encoder(features="flat" if flat else "stacked")
    frames = ar.encode_frames(noise())
    expected, _ = core.timestamp_embeddings(noise())
    torch.testing.assert_close(frames, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ar(noise()), core.scene_embeddings(noise()), rtol=1e-5, atol=1e-5)
    assert cfg["feature_d"] == ar.cfg["feature_d"] == ar(noise()).shape[1] == (192 if flat else 960)


@pytest.mark.parametrize(("named", "layers"), [([0, -1], [0, 11]), ([3], [3]), (None, range(12)), ([], range(12))])
def test_layers_are_stacked(classes, named, layers):
    cfg = {**BASE, "output_layers": named}
    ar = classes.AR_M2D(cfg).eval()
    found = encoder().hidden_states(noise())
    expected = torch.cat([found[layer] for layer in layers], dim=-1)
    torch.testing.assert_close(ar.encode_frames(noise()), expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
    assert cfg["feature_d"] == 960 * len(layers)


def test_statistics_are_the_settings_or_the_checkpoints_and_never_the_data_sets(classes):
    ar = classes.AR_M2D({**BASE, "mean": -5.0, "std": 3.0}).eval()
    ar.precompute("cpu", [(noise(), None)])
    torch.testing.assert_close(ar(noise()), encoder(norm_stats=(-5.0, 3.0)).scene_embeddings(noise()))


def test_spectrograms_that_evar_reads_of_audioset_are_taken(classes):
    ar = classes.AR_M2D(dict(BASE)).eval()
    expected, log_mel = ar(noise()), ar.encoder.front_end(noise())
    ar.precompute_lms("cpu", [])
    torch.testing.assert_close(ar(log_mel), expected)


def test_dur_frames_is_one_pass_encoding(classes):
    ar = classes.AR_M2D({**BASE, "dur_frames": 256}).eval()
    expected = encoder(encoding="one_pass", dur_frames=256).scene_embeddings(noise())
    torch.testing.assert_close(ar(noise()), expected, rtol=1e-5, atol=1e-5)


def test_the_normalised_spectrogram_is_augmented_in_training_alone(classes):
    ar = classes.AR_M2D(dict(BASE))
    seen = []
    ar.set_augment_tf_feature_fn(lambda spectrogram: seen.append(spectrogram) or spectrogram * 0)
    silent = ar.train()(noise())
    log_mel, _ = encoder().log_mel(noise(), torch.tensor([40000, 40000]))
    assert torch.equal(seen[0], log_mel)
    evaluated = ar.eval()(noise())
    assert len(seen) == 1
    assert not torch.allclose(silent, evaluated)


@pytest.mark.parametrize("frozen", [None, True])
def test_gradients_flow_and_freeze_embed_stops_them_at_the_patches(classes, frozen):
    ar = classes.AR_M2D({**BASE, "freeze_embed": frozen}).train()
    ar(noise()).square().mean().backward()
    assert (ar.encoder.vit.patch_embed.proj.weight.grad is None) == bool(frozen)
    assert ar.encoder.vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert ar.encoder.vit.pos_embed.grad is None


def test_patches_are_dropped_in_training_alone(classes):
    ar = classes.AR_M2D({**BASE, "flat_features": True, "training_mask": 0.5})
    torch.manual_seed(0)
    frames = ar.train().encode_frames(noise())
    assert frames.shape[1] == 192
    assert 0.4 < frames.shape[2] / (5 * 13 + 5 * 3) < 0.6  # two windows
    frames.mean().backward()
    assert ar.encoder.vit.blocks[0].attn.qkv.weight.grad is not None
    assert ar.eval().encode_frames(noise()).shape[2] == 16
    with pytest.raises(UsageError, match="flat_features=True"):
        classes.AR_M2D({**BASE, "training_mask": 0.5})


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.75])
def test_patchout_takes_whole_rows_and_columns_about_the_ratio(ratio):
    for seed in range(30):
        kept = draw_patches((5, 38), ratio, 4, torch.Generator().manual_seed(seed))
        assert kept.shape[0] == 4
        assert abs(kept.shape[1] / 190 - (1 - ratio)) < 0.06
        for row in kept.tolist():
            grid = {(patch // 38, patch % 38) for patch in row}
            rows, columns = {f for f, _ in grid}, {t for _, t in grid}
            assert grid == {(f, t) for f in rows for t in columns}
            assert row == sorted(row)
    assert not torch.equal(kept[0], kept[1]) or ratio == 0
    with pytest.raises(UsageError, match="below 1"):
        draw_patches((5, 38), 1.0, 4)


class TaskNetwork(nn.Module):
    """A representation with a head, under the names of EVAR's fine-tuning."""

    def __init__(self, ar):
        super().__init__()
        self.ar, self.head = ar, nn.Module()
        self.head.norm, self.head.mlp = nn.BatchNorm1d(ar.cfg["feature_d"], affine=False), nn.Module()
        self.head.mlp.mlp = nn.Sequential(nn.Linear(ar.cfg["feature_d"], 3))

    def forward(self, wave):
        return self.head.mlp.mlp(self.head.norm(self.ar(wave)))


def network(ar):
    """As EVAR saves and loads it."""
    return nn.DataParallel(TaskNetwork(ar))


def fine_tuned(classes, small_model, **settings):
    """A network after a step of training on three classes, clips of two seconds."""
    torch.manual_seed(0)
    ar = classes.AR_M2D({**BASE, "weight_file": str(small_model), "unit_samples": 32000, **settings})
    ar.precompute("cpu", SimpleNamespace(dataset=SimpleNamespace(classes=["a", "b", 3], multi_label=False)))
    trained = network(ar).train()
    optimizer = torch.optim.SGD([each for each in trained.parameters() if each.requires_grad], 0.1)
    trained(noise(4, 32000)).square().sum().backward()
    optimizer.step()
    return trained.eval()


@pytest.mark.parametrize("settings", [{}, {"mean": -5.0, "std": 3.0, "flat_features": True, "dur_frames": 250}])
def test_fine_tuned_weights_score_the_same_wherever_they_are_read(classes, small_model, tmp_path, settings, caplog):
    trained = fine_tuned(classes, small_model, **settings)
    path = tmp_path / "any_name" / "weights_ep1it0-0.36.pth"
    path.parent.mkdir()
    torch.save(trained.state_dict(), path)
    logits = trained(noise()).detach()
    classifier = zoo.load_classifier(path, compute=Compute(device="cpu", precision="fp32"))
    assert classifier.labels == Labels(classes=("a", "b", "3"), multilabel=False, clip_seconds=2.0)
    torch.testing.assert_close(classifier.head(classifier.encoder.scene_embeddings(noise())), logits)
    assert classifier.encoder.config.norm_stats == (settings.get("mean", -7.1), settings.get("std", 4.2))
    assert not caplog.messages
    flat = {"flat_features": settings.get("flat_features")}
    again = network(classes.AR_M2D({**BASE, "weight_file": str(path), **flat})).eval()
    again.load_state_dict(torch.load(path))
    assert torch.equal(again(noise()), logits)


def test_fine_tuned_weights_are_exchanged_with_m2ds_own_class(classes, small_model, tmp_path):
    trained = fine_tuned(classes, small_model)
    theirs = {
        **{f"backbone.{key}": value for key, value in trained.module.ar.encoder.vit.state_dict().items()},
        "backbone.norm_stats": torch.tensor([-7.1, 4.2]),
        **{f"to_spec.{name}": None for name in ("mel_basis", "stft.wsin", "stft.wcos", "stft.window_mask")},
    }
    saved = trained.state_dict()
    assert {key for key in saved if ".ar." in key} == {f"module.ar.runtime.{key}" for key in theirs}
    path = tmp_path / "m2d_vit_own-80x208p16x16-ft" / "weights.pth"
    path.parent.mkdir()
    torch.save({**saved, "module.ar.runtime.backbone.decoder_pred.weight": torch.ones(2, 2)}, path)
    assert not hasattr(torch.load(path), "_metadata")
    again = network(classes.AR_M2D({**BASE, "weight_file": str(path)})).eval()
    again.load_state_dict(torch.load(path))
    assert torch.equal(again(noise()), trained(noise()))


def test_a_head_on_other_layers_than_the_last_is_not_taken_for_one_on_it(classes, small_model, tmp_path, caplog):
    path = tmp_path / "weights.pth"
    torch.save(fine_tuned(classes, small_model, output_layers=[0]).state_dict(), path)
    with pytest.raises(CheckpointError, match="has no head"):
        zoo.load_classifier(path)
    assert "its head is on layers [0]; it is left out" in caplog.text


def test_weights_are_found_where_none_are_named(classes, monkeypatch):
    monkeypatch.setenv("M2D_BENCH_WEIGHTS_M2D_S", "random:m2d_s_vit_tiny-80x400p80x2")
    cfg = {**BASE, "weight_file": ""}
    ar = classes.AR_M2D_S(cfg)
    assert cfg["weight_file"] == ar.cfg["weight_file"] == "random:m2d_s_vit_tiny-80x400p80x2"
    assert ar.encoder.config.name == "random:m2d_s_vit_tiny-80x400p80x2"
    with pytest.raises(CheckpointError, match="M2D_BENCH_WEIGHTS_MSM_MAE"):
        classes.AR_MSM_MAE({**BASE, "weight_file": ""})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sample_rate": 32000}, "sample_rate=32000, but .* takes 16000"),
        ({"hop_size": 320}, "hop_size=320, but .* takes 160"),
        ({"n_mels": 128}, "n_mels=128, but .* takes 80"),
        ({"mean": -7.0}, "give both"),
        ({"output_layers": [12]}, r"output_layers \[12\]: the encoder has 12"),
        ({"weight_file": "m2d_tinny"}, "Did you mean m2d_tiny"),
    ],
)
def test_settings_that_the_weights_contradict_are_refused(classes, changes, says):
    with pytest.raises(UsageError, match=says):
        classes.AR_M2D({**BASE, **changes})


OTHERS = {"sample_rate": 16000, "feature_d": 0}


@pytest.mark.usefixtures("encoder_folder")
@pytest.mark.parametrize("name", ["own.py:Loudness", "hear:hear_own.py", "logmel", M2D])
def test_any_encoder_gives_its_own_embeddings(classes, name):
    cfg = {**OTHERS, "weight_file": name}
    ar = classes.AR_ENCODER(cfg).eval()
    ar.precompute("cpu", [])
    core = encoder(name)
    torch.testing.assert_close(ar(noise()), core.scene_embeddings(noise()))
    torch.testing.assert_close(ar.encode_frames(noise()), core.timestamp_embeddings(noise())[0].transpose(1, 2))
    assert cfg["feature_d"] == ar.cfg["feature_d"] == ar(noise()).shape[1]
    assert cfg["weight_file"] == name


@pytest.mark.usefixtures("encoder_folder")
def test_any_encoder_is_for_linear_evaluation_at_its_rate(classes):
    ar = classes.AR_ENCODER({**OTHERS, "weight_file": "own.py:SceneOnly"}).train()
    with pytest.raises(UsageError, match=r"own\.py:SceneOnly is frozen here.*lineareval takes any encoder"):
        ar(noise())
    with torch.no_grad():
        assert ar(noise()).shape == (2, 2)
    with pytest.raises(UsageError, match="SceneOnly has no timestamp_embeddings"):
        ar.encode_frames(noise())
    with pytest.raises(UsageError, match=r"sample_rate=32000, but own\.py:SceneOnly takes 16000"):
        classes.AR_ENCODER({"sample_rate": 32000, "weight_file": "own.py:SceneOnly"})
    with pytest.raises(UsageError, match=r"no model of the M2D family.*encoder_bench"):
        classes.AR_M2D({**BASE, "weight_file": "own.py:SceneOnly"})


def test_without_evar_an_error_comes_only_when_a_class_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "evar", None)
    monkeypatch.delitem(sys.modules, "evar.ar_base", raising=False)
    module = importlib.reload(importlib.import_module("m2d_bench.evar_adapters.representation"))
    with pytest.raises(UsageError, match="EVAR cannot be imported here"):
        module.AR_M2D(dict(BASE))
