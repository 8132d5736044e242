"""Fine-tuning: the same training however it is cut, killed and resumed; its records; what it leaves for others."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch.nn.functional import cross_entropy

pytest.importorskip("lightning_fabric")

from m2d_bench import audio, finetune, runs, tasks
from m2d_bench.cli import main
from m2d_bench.encoders import checkpoint, zoo
from m2d_bench.encoders.checkpoint import Labels
from m2d_bench.encoders.classifier import Head
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.patchout import encode_kept, encode_patched_out
from m2d_bench.errors import AudioError, DataError, TrainingError
from m2d_bench.finetuning import network
from m2d_bench.finetuning.batches import ClipCache, StepSampler, clip_weights
from m2d_bench.finetuning.recipe import Recipe
from m2d_bench.finetuning.trainer import BEST, LAST, Trainer, soft_cross_entropy
from m2d_bench.randomness import generator_of
from m2d_bench.runs import TasksFailed
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset
from m2d_bench.training.log import read
from m2d_bench.training.loop import RESUME
from tests.conftest import small_encoder
from tests.finetuning.finetuning_data import (
    CLASSES,
    SMALL,
    folds_task,
    labels_task,
    splits_task,
    write_clips,
    write_model,
)
from tests.processes import under_torchrun, wait_for_step

QUIET = {"device": "cpu", "precision": "fp32", "seeds": 1, "log_steps": 1}
KILLS = int(os.environ.get("KILLS", "2"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a task with official splits, one with folds, and one with several labels a clip."""
    root = tmp_path_factory.mktemp("finetuning")
    write_model(root)
    return {
        "model": root / "small.safetensors",
        "splits": splits_task(root / "splits"),
        "folds": folds_task(root / "folds"),
        "labels": labels_task(root / "labels"),
    }


@pytest.fixture(autouse=True)
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(json.dumps(SMALL))


def train(place, task="splits", values=None, out="finetuned", records="runs", **settings):
    (run,) = finetune(place["model"], place[task], "small.yaml", values, out=out, runs=records, **{**QUIET, **settings})
    return run


def trained(out="finetuned", name=LAST):
    (path,) = Path(out).rglob(name)
    return checkpoint.read(path)


def assert_same(first, second):
    for mine, other in ((first.encoder, second.encoder), (first.head, second.head)):
        assert set(mine) == set(other)
        for key, value in mine.items():
            assert torch.equal(value, other[key]), key


def assert_alike(first, second, tolerance=1e-5):
    for mine, other in ((first.encoder, second.encoder), (first.head, second.head)):
        for key, value in mine.items():
            torch.testing.assert_close(value, other[key], atol=tolerance, rtol=tolerance, msg=key)


# The head and the loss


def test_the_loss_is_one_over_the_classes_of_the_usual_one():
    logits, targets = torch.randn(7, 5), torch.rand(7, 5).softmax(1)
    z, y = logits.double().numpy(), targets.double().numpy()
    total = 0.0
    for row, label in zip(z, y, strict=True):
        for value, share in zip(row, label, strict=True):
            total -= share * (value - np.log(np.exp(row).sum()))
    assert float(soft_cross_entropy(logits, targets)) == pytest.approx(total / (7 * 5), rel=1e-5)
    assert float(soft_cross_entropy(logits, targets)) == pytest.approx(float(cross_entropy(logits, targets)) / 5)


def test_the_head_normalises_by_the_batch_and_then_by_what_it_saw():
    head = Head(6, 4).initialise(generator_of("head"))
    x = 3 + 2 * torch.randn(10, 6)
    weight, bias = (each.detach().double().numpy() for each in (head.linear.weight, head.linear.bias))
    values = x.double().numpy()
    mean, variance = values.mean(0), values.var(0)
    expected = (values - mean) / np.sqrt(variance + 1e-5) @ weight.T + bias
    np.testing.assert_allclose(head.train()(x).detach(), expected, atol=1e-5)
    running_mean, running_variance = 0.1 * mean, 0.9 + 0.1 * values.var(0, ddof=1)
    expected = (values - running_mean) / np.sqrt(running_variance + 1e-5) @ weight.T + bias
    np.testing.assert_allclose(head.eval()(x).detach(), expected, atol=1e-5)


def test_the_head_begins_small_and_without_bias():
    head = Head(768, 50).initialise(generator_of("head"))
    assert float(head.linear.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not head.linear.bias.any()
    assert not list(head.norm.parameters())


# What a step sees


def sampler(recipe, labels=None, clips=30, frames=61):
    labels = torch.arange(clips) % 3 if labels is None else labels
    return StepSampler(recipe, labels, torch.arange(len(labels)), small_encoder(frames=48), frames, (42, "test"))


def test_patchout_keeps_as_many_patches_of_every_sample_of_a_batch():
    drawn = sampler(Recipe(batch_size=15, patchout_ratio=0.5))
    counts = set()
    for step in range(20):
        kept = drawn.draw(step).kept
        assert len(kept) == 2  # windows of 48 frames: 3 columns, then 1
        for window, patches in zip((15, 5), kept, strict=True):
            assert patches.shape[0] == 15
            assert int(patches.max()) < window
            assert all(len(set(row)) == len(row) for row in patches.tolist())
        counts.add(kept[0].shape[1])
    assert len(counts) > 1
    assert all(5 <= count <= 10 for count in counts)


def test_every_clip_is_seen_once_an_epoch_in_another_order_each_time():
    drawn = sampler(Recipe(batch_size=8))
    assert drawn.steps_per_epoch == 4
    epochs = [torch.cat([drawn.draw(4 * epoch + step).clips for step in range(4)]) for epoch in range(2)]
    assert all(sorted(order.tolist()) == list(range(30)) for order in epochs)
    assert not torch.equal(*epochs)
    assert sampler(Recipe(batch_size=29)).steps_per_epoch == 1  # a batch of one cannot be normalised
    with pytest.raises(DataError, match="There are 1 clips to train on"):
        sampler(Recipe(), clips=1)


def test_a_step_draws_the_same_whenever_it_is_asked():
    recipe = Recipe(batch_size=8, mixup=0.3, patchout_ratio=0.5)
    first = sampler(recipe)
    for step in (0, 1, 5):
        one, other = first.draw(step), sampler(recipe).draw(step)
        for name in ("clips", "offsets", "partner", "share", "masks", "crops"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert not torch.equal(first.draw(0).share, first.draw(1).share)


def test_balanced_sampling_draws_rare_labels_more_often_and_no_clip_twice():
    labels = torch.tensor([0] * 900 + [1] * 100)
    drawn = sampler(Recipe(batch_size=50, sampler="balanced", epoch_clips=200), labels)
    assert drawn.steps_per_epoch == 4
    rare = []
    for epoch in range(20):
        clips = torch.cat([drawn.draw(4 * epoch + step).clips for step in range(4)])
        assert len(clips.unique()) == 200
        rare.append(float((labels[clips] == 1).float().mean()))
    assert 0.25 < np.mean(rare) < 0.4  # weights of 1 and 5; without replacement the rare ones run out
    several = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    expected = torch.tensor([1000 / 103, 1000 / 103, 1000 / 103 + 1000 / 101, 1000 / 103], dtype=torch.float64)
    torch.testing.assert_close(clip_weights(several), expected)


def test_waveforms_are_those_of_the_rows_and_of_their_partners(place):
    found = dataset.load(tasks.get(place["splits"]), Storage())
    cache = ClipCache(found, 16000, jobs=2, memory=2**20)
    drawn = sampler(Recipe(batch_size=8, mixup=0.3))
    rows = torch.tensor([4, 5, 6, 6])
    seen = list(cache.prefetch(drawn, lambda count: rows[rows < count], 1, 6))
    assert len(seen) == 5
    for step, (draws, own, others) in enumerate(seen, 1):
        assert torch.equal(draws.clips, drawn.draw(step).clips)
        mine = rows[rows < len(draws.clips)]
        for clips, waveforms in ((draws.clips[mine], own), (draws.clips[draws.partner[mine]], others)):
            assert len(clips) == len(waveforms)
            for clip, waveform in zip(clips.tolist(), waveforms.numpy(), strict=True):
                np.testing.assert_array_equal(waveform, found.waveform(clip, 16000))


def test_clips_are_of_the_duration_that_was_asked_for(place, monkeypatch):
    def load(task, *_):
        raise DataError(f"{task.name} lasts {task.clip_seconds} s")

    monkeypatch.setattr(dataset, "load", load)
    with pytest.raises(TasksFailed, match=r"lasts 0\.25 s"):
        train(place, clip_seconds=0.25)


def test_longer_clips_are_cut_at_another_place_each_time_and_tested_from_their_start(place):
    task = replace(tasks.get(place["splits"]), clip_seconds=0.3)
    found = dataset.load(task, Storage())
    cache = ClipCache(found, 16000, jobs=1, memory=2**20)
    drawn = sampler(Recipe(batch_size=30))
    starts = []
    for draws, own, _ in cache.prefetch(drawn, torch.arange, 0, 3):
        clip = draws.clips.tolist().index(7)
        whole = audio.read(found.root / found.files[7], 16000)
        windows = np.lib.stride_tricks.sliding_window_view(whole, 4800)
        starts.append(int(np.flatnonzero((windows == own[clip].numpy()).all(1))[0]))
    assert len(set(starts)) == 3
    (first,) = cache.batches(torch.tensor([7]), 4)
    np.testing.assert_array_equal(first[0], whole[:4800])


def test_patches_that_all_stay_give_what_the_encoder_gives():
    encoder = small_encoder(frames=48)
    x = torch.randn(2, 1, 80, 61)
    everything = [torch.arange(5 * columns).expand(2, -1) for columns in encoder.window_columns(61)]
    whole = encode_patched_out(encoder, x, 0.0)
    for mine, other in zip(encode_kept(encoder, x, everything), whole, strict=True):
        torch.testing.assert_close(mine, other)
    (last,) = encode_kept(encoder, x, everything, last_only=True)
    torch.testing.assert_close(last, whole[-1])


# What is trained


LABELS = Labels(classes=CLASSES, multilabel=False, clip_seconds=0.6)


def built(place, frames=61, **values):
    found = checkpoint.read(place["model"])
    return network.build(found, Recipe(**values), LABELS, frames, generator_of("weights"))


def test_positions_are_resized_to_the_clip_and_saved_so(place, tmp_path):
    classifier = built(place, adjust_positions=True)
    config = classifier.encoder.config
    assert config.vit.input_size == (80, 61)
    assert config.vit.grid_size == (5, 3)
    wider = built(place, frames=101, adjust_positions=True).encoder
    found = zoo.load(str(place["model"]), device="cpu", precision="fp32", encoding="one_pass", dur_frames=101)
    waveform = torch.randn(2, 16000)
    found = zoo.load(
        str(place["model"]), device="cpu", precision="fp32", encoding="one_pass", dur_frames=101, features="flat"
    )
    torch.testing.assert_close(wider.scene_embeddings(waveform), found.scene_embeddings(waveform))
    checkpoint.save(network.merged(built(place, frames=101, adjust_positions=True)), tmp_path / "wide.safetensors")
    assert checkpoint.read(tmp_path / "wide.safetensors").config.vit.input_size == (80, 101)
    assert built(place).encoder.config.vit.input_size == (80, 48)


def test_what_a_recipe_freezes_stays_as_it_is(place):
    train(place, values={"freeze_patch_embed": True})
    before, after = checkpoint.read(place["model"]).encoder, trained().encoder
    still = {key for key in before if torch.equal(before[key], after[key])}
    assert still == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_low_rank_updates_train_little_and_are_merged_when_saved(place):
    classifier = built(place, lora_rank=2)
    names = [name for name, parameter in classifier.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 4 * 2 + 2  # A and B of four linear layers in two blocks; the head's weight and bias
    train(place, values={"lora_rank": 2})
    before, after = checkpoint.read(place["model"]), trained()
    assert set(before.encoder) == set(after.encoder)
    for key, value in before.encoder.items():
        change = after.encoder[key] - value
        if key.startswith("blocks") and key.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")):
            assert torch.linalg.matrix_rank(change, atol=1e-5) == 2, key
        else:
            assert not change.any(), key


def test_layers_below_learn_slower_where_asked(place):
    groups = network.optimizer(built(place, layer_decay=0.5), Recipe(layer_decay=0.5)).param_groups
    assert [group["scale"] for group in groups] == [0.125, 0.25, 0.5, 1.0]
    counts = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    encoder = small_encoder(frames=48).vit
    assert counts[0] == encoder.cls_token.numel() + sum(p.numel() for p in encoder.patch_embed.parameters())
    assert counts[1] == counts[2] == sum(p.numel() for p in encoder.blocks[0].parameters())
    (plain,) = network.optimizer(built(place), Recipe()).param_groups
    assert plain["scale"] == 1.0
    assert sum(p.numel() for p in plain["params"]) == sum(counts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", {"momentum": 0.9, "weight_decay": 0}),
        ("lars", {"momentum": 0.9, "weight_decay": 0, "trust_coefficient": 0.001}),
        ("adamw", {"betas": (0.9, 0.95), "weight_decay": 1e-4, "amsgrad": True}),
    ],
)
def test_optimizers_have_the_protocols_arguments(place, name, expected):
    recipe = Recipe(optimizer=name, weight_decay=expected["weight_decay"])
    found = network.optimizer(built(place), recipe)
    assert type(found).__name__.lower() == name
    assert {key: found.defaults[key] for key in expected} == expected


# The loop


@pytest.mark.parametrize("optimizer", [("sgd", 0.1), ("lars", 2.0), ("adamw", 2e-3)])
def test_every_optimizer_learns(place, optimizer):
    name, rate = optimizer
    values = {"optimizer": name, "learning_rate": rate, "epochs": 25, "mixup": 0.0, "random_resize_crop": False}
    run = train(place, values=values)
    losses = [record["loss"] for record in read(next(Path("finetuned").rglob("metrics.jsonl"))) if "loss" in record]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert run.scores[0].score > 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [{}, {"patchout_ratio": 0.0, "features": "stacked"}, {"adjust_positions": True, "ema_decay": 0.5, "accumulate": 2}],
)
def test_in_bf16_it_trains_nearly_the_same(place, values):
    values = {"optimizer": "sgd", "learning_rate": 0.05, **values}
    train(place, values=values, out="fp32")
    train(place, values=values, out="bf16", precision="bf16")
    assert_alike(trained("fp32"), trained("bf16"), 0.05)
    losses, others = (
        [record["loss"] for record in read(next(Path(out).rglob("metrics.jsonl"))) if "loss" in record]
        for out in ("fp32", "bf16")
    )
    assert losses == pytest.approx(others, rel=0.05)
    assert losses != others


def test_the_same_training_gives_the_same_model_and_another_seed_another(place):
    train(place, out="a")
    train(place, out="b", records="again")
    assert_same(trained("a"), trained("b"))
    train(place, out="c", first_seed=43)
    assert not torch.equal(trained("a").head["weight"], trained("c").head["weight"])


@pytest.mark.parametrize("values", [{"accumulate": 2}, {"accumulate": 5}])
@pytest.mark.parametrize("task", ["splits", "labels"])
def test_accumulated_parts_are_one_large_batch(place, task, values):
    plain = {"optimizer": "sgd", "learning_rate": 0.05}  # Adam divides rounding by rounding where gradients vanish
    train(place, task, plain, out="whole")
    train(place, task, {**plain, **values}, out="parts", records="parts_runs")
    assert_alike(trained("whole"), trained("parts"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["splits", "labels"])
def test_two_processes_are_one(place, task):
    values = {"batch_size": 13, "optimizer": "sgd", "learning_rate": 0.05}  # 13: the two do not have as many rows
    one = train(place, task, values, out="one")
    under_torchrun("tests.finetuning.test_trainer", place["model"], place[task], "two", json.dumps(values))
    assert_alike(trained("one"), trained("two"))
    (path,) = Path("two_runs").rglob("*.json")
    assert runs.load(path).scores[0].score == pytest.approx(one.scores[0].score)
    losses, others = (
        [record["loss"] for record in read(next(Path(out).rglob("metrics.jsonl"))) if "loss" in record]
        for out in ("one", "two")
    )
    assert losses == pytest.approx(others, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, {"optimizer": "sgd", "learning_rate": 0.05, "ema_decay": 0.9, "accumulate": 3}])
def test_killed_at_any_moment_it_goes_on_to_the_same_model(place, extra):
    values = {**extra, "epochs": 20, "batch_size": 6}  # 5 steps an epoch
    words = [sys.executable, "-m", "tests.finetuning.test_trainer", place["model"], place["splits"], "killed"]
    words += [json.dumps(values), "resume_minutes=0"]
    moments = random.Random(str(extra))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for kill in range(KILLS):
        process = subprocess.Popen(list(map(str, words)), stderr=subprocess.DEVNULL, env=environment)
        wait_for_step("killed", 20 * (kill + 1) + moments.randint(1, 4))
        time.sleep(moments.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(list(map(str, words)), check=True, env=environment)
    whole = train(place, values=values, out="whole")
    for name in (BEST, LAST):
        assert_same(trained("whole", name), trained("killed", name))
    (path,) = Path("killed_runs").rglob("*.json")
    resumed = runs.load(path)
    assert [(s.score, s.chosen, s.valid_score) for s in resumed.scores] == [
        (s.score, s.chosen, s.valid_score) for s in whole.scores
    ]
    records = read(next(Path("killed").rglob("metrics.jsonl")))
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 101))
    assert [record["step"] for record in records if "valid/accuracy" in record] == list(range(5, 101, 5))


def test_rates_rise_from_nothing_and_fall_to_the_end(place):
    train(place)
    records = [record for record in read(next(Path("finetuned").rglob("metrics.jsonl"))) if "lr" in record]
    rates = [record["lr"] for record in records]  # 4 epochs of 3 steps, one of them warm-up
    assert rates[:4] == pytest.approx([0, 2e-3 / 3, 4e-3 / 3, 2e-3])
    expected = [1e-7 + (2e-3 - 1e-7) * 0.5 * (1 + np.cos(np.pi * step / 9)) for step in range(9)]
    assert rates[3:] == pytest.approx(expected)


def test_a_moving_average_is_what_is_saved(place, monkeypatch):
    begins = network.build(
        checkpoint.read(place["model"]), Recipe(), LABELS, 61, generator_of(42, "test", "weights")
    ).head.linear.weight.detach()
    weights = []
    step = Trainer._train

    def noting(self, *arguments):
        done = step(self, *arguments)
        weights.append(self.classifier.head.linear.weight.detach().clone())
        return done

    monkeypatch.setattr(Trainer, "_train", noting)
    train(place, values={"ema_decay": 0.8})
    average = begins
    for each in weights:
        average = 0.8 * average + 0.2 * each
    torch.testing.assert_close(trained().head["weight"], average)
    assert not torch.allclose(average, weights[-1])


def test_a_moving_average_normalises_by_its_own_features(place):
    plain = {"mixup": 0, "frequency_mask": 0, "time_mask": 0, "random_resize_crop": False, "patchout_ratio": 0}
    train(place, values={**plain, "ema_decay": 0.95, "epochs": 60, "batch_size": 30, "warmup_epochs": 2})
    found = trained()
    (path,) = Path(place["splits"].removeprefix("evar:")).parents[2].glob("work/16k/tones")
    clips = [audio.read(path / f"{number}.wav", 16000) for number in range(30)]
    features = M2DEncoder.from_checkpoint(found).scene_embeddings(np.stack(clips))
    off = (features.mean(0) - found.head["running_mean"]) / features.std(0)
    assert float(off.abs().max()) < 0.3
    torch.testing.assert_close(features.std(0), found.head["running_var"].sqrt(), rtol=0.2, atol=0.01)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(place, monkeypatch):
    step = Trainer._train

    def breaking(self, *arguments):
        if self.step == 7:
            with torch.no_grad():
                self.classifier.encoder.vit.cls_token.fill_(float("nan"))
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_train", breaking)
        with pytest.raises(TasksFailed, match=r"step 8 are not finite.*resume\.pt.*learning_rate") as caught:
            train(place, resume_minutes=0, log_steps=50)
        assert isinstance(next(iter(caught.value.failures.values())), TrainingError)
    assert torch.load(next(Path("finetuned").rglob(RESUME)), weights_only=True)["step"] == 7
    train(place, resume=True)
    train(place, out="whole", records="whole_runs")
    assert_same(trained(), trained("whole"))


def test_a_clip_that_breaks_keeps_what_was_done(place, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        from m2d_bench.tasks.dataset import Dataset

        reading = Dataset.waveform
        calls = []

        def breaking(self, clip, *arguments, **options):
            calls.append(clip)
            if len(calls) > 60:
                raise AudioError("7.wav: cannot be decoded.")
            return reading(self, clip, *arguments, **options)

        patched.setattr(Dataset, "waveform", breaking)
        with pytest.raises(TasksFailed, match=r"7\.wav: cannot be decoded.*go on with --resume"):
            train(place, memory=0)
    with pytest.raises(TasksFailed, match=r"holds a training at step \d.*--resume goes on with it, --force"):
        train(place)
    train(place, resume=True)
    train(place, out="whole", records="whole_runs")
    assert_same(trained(), trained("whole"))


def test_files_that_cannot_be_opened_are_named_before_training(place, tmp_path):
    task = splits_task(tmp_path / "broken", "spcv2")
    for name in ("3.wav", "5.wav"):
        (tmp_path / "broken" / "work" / "16k" / "spcv2" / name).write_bytes(b"no sound")
    with pytest.raises(TasksFailed, match=r"(?s)2 of 45 clips cannot be read.*3\.wav.*5\.wav"):
        train({**place, "splits": task})
    run = train({**place, "splits": task}, values={"epochs": 1}, on_bad_file="skip")
    assert list(run.settings["left_out"]) == ["3.wav", "5.wav"]
    assert run.task["n_clips"] == 43


# Records, and what is left


def test_the_best_epoch_by_validation_is_tested_and_its_model_kept(place):
    run = train(place, values={"epochs": 8}, keep_predictions=True)
    (score,) = run.scores
    validated = [r["valid/accuracy"] for r in read(next(Path("finetuned").rglob("metrics.jsonl"))) if "lr" not in r]
    assert len(validated) == 8
    assert score.valid_score == max(validated)
    assert score.chosen == {"epoch": 1 + validated.index(max(validated))}
    assert run.settings["best_by"] == "valid"
    assert (run.protocol, run.repeated) == ("finetune", ("initialisation", "shuffling", "augmentation"))
    (path,) = Path("runs").rglob("*.json")
    (kept,) = runs.load_predictions(path)
    assert kept.valid_scores.tolist() == validated
    assert (kept.scores.argmax(1) == kept.labels).mean() == score.score
    labels = zoo.load_classifier(str(next(Path("finetuned").rglob(BEST)))).labels
    assert (labels.classes, labels.multilabel) == (CLASSES, False)
    assert labels.clip_seconds == pytest.approx(0.6)


def test_without_validation_clips_the_papers_choose_by_the_test_and_it_is_said(place, capsys):
    assert main(words(place, "folds", "--epochs", "2")) == 0
    out = capsys.readouterr().out
    assert "the best epoch by its test score, the papers' convention" in out
    run = runs.load(next(Path("runs").rglob("*.json")))
    assert run.settings["best_by"] == "test"
    assert {score.valid_score for score in run.scores} == {None}
    assert main(words(place, "folds", "--epochs", "2", "--best-by", "valid", "--runs", "other")) == 0
    assert "papers' convention" not in capsys.readouterr().out
    run = runs.load(next(Path("other").rglob("*.json")))
    assert (run.settings["best_by"], run.settings["validation_fraction"]) == ("valid", 0.1)
    assert run.repeated[-1] == "validation split"
    assert all(score.valid_score is not None for score in run.scores)


def words(place, task, *more):
    fixed = {"--device": "cpu", "--precision": "fp32", "--seeds": "1", "--recipe": "small.yaml"}
    fixed |= {"--model": str(place["model"]), "--tasks": place[task]}
    return ["finetune", *(word for pair in fixed.items() if pair[0] not in more for word in pair), *more]


def test_the_last_epoch_is_tested_where_asked(place):
    run = train(place, best_by="last")
    assert run.scores[0].chosen == {"epoch": 4}
    assert_same(trained(name=BEST), trained(name=LAST))


def test_finished_folds_are_not_trained_again_and_the_others_are(place, monkeypatch, capsys):
    assert main(words(place, "folds", "--folds", "2", "--epochs", "2")) == 0
    assert "1 of 3 folds" in capsys.readouterr().out
    trainings = []
    run = Trainer.run

    def noting(self, **options):
        trainings.append(self.sampler.words[1])
        return run(self, **options)

    monkeypatch.setattr(Trainer, "run", noting)
    assert main(words(place, "folds", "--epochs", "2")) == 0
    assert trainings == ["1", "3"]
    assert "finetune accuracy" in capsys.readouterr().out
    assert main(words(place, "folds", "--epochs", "2")) == 0
    assert trainings == ["1", "3"]
    assert main(words(place, "folds", "--epochs", "2", "--folds", "3", "--force")) == 0
    assert trainings == ["1", "3", "3"]


def test_a_forced_training_that_was_stopped_is_gone_on_with(place, monkeypatch):
    first = train(place)
    step = Trainer._train

    def breaking(self, *arguments):
        if self.step == 7:
            raise AudioError("7.wav: gone.")
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_train", breaking)
        with pytest.raises(TasksFailed, match=r"7\.wav: gone"):
            train(place, force=True)
    begun = []
    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, **options: begun.append(self.step) or run(self, **options))
    again = train(place, resume=True)
    assert begun == [7]
    assert [score.score for score in again.scores] == [score.score for score in first.scores]


def test_one_process_trains_a_fold(place):
    folder = train(place).path(Path("finetuned")).with_suffix("")
    with FileLock(folder / "42-test.lock"), pytest.raises(TasksFailed, match="another process is training there"):
        train(place, force=True)


def test_a_metric_that_is_undefined_is_said_before_training(place, tmp_path, monkeypatch):
    rows = [(f"{i}.wav", "high,low" if i % 2 else "middle", "train") for i in range(8)]
    rows += [(f"{i}.wav", "high,low", "test") for i in range(8, 12)]
    name = write_clips(tmp_path / "bad", rows, "split", "bad")
    task = replace(tasks.get(name), metric="aucroc")  # of no class both with and without it
    monkeypatch.setattr(tasks, "get_all", lambda *_: {name: task})
    with pytest.raises(TasksFailed, match="holds too few labels: aucroc is undefined there"):
        train({**place, "splits": name})
    assert not list(Path("finetuned").rglob("metrics.jsonl"))


def test_what_changes_no_score_is_not_part_of_a_record(place):
    first = train(place)
    Path("renamed.yaml").write_text(json.dumps(SMALL))
    changes = {"accumulate": 2, "lora_alpha": 4.0, "momentum": 0.5}
    (again,) = finetune(place["model"], place["splits"], "renamed.yaml", changes, **QUIET)
    assert again.key == first.key
    assert train(place, values={"beta1": 0.8}).key != first.key


@pytest.mark.parametrize(("kept", "files"), [("all", {BEST, LAST}), ("best", {BEST}), ("none", set())])
def test_old_checkpoints_are_pruned(place, kept, files):
    train(place, checkpoints=kept)
    found = {path.name for path in Path("finetuned").rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith(("events", "42-test"))} == {"metrics.jsonl", *files}


def test_several_labels_are_trained_and_scored(place):
    run = train(place, "labels", {"epochs": 6})
    assert run.task["metric"] == "mAP"
    assert 0 < run.scores[0].score <= 1
    labels = zoo.load_classifier(str(next(Path("finetuned").rglob(BEST)))).labels
    assert labels.multilabel
    assert tuple(run.scores[0].per_class) == labels.classes


def test_progress_of_the_loss_metric_and_rate_is_logged_for_tensorboard(place):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(place)
    events = EventAccumulator(str(next(Path("finetuned").rglob("tensorboard"))))
    events.Reload()
    assert {"loss", "lr", "clips_per_second", "valid/accuracy"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("loss")) == 12


def test_a_failing_task_stops_no_other_and_is_named_last(place, tmp_path, capsys):
    broken = splits_task(tmp_path / "broken", "spcv2")
    for path in (tmp_path / "broken" / "work").rglob("*.wav"):
        path.unlink()
    both = {**place, "splits": f"{broken},{place['splits']}"}
    assert main(words(both, "splits")) == 1
    found = capsys.readouterr()
    assert "finetune accuracy" in found.out
    assert "evar:spcv2 failed" in found.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tasks", "ecs50"], "Unknown task 'ecs50'. Did you mean esc50"),
        (["--recipe", "esc5"], "Unknown recipe 'esc5'. Did you mean esc50"),
        (["--set", "lr=1"], "Unknown value of a recipe 'lr'"),
        (["--set", "epochs"], "--set epochs: it takes NAME=VALUE"),
        (["--seeds", "0"], 'Invalid value "0" for --seeds. It should be greater than 0.'),
        (["--precision", "fp16"], "fp16 is trained on GPUs alone"),
        (["--format", "xml"], "Unknown format 'xml'"),
        (["--folds", "7"], "Unknown fold '7'"),
    ],
)
def test_bad_usage_is_said_before_training(place, more, says, capsys):
    assert main(words(place, "folds", *more)) in (1, 2)
    assert says in capsys.readouterr().err


def test_a_verb_without_tasks_says_what_it_takes(capsys):
    assert main(["finetune"]) == 2
    assert "Which tasks? --tasks esc50" in capsys.readouterr().err
    assert main(["finetune", "--list"]) == 0
    assert "as2m" in capsys.readouterr().out


def test_the_command_of_a_record_repeats_it(place):
    assert main(words(place, "splits", "--set", "epochs=2", "mixup=0.0")) == 0
    (path,) = Path("runs").rglob("*.json")
    command = runs.load(path).command
    assert "--recipe small.yaml --set epochs=2 --set mixup=0.0" in command
    assert "--folds" not in command
    before = path.read_bytes()
    import shlex

    assert main(shlex.split(command)[1:]) == 0
    assert path.read_bytes() == before


@pytest.mark.slow
def test_compiled_it_trains_the_same(place, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # without a minute for kernels
    values = {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 1, "batch_size": 15, "warmup_epochs": 0}
    train(place, out="plain", values=values)
    train(place, out="compiled", values=values, records="other", compile=True)
    assert_alike(trained("plain"), trained("compiled"))


if __name__ == "__main__":  # what torchrun starts, and what is killed
    name, task, out, values, *options = sys.argv[1:]
    given = {key: float(value) for key, value in (option.split("=") for option in options)}
    finetune(name, task, "small.yaml", json.loads(values), out=out, runs=f"{out}_runs", resume=True, **QUIET, **given)
