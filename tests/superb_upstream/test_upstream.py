"""The upstreams under s3prl's contract, and how users name weights and statistics."""

import importlib
import math
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m2d_bench.encoders import checkpoint, zoo
from m2d_bench.encoders.frontend import LogMel
from m2d_bench.errors import AudioError, CheckpointError, UsageError
from m2d_bench.settings import Storage
from m2d_bench.superb_upstream import ENTRIES, CalcNorm, Statistics, Upstream, norm_stats, register, runner
from m2d_bench.superb_upstream import upstream as upstream_module
from m2d_bench.superb_upstream.m2d import hubconf
from tests.conftest import random_checkpoint, small_encoder
from tests.file_server import Server, serving
from tests.processes import imported_anew

M2D_S = "random:m2d_s_vit_tiny-80x400p80x2"
M2D = "random:m2d_vit_tiny-80x608p16x16"
PATCHES = [((80, 2), 400, 320), ((80, 4), 400, 640), ((16, 4), 200, 640), ((16, 16), 608, 2560), ((16, 16), 1001, 2560)]


def noise(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(length, generator=generator) * 2 - 1 for length in lengths]


def upstream(name=M2D_S, **settings):
    return ENTRIES["m2d_s"](ckpt=f"{name},-11.5,4.3", **settings)


def test_features_are_the_cores_layers():
    encoder = small_encoder((80, 2), 100)
    found = Upstream(encoder)(noise(8000, 5000))
    padded = torch.nn.utils.rnn.pad_sequence(noise(8000, 5000), batch_first=True)
    expected = encoder.hidden_states(padded, [8000, 5000])
    assert len(found["hidden_states"]) == 2
    for layer, wanted in zip(found["hidden_states"], expected, strict=True):
        assert torch.equal(layer, wanted)
    assert found["last_hidden_state"] is found["hidden_states"][-1]
    assert found["hidden_state_0"] is found["hidden_states"][0]


@pytest.mark.parametrize(("patch_size", "frames", "rate"), PATCHES)
def test_frames_do_not_depend_on_batch_mates(patch_size, frames, rate):
    model = Upstream(small_encoder(patch_size, frames)).eval()
    lengths = [400, 3000, 16000, 50000, 130000]
    with torch.no_grad():
        together = model(noise(*lengths))["hidden_states"]
        for row, wav in enumerate(noise(*lengths)):
            for layer, alone in zip(together, model([wav])["hidden_states"], strict=True):
                count = alone.shape[1]
                torch.testing.assert_close(layer[row, :count], alone[0], rtol=1e-4, atol=1e-4)
                assert not layer[row, count:].any()


@pytest.mark.parametrize(("patch_size", "frames", "rate"), PATCHES)
def test_frame_counts_stay_within_s3prls_tolerance(patch_size, frames, rate):
    model = Upstream(small_encoder(patch_size, frames))
    assert model.get_downsample_rates("hidden_states") == rate
    lengths = [400, 401, 799, 1000, *range(1600, 16000, 1234), 48000, 60 * 16000]
    with torch.no_grad():
        for length in lengths:
            count = model(noise(length))["hidden_states"][0].shape[1]
            assert abs(count - round(length / rate)) < 5
            assert count >= 1
            if frames % patch_size[1] == 0:
                assert abs(count - length / rate) <= 1 + 160 / rate


def any_upstream(name, **settings):
    return ENTRIES["m2d_bench"](ckpt=name, **settings)


@pytest.mark.usefixtures("encoder_folder")
@pytest.mark.parametrize(
    ("name", "rate", "layers"),
    [
        ("own.py:Loudness", 320, 1),
        ("own.py:Layers", 320, 2),
        ("hear:hear_own.py", 320, 1),
        ("logmel", 160, 1),
        ("random:m2d_s_vit_tiny-80x208p80x4", 640, 12),
    ],
)
def test_any_encoder_gives_its_frames_whatever_the_batch(name, rate, layers):
    model, encoder = any_upstream(name), zoo.load(name, device="cpu", precision="fp32")
    assert model.get_downsample_rates("hidden_states") == rate
    lengths = [4700, 16000, 8000, 4700]  # 4700 samples are 14.7 frames of 20 ms, which s3prl counts as 15
    found = model(noise(*lengths))
    assert len(found["hidden_states"]) == layers
    for row, wav in enumerate(noise(*lengths)):
        by_hand, alone = encoder.hidden_states(wav), model([wav])["hidden_states"]
        for layer, wanted, frames in zip(found["hidden_states"], by_hand, alone, strict=True):
            torch.testing.assert_close(frames[:, : wanted.shape[1]], wanted, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(layer[row, : frames.shape[1]], frames[0], rtol=1e-4, atol=1e-4)
            assert frames.shape[1] >= round(len(wav) / rate)
            torch.testing.assert_close(frames[:, -1], wanted[:, -1], rtol=1e-4, atol=1e-4)
            assert not layer[row, frames.shape[1] :].any()


@pytest.mark.usefixtures("encoder_folder")
def test_a_downstream_learns_from_frames_of_any_encoder():
    frames = any_upstream("own.py:Loudness")(noise(8000))["hidden_states"][0]
    linear = torch.nn.Linear(2, 1)
    linear(frames).sum().backward()
    assert linear.weight.grad.any()


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("own.py:SceneOnly", ("", ""), "SceneOnly has no timestamp_embeddings"),
        ("own.py:Loudness,ks", ("", ""), "no settings norm_stats"),
        ("own.py:Loudness", ("16000", "22050"), "takes 22050 Hz"),
        (
            "own.py:Loudness",
            ("hop_ms = 20.0", "hop_ms = 40.0"),
            "50 frames for 16000 samples.* 40 ms they are 25.*hop_ms",
        ),
    ],
)
def test_what_s3prl_could_not_use_of_an_encoder_is_told(encoder_folder, name, changes, says):
    (encoder_folder / "own.py").write_text((encoder_folder / "own.py").read_text().replace(*changes))
    with pytest.raises(UsageError, match=says):
        any_upstream(name)(noise(16000))


@pytest.mark.usefixtures("encoder_folder")
@pytest.mark.parametrize("name", ["own.py:Layers", "logmel"])
def test_what_stays_frozen_is_not_trained(name):
    entry = SimpleNamespace(model=any_upstream(name), trainable=True)
    with pytest.raises(UsageError, match=f"{name} stays frozen: -f takes models of the M2D family"):
        runner._check_trainable(entry)
    for other in ({"model": entry.model, "trainable": False}, {"model": upstream(), "trainable": True}):
        runner._check_trainable(SimpleNamespace(**other))


def test_a_run_that_does_not_begin_leaves_what_another_process_wrote(tmp_path):
    folder = tmp_path / "result" / "exp"
    undo = runner._undoing(folder)
    folder.mkdir(parents=True)
    for name in ("args_1.yaml", "config_1.yaml", runner.LOG):
        (folder / name).touch()
    undo()
    assert not list(tmp_path.iterdir())
    folder.mkdir(parents=True)
    (folder / runner.LOG).touch()
    undo = runner._undoing(folder)
    for name in ("args_2.yaml", "states-2.ckpt"):
        (folder / name).touch()
    undo()
    assert {path.name for path in folder.iterdir()} == {runner.LOG, "states-2.ckpt"}


def test_s3prls_own_classes_take_it():
    pytest.importorskip("s3prl")
    import s3prl.nn
    from s3prl.upstream.interfaces import Featurizer

    model = s3prl.nn.S3PRLUpstream("m2d_s", path_or_url=f"{M2D_S},ks").eval()
    assert (model.num_layers, model.hidden_sizes[0], model.downsample_rates[0]) == (12, 192, 320)
    wavs = torch.nn.utils.rnn.pad_sequence(noise(32000, 700, 16000), batch_first=True)
    with torch.no_grad():
        layers, lengths = model(wavs, torch.tensor([32000, 700, 16000]))
        alone, _ = model(wavs[2:, :16000], torch.tensor([16000]))
    assert lengths[0].tolist() == [100, 3, 50]
    torch.testing.assert_close(layers[-1][2, :50], alone[-1][0], rtol=1e-4, atol=1e-4)

    weighted, _ = s3prl.nn.Featurizer(model)(layers, lengths)
    torch.testing.assert_close(weighted, torch.stack(layers).mean(0))
    featurizer = Featurizer(upstream(), upstream_device="cpu")
    features = featurizer(noise(32000, 400), upstream()(noise(32000, 400)))
    assert [len(feature) for feature in features] == [100, 1]


@pytest.mark.parametrize("name", list(ENTRIES))
def test_s3prls_hub_knows_every_entry(name):
    pytest.importorskip("s3prl")
    import s3prl.hub

    assert name in s3prl.hub.options()
    model = getattr(s3prl.hub, name)(ckpt=f"{M2D_S},0,1", model_config=None, refresh=False)
    assert model(noise(16000))["hidden_states"][0].ndim == 3


FOUR = ("", "_local", "_url", "_custom")


@pytest.mark.parametrize("line", ["import m2d_bench.superb_upstream", "from s3prl.upstream.m2d.hubconf import *"])
def test_a_line_in_s3prls_own_hub_brings_the_entries(line, tmp_path, monkeypatch):
    package = tmp_path / "s3prl"
    shutil.copytree(Path(hubconf.__file__).parent, package / "upstream" / "m2d")
    (package / "hub.py").write_text(f"{line}\n")
    for folder in (package, package / "upstream"):
        (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with imported_anew("s3prl", "m2d_bench.superb_upstream"):
        hub = importlib.import_module("s3prl.hub")
        assert Path(hub.__file__) == package / "hub.py"
        names = {f"{family}{kind}" for family in ("m2d", "m2d_s", "m2d_as", "msm_mae") for kind in FOUR}
        assert {name for name in vars(hub) if callable(getattr(hub, name))} >= {*names, "m2d_calcnorm"}
        assert hub.m2d_bench_custom(ckpt=f"{M2D_S},ks").name == M2D_S


def test_s3prls_hub_with_the_entries_loads_without_m2d_bench(monkeypatch):
    with imported_anew("m2d_bench.superb_upstream"):
        monkeypatch.setitem(sys.modules, "m2d_bench", None)
        entries = runpy.run_path(hubconf.__file__)
        with pytest.raises(ModuleNotFoundError, match="m2d_bench"):
            entries["m2d_s_local"](ckpt=M2D_S)
        monkeypatch.undo()


def test_weights_of_an_address_are_downloaded_once_or_anew(tmp_path):
    name, storage = "m2d_s_vit_tiny-80x400p80x2", Storage(cache=tmp_path)
    checkpoint.save(random_checkpoint(name), tmp_path / "made.pth")
    with serving() as address:
        Server.content = (tmp_path / "made.pth").read_bytes()
        ckpt = f"{address}/{name}/checkpoint.pth,ks"
        for _ in range(2):
            found = ENTRIES["m2d_s_url"](ckpt=ckpt, storage=storage)
        assert found.encoder.config.vit.patch_size == (80, 2)
        assert found.encoder.config.norm_stats == (-11.50626, 4.31486)
        assert len(Server.ranges) == 1
        ENTRIES["m2d_s_custom"](ckpt=ckpt, storage=storage, refresh=True)
        assert len(Server.ranges) == 2
        with pytest.raises(UsageError, match=r"an address is one of released weights \(\.zip\) or of a file \.pth"):
            ENTRIES["m2d_s_url"](ckpt=f"{address}/weights.tar")
    released = next(iter(zoo.RELEASED.values()))
    assert upstream_module._downloaded(released.url, storage, refresh=False) == released.name


def test_gradients_reach_every_trainable_weight():
    model = upstream().train()
    torch.stack(model(noise(8000, 4000))["hidden_states"]).square().mean().backward()
    trainable = dict(model.encoder.vit.named_parameters())
    del trainable["pos_embed"]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trainable.values())
    assert model.encoder.vit.pos_embed.grad is None


def test_half_precision_and_autocast_give_float32_features_near_those_of_fp32():
    wavs = noise(8000, 4000)
    model = upstream().eval()
    with torch.no_grad():
        exact = model(wavs)["last_hidden_state"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = model(wavs)["last_hidden_state"]
        half = model.half()([wav.half() for wav in wavs])["last_hidden_state"]
    for found in (cast, half):
        assert found.dtype == torch.float32
        assert not torch.equal(found, exact)
        assert torch.nn.functional.cosine_similarity(found[0], exact[0], dim=-1).min() > 0.99


def test_statistics_normalise_the_spectrogram():
    assert upstream().encoder.config.norm_stats == (-11.5, 4.3)
    assert ENTRIES["m2d"](ckpt=f"{M2D},ks").encoder.config.norm_stats == (-11.50626, 4.31486)


def test_statistics_may_come_from_a_file(tmp_path):
    path = tmp_path / "ks.yaml"
    path.write_text("mean: -10.5\nstd: 4.0\n")
    assert ENTRIES["m2d_s"](ckpt=M2D_S, model_config=str(path)).encoder.config.norm_stats == (-10.5, 4.0)
    with pytest.raises(UsageError, match="give them once"):
        upstream(model_config=str(path))


def test_without_statistics_a_warning_names_calcnorm(caplog):
    assert ENTRIES["m2d_s"](ckpt=M2D_S).encoder.config.norm_stats == (-7.1, 4.2)
    assert "calcnorm" in caplog.text
    caplog.clear()
    upstream()
    assert "calcnorm" not in caplog.text


@pytest.mark.parametrize(
    ("ckpt", "error", "says"),
    [
        (f"{M2D_S},-11.5", UsageError, "mean and standard deviation, or a task"),
        (f"{M2D_S},a,b", UsageError, "mean and standard deviation, or a task"),
        (f"{M2D_S},-11.5,4.3,1", UsageError, "mean and standard deviation, or a task"),
        (f"{M2D_S},-11.5,0", UsageError, "none of log-mel"),
        (f"{M2D_S},-11.5,nan", UsageError, "none of log-mel"),
        (f"{M2D_S},kss", UsageError, "Unknown task 'kss'. Did you mean ss or ks"),
        ("m2d_tinny,ks", UsageError, "Did you mean m2d_tiny"),
        ("nowhere/checkpoint.pth", CheckpointError, r"nowhere/checkpoint\.pth"),
        ("random:m2d_as_vit_tiny-80x608p16x16p32k,ks", UsageError, "takes 32000 Hz"),
        ("", CheckpointError, "M2D_BENCH_WEIGHTS_M2D_S"),
    ],
)
def test_a_wrong_k_says_what_is_wrong(ckpt, error, says):
    with pytest.raises(error, match=says):
        ENTRIES["m2d_s"](ckpt=ckpt)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mean: -10\n", "numbers mean and std"),
        ("- 1\n", "numbers mean and std"),
        ("mean: [\n", "numbers mean and std"),
        ("mean: a\nstd: 4\n", "numbers mean and std"),
        ("mean: -10\nstd: 4\nstdd: 4\n", "unknown keys stdd"),
        ("mean: -10\nstd: -4\n", "none of log-mel"),
    ],
)
def test_a_wrong_g_says_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "stats.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        norm_stats.read(path)


def test_weights_are_found_without_k(tmp_path, monkeypatch):
    weights = tmp_path / "m2d_s_vit_tiny-80x400p80x2" / "checkpoint.pth"
    weights.parent.mkdir()
    checkpoint.save(random_checkpoint(weights.parent.name), weights)
    monkeypatch.setenv("M2D_BENCH_WEIGHTS_M2D_S", str(weights))
    assert ENTRIES["m2d_s"]().encoder.config.name == weights.parent.name
    assert ENTRIES["m2d_s"](ckpt=f"{weights},ks").encoder.config.norm_stats == (-11.50626, 4.31486)


def test_weights_lie_in_the_cache_that_is_named(tmp_path):
    pytest.importorskip("s3prl")
    import s3prl.hub

    weights = tmp_path / "weights" / "m2d_s_vit_tiny-80x400p80x2" / "checkpoint.pth"
    weights.parent.mkdir(parents=True)
    checkpoint.save(random_checkpoint(weights.parent.name), weights)
    register(Storage(cache=tmp_path))
    assert s3prl.hub.m2d_s(ckpt=None, model_config=None, refresh=False).name == weights.parent.name
    register()
    with pytest.raises(CheckpointError, match="M2D_BENCH_WEIGHTS_M2D_S"):
        s3prl.hub.m2d_s(ckpt=None, model_config=None, refresh=False)


@pytest.mark.parametrize(
    "wavs", [[], [torch.zeros(0)], [torch.zeros(2, 16000)], [torch.zeros(16000, 2)], [np.zeros(16000)]]
)
def test_what_is_no_list_of_waveforms_is_refused(wavs):
    for model in (upstream(), CalcNorm()):
        with pytest.raises(AudioError, match="1-D waveforms"):
            model(wavs)


@pytest.mark.parametrize("wavs", [torch.zeros(4000, 2), [torch.zeros(16000), torch.tensor([0.1, math.nan])]])
def test_what_is_surely_no_sound_is_refused(wavs):
    for model in (upstream(), CalcNorm()):
        with pytest.raises(AudioError, match=r"\[4000, 2\]|NaN .* row\(s\) \[1\]"):
            model(wavs)


def test_statistics_are_numpys_whatever_the_order_and_lengths():
    rng = np.random.default_rng(0)
    clips = [rng.normal(-11 + i, 4, (80, int(rng.integers(3, 300)))) for i in range(20)]
    statistics = Statistics()
    for clip in clips:
        statistics.add(torch.from_numpy(clip))
    values = np.concatenate([clip.ravel() for clip in clips])
    assert statistics.mean == pytest.approx(values.mean(), abs=1e-12)
    assert statistics.std == pytest.approx(values.std(), abs=1e-12)


def test_calcnorm_upstream_measures_what_passes_and_logs_at_doublings(caplog):
    wavs = noise(16000, 5000, 400, 30000)
    model = CalcNorm()
    model(wavs[:3])
    features = model(wavs[3:])["hidden_states"][0]
    assert features.shape == (1, 188, 80)
    values = torch.cat([LogMel(16000)(wav[None]).flatten() for wav in wavs]).double()
    assert model.statistics.mean == pytest.approx(values.mean().item(), abs=1e-9)
    assert model.statistics.std == pytest.approx(values.std(correction=0).item(), abs=1e-9)
    assert [record.getMessage().split("over ")[1] for record in caplog.records] == ["1 clips", "2 clips", "4 clips"]
