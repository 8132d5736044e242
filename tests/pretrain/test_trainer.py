"""The loop: the same training however it is cut, on one process or two, killed and resumed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("lightning_fabric")

from m2d_bench.cli import main
from m2d_bench.encoders import checkpoint, zoo
from m2d_bench.encoders.vit import SIZES
from m2d_bench.errors import CheckpointError, DataError, TrainingError, UsageError
from m2d_bench.pretrain import recipe as recipes
from m2d_bench.pretrain import run
from m2d_bench.pretrain.data import open_source, teachers
from m2d_bench.pretrain.data.parts import PrepareSettings
from m2d_bench.pretrain.data.prepare import prepare
from m2d_bench.pretrain.held_out import split
from m2d_bench.pretrain.inputs import Inputs
from m2d_bench.pretrain.method import MaskedModel
from m2d_bench.pretrain.run import RunSettings
from m2d_bench.pretrain.trainer import Trainer
from m2d_bench.runs import TasksFailed
from m2d_bench.settings import Storage
from m2d_bench.training.launch import launch
from m2d_bench.training.log import read
from m2d_bench.training.loop import RESUME
from tests.pretrain.conftest import SMALLER
from tests.processes import under_torchrun, wait_for_step

pytestmark = pytest.mark.usefixtures("tiny_is_smaller")

SMALL = {
    "size": "tiny",
    "predictor_width": 32,
    "predictor_depth": 1,
    "predictor_heads": 2,
    "input_size": [80, 48],
    "effective_batch": 8,
    "epochs": 3,
    "warmup_epochs": 1,
    "base_rate": 0.02,
}
START = "random:m2d_vit_tiny-80x48p16x16"
METHODS = {
    "m2d": {"method": "m2d", "mask_ratio": 0.7, "ema_decay_start": 0.9},
    "m2d_all": {"method": "m2d", "mask_ratio": 0.7, "target_input": "all", "masking": "structured"},
    "msm_mae": {"method": "msm_mae", "mask_ratio": 0.75, "masking": "spans"},
    "supervised": {"method": "m2d_x", "scenario": "supervised", "noise_ratio": 0.3, "ema_decay_start": 0.9},
    "further": {"method": "m2d_x", "scenario": "regularisation", "noise_ratio": 0.3, "ema_decay_start": 0.9},
    "distillation": {"method": "m2d_x", "teacher": START, "noise_ratio": 0.3, "ema_decay_start": 0.9},
}
QUIET = {"device": "cpu", "precision": "fp32", "workers": 0, "watch_epochs": 0, "held_out": 0, "log_steps": 1}
KILLS = int(os.environ.get("KILLS", "2"))


@pytest.fixture(autouse=True, scope="module")
def a_second_is_enough_for_a_teacher():
    """Clips are padded to it, not to seven; test_m2d_x.py tries those."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "LEAST_SECONDS", 1)
        yield


@pytest.fixture(autouse=True, scope="module")
def flops_counted_once():
    """A model's operations are counted once, for it takes as long as a training here; test_flops.py tries the count."""
    counts, count = {}, MaskedModel.flops

    def flops(method):
        model = repr((type(method), method.encoder.config, method.arguments))
        if model not in counts:
            counts[model] = count(method)
        return counts[model]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskedModel, "flops", flops)
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Forty log-mels in the reference tool's layout, some shorter than a crop; and as many sounds for a teacher."""
    root = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for number in range(40):
        frames = 30 if number % 10 == 0 else 70
        tone = np.sin(np.arange(80)[:, None] * (number % 5 + 1) / 7 + np.arange(frames) / 9)
        np.save(root / f"{number}.npy", (tone - 7 + 0.3 * rng.standard_normal((80, frames)))[None].astype(np.float32))
    (root / "clips.csv").write_text("file_name\n" + "\n".join(f"{number}.npy" for number in range(40)))
    labels = [f'{number}.npy,"{"abcde"[number % 5]}{",even" if number % 2 else ""}"' for number in range(40)]
    (root / "labels.csv").write_text("file_name,label\n" + "\n".join(labels))
    (root / "sounds").mkdir()
    for number in range(40):
        soundfile.write(root / "sounds" / f"{number}.wav", 0.1 * rng.standard_normal(8000 + 100 * number), 16000)
    for number in range(7):
        noise = rng.standard_normal((1, 80, 20 if number % 2 else 70)) - 5
        np.save(root / f"noise-{number}.npy", noise.astype(np.float32))
    (root / "noise.csv").write_text("file_name\n" + "\n".join(f"noise-{number}.npy" for number in range(7)))
    return root / "clips.csv"


def recipe_of(name, **changes):
    return recipes.resolve({**SMALL, **METHODS[name], **changes})


def train(name, data, out, changes=None, **settings):
    settings = {
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "watch_epochs": 0,
        "held_out": 0,
        "log_steps": 1,
        **settings,
    }
    inputs = {field: settings.pop(field) for field in ("init", "noise", "labels") if field in settings}
    recipe = recipe_of(name, **(changes or {}))
    if recipe.noise_ratio:
        inputs = {"noise": str(data.parent / "noise.csv"), **inputs}
    if name == "supervised":
        inputs = {"labels": data.parent / "labels.csv", **inputs}
    if name == "further":
        inputs = {"init": START, **inputs}
    if name == "distillation":
        data = data.parent / "sounds"
    path = run.pretrain(recipe, Inputs(data=str(data), **inputs), out, RunSettings(**settings))
    return torch.load(path, weights_only=True)["model"]


def assert_same(first, second):
    assert set(first) == set(second)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def assert_alike(first, second):
    """The same but for rounding: every loss, and all but 1 in 10 000 weights (where a gradient is near zero, as of
    keys' biases, Adam's steps go by its sign alone)."""
    losses, others = ([record["loss"] for record in read(folder / "metrics.jsonl")] for folder in (first, second))
    assert losses == pytest.approx(others, rel=1e-4)
    states = [
        torch.load(next(folder.glob("checkpoint-3.pth")), weights_only=True)["model"] for folder in (first, second)
    ]
    weights, others = (torch.cat([value.flatten() for value in state.values()]) for state in states)
    assert ((weights - others).abs() > 5e-4 + 1e-4 * others.abs()).double().mean() < 1e-4


@pytest.mark.parametrize("name", ["m2d", "m2d_all", "msm_mae", pytest.param("supervised", marks=pytest.mark.slow)])
def test_loss_falls_and_the_checkpoint_is_the_zoos(name, clips, tmp_path):
    train(name, clips, tmp_path, {"epochs": 12}, tag="x")
    (folder,) = tmp_path.iterdir()
    losses = [record["loss"] for record in read(folder / "metrics.jsonl")]
    assert len(losses) == 12 * 5
    assert np.mean(losses[-10:]) < 0.97 * np.mean(losses[:5])
    encoder = zoo.load(str(folder / "checkpoint-12.pth"), device="cpu")
    assert encoder.config.name == folder.name
    assert encoder.scene_embeddings(torch.randn(1, 16000)).isfinite().all()
    assert encoder.config.norm_stats[0] == pytest.approx(-7, abs=0.5)


def test_the_same_training_gives_the_same_weights_and_another_seed_others(clips, tmp_path):
    first, again = (train("m2d", clips, tmp_path / name) for name in "ab")
    assert_same(first, again)
    other = train("m2d", clips, tmp_path / "c", {"seed": 43})
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize(
    "changes", [{"batch_size": 2}, {"batch_size": 8, "workers": 2}, {"checkpoint_activations": True}]
)
def test_how_it_runs_changes_nothing_but_rounding(changes, clips, tmp_path):
    train("m2d", clips, tmp_path / "whole", batch_size=8, tag="x")
    train("m2d", clips, tmp_path / "other", tag="x", **changes)
    assert_alike(next((tmp_path / "whole").iterdir()), next((tmp_path / "other").iterdir()))


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(clips, tmp_path):
    names = [name for name in METHODS if name != "m2d"]  # which M2D-X trains, too
    under_torchrun("tests.pretrain.test_trainer", ",".join(names), clips, tmp_path / "two", "apart")
    for name in names:
        train(name, clips, tmp_path / "one" / name, tag="x")
        assert_alike(*(next((tmp_path / processes / name).iterdir()) for processes in ("one", "two")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["msm_mae", "supervised", "distillation"])
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(name, clips, tmp_path):
    words = [sys.executable, "-m", "tests.pretrain.test_trainer", name, str(clips), str(tmp_path / "killed"), "resume"]
    moments = random.Random(name)
    for _ in range(KILLS):
        found = list(tmp_path.rglob(RESUME))
        begins = torch.load(found[0], weights_only=True)["step"] if found else 0
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        wait_for_step(tmp_path, begins + moments.randint(1, 5))
        time.sleep(moments.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(words, check=True)
    (path,) = (tmp_path / "killed").rglob("checkpoint-24.pth")
    whole = train(name, clips, tmp_path / "whole", {"epochs": 24}, tag="x")
    assert_same(whole, torch.load(path, weights_only=True)["model"])
    steps = [record["step"] for record in read(path.parent / "metrics.jsonl")]
    assert steps == list(range(1, 121))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m2d", "further"])
def test_a_limit_stops_and_a_resumed_training_ends_the_same(name, clips, tmp_path):
    whole = train(name, clips, tmp_path / "whole")
    train(name, clips, tmp_path / "cut", limit_steps=7)
    (folder,) = (tmp_path / "cut").iterdir()
    assert sorted(path.name for path in folder.glob("*.p*t*")) == ["checkpoint-7steps.pth", RESUME]
    with pytest.raises(UsageError, match="holds a training at step 7"):
        train(name, clips, tmp_path / "cut")
    with pytest.raises(UsageError, match="another recipe: epochs: 3 then, 4 now"):
        train(name, clips, tmp_path / "cut", {"epochs": 4}, resume=True)
    assert_same(whole, train(name, clips, tmp_path / "cut", resume=True))


def test_losses_of_each_branch_and_pictures_of_noise_are_logged(clips, tmp_path):
    train("supervised", clips, tmp_path, {"epochs": 1}, watch_epochs=1, held_out=4)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("m2d_as_vit_tiny-80x48p16x16")
    *steps, last = read(folder / "metrics.jsonl")
    assert all(
        record["loss"] == pytest.approx(record["loss_m2d"] + record["loss_offline"], rel=1e-5) for record in steps
    )
    assert {"held_out/loss_m2d", "held_out/loss_offline", "held_out/effective_rank"} < set(last)
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["noise-4.png", "patches-4.png"]


@pytest.mark.parametrize("what", ["noise", "labels", "init"])
def test_other_noise_labels_or_teacher_are_not_gone_on_with(what, clips, tmp_path):
    name = "further" if what == "init" else "supervised"
    train(name, clips, tmp_path, limit_steps=2)
    other = tmp_path / "other.csv"
    if what == "noise":
        other.write_text("".join(f"{line}\n" for line in (clips.parent / "noise.csv").read_text().splitlines()[:5]))
        for path in clips.parent.glob("noise-*.npy"):
            (tmp_path / path.name).symlink_to(path)
    else:
        other.write_text((clips.parent / "labels.csv").read_text().replace("a,even", "b"))
    given = {"noise": str(other), "labels": other, "init": str(next(tmp_path.rglob("*.pth"), ""))}[what]
    says = {"noise": "of other noise", "labels": "of other data or labels", "init": "of other teacher"}[what]
    with pytest.raises(UsageError, match=says):
        train(name, clips, tmp_path, limit_steps=3, resume=True, **{what: given})
    train(name, clips, tmp_path, limit_steps=3, resume=True)


def test_mean_and_std_of_clips_and_noise_are_measured_once(clips, tmp_path, monkeypatch):
    train("supervised", clips, tmp_path, limit_steps=2)
    monkeypatch.setattr(run, "measure_norm_stats", None)
    train("supervised", clips, tmp_path, limit_steps=3, resume=True)
    (log,) = tmp_path.rglob("metrics.jsonl")
    assert [record["step"] for record in read(log)] == [1, 2, 3]


@pytest.mark.parametrize("name", ["further", "distillation"])
def test_a_teacher_is_known_by_its_weights_not_by_its_path(name, clips, tmp_path):
    paths = [str(tmp_path / f"m2d_vit_tiny-80x48p16x16-{copy}" / "checkpoint-1.pth") for copy in "ab"]
    for path in paths:
        checkpoint.save(zoo.read(START), path)
        changes, settings = {"teacher": path}, {"limit_steps": 2 + paths.index(path), "resume": path == paths[1]}
        if name == "further":  # the recipe's own teacher gives way to --init
            changes, settings["init"] = {"teacher": START}, path
        train(name, clips, tmp_path / "out", changes, **settings)
        (config,) = (tmp_path / "out").rglob("config.json")
        assert json.loads(config.read_text())["recipe"]["teacher"] == path


def test_config_names_the_teacher_whose_features_were_prepared(clips, tmp_path):
    settings = PrepareSettings(teacher=START, layer=2, device="cpu", shard_mb=1)
    prepare([clips.parent / "sounds"], tmp_path / "mels", settings)
    recipe = recipe_of("distillation", teacher=None, noise_ratio=0)
    run.pretrain(recipe, Inputs(data=str(tmp_path / "mels")), tmp_path, RunSettings(**QUIET, limit_steps=1))
    (config,) = tmp_path.rglob("config.json")
    values = json.loads(config.read_text())["recipe"]
    assert (values["teacher"], values["teacher_layer"], values["offline_size"]) == (START, 2, 5 * SMALLER[0])


@pytest.mark.parametrize(
    ("changes", "inputs", "says"),
    [
        ({"offline_weight": 0}, {"init": None}, "regularisation. The first weights are random: --init names others."),
        ({"offline_weight": 0}, {}, "offline_weight=0 leaves out the offline task, regularisation."),
        ({"m2d_weight": 0}, {}, "m2d_weight=0 leaves out the loss of M2D."),
    ],
)
def test_what_a_weight_of_zero_leaves_out_is_said(changes, inputs, says, clips, tmp_path, caplog):
    train("further", clips, tmp_path, changes, limit_steps=1, **inputs)
    assert any(message.endswith(says) for message in caplog.messages)


@pytest.mark.parametrize(
    ("name", "changes", "inputs", "says"),
    [
        ("supervised", {}, {"labels": None}, "Name --labels FILE.csv"),
        ("supervised", {}, {"noise": None}, "noise_ratio=0.3 mixes in noise, and there is none. Name --noise"),
        ("supervised", {"noise_ratio": 0}, {"noise": "x"}, "--set noise_ratio=0.2"),
        ("supervised", {"noise_ratio": 1.5}, {}, "noise_ratio is 1.5; it should be less than or equal to 1"),
        ("further", {}, {"init": None}, "name them with --init"),
        ("further", {"scenario": "distillation"}, {}, "name it with --teacher"),
        ("further", {"scenario": "distillation", "teacher": START}, {}, "a teacher needs the sound itself"),
        ("further", {"scenario": "distilation"}, {}, "Did you mean distillation"),
        ("further", {"m2d_weight": -1}, {}, "m2d_weight is -1"),
        ("further", {"teacher_layer": 3}, {}, "teacher_layer=3 has no use in scenario=regularisation"),
        ("supervised", {"teacher": START}, {}, "has no use in scenario=supervised"),
        ("m2d", {"teacher": START}, {}, "Unknown value of a recipe 'teacher'"),
    ],
)
def test_an_offline_task_that_lacks_something_is_refused(name, changes, inputs, says, clips, tmp_path):
    with pytest.raises(UsageError, match=says):
        train(name, clips, tmp_path, changes, **inputs)


@pytest.fixture(scope="module")
def unfit(tmp_path_factory):
    """A folder of what cannot be trained on: labels of one clip, a folder without sound, silence in every form."""
    root = tmp_path_factory.mktemp("unfit")
    for name in ("soundless", "silent"):
        (root / name).mkdir()
    (root / "few.csv").write_text("file_name,label\n0.npy,a\n")
    (root / "soundless" / "notes.txt").write_text("nothing")
    soundfile.write(root / "silent" / "0.wav", np.zeros(16000), 16000)
    np.save(root / "0.npy", np.full((1, 80, 60), -3.0, np.float32))
    (root / "silent.csv").write_text("file_name\n0.npy\n")
    prepare([root / "silent"], root / "mels", PrepareSettings())
    return root


@pytest.mark.parametrize(
    ("option", "name", "says"),
    [
        ("labels", "few.csv", r"has no row for 39 of 40 clips: 1\.npy, .* …\. Every"),
        ("labels", "nowhere.csv", "not a CSV file"),
        ("noise", "soundless", r"holds files: 1 \.txt"),
        ("noise", "silent", "The clips hold nothing but -"),
        ("noise", "silent.csv", "The clips hold nothing but -3:"),
        ("noise", "mels", "The clips hold nothing but -"),
        ("data", "silent.csv", "The clips hold nothing but -3:"),
        ("data", "mels", "The clips hold nothing but -"),
        ("data", "soundless", r"holds files: 1 \.txt"),
        ("init", "nowhere.pth", "no such"),
        ("teacher", "nowhere.pth", "no such"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_by_the_name_of_its_option(option, name, says, clips, tmp_path, unfit):
    path, method = unfit / name, {"init": "further", "teacher": "distillation"}.get(option, "supervised")
    given = {} if option in ("data", "teacher") else {option: path if option == "labels" else str(path)}
    if option == "data":
        method, clips = "m2d", path
    with pytest.raises((DataError, CheckpointError), match=f"^--{option} {path}: {says}"):
        train(method, clips, tmp_path, {"teacher": str(path)} if option == "teacher" else {}, **given)


def test_other_data_are_not_gone_on_with(clips, tmp_path):
    train("m2d", clips, tmp_path, limit_steps=2)
    (clips.parent / "fewer.csv").write_text("\n".join(clips.read_text().splitlines()[:30]))
    with pytest.raises(UsageError, match="of other data"):
        train("m2d", clips.parent / "fewer.csv", tmp_path, resume=True)


@pytest.mark.slow
def test_ctrl_c_saves_and_goes_on(clips, tmp_path):
    whole = train("m2d", clips, tmp_path / "whole", tag="x")
    words = [sys.executable, "-m", "tests.pretrain.test_trainer", "m2d", str(clips), str(tmp_path / "cut"), "slow"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for_step(tmp_path / "cut", 3)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    (state,) = (tmp_path / "cut").rglob(RESUME)
    assert 0 < torch.load(state, weights_only=True)["step"] < 15
    assert_same(whole, train("m2d", clips, tmp_path / "cut", resume=True, tag="x"))


@pytest.fixture(scope="module")
def uninterrupted(clips, tmp_path_factory):
    """The weights of a training that nothing interrupts."""
    return train("m2d", clips, tmp_path_factory.mktemp("uninterrupted"), tag="x")


def start_in_own_group(clips, out):
    """A training with data workers that leads a process group, three steps or more on."""
    words = [sys.executable, "-m", "tests.pretrain.test_trainer", "m2d", str(clips), str(out), "slow", "workers"]
    # A handler that was inherited as ignored, as under nohup, would stay so.
    default = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=default)
    wait_for_step(out, 3)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_the_process_group_saves_and_goes_on(name, clips, tmp_path, uninterrupted):
    number = getattr(signal, name)
    process = start_in_own_group(clips, tmp_path)
    process.send_signal(number)  # as `timeout` does: to the process, then to its group
    os.killpg(process.pid, number)
    process.wait(60)
    (state,) = tmp_path.rglob(RESUME)
    saved = torch.load(state, weights_only=True)["step"]
    assert 3 <= saved < 15
    assert [record["step"] for record in read(state.parent / "metrics.jsonl")] == list(range(1, saved + 1))
    assert_same(uninterrupted, train("m2d", clips, tmp_path, resume=True, tag="x"))


@pytest.mark.slow
def test_no_worker_outlives_a_killed_training(clips, tmp_path):
    process = start_in_own_group(clips, tmp_path)
    process.kill()
    process.wait()
    for _ in range(300):
        if not group_exists(process.pid):
            break
        time.sleep(0.1)
    assert not group_exists(process.pid), "workers are left"


def group_exists(number):
    """Whether any process of a group is there."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_loss_that_is_not_finite_stops_with_step_files_and_last_good_state(clips, tmp_path, monkeypatch):
    train("msm_mae", clips, tmp_path, limit_steps=5)
    bad = np.full((1, 80, 70), np.float32(3e38))
    good = np.load(clips.parent / "7.npy")
    np.save(clips.parent / "7.npy", bad)
    try:
        with pytest.raises(TrainingError, match=r"step \d+ is not finite.*resume.pt.*7\.npy"):
            train("msm_mae", clips, tmp_path, resume=True, log_steps=4)
    finally:
        np.save(clips.parent / "7.npy", good)
    assert torch.load(next(tmp_path.rglob(RESUME)), weights_only=True)["step"] == 5
    train("msm_mae", clips, tmp_path, resume=True)


def test_a_gradient_that_is_not_finite_stops_before_anything_is_saved(clips, tmp_path, monkeypatch):
    train("msm_mae", clips, tmp_path, limit_steps=4)
    clip = Trainer._train

    def broken(self, batches):
        if self.step == 5:
            self.method.encoder.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
        return clip(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_train", broken)
        with pytest.raises(TrainingError, match=r"gradient of step 6 is not finite"):
            train("msm_mae", clips, tmp_path, resume=True, log_steps=50, resume_steps=6)
    state = torch.load(next(tmp_path.rglob(RESUME)), weights_only=True)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["method"].values())


def test_weights_that_are_not_finite_are_not_saved(clips, tmp_path, monkeypatch):
    """Though every loss and gradient was finite."""
    train("msm_mae", clips, tmp_path, limit_steps=4)
    original = Trainer._train

    def broken(self, batches):
        step = original(self, batches)
        with torch.no_grad():
            self.method.encoder.norm.weight[3] = float("inf")
        return step

    monkeypatch.setattr(Trainer, "_train", broken)
    with pytest.raises(
        TrainingError, match=r"weights after step 5 are not finite\. The last good state is .*resume\.pt"
    ):
        train("msm_mae", clips, tmp_path, resume=True, log_steps=50, limit_steps=5)
    state = torch.load(next(tmp_path.rglob(RESUME)), weights_only=True)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["method"].values())
    assert [path.name for path in tmp_path.rglob("checkpoint-*")] == ["checkpoint-4steps.pth"]


def test_a_file_that_breaks_keeps_what_was_done_and_may_be_mended(clips, tmp_path):
    whole = train("m2d", clips, tmp_path / "whole")
    train("m2d", clips, tmp_path / "cut", limit_steps=3)
    content = (clips.parent / "11.npy").read_bytes()
    (clips.parent / "11.npy").write_bytes(b"")
    try:
        with pytest.raises(DataError, match=r"11\.npy.*Mend or replace the file"):
            train("m2d", clips, tmp_path / "cut", log_steps=50, resume=True)
    finally:
        (clips.parent / "11.npy").write_bytes(content)
    assert_same(whole, train("m2d", clips, tmp_path / "cut", resume=True))


@pytest.mark.slow
def test_without_files_that_break_a_resumed_training_ends_the_same(clips, tmp_path, caplog):
    shutil.copytree(clips.parent, tmp_path / "clips")
    for number in (5, 11, 30):
        (tmp_path / "clips" / f"{number}.npy").write_bytes(b"")
    data, skipping = tmp_path / "clips" / "clips.csv", {"on_bad_file": "skip", "held_out": 4, "watch_epochs": 3}
    whole = train("m2d", data, tmp_path / "whole", **skipping)
    assert sum("takes its place" in message for message in caplog.messages) == 3
    assert caplog.messages[-1] == "3 clips could not be read; others took their place."
    train("m2d", data, tmp_path / "cut", limit_steps=3, **skipping)
    assert_same(whole, train("m2d", data, tmp_path / "cut", resume=True, workers=2, **skipping))


@pytest.mark.slow
def test_checkpoints_are_evaluated_and_a_task_that_fails_stops_nothing(clips, tones, tmp_path, monkeypatch, caplog):
    storage = Storage(data=tones, runs=tmp_path / "runs")
    settings = RunSettings(**QUIET, save_epochs=1, tasks=("esc10",))
    recipe = recipe_of("m2d", epochs=2)
    run.pretrain(recipe, Inputs(data=str(clips)), tmp_path / "a", settings, storage)
    records = read(next((tmp_path / "a").rglob("metrics.jsonl")))
    assert [record["step"] for record in records if "linear/esc10" in record] == [5, 10]

    def fails(*_, **__):
        raise TasksFailed({"esc10": DataError("gone")}, [])

    monkeypatch.setattr(run, "linear", fails)
    path = run.pretrain(recipe, Inputs(data=str(clips)), tmp_path / "b", settings, storage)
    assert path.name == "checkpoint-2.pth"
    assert "esc10 failed: gone" in caplog.text
    for name, says in (("esc1O", "Did you mean esc10"), ("us8k", "us8k")):
        with pytest.raises((UsageError, DataError), match=says):
            run.pretrain(recipe, Inputs(data=str(clips)), tmp_path / "c", replace(settings, tasks=(name,)), storage)
    assert not (tmp_path / "c").exists()


def test_the_schedule_and_its_rate_are_the_recipes(clips, tmp_path):
    train("m2d", clips, tmp_path)
    (path,) = tmp_path.rglob("metrics.jsonl")
    rates = [record["lr"] for record in read(path)]
    peak = 0.02 * 8 / 256
    assert rates[:6] == pytest.approx([peak * step / 5 for step in range(6)])
    assert rates[-1] == pytest.approx(peak * 0.5 * (1 + np.cos(np.pi * 9 / 10)))
    decays = [record["ema_decay"] for record in read(path)]
    assert (decays[0], decays[-1]) == (0.9, 0.99999)


def test_biases_and_norms_do_not_decay():
    fabric = launch("cpu", "fp32")
    source = type("Clips", (), {"n_clips": 40})()
    trainer = Trainer(fabric, recipe_of("m2d"), source, None, batch_size=8)
    trainer.prepare()
    decayed, plain = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert all(parameter.ndim == 1 for parameter in plain["params"])
    assert min(parameter.ndim for parameter in decayed["params"]) > 1
    count = sum(p.numel() for p in trainer.method.parameters() if p.requires_grad)
    assert sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"]) == count


@pytest.mark.slow
def test_held_out_clips_are_watched_and_never_trained_on(clips, tmp_path):
    changes = {"effective_batch": 4, "epochs": 2}
    train("m2d", clips, tmp_path, changes, watch_epochs=1, held_out=4)
    (folder,) = tmp_path.iterdir()
    records = [record for record in read(folder / "metrics.jsonl") if "held_out/effective_rank" in record]
    assert len(records) == 2
    assert all(record["held_out/effective_rank"] > 1 and record["held_out/loss"] > 0 for record in records)
    assert len(list((folder / "pictures").glob("patches-*.png"))) == 2
    assert records[-1]["step"] == 2 * (36 // 4)
    with pytest.raises(UsageError, match="of other data"):  # the clips held out would be trained on
        train("m2d", clips, tmp_path, changes, held_out=0, resume=True)


def test_clips_are_held_out_or_trained_on(clips):
    source = open_source(clips, 48)
    held, rest = split(source, 4, 42)
    names = [set(each.names(range(each.n_clips))) for each in (held, rest)]
    assert names[0] | names[1] == set(source.names(range(40)))
    assert not names[0] & names[1]
    assert len(names[0]) == 4
    assert split(source, 0, 42) == (None, source)
    assert split(source, 100, 42)[0].n_clips == 4  # a tenth


def test_it_begins_from_a_checkpoint_of_its_kind(clips, tmp_path):
    first = train("m2d", clips, tmp_path / "first")
    (path,) = (tmp_path / "first").rglob("checkpoint-3.pth")
    second = train("m2d", clips, tmp_path / "second", {"base_rate": 1e-12}, init=str(path), limit_steps=1)
    trained = [key for key in first if not key.startswith("target_")]  # the target moves by its own decay
    for key in trained:
        torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "settings", "says"),
    [
        ({"effective_batch": 64}, {}, "40 clips an epoch are fewer than effective_batch=64"),
        ({}, {"batch_size": 3}, "no multiple of batch_size=3 × 1 devices"),
        ({}, {"batch_size": -1}, "batch_size is -1"),
        ({}, {"device": "cuda:7"}, "cannot be used"),
        ({}, {"precision": "fp16"}, "fp16 is trained on GPUs alone"),
        ({}, {"limit_steps": 0}, "limit_steps is 0"),
        ({}, {"watch_epochs": -1}, "watch_epochs is -1"),
        ({}, {"tag": "a/b"}, "tag is 'a/b'"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, settings, says, clips, tmp_path):
    with pytest.raises(UsageError, match=says):
        train("m2d", clips, tmp_path, changes, **settings)


def test_images_are_learnt_from_too(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for number in range(24):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        (tmp_path / "images" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(tmp_path / "images" / str(number % 3) / f"{number}.png")
    changes = {"input_size": [32, 32], "patch_size": [8, 8], "channels": 3}
    for name in ("m2d", "msm_mae"):
        state = train(name, tmp_path / "images", tmp_path / name, changes, watch_epochs=3, held_out=2)
        assert state["patch_embed.proj.weight"].shape == (SMALLER[0], 3, 8, 8)
        assert len(list((tmp_path / name).rglob("patches-*.png"))) == 1
        (path,) = (tmp_path / name).rglob("checkpoint-3.pth")
        train(name, tmp_path / "images", tmp_path / f"{name}-on", changes, init=str(path), limit_steps=1)
    with pytest.raises(UsageError, match="has 3 channels, the recipe 1"):
        train("m2d", tmp_path / "images", tmp_path / "x")


def test_bf16_stays_near_fp32(clips, tmp_path):
    for each in ("fp32", "bf16"):
        train("m2d", clips, tmp_path / each, precision=each, tag="x")
    logs = [next((tmp_path / each).rglob("metrics.jsonl")) for each in ("fp32", "bf16")]
    losses, others = ([record["loss"] for record in read(log)] for log in logs)
    assert losses != others
    assert losses == pytest.approx(others, rel=0.03)


def test_the_batch_of_a_device_divides_the_effective_one():
    assert [run._batch_size(samples) for samples in (2048, 600, 7, 514)] == [512, 300, 7, 257]


def test_a_finished_training_is_left_as_it_is(clips, tmp_path):
    train("m2d", clips, tmp_path, limit_steps=5)
    (path,) = tmp_path.rglob("checkpoint-1.pth")
    before = path.stat().st_mtime_ns
    train("m2d", clips, tmp_path, limit_steps=5, resume=True)
    assert path.stat().st_mtime_ns == before


def test_small_lists_are_repeated(clips, tmp_path):
    train("m2d", clips, tmp_path, {"epoch_clips": 80, "epochs": 1})
    (path,) = tmp_path.rglob("metrics.jsonl")
    assert read(path)[-1]["step"] == 10


def test_the_command_line_trains_and_lists(clips, tmp_path, capsys):
    words = ["pretrain", "--recipe", "debug", "--data", str(clips), "--out", str(tmp_path), "--set", "epochs=1"]
    words += ["warmup_epochs=0", "effective_batch=8", "input_size=[80, 48]", "--workers", "0", "--held-out", "0"]
    assert main([*words, "--device", "cpu", "--on-bad-file", "skip"]) == 0
    assert "m2d-bench linear --model" in capsys.readouterr().out
    config = json.loads(next(tmp_path.rglob("config.json")).read_text())
    assert config["recipe"]["epochs"] == 1
    assert main(["pretrain", "--list"]) == 0
    assert "m2d_base_all_patches" in capsys.readouterr().out
    assert main(["pretrain", "--recipe", "debug"]) == 2
    assert "Which data?" in capsys.readouterr().err
    assert main(["pretrain", "--recipe", "debug_m2d_x", "--init", START, "--teacher", "m2d_tiny"]) == 2
    assert f"got --init {START} and --teacher m2d_tiny. Name one." in capsys.readouterr().err
    assert main(["pretrain", "--data", str(tmp_path / "nowhere")]) == 1
    assert "no such file or folder" in capsys.readouterr().err


if __name__ == "__main__":  # trainings of their own, to be killed or joined by others
    SIZES["tiny"], teachers.LEAST_SECONDS = SMALLER, 1
    wanted, clip_list, folder, *how = sys.argv[1:]
    many = {"epochs": 24} if "resume" in how else {}
    if "slow" in how:
        original = Trainer._train
        Trainer._train = lambda self, batches: (time.sleep(0.2), original(self, batches))[1]
    from pathlib import Path

    given = {"workers": 2, "resume_steps": 100} if "workers" in how else {"resume_steps": 3}
    for each in wanted.split(","):
        out = Path(folder) / each if "apart" in how else Path(folder)
        train(each, Path(clip_list), out, many, tag="x", resume="resume" in how, **given)
