"""Fine-tuning on images: the same loop, other pictures, encoder, head and recipe."""

import csv
import json
import math
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lightning_fabric")
pytest.importorskip("PIL")

from PIL import Image

from m2d_bench import finetune, images, tasks
from m2d_bench.cli import main
from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.checkpoint import Labels
from m2d_bench.errors import CheckpointError, DataError, UsageError
from m2d_bench.finetuning import network, recipe
from m2d_bench.finetuning.images import augment, data, encoder
from m2d_bench.finetuning.images.trainer import ImageSampler, ImageTrainer
from m2d_bench.finetuning.recipe import ImageRecipe
from m2d_bench.finetuning.trainer import BEST, LAST
from m2d_bench.randomness import generator_of
from m2d_bench.runs import TasksFailed
from m2d_bench.settings import Storage
from m2d_bench.tasks import dataset
from m2d_bench.training import recipes as files_of
from m2d_bench.training.log import read
from tests.conftest import small_encoder
from tests.finetuning.image_data import COLOURS, SMALL, write_encoder, write_images
from tests.processes import under_torchrun

QUIET = {"device": "cpu", "precision": "fp32", "seeds": 1, "log_steps": 1}
MAE = {  # FINETUNE.md of MAE's official code, ViT-Base; its rate is that of a batch of 256
    "optimizer": "adamw",
    "learning_rate": 5e-4 * 1024 / 256,
    "batch_size": 32 * 32,
    "epochs": 100,
    "warmup_epochs": 5,
    "end_rate": 1e-6,
    "weight_decay": 0.05,
    "beta1": 0.9,
    "beta2": 0.999,
    "amsgrad": False,
    "layer_decay": 0.65,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "drop_path": 0.1,
    "rand_augment": 9.0,
    "erasing": 0.25,
    "pooling": "mean",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder, and a task of three colours."""
    root = tmp_path_factory.mktemp("images")
    return {"model": write_encoder(root / "encoder" / "checkpoint-3.pth"), "task": write_images(root / "colours")}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(place, values=None, out="finetuned", records="runs", model=None, **settings):
    changes = {**SMALL, **(values or {})}
    given = {**QUIET, "best_by": "last", **settings}
    (run,) = finetune(model or place["model"], place["task"], None, changes, out=out, runs=records, **given)
    return run


def trained(out="finetuned", name=LAST):
    (path,) = Path(out).rglob(name)
    return checkpoint.read_state(path)


def built(place, **values):
    labels = Labels(classes=("a", "b", "c"), multilabel=False, clip_seconds=0.0)
    return encoder.build(encoder.read(place["model"]), ImageRecipe(**values), labels, generator_of("head"))


def rng(seed=0):
    return np.random.default_rng(seed)


# The recipe


def test_the_papers_say_as_mae_and_so_does_the_recipe():
    with files("m2d_bench.results.papers").joinpath("pretrain_settings.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if "M2D and MAE on images" in row]
    assert [row[3] for row in rows if row[2] == "other settings"] == ["same as MAE"] * 2
    assert {row[3] for row in rows if row[2] == "pre-training dataset"} == {"ImageNet-1K"}
    assert recipe.names(ImageRecipe) == ["image"]
    published = recipe.load("image", kind=ImageRecipe)
    assert {name: getattr(published, name) for name in MAE} == MAE
    assert {**published.identity(), **MAE} == published.identity()


@pytest.mark.parametrize("field", [name for name in ImageRecipe().identity() if name not in ("epoch_clips", "sampler")])
def test_every_value_can_be_set_on_the_command_line(field):
    texts = {"optimizer": "lars", "pooling": "class", "freeze_patch_embed": "true", "amsgrad": "true"}
    text = texts.get(field, "0.25" if isinstance(getattr(ImageRecipe(), field), float) else "7")
    changes = {"learning_rate": 1.0, **files_of.parse([f"{field}={text}"])}
    assert str(getattr(recipe.load("image", changes, ImageRecipe), field)).lower() == text


@pytest.mark.parametrize("field", sorted(ImageRecipe.absent))
def test_values_about_spectrograms_are_not_of_a_recipe_of_images(field):
    assert field not in recipe.load("image", kind=ImageRecipe).identity()
    with pytest.raises(UsageError, match=f"Unknown value of a recipe of images '{field}'"):
        recipe.load("image", {field: getattr(ImageRecipe(), field)}, ImageRecipe)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cutmix": -1}, "cutmix is -1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"rand_augment": 11}, "rand_augment is 11"),
        ({"erasing": 2}, "erasing is 2"),
        ({"pooling": "max"}, "Unknown pooling 'max'"),
    ],
)
def test_what_cannot_be_is_refused(changes, says):
    with pytest.raises(UsageError, match=says):
        recipe.load("image", changes, ImageRecipe)


def test_recipes_of_sound_and_of_images_are_not_taken_for_each_other(place):
    with pytest.raises(UsageError, match="Unknown value of a recipe 'cutmix'"):
        recipe.load("esc50", {"cutmix": 1.0})
    with pytest.raises(UsageError, match="Unknown recipe 'image'"):
        recipe.load("image")
    with pytest.raises(UsageError, match=r"Unknown recipe 'esc50'.*image"):
        finetune(place["model"], place["task"], "esc50")


# The folder


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda root: root / "none", UsageError, "none: no such folder. Name one with"),
        (lambda root: (root / "val").rename(root / "test"), DataError, "has no folder val"),
        (lambda root: root.joinpath("val", "red", "0.png").rename(root / "val" / "0.png"), DataError, "1 of 6 images"),
        (lambda root: root.joinpath("train", "red").rename(root / "train" / "blue" / "x"), DataError, "2 of 6 images"),
        (lambda root: [path.unlink() for path in (root / "val").rglob("*.*")], DataError, "val: no images"),
    ],
)
def test_another_layout_is_refused(tmp_path, change, error, says):
    write_images(tmp_path / "a", train=2, val=2)
    changed = change(tmp_path / "a")
    root = changed if error is UsageError else tmp_path / "a"
    with pytest.raises(error, match=says) as caught:
        data.get(f"images:{root}")
    assert f"{root}/train/CLASS" in str(caught.value)


def test_one_class_is_refused(tmp_path):
    task = write_images(tmp_path / "a", classes=("red",))
    with pytest.raises(DataError, match=r"images of one class \(red\); it takes two or more"):
        data.get(task)


def test_images_that_cannot_be_read_are_named_or_left_out(place, tmp_path):
    task = write_images(tmp_path / "a")
    for name, content in (("0.png", b"no picture"), ("1.JPEG", b"")):
        (tmp_path / "a" / "train" / "red" / name).write_bytes(content)
    broken = (tmp_path / "a" / "val" / "red" / "0.png").read_bytes()
    (tmp_path / "a" / "val" / "red" / "0.png").write_bytes(broken[: len(broken) // 2])
    with pytest.raises(TasksFailed, match=r"3 of 36 clips cannot be read: .*red/0\.png: not an image"):
        train({**place, "task": task})
    run = train({**place, "task": task}, {"epochs": 1}, on_bad_file="skip")
    assert run.settings["left_out"] == ["train/red/0.png", "train/red/1.JPEG", "val/red/0.png"]
    assert run.scores[0].n_test == 11


def test_the_folders_are_the_splits_and_the_classes(place):
    loaded = dataset.load(data.get(place["task"]), Storage())
    assert loaded.classes == tuple(COLOURS)
    assert sorted(set(zip(loaded.splits, (Path(file).parts[0] for file in loaded.files), strict=True))) == [
        ("test", "val"),
        ("train", "train"),
    ]
    assert [loaded.classes[label] for label in loaded.labels] == [Path(file).parts[1] for file in loaded.files]
    with pytest.raises(UsageError, match="Unknown task 'images:"):
        tasks.get(place["task"])  # evaluations of sound know no images


# What the network sees


def cache(place, **values):
    loaded = dataset.load(data.get(place["task"]), Storage())
    return data.ImageCache(loaded, encoder.read(place["model"]).config, ImageRecipe(**values), 1)


def test_a_tested_image_is_its_middle_resized_and_normalised(place):
    image = Image.fromarray(rng().integers(0, 256, (64, 100, 3), dtype=np.uint8))
    view = data.middle(image, (56, 56))  # 64 is its shorter side, 256/224 of 56: nothing is resized
    np.testing.assert_array_equal(np.asarray(view), np.asarray(image)[4:60, 22:78])
    assert data.middle(Image.new("RGB", (9, 400)), (32, 32)).size == (32, 32)
    read_once = cache(place)
    path = read_once.dataset.root / read_once.dataset.files[3]
    expected = (images.to_array(data.middle(images.read(path), (32, 32))) - 0.45) / 0.25
    np.testing.assert_allclose(read_once.read(3), expected, rtol=1e-5)


def test_a_training_view_is_drawn_by_its_offset_alone(place):
    full = cache(place, rand_augment=9.0, erasing=0.9)
    views = [full.read(3, offset) for offset in (0.1, 0.2, 0.1)]
    assert views[0].shape == (3, 32, 32)
    assert views[0].dtype == np.float32
    assert not np.array_equal(views[0], views[1])
    np.testing.assert_array_equal(views[0], views[2])


@pytest.mark.parametrize("name", augment._CHANGES)
def test_each_change_of_rand_augment_keeps_the_size_and_changes_something(name):
    image = Image.fromarray(rng().integers(40, 200, (20, 30, 3), dtype=np.uint8))
    for level, sign in ((0.0, 1), (0.9, -1), (1.0, 1)):
        changed = augment._changed(image, name, level, sign * level, (1, 2, 3))
        assert (changed.size, changed.mode) == ((30, 20), "RGB")
    assert not np.array_equal(np.asarray(changed), np.asarray(image))


def test_a_box_is_erased_with_noise():
    x = augment.erase(np.full((3, 40, 40), 9.0, np.float32), rng())
    erased = (x != 9).all(0)
    rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
    assert erased.sum() == len(rows) * len(columns)  # one box
    assert 0.02 * 1600 * 0.8 < erased.sum() < 1600 / 3 * 1.2
    assert abs(x[:, erased].mean()) < 0.2


def sampler(place, count=8, **values):
    labels = torch.arange(24) % 3
    recipe = ImageRecipe(batch_size=count, **values)
    return ImageSampler(recipe, labels, torch.arange(24), built(place).encoder, 32, (42, "test"))


def test_mixup_and_cutmix_take_turns_and_their_share_is_that_of_the_pixels(place):
    drawn, kinds = sampler(place, mixup=0.8, cutmix=1.0), set()
    for step in range(30):
        draws = drawn.draw(step)
        top, left, height, width = draws.crops[0].tolist()
        assert draws.partner.tolist() == list(range(7, -1, -1))
        assert len(draws.share.unique()) == 1
        assert top + height <= 32
        assert left + width <= 32
        kinds.add(bool(height))
        if height:
            assert float(draws.share[0]) == pytest.approx(1 - height * width / 32**2)
    assert kinds == {True, False}
    assert all(not sampler(place, mixup=0.8).draw(step).crops.any() for step in range(5))
    assert all(torch.equal(sampler(place).draw(step).share, torch.ones(8)) for step in range(5))
    assert torch.equal(drawn.draw(7).offsets, drawn.draw(7).offsets)
    assert (drawn.draw(7).offsets > 0).all()


def test_pixels_and_labels_are_mixed_in_the_same_share_and_labels_smoothed(place):
    trainer = ImageTrainer.__new__(ImageTrainer)
    trainer.sampler = sampler(place, mixup=0.8, cutmix=1.0, label_smoothing=0.3)
    trainer.recipe, trainer.classifier = trainer.sampler.recipe, built(place)
    trainer.fabric = SimpleNamespace(device=torch.device("cpu"))
    for step in range(10):
        draws = trainer.sampler.draw(step)
        share = float(draws.share[0])
        x = trainer._augmented(draws, torch.arange(8), torch.zeros(8, 3, 32, 32), torch.ones(8, 3, 32, 32))
        assert float(x.mean()) == pytest.approx(1 - share, abs=1e-5)
        assert len(x.unique()) == (2 if draws.crops.any() else 1)
        for row, target in enumerate(trainer._targets(draws)):
            expected = [0.1] * 3  # of the 0.3 that is smoothed, a third each
            expected[draws.clips[row] % 3] += 0.7 * share
            expected[draws.clips[7 - row] % 3] += 0.7 * (1 - share)
            assert target.tolist() == pytest.approx(expected, abs=1e-5)


def test_drop_path_leaves_out_later_branches_more_often_and_keeps_the_mean():
    scales = augment.draw_drop_path(20000, 5, 0.4, generator_of("drop"))
    stays = 1 - torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close((scales > 0).float().mean(0), stays[:, None].expand(5, 2), atol=0.02, rtol=0)
    torch.testing.assert_close(scales.mean(0), torch.ones(5, 2), atol=0.03, rtol=0)
    assert (scales[:, 0] == 1).all()


def test_a_branch_that_is_left_out_adds_nothing(place):
    vit = built(place).encoder.vit.eval()
    x = torch.randn(2, 16, 64)
    scales = torch.ones(2, 2, 2)
    torch.testing.assert_close(vit(x, branch_scales=scales)[-1], vit(x)[-1], rtol=0, atol=0)
    scales[1] = 0
    first, second = vit(x, branch_scales=scales)[-1]
    torch.testing.assert_close(first, vit(x)[-1][0])
    torch.testing.assert_close(second[1:], x[1])


# The network


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_what_is_classified_is_the_normalised_mean_or_class_token(place, pooling):
    classifier = built(place, pooling=pooling)
    vit, x = classifier.encoder.vit.eval(), torch.randn(2, 3, 32, 32)
    patches = torch.stack([x[:, :, i : i + 8, j : j + 8] for i in range(0, 32, 8) for j in range(0, 32, 8)], 1)
    tokens = patches.flatten(2) @ vit.patch_embed.proj.weight.flatten(1).T + vit.patch_embed.proj.bias
    tokens = torch.cat([vit.cls_token.expand(2, -1, -1), tokens], 1) + vit.pos_embed
    for block in vit.blocks:
        tokens = block(tokens)
    pooled = tokens[:, 1:].mean(1) if pooling == "mean" else tokens[:, 0]
    torch.testing.assert_close(classifier.encoder.scene_embeddings(x), pooled, rtol=1e-4, atol=1e-4)
    expected = torch.nn.functional.layer_norm(pooled, (64,), eps=1e-6) @ classifier.head.linear.weight.T
    torch.testing.assert_close(classifier.head(pooled), expected)


def test_layers_below_learn_slower_and_vectors_do_not_decay(place):
    classifier = built(place, layer_decay=0.5)
    named = {id(parameter): name for name, parameter in classifier.named_parameters()}
    groups = network.optimizer(classifier, ImageRecipe(optimizer="adamw", layer_decay=0.5, weight_decay=0.1))
    facts = {
        named[id(parameter)]: (group["scale"], group["weight_decay"])
        for group in groups.param_groups
        for parameter in group["params"]
    }
    assert len(facts) == len(named)
    assert facts["encoder.vit.pos_embed"] == facts["encoder.vit.cls_token"] == (0.125, 0)
    assert facts["encoder.vit.patch_embed.proj.weight"] == (0.125, 0.1)
    assert facts["encoder.vit.blocks.0.mlp.fc1.weight"] == (0.25, 0.1)
    assert facts["encoder.vit.blocks.1.norm1.bias"] == (0.5, 0)
    assert facts["head.linear.weight"] == (1, 0.1)
    assert facts["head.norm.weight"] == (1, 0)


def changed_encoder(path, change):
    state = torch.load(write_encoder(path), weights_only=True)["model"]
    change(state)
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("blocks.1.attn.qkv.weight"), "missing: blocks.1.attn.qkv.weight"),
        (lambda state: state.update(pos_embed=torch.zeros(1, 16, 64)), "15 patches of 8×8, which make no square"),
        (lambda state: state.pop("pos_embed"), "pos_embed"),
        (lambda state: state.update(pos_embed=torch.zeros(3)), "not an encoder of square images"),
        (lambda state: state.update(cls_token=torch.zeros(1, 1, 3)), r"another shape: cls_token \[1, 1, 3\]"),
        (lambda state: state.update(norm_stats=torch.tensor([0.5, 0.0])), r"norm_stats are \[0.5, 0.0\]"),
        (lambda state: state.update(norm_stats=torch.zeros(3)), "norm_stats are"),
        (lambda state: state.update({"other.weight": torch.zeros(2)}), "unexpected keys.*other.weight"),
        (lambda state: state.update({"patch_embed.proj.weight": torch.zeros(64, 1, 8, 8)}), "width, 3, height"),
    ],
)
def test_what_is_no_encoder_of_images_is_refused(tmp_path, change, says):
    path = changed_encoder(tmp_path / "x" / "checkpoint.pth", change)
    with pytest.raises(CheckpointError, match=says):
        encoder.read(path)


def test_encoders_of_sound_and_names_are_refused(place, tmp_path):
    with pytest.raises(CheckpointError, match=r"m2d_tiny: no encoder of images. --model takes a file"):
        finetune("m2d_tiny", place["task"])
    small = small_encoder(frames=48)
    path = tmp_path / "sound.pth"
    checkpoint.save(checkpoint.Checkpoint(config=small.config, encoder=small.vit.state_dict()), path)
    with pytest.raises(CheckpointError, match=r"sound.pth: not an encoder of square images: .*\[128, 1, 16, 16\]"):
        finetune(path, place["task"])


def test_without_norm_stats_or_with_those_of_each_channel_it_is_read(tmp_path, caplog):
    path = changed_encoder(tmp_path / "x" / "checkpoint.pth", lambda state: state.pop("norm_stats"))
    assert encoder.read(path).config.norm_stats[0] == (0.485, 0.456, 0.406)
    assert "no norm_stats inside; those of ImageNet" in caplog.text
    stats = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    path = changed_encoder(tmp_path / "y" / "checkpoint.pth", lambda state: state.update(norm_stats=stats))
    assert encoder.read(path).config.norm_stats == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


# The training


def test_it_learns_to_tell_the_classes_apart_and_its_weights_can_be_trained_on(place, capsys):
    words = ["finetune", "--model", str(place["model"]), "--tasks", place["task"], "--recipe", "image", "--seeds", "1"]
    words += ["--device", "cpu", "--log-steps", "1", "--set", *(f"{key}={value}" for key, value in SMALL.items())]
    assert main(words) == 0
    assert "the best epoch by its test score" in capsys.readouterr().out
    (path,) = Path("runs").rglob("*.json")
    record = json.loads(path.read_text())
    assert record["task"]["metric"] == "accuracy"
    assert record["settings"]["image_size"] == [32, 32]
    assert record["settings"]["cutmix"] == 1.0
    assert record["scores"][0]["score"] > 0.9  # by chance, a third
    losses = [entry["loss"] for entry in read(next(Path("finetuned").rglob("metrics.jsonl"))) if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(3), rel=1e-3)  # the usual cross-entropy, of a head that says nothing
    (best,) = Path("finetuned").rglob(BEST)
    state = checkpoint.read_state(best)
    assert {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias", "norm_stats"} < set(state)
    again = encoder.read(best)
    assert again.config.norm_stats == ((0.45,) * 3, (0.25,) * 3)
    for key, value in again.state.items():
        assert torch.equal(value, state[key]), key
    assert not torch.equal(state["pos_embed"], encoder.read(place["model"]).state["pos_embed"])
    assert train(place, {"epochs": 1}, out="more", model=best).scores


def test_a_training_that_was_stopped_goes_on_to_the_same_model(place, monkeypatch):
    whole, step = train(place, out="whole"), ImageTrainer.train_step

    def stops(trainer):
        if trainer.step == 10:
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(ImageTrainer, "train_step", stops)
        with pytest.raises(KeyboardInterrupt):
            train(place, out="stopped", records="others", resume_minutes=0)
    assert not list(Path("others").rglob("*.json"))
    again = train(place, out="stopped", records="others", resume=True)
    assert [(score.score, score.chosen) for score in again.scores] == [
        (score.score, score.chosen) for score in whole.scores
    ]
    first, second = trained("whole"), trained("stopped")
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("values", [{}, {"pooling": "class", "cutmix": 0.0}, {"mixup": 0.0}])
def test_accumulated_parts_are_one_large_batch(place, values):
    plain = {"optimizer": "sgd", "learning_rate": 0.05, "drop_path": 0.5, "epochs": 2, **values}
    train(place, plain, out="whole")
    train(place, {**plain, "accumulate": 3}, out="parts", records="parts_runs")
    first, second = trained("whole"), trained("parts")
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.slow
def test_two_processes_are_one(place):
    values = {**SMALL, "batch_size": 7, "epochs": 3, "optimizer": "sgd", "learning_rate": 0.05, "drop_path": 0.5}
    train(place, values, out="one")
    words = ["finetune", "--model", place["model"], "--tasks", place["task"]]
    words += ["--out", "two", "--runs", "two_runs", "--seeds", "1", "--best-by", "last", "--device", "cpu"]
    words += ["--precision", "fp32", "--set", *(f"{key}={value}" for key, value in values.items())]
    under_torchrun("m2d_bench.cli", *words)
    first, second = trained("one"), trained("two")
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("values", [{"lora_rank": 2}, {"ema_decay": 0.5}, {"freeze_patch_embed": True}])
def test_what_sound_can_have_images_can_too(place, values):
    train(place, {"epochs": 1, **values})
    state, before = trained(), encoder.read(place["model"]).state
    same = {key for key, value in before.items() if key in state and torch.equal(state[key], value)}
    frozen = {"lora_rank": {"patch_embed.proj.weight", "cls_token", "pos_embed"}}
    frozen["freeze_patch_embed"] = {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    (name,) = values
    assert frozen.get(name, set()) <= same
    assert "blocks.0.mlp.fc1.weight" not in same


def test_the_recipe_is_listed(capsys):
    assert main(["finetune", "--list"]) == 0
    assert "image " in capsys.readouterr().out
