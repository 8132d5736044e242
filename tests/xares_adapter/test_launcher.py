"""X-ARES' checker and runner over encoders of ours: what they accept, the scores they give, and what goes wrong."""

import importlib
import importlib.util
import os
import re
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from m2d_bench import runs
from m2d_bench.cli import main
from m2d_bench.encoders import zoo
from m2d_bench.errors import UsageError
from m2d_bench.xares_adapter import XaresEncoder, launcher
from tests.encoders import own_encoders
from tests.xares_adapter.xares_data import write_env

needs_xares = pytest.mark.skipif(
    importlib.util.find_spec("xares") is None, reason="X-ARES is not installed: pip install 'm2d-bench[xares]'"
)
SCENES = """
class Scenes:
    sample_rate = 16000
    digest = "1"

    def scene_embeddings(self, waveform):
        return waveform[:, :1]
"""
PRINTED = r"^ *(?P<task>FSD18-Kaggle|VocalSound) +(?P<mlp>[\d.]+) +(?P<knn>[\d.]+) +False"


@pytest.fixture
def env(tmp_path, monkeypatch):
    """The current folder, with X-ARES' data in `env/`."""
    monkeypatch.chdir(write_env(tmp_path))
    return tmp_path


def run(capsys, *words):
    code = main(["xares", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def recorded(folder):
    """Model, task, protocol, metric and score of every record."""
    records, failures = runs.read(folder)
    assert failures == []
    return {
        (run.encoder["name"], run.task["name"], run.protocol, run.task["metric"]): run.scores[0].score
        for run in records.values()
    }


@needs_xares
@pytest.mark.parametrize("kind", ["m2d", "logmel", "own"])
def test_its_own_checker_accepts_any_encoder(kind, tmp_path, small_model):
    from xares.audio_encoder_checker import check_audio_encoder

    own = own_encoders.write(tmp_path) / "own.py"
    encoder = XaresEncoder({"m2d": small_model, "logmel": "logmel", "own": f"{own}:Loudness"}[kind])
    assert check_audio_encoder(encoder)
    frames = encoder(torch.zeros(1, 5 * encoder.sampling_rate)).shape[1]
    assert frames == pytest.approx(5000 / encoder.hop_size_in_ms, abs=1)


def test_frames_are_those_of_the_encoder_whatever_the_batch(small_model):
    encoder, waveform = XaresEncoder(small_model), 0.1 * torch.randn(3, 16000)
    frames = encoder(waveform)
    expected, _ = zoo.load(small_model, precision="fp32").timestamp_embeddings(waveform)
    assert torch.equal(frames, expected[:, : frames.shape[1]])
    torch.testing.assert_close(encoder(waveform[:1]), frames[:1], rtol=1e-5, atol=1e-5)


def test_clips_of_10_minutes_are_encoded(small_model):
    encoder = XaresEncoder(small_model)
    frames = encoder(0.1 * torch.randn(1, 600 * encoder.sampling_rate))
    assert frames.shape == (1, 600_000 / encoder.hop_size_in_ms, encoder.output_dim)
    assert frames.isfinite().all()


@needs_xares
def test_scores_become_records_and_stay_those_of_their_encoder(env, capsys, small_model):
    words = ("--tasks", "fsdkaggle2018,vocalsound", "--runs", env / "runs")
    code, out, err = run(capsys, "--model", small_model, *words)
    assert code == 0
    printed = {row["task"]: (float(row["mlp"]), float(row["knn"])) for row in re.finditer(PRINTED, err, re.MULTILINE)}
    scores = recorded(env / "runs")
    assert scores == {
        ("small", "xares:fsdkaggle2018", "xares-mlp", "accuracy"): printed["FSD18-Kaggle"][0],
        ("small", "xares:vocalsound", "xares-mlp", "accuracy"): printed["VocalSound"][0],
        ("small", "xares:vocalsound", "xares-knn", "accuracy"): printed["VocalSound"][1],
    }
    assert out.count("\nsmall ") == 3

    code, again, err = run(capsys, "--model", small_model, *words)
    assert (code, again) == (0, out)
    assert err.count("Skip encoding") == 2
    assert err.count("Loaded") == 3

    code, _, err = run(capsys, "--model", "logmel", "--tasks", "vocalsound", "--runs", env / "runs")
    assert code == 0
    assert "Skip encoding" not in err
    assert "Loaded MLP score" not in err
    assert scores.items() < recorded(env / "runs").items()
    assert len(recorded(env / "runs")) == 5


@needs_xares
def test_a_head_whose_training_was_interrupted_is_trained_anew(env, capsys):
    words = ("--model", "logmel", "--tasks", "vocalsound")
    assert run(capsys, *words)[0] == 0
    (score,) = env.rglob("mlp_score.txt")
    text = score.read_text()
    score.unlink()
    (head,) = score.parent.glob("*.ckpt")
    torch.save({key: torch.zeros_like(value) for key, value in torch.load(head).items()}, head)
    assert run(capsys, *words)[0] == 0
    assert score.read_text() == text


@needs_xares
@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_that_is_not_done_is_named_last_with_exit_code_1(stage, env, capsys):
    for file in ("train_0.tar", ".audio_tar_ready"):
        (env / "env" / "vocalsound" / file).unlink()
    (env / "env" / "vocalsound" / "14722710.zip").write_bytes(b"cut")  # is there, so that nothing is downloaded
    stages = ("--from-stage", stage, "--to-stage", stage)
    code, out, err = run(capsys, "--model", "logmel", "--tasks", "vocalsound", *stages)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == f"ERROR: vocalsound: stage {stage} is not done; X-ARES' messages say why."
    assert "Traceback" not in err


@needs_xares
def test_scoring_before_encoding_says_what_to_leave_out_and_names_count_once(env, capsys):
    words = ("--model", "logmel", "--tasks", "vocalsound,vocalsound")
    code, out, err = run(capsys, *words, "--from-stage", 2)
    assert (code, out) == (2, "")
    assert "vocalsound: stage 1 has not been run for this encoder; leave out --from-stage." in err
    assert run(capsys, *words)[1].count("\nlogmel ") == 2
    assert list(env.rglob("Unknown")) == []


@needs_xares
def test_the_environment_is_told_and_put_back(env, monkeypatch):
    monkeypatch.setenv("M2D_BENCH_MODEL", "earlier")
    monkeypatch.delenv("M2D_BENCH_CACHE", raising=False)
    seen = {}

    def run(*_):
        seen.update(os.environ)
        raise UsageError("stop")

    before = dict(os.environ)
    monkeypatch.setattr(launcher, "_run", run)
    with pytest.raises(UsageError, match="stop"):
        launcher.evaluate("logmel", ["esc50"], env, cache=env / "cache", trust_remote_code=True)
    variables = ("M2D_BENCH_MODEL", "M2D_BENCH_CACHE", "M2D_BENCH_TRUST_REMOTE_CODE")
    assert [seen[name] for name in variables] == ["logmel", str(env / "cache"), "1"]
    assert dict(os.environ) == before


def test_an_encoder_that_is_no_name_is_taken_as_it_is(small_model, tmp_path):
    loaded = zoo.load(small_model, precision="fp32")
    waveform = 0.1 * torch.randn(2, 16000)
    assert torch.equal(XaresEncoder(loaded)(waveform), XaresEncoder(small_model)(waveform))
    own = zoo.load(f"{own_encoders.write(tmp_path)}/own.py:Loudness").encoder
    assert XaresEncoder(own)(waveform).shape[::2] == (2, XaresEncoder(own).output_dim)
    with pytest.raises(UsageError, match="dict is no encoder"):
        XaresEncoder({})


@needs_xares
def test_stages_can_be_run_one_by_one_beside_tasks_of_ones_own(env, capsys, monkeypatch):
    (env / "tasks.py").write_text("MINE = True")
    monkeypatch.syspath_prepend(env)
    mine = importlib.import_module("tasks")
    for stage, lines in enumerate((0, 0, 4)):
        stages = ("--from-stage", stage, "--to-stage", stage)
        code, out, _ = run(capsys, "--model", "logmel", "--tasks", "vocalsound", *stages)
        assert (code, len(out.splitlines())) == (0, lines)
    assert sys.modules.pop("tasks") is mine


@needs_xares
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "ecs50"], "Unknown task of X-ARES 'ecs50'. Did you mean esc50 or fsd50k? See these: asvspoof, "),
        ([], "Which tasks? Name them with --tasks: asvspoof, clotho, "),
        (["--tasks", "esc50", "--to-stage", "3"], "--to-stage"),
        (
            ["--tasks", "esc50", "--from-stage", "2", "--to-stage", "1"],
            "--from-stage is 2, which comes after --to-stage",
        ),
        (["--tasks", "esc50", "--model", "m2d_tyni"], "Did you mean m2d_tiny"),
        (["--tasks", "esc50", "--model", "scenes.py:Scenes"], "has no timestamp_embeddings"),
    ],
)
def test_bad_usage_has_exit_code_2_and_says_what_is_allowed(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2D_BENCH_MODEL", "logmel")
    (tmp_path / "scenes.py").write_text(SCENES)
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in re.sub(r"[\s│]+", " ", err)


@needs_xares
def test_jobs_need_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--max-jobs is 2; without a GPU, X-ARES takes only 0"):
        launcher.evaluate("logmel", ["esc50"], tmp_path, launcher.RunnerSettings(max_jobs=2))


def test_without_xares_the_message_says_how_to_install_it(monkeypatch, tmp_path):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(launcher, "files", missing)
    with pytest.raises(UsageError, match=r"pip install 'm2d-bench\[xares\]'"):
        launcher.evaluate("logmel", ["esc50"], tmp_path)


def test_without_a_model_the_message_names_the_variable(monkeypatch):
    monkeypatch.delenv("M2D_BENCH_MODEL", raising=False)
    with pytest.raises(UsageError, match="M2D_BENCH_MODEL"):
        XaresEncoder()
