"""Real s3prl, end to end on miniatures in the published layouts: trained and evaluated a few steps, and read back."""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile

import pytest
import torch
import yaml

from m2d_bench import compat, runs
from m2d_bench.cli import main
from m2d_bench.encoders import zoo
from m2d_bench.encoders.frontend import LogMel
from m2d_bench.errors import DataError, UsageError
from m2d_bench.superb_upstream import launcher, register
from m2d_bench.superb_upstream.norm_stats import TASKS
from tests.superb_upstream.superb_data import WRITERS

pytest.importorskip("s3prl")
pytestmark = pytest.mark.slow

FEW = {
    "total_steps": 4,
    "eval_step": 2,
    "save_step": 2,
    "log_step": 2,
    "gradient_accumulate_steps": 1,
}
SMALL = {"ss": {"config.downstream_expert.modelrc.hidden_size": 32}}
FOLD = "config.downstream_expert.datarc.test_fold"
MODELS = {"m2d_s": "random:m2d_s_vit_tiny-80x400p80x2", "m2d": "random:m2d_vit_tiny-80x608p16x16"}


@pytest.fixture(scope="session")
def superb(tmp_path_factory):
    """Data folder with a miniature of every task."""
    root = tmp_path_factory.mktemp("superb")
    for writer in dict.fromkeys(WRITERS.values()):
        writer(root)
    return root


def override(runner=FEW, **others):
    settings = {f"config.runner.{key}": value for key, value in runner.items()} | others
    return ",,".join(f"{key}={value}" for key, value in settings.items())


@pytest.fixture(autouse=True, scope="module")
def commands():
    """What runs every command in a fork of its own, so that s3prl, which changes builtins, is imported but once."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs,))
    process.start()
    s3prl.commands = ours
    yield
    ours.send(None)
    process.join()


def serve(commands):
    register()
    for module in ("s3prl.run_downstream", "librosa.core", "librosa.util"):  # librosa's each worker would import anew
        importlib.import_module(module)
    fork = multiprocessing.get_context("fork")
    for words, *places in iter(commands.recv, None):
        child = fork.Process(target=run_in, args=(words, *places))
        child.start()
        child.join()
        commands.send(child.exitcode)


def run_in(words, folder, environment, outputs):
    os.chdir(folder)
    os.environ.update(environment)
    for stream, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.exit(main(words))


def s3prl(*words, folder, environment=None):
    """The command line in a process of its own."""
    words = ["superb", *map(str, words)]
    with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
        s3prl.commands.send((words, folder, environment or {}, (stdout.name, stderr.name)))
        return subprocess.CompletedProcess(words, s3prl.commands.recv(), stdout.read(), stderr.read())


def model_for(task, upstream):
    """ASV asks for frames shorter than 133 ms."""
    return MODELS["m2d"].replace("16x16", "16x4") if (task, upstream) == ("asv", "m2d") else MODELS[upstream]


def train(task, upstream, superb, folder, *words, few=None):
    found = s3prl(
        *("-m", "train", "-u", upstream, "-k", f"{model_for(task, upstream)},{task}", "-d", task, "-p", "exp"),
        *("--data", superb, "-o", few or override(**SMALL.get(task, {})), *words),
        folder=folder,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found


def evaluate(folder, checkpoint="exp"):
    found = s3prl("-m", "evaluate", "-e", checkpoint, folder=folder)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def in_process(*words, folder):
    """The command line in this process, for what runs nothing of s3prl's and so needs not import it anew."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        patch.chdir(folder)
        code = main(["superb", *map(str, words)])
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


def results(folder, *words):
    return in_process("import", *words, folder=folder)


@pytest.mark.parametrize(
    ("task", "upstream"), [*((task, "m2d" if task == "ss" else "m2d_s") for task in WRITERS), ("asv", "m2d")]
)
def test_a_task_trains_evaluates_and_is_read_into_a_record(task, upstream, superb, tmp_path):
    train(task, upstream, superb, tmp_path, "--seed", "7")
    printed = evaluate(tmp_path)
    score = float(re.findall(r"(?:test.*?(?:acc|per|EER)|si_sdr of 2 utts): (-?[\d.e-]+)", printed)[-1])
    found = results(tmp_path, "exp")
    assert found.returncode == 0, found.stderr
    (path,) = (tmp_path / "runs").rglob("*.json")
    run = runs.load(path)
    assert run.task["name"] == f"superb:{task}"
    assert run.encoder["name"] == model_for(task, upstream)
    assert len(run.encoder["digest"]) == len(run.task["fingerprint"]) == 16
    assert {"s3prl", "torchaudio"} <= set(run.environment["versions"])
    (found_score,) = run.scores
    assert found_score.seed == 7
    assert found_score.seconds > 0
    assert found_score.score == pytest.approx(score, abs=1e-4)  # s3prl prints four digits for SS
    assert found_score.fold == ("fold1" if task == "er" else "test")
    assert run.settings["optimizer"]["lr"] == TASKS[task].learning_rate
    assert str(superb) not in path.read_text()


def test_keywords_of_separable_tones_are_told_apart(superb, tmp_path):
    few = override({**FEW, "total_steps": 50, "eval_step": 25, "save_step": 25}, **{"config.optimizer.lr": 6e-3})
    train("ks", "m2d_s", superb, tmp_path, few=few)
    accuracy = float(re.findall(r"test acc: ([\d.]+)", evaluate(tmp_path, "exp/dev-best.ckpt"))[-1])
    assert accuracy > 0.9
    found = results(tmp_path, "exp", "--format", "csv")
    assert f"superb:ks,superb,accuracy,%,{100 * accuracy:.2f}".rstrip("0").rstrip(".") in found.stdout


def test_a_folder_trained_anew_is_not_read_as_what_it_held_before(superb, tmp_path):
    few = override({**FEW, "total_steps": 30, "eval_step": 30, "save_step": 30}, **{"config.optimizer.lr": 1e-2})
    train("ks", "m2d_s", superb, tmp_path, few=few)
    evaluate(tmp_path)
    train("ks", "m2d", superb, tmp_path, "--seed", "2")
    (row,) = json.loads(results(tmp_path, "exp", "--format", "json").stdout)
    printed = re.findall(r"^(dev|test) acc: ([\d.]+)", (tmp_path / "exp" / "stdout.log").read_text(), re.MULTILINE)
    last = [float(score) for _, score in printed[-4:]]  # dev, test, dev, test
    assert row["model"] == MODELS["m2d"]
    assert row["mean"] == round(100 * (last[1] if last[0] >= last[2] else last[3]), 2)


def test_a_resumed_run_goes_on_and_needs_a_new_test(superb, tmp_path):
    train("ic", "m2d_s", superb, tmp_path)
    evaluate(tmp_path)
    before = set((tmp_path / "exp").iterdir())
    found = s3prl("-m", "train", "-e", "exp", "-o", "config.optimizer.lr=7e-4", folder=tmp_path)
    assert found.returncode == 2
    assert "was trained with 0.001" in found.stderr
    assert set((tmp_path / "exp").iterdir()) == before
    found = s3prl("-m", "train", "-e", "exp", "-o", "config.runner.total_steps=6", folder=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    assert (tmp_path / "exp" / "states-6.ckpt").is_file()
    assert len(re.findall(r"^dev acc", (tmp_path / "exp" / "stdout.log").read_text(), re.MULTILINE)) == 3
    assert results(tmp_path, "exp").returncode == 0


def test_an_experiment_is_one_folder_wherever_it_is_evaluated_from(superb, tmp_path):
    train("ic", "m2d_s", superb, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    evaluate(tmp_path / "elsewhere", "../exp/dev-best.ckpt")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert "evaluate test" in (tmp_path / "exp" / "stdout.log").read_text()


def test_python_m_is_the_same_command(tmp_path):
    command = [sys.executable, "-m", "m2d_bench.superb_upstream"]
    found = subprocess.run([*command, "calcnorm", "--task", "kss"], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "Unknown task 'kss'" in found.stderr
    command[-1] += ".run_downstream"
    assert "usage: m2d-bench superb" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_encoder_of_ones_own_that_the_environment_names_is_named_in_the_record(superb, encoder_folder):
    words = ["-m", "train", "-u", "m2d_s", "-d", "ic", "-p", "exp", "--data", superb, "-o", override()]
    found = s3prl(*words, folder=encoder_folder, environment={"M2D_BENCH_WEIGHTS_M2D_S": "own.py:Layers"})
    assert found.returncode == 0, found.stderr[-3000:]
    assert results(encoder_folder, "exp").returncode == 0
    (path,) = (encoder_folder / "runs").rglob("*.json")
    encoder = runs.load(path).encoder
    assert (encoder["name"], encoder["digest"]) == ("own.py:Layers", zoo.load("own.py:Layers", device="cpu").digest)


@pytest.mark.parametrize(("upstream", "settings"), [("fbank", ["--s3prl_settings"]), ("m2d_calcnorm", [])])
def test_upstreams_without_weights_and_settings_of_a_clone_run_too(upstream, settings, superb, tmp_path):
    clones = tmp_path / "downstream" / "speech_commands" / "config.yaml"
    clones.parent.mkdir(parents=True)
    config = launcher.config_of("speech_commands", superb)
    config["optimizer"]["lr"], config["downstream_expert"]["datarc"]["num_workers"] = 3e-3, 1000
    clones.write_text(yaml.safe_dump(config))
    found = s3prl(
        *("-m", "train", "-u", upstream, "-d", "speech_commands", "-n", "fb", "--data", superb, "-o", override()),
        *settings,
        folder=tmp_path,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert "ESPnet" not in found.stderr
    experiment = tmp_path / "result" / "downstream" / "fb"
    saved = torch.load(experiment / "states-4.ckpt")["Config"]
    assert saved["optimizer"]["lr"] == (3e-3 if settings else 1e-4)
    assert saved["downstream_expert"]["datarc"]["num_workers"] <= os.cpu_count()


def test_a_model_too_coarse_for_verification_is_refused_before_anything_is_read(superb, tmp_path):
    words = ["-m", "train", "-u", "m2d", "-k", f"{MODELS['m2d']},ks", "-d", "asv", "-n", "x", "--data", superb]
    found = s3prl(*words, folder=tmp_path)
    assert found.returncode != 0
    assert "needs 15 frames in 2 s, and this upstream's last 160 ms" in found.stderr
    assert "mean and std of ANOTHER TASK, ks" in found.stderr
    assert not list(tmp_path.iterdir())


def test_a_trainable_upstream_changes(superb, tmp_path):
    train("ks", "m2d_s", superb, tmp_path, "-f", "-s", "last_hidden_state")
    before = launcher_encoder().state_dict()  # restores, too, what reads the checkpoint
    states = torch.load(tmp_path / "exp" / "states-4.ckpt")
    after = states["Upstream"]
    assert not torch.equal(
        before["encoder.vit.blocks.0.attn.qkv.weight"], after["encoder.vit.blocks.0.attn.qkv.weight"]
    )


def launcher_encoder():
    from m2d_bench.superb_upstream import ENTRIES

    compat.restore()
    return ENTRIES["m2d_s"](ckpt=f"{MODELS['m2d_s']},ks")


def test_calcnorm_measures_each_training_clip_once(superb, tmp_path):
    found = in_process(
        "calcnorm", "--task", "pr", "--data", str(superb), "-o", str(tmp_path / "pr.yaml"), folder=tmp_path
    )
    assert found.returncode == 0, found.stderr
    clips = sorted((superb / "LibriSpeech" / "train-clean-100").rglob("*.flac"))
    values = torch.cat([LogMel(16000)(compat.load(clip)[0]).flatten() for clip in clips]).double()
    stored = yaml.safe_load((tmp_path / "pr.yaml").read_text())
    assert stored["mean"] == pytest.approx(values.mean().item(), abs=1e-9)
    assert stored["std"] == pytest.approx(values.std(correction=0).item(), abs=1e-9)
    assert stored["clips"] == len(clips)
    assert f"-k NAME,{stored['mean']:.5f},{stored['std']:.5f}" in found.stdout


@pytest.mark.parametrize("task", ["ks", "ic", "sid", "asv", "er"])
def test_calcnorm_reads_every_other_task(task, superb, tmp_path):
    found = in_process(
        "calcnorm", "--task", task, "--data", str(superb), "-o", str(tmp_path / "stats.yaml"), folder=tmp_path
    )
    assert found.returncode == 0, found.stderr
    n_clips = {"ks": 115, "ic": 24, "sid": 16, "asv": 24, "er": 25}
    stored = yaml.safe_load((tmp_path / "stats.yaml").read_text())
    if task == "ks":  # which keywords train is decided by the hash of their names
        assert 100 < stored["clips"] < 132
    else:
        assert stored["clips"] == n_clips[task]
    assert -12 < stored["mean"] < -5


def test_emotion_is_shown_when_its_five_folds_are_there(superb, tmp_path, caplog):
    train("er", "m2d", superb, tmp_path, "-v", "fold1", few=override(**{FOLD: "'fold1'"}))
    for fold in range(1, 6):
        experiment = shutil.copytree(tmp_path / "exp", tmp_path / f"exp{fold}")
        for path in experiment.glob("*.yaml"):
            path.write_text(path.read_text().replace("fold1", f"fold{fold}"))
        caplog.clear()
        found = results(tmp_path, experiment)
        assert ("superb:er" in found.stdout) == (fold == 5)
        assert (f"{fold} of 5 folds" in caplog.text) == (fold < 5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-m", "train", "-d", "ks", "-n", "x"], "Which encoder"),
        (["-m", "evaluate", "-e", "nowhere"], "no checkpoint, and no folder that holds states"),
        (["-m", "evaluate", "-e", "."], "no checkpoint, and no folder that holds states"),
        (["-m", "train", "-u", "m2d_s", "-d", "ks", "-n", "x", "-c", "nowhere.yaml"], "-c names a YAML file"),
        (["-m", "train", "-u", "m2d_s", "-n", "x"], "Which task"),
        (["-m", "train", "-u", "m2d_s", "-d", "ks"], "-n NAME or its folder"),
        (["-m", "train", "-u", "m2d_ss", "-d", "ks", "-n", "x", "--data", "."], "Unknown upstream 'm2d_ss'"),
        (["-m", "train", "-u", "m2d_s", "-d", "asr", "-n", "x", "--data", "."], "No settings for 'asr' come"),
        (["-m", "train", "-u", "m2d_s", "-d", "ks", "-n", "x", "--data", "nowhere"], "data folder nowhere does not"),
        (["-m", "train", "-u", "fbank", "-d", "ks", "-n", "x", "--data", "."], "mkdir -p"),
        (
            ["-m", "train", "-u", "fbank", "-d", "ks", "-n", "x", "--data", ".", "-o", "config.runner.totalsteps=5"],
            "Did you mean config.runner.total_steps",
        ),
        (
            ["-m", "train", "-u", "m2d_s", "-d", "ks", "-n", "x", "--data", ".", "--cache", "mine"],
            "the cache mine/weights holds no folder m2d_s_vit_*",
        ),
        (
            ["-m", "train", "-u", "m2d_bench", "-k", "x,1", "-d", "ks", "-n", "x", "--data", "."],
            "mean and standard deviation",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wrong_in_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "stay_on_cpu", lambda: None)  # this process goes on
    found = in_process(*words, folder=tmp_path)
    assert found.returncode in (1, 2)
    assert says in found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_no_experiment_is_refused(tmp_path):
    from m2d_bench.superb_upstream import experiments

    with pytest.raises(DataError, match=r"no args_\*\.yaml"):
        experiments.read(tmp_path)
    (tmp_path / "args_2026-01-01-00-00-00.yaml").write_text("{downstream: asr, seed: 1, device: cpu}")
    (tmp_path / "config_2026-01-01-00-00-00.yaml").write_text("{}")
    with pytest.raises(DataError, match="downstream 'asr'; known are ctc"):
        experiments.read(tmp_path)
    (tmp_path / "args_2026-01-01-00-00-01.yaml").write_text("{downstream: speech_commands, seed: 1, device: cpu}")
    with pytest.raises(DataError, match="no test score yet"):
        experiments.read(tmp_path)


def test_our_settings_carry_the_published_learning_rates(superb):
    for task in TASKS.values():
        config = launcher.config_of(task.downstream, str(superb))
        assert config["optimizer"]["lr"] == task.learning_rate
        assert not any(placeholder in str(config) for placeholder in ("{data}", "{configs}", "{workers}"))
    ours = launcher.CONFIGS / "speech_commands.yaml"
    assert launcher.config_of("any", str(superb), str(ours)) == launcher.config_of("speech_commands", str(superb))
    with pytest.raises(UsageError, match="No settings for"):
        launcher.config_of("asr", str(superb))
