"""The HEAR common API: the real validator, the native check, the variants, and what a wrong call says."""

import importlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys

import pytest
import torch

from m2d_bench import hear_api
from m2d_bench.cli import main
from m2d_bench.encoders import checkpoint, timestamps
from m2d_bench.errors import AudioError, CheckpointError, UsageError
from m2d_bench.hear_api import HearModel, get_scene_embeddings, get_timestamp_embeddings, load_model
from m2d_bench.hear_api.check import check, findings
from tests.conftest import random_checkpoint, small_encoder

VARIANTS = ("m2d", "m2d_s", "m2d_as", "msm_mae")
needs_validator = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("hearvalidator.validate", "tensorflow"))),
    reason="hearvalidator is not installed: pip install 'm2d-bench[hear]'",
)


def noise(rows=2, samples=17120):
    return torch.rand(rows, samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


def run(*words, **environment):
    settings = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.run([*words], capture_output=True, text=True, env=settings, check=False)


@needs_validator
@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "",
        "random:m2d_vit_tiny-80x608p16x16",
        "random:m2d_vit_tiny-80x200p16x4",
        "random:m2d_s_vit_tiny-80x400p80x2",
        "random:m2d_as_vit_tiny-80x608p16x16p32k",
    ],
)
def test_the_real_validator_passes(model):
    chosen = ["-m", model] if model else []
    found = run(sys.executable, "-m", "hearvalidator", "m2d_bench.hear_api", *chosen)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.endswith("Looks good!\n")
    assert "We suggest a interval" not in found.stderr  # its warning above 50 ms


@needs_validator
@pytest.mark.slow
def test_the_validators_own_command_passes_with_a_variant(tmp_path):
    weights = tmp_path / "m2d_s_vit_tiny-80x400p80x2" / "checkpoint.pth"
    weights.parent.mkdir()
    checkpoint.save(random_checkpoint(weights.parent.name), weights)
    found = run("hear-validator", "m2d_bench.hear_api.m2d_s", M2D_BENCH_WEIGHTS_M2D_S=str(weights))
    assert found.returncode == 0, found.stderr[-2000:]
    assert "Interval between timestamps is 20.0ms" in found.stdout


def test_without_hearvalidator_its_entry_says_what_to_install(monkeypatch):
    from m2d_bench.hear_api.hearvalidator import __main__ as entry

    monkeypatch.setitem(sys.modules, "hearvalidator.validate", None)
    with pytest.raises(SystemExit, match=r"pip install 'm2d-bench\[hear\]'"):
        entry.main()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        "random:m2d_vit_tiny-80x208p16x16",
        "random:m2d_vit_tiny-80x200p16x4",
        "random:m2d_s_vit_tiny-80x400p80x2",
        "random:m2d_as_vit_tiny-80x208p16x16p32k",
    ],
)
def test_every_rule_is_kept_in_every_precision(name, precision):
    found = findings(load_model(name, precision=precision))
    assert [f for f in found if f.kept is False] == []
    assert len(found) > 25


def test_embeddings_are_the_cores():
    encoder = small_encoder((16, 4), 200)
    model = HearModel(encoder).eval()
    audio = noise()
    assert torch.equal(get_scene_embeddings(audio, model), encoder.scene_embeddings(audio))
    embeddings, times = get_timestamp_embeddings(audio, model)
    expected = timestamps.regular_timestamp_embeddings(encoder, audio)
    assert torch.equal(embeddings, expected[0])
    assert torch.equal(times, expected[1])


def test_scenes_average_over_shifted_passes_only_when_told():
    encoder = small_encoder((16, 16))
    audio = noise()
    shifted = get_scene_embeddings(audio, HearModel(encoder, hop_ms=20, shift_scenes=True))
    expected, _ = get_timestamp_embeddings(audio, HearModel(encoder, hop_ms=20))
    assert torch.equal(shifted, expected.mean(1))
    assert torch.equal(get_scene_embeddings(audio, HearModel(encoder)), encoder.scene_embeddings(audio))


def test_nothing_carries_a_gradient_even_where_the_weights_do():
    encoder = small_encoder()
    encoder.requires_grad_(True)
    model = HearModel(encoder)
    assert not get_scene_embeddings(noise(), model).requires_grad
    assert not get_timestamp_embeddings(noise(), model)[0].requires_grad


def test_load_model_gives_a_frozen_module_in_evaluation_mode():
    model = load_model("random:m2d_vit_tiny-80x208p16x16", hop_ms=20)
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (model.sample_rate, model.hop_ms) == (16000, 20)
    assert isinstance(model.scene_embedding_size, int)


@pytest.mark.usefixtures("encoder_folder")
def test_an_encoder_without_timestamps_is_for_scene_tasks():
    model, audio = load_model("own.py:SceneOnly", device="cpu"), noise()
    torch.testing.assert_close(get_scene_embeddings(audio, model), torch.stack([audio.std(1), audio.abs().mean(1)], 1))
    assert not hasattr(model, "timestamp_embedding_size")
    for other in (model, load_model("own.py:SceneOnly", hop_ms=50, device="cpu")):
        with pytest.raises(UsageError, match="SceneOnly has no timestamp_embeddings"):
            get_timestamp_embeddings(audio, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_takes_its_weights_from_the_environment_or_the_cache(variant, tmp_path, monkeypatch):
    module = importlib.import_module(f"m2d_bench.hear_api.{variant}")
    variable = f"M2D_BENCH_WEIGHTS_{variant.upper()}"
    monkeypatch.setenv("M2D_BENCH_CACHE", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(CheckpointError, match=f"{variable} is not set .* holds no folder {variant}_vit_"):
        module.load_model()
    assert module.load_model("random:m2d_vit_tiny-80x208p16x16").sample_rate == 16000

    monkeypatch.setenv(variable, "random:m2d_vit_tiny-80x200p16x4")
    assert module.load_model().encoder.config.name == "random:m2d_vit_tiny-80x200p16x4"
    monkeypatch.delenv(variable)

    for year in (1, 2):
        weights = tmp_path / "weights" / f"{variant}_vit_tiny-80x208p16x16-{year}" / "checkpoint.pth"
        weights.parent.mkdir(parents=True)
        checkpoint.save(random_checkpoint(weights.parent.name), weights)
        if year == 1:
            assert module.load_model().encoder.config.name == weights.parent.name
    with pytest.raises(CheckpointError, match=f"several: {variant}_vit_tiny-80x208p16x16-1, .*-2"):
        module.load_model()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: load_model("m2d_tinny"), UsageError, "Did you mean m2d_tiny"),
        (lambda: load_model("nowhere/checkpoint.pth"), CheckpointError, "nowhere/checkpoint.pth"),
        (lambda: load_model("random:m2d_vit_tiny-80x208p16x16", hop_ms=50), UsageError, "160, 80, 40, 20, 10"),
        (lambda: load_model(device="abacus"), UsageError, "abacus"),
        (lambda: get_scene_embeddings(noise(), small_encoder()), UsageError, "load_model"),
        (lambda: get_scene_embeddings(noise()[None], HearModel(small_encoder())), AudioError, r"\[1, 2, 17120\]"),
        (
            lambda: get_scene_embeddings(noise(5000, 2), HearModel(small_encoder())),
            AudioError,
            r"\[5000, 2\].*channels",
        ),
        (lambda: get_timestamp_embeddings(noise(900, 1), HearModel(small_encoder())), AudioError, r"\[900, 1\]"),
        (lambda: get_timestamp_embeddings(noise() / 0, HearModel(small_encoder())), AudioError, "infinite"),
        (lambda: get_timestamp_embeddings(noise(2, 0), HearModel(small_encoder())), AudioError, "not empty"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_check_prints_one_line_a_rule(small_model, capsys):
    assert main(["check", str(small_model), "--no-long"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "measured" in lines[0]
    assert all(line.startswith(("ok", "–")) for line in lines[2:])
    assert any("not tried; --long" in line for line in lines)


@pytest.mark.slow
def test_an_hour_of_audio_keeps_the_rules():
    found = [f for f in findings(HearModel(small_encoder()).eval(), hour=True) if f.rule.startswith("3600 s")]
    assert len(found) > 6
    assert all(f.kept for f in found)


def test_check_advises_against_a_hop_too_coarse_for_event_tasks(small_model):
    output = check(str(small_model), hop_ms=160, long=False)
    assert "advice  HEAR: 1.07 s: hop for event tasks" in output.text
    assert "\nHEAR: 1.07 s: hop for event tasks, HEAR: 1.98 s: hop for event tasks, " in output.text
    assert output.text.count("Onsets are to be found within 100 ms") == 1
    assert not output.failures


OWN = """
import torch


class Own(torch.nn.Module):
    sample_rate = 8000
    hop_ms = 20.0

    def timestamp_embeddings(self, waveform):
        frames = waveform.unfold(1, 160, 160).abs().mean(2, keepdim=True)
        return frames, ((torch.arange(frames.shape[1]) + 0.5) * 20).expand(len(frames), -1)

    def scene_embeddings(self, waveform{lengths}):
        return waveform.abs().mean(1, keepdim=True)
"""


@pytest.mark.parametrize(
    ("lengths", "code", "shown", "failures"),
    [
        ("", 0, "HEAR: sample_rate: HEAR's tools resample to no other rate.", ""),
        (
            ", lengths=None",
            1,
            "scene_embeddings: padding: Pass lengths on",
            "ERROR: mine.py:Own: BROKEN is scene_embeddings: padding.\n",
        ),
    ],
)
def test_check_says_what_to_do_and_fails_where_a_promise_is_broken(
    lengths, code, shown, failures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN.format(lengths=lengths))
    assert main(["check", "mine.py:Own", "--no-long"]) == code
    out, err = capsys.readouterr()
    assert f"\n{shown}" in out
    assert failures in err
    assert ("HEAR: all rules" in out) == bool(code)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda e, t: (e.double(), t), "timestamp embeddings"),
        (lambda e, t: (e * float("nan"), t), "timestamp embeddings"),
        (lambda e, t: (e[:1], t), "timestamp embeddings"),
        (lambda e, t: (e, t[:, :-1]), "timestamps"),
        (lambda e, t: (e, t.long()), "timestamps"),
        (lambda e, t: (e, t / 1000), "last"),
        (lambda e, t: (e, t + 40), "last"),
        (lambda e, t: (e, t - 40), "first"),
        (lambda e, t: (e, t * 1.03), "drift"),
        (lambda e, t: (e, t + (torch.arange(t.shape[1]) == 3) * 2), "hop regular"),
        (lambda e, t: (e + torch.arange(len(e))[:, None, None] + len(e), t), "timestamp embeddings whatever the batch"),
    ],
)
def test_check_finds_a_broken_rule(spoil, rule, monkeypatch):
    model = HearModel(small_encoder((16, 4), 200)).eval()
    right = hear_api.get_timestamp_embeddings
    monkeypatch.setattr("m2d_bench.hear_api.check.get_timestamp_embeddings", lambda a, m: spoil(*right(a, m)))
    broken = [f.rule for f in findings(model) if f.kept is False]
    assert any(name.endswith(rule) for name in broken), broken


def test_heareval_gets_a_folder_for_each_model(tmp_path, monkeypatch, capsys):
    runner = tmp_path / "heareval" / "embeddings" / "runner.py"
    runner.parent.mkdir(parents=True)
    runner.write_text("import json\n\ndef runner(arguments): print(json.dumps(arguments))\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def folder(*words):
        monkeypatch.setattr(sys, "argv", ["m2d_bench.hear_api", *map(str, words), "--tasks-dir", "tasks"])
        runpy.run_module("m2d_bench.hear_api", run_name="__main__")
        module, _, options, _, embeddings, *others = json.loads(capsys.readouterr().out)
        assert (module, json.loads(options)["model_file_path"]) == ("m2d_bench.hear_api", str(words[1]))
        assert others == ["--tasks-dir", "tasks"]
        return embeddings

    path = tmp_path / "model.safetensors"
    digests = []
    for frames in (208, 304):
        encoder = small_encoder(frames=frames)
        found = checkpoint.Checkpoint(config=encoder.config, encoder=encoder.vit.state_dict())
        checkpoint.save(found, path)
        digests.append(folder("--model", path))
        assert digests[-1] == f"embeddings/{encoder.digest}"
    assert digests[0] != digests[1]
    assert folder("--model", path, "--embeddings-dir", tmp_path) == f"{tmp_path}/{encoder.digest}"
    for name in ("heareval", "heareval.embeddings", "heareval.embeddings.runner"):
        monkeypatch.delitem(sys.modules, name)
    runner.write_text("import tensorflow_of_heareval\n")
    with pytest.raises(SystemExit, match=r"there is no tensorflow_of_heareval\. docs/hear\.md says"):
        folder("--model", path)
    with pytest.raises(SystemExit, match="Did you mean m2d_tiny"):
        folder("--model", "m2d_tinny")
    with pytest.raises(SystemExit, match="Did you mean hop_ms"):
        folder("--model", path, "--model-options", '{"hop": 25}')
    for text in ("[1]", "hop_ms=25"):
        with pytest.raises(SystemExit):
            folder("--model", path, "--model-options", text)
        assert f"'{text}' is no JSON object, such as" in capsys.readouterr().err
