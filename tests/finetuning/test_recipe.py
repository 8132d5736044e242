"""Recipes say what the papers' tables say."""

import csv
from dataclasses import asdict
from importlib.resources import files

import pytest

from m2d_bench.errors import UsageError
from m2d_bench.finetuning import recipe as recipes
from m2d_bench.finetuning.recipe import Recipe, load
from m2d_bench.training import recipes as files_of

TASKS = ("as2m", "as20k", "esc50", "spcv2", "vc1")
SUFFIX = {"m2dx-2024": "", "m2d-2023": "_2023"}
FIELDS = {
    "Learning rate": "learning_rate",
    "LR": "learning_rate",
    "Batch size": "batch_size",
    "Optimizer": "optimizer",
    "Mixup ratio": "mixup",
    "Mixup": "mixup",
    "Random resize crop": "random_resize_crop",
    "RRC": "random_resize_crop",
    "Training epochs (total)": "epochs",
    "Training epochs (warm-up)": "warmup_epochs",
    "Structured Patchout ratio": "patchout_ratio",
    "SPO ratio": "patchout_ratio",
    "Adjust positional encoding": "adjust_positions",
    "Freeze embedding layer": "freeze_patch_embed",
}


def published():
    """(recipe's name, parameter, value as text) of every printed cell."""
    with files("m2d_bench.results.papers").joinpath("finetune_settings.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for task in TASKS:
                if row[task]:
                    yield f"{task}{SUFFIX[row['source']]}", row["parameter"], row[task]


CELLS = list(published())


def test_every_column_of_both_papers_has_a_recipe():
    assert {name for name, _, _ in CELLS} | {"medical"} == set(recipes.names())
    assert len(CELLS) == 11 * 5 + 7 * 4


@pytest.mark.parametrize(("name", "parameter", "value"), CELLS)
def test_recipes_carry_the_published_values(name, parameter, value):
    recipe = load(name)
    if parameter == "SpecAugment":
        assert value == f"{recipe.frequency_mask}/{recipe.time_mask}"
        return
    own = getattr(recipe, FIELDS[parameter])
    if isinstance(own, bool):
        assert value == ("yes" if own else "no")
    elif isinstance(own, str):
        assert value.lower() == own
    else:
        assert float(value) == own


def test_recipes_carry_what_the_protocol_adds():
    for name in recipes.names():
        recipe = load(name)
        assert (recipe.momentum, recipe.beta1, recipe.beta2, recipe.amsgrad) == (0.9, 0.9, 0.95, True)
        assert recipe.weight_decay == (1e-4 if recipe.optimizer == "adamw" else 0)
        assert recipe.end_rate == 1e-7
        assert (recipe.layer_decay, recipe.lora_rank, recipe.ema_decay) == (1, 0, 0)
        assert recipe.features == ("flat" if recipe.patchout_ratio else "stacked")
        balanced = ("balanced", 200_000) if name == "as2m" else ("shuffle", None)
        assert (recipe.sampler, recipe.epoch_clips) == balanced


def test_the_medical_recipe_accumulates():
    recipe = load("medical")
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size, recipe.epochs) == ("adamw", 5e-5, 64, 150)
    assert recipe.accumulate > 1


@pytest.mark.parametrize("field", asdict(Recipe()))
def test_every_value_can_be_set_on_the_command_line(field):
    texts = {"optimizer": "lars", "features": "stacked", "sampler": "balanced", "epoch_clips": "500"}
    texts |= {
        "random_resize_crop": "true",
        "adjust_positions": "true",
        "freeze_patch_embed": "true",
        "amsgrad": "false",
        "end_rate": "1e-08",
    }
    text = texts.get(field, "0.25" if isinstance(getattr(Recipe(), field), float) else "7")
    changed = load("esc50" if field == "patchout_ratio" else "medical", files_of.parse([f"{field}={text}"]))
    assert str(getattr(changed, field)).lower() == text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mixup_alpha": 1}, "Unknown value of a recipe 'mixup_alpha'. Did you mean mixup"),
        ({"optimizer": "adam"}, "Unknown optimizer 'adam'. Did you mean adamw"),
        ({"batch_size": 1}, "batch_size is 1; it should be greater than or equal to 2"),
        ({"patchout_ratio": 1.0}, "patchout_ratio is 1.0; it should be less than 1"),
        ({"features": "stacked"}, "it takes features=flat"),
        ({"warmup_epochs": 300}, "warmup_epochs is 300, more than epochs=200"),
        ({"random_resize_crop": 1}, "random_resize_crop is 1; it should be a valid boolean"),
        ({"epochs": 1.5}, "epochs is 1.5; it should be a valid integer"),
        ({"layer_decay": 0}, "layer_decay is 0; it should be greater than 0"),
        ({"epochs": True}, "epochs is True; it should be a valid integer"),
        ({"epochs": None}, "epochs is None; it should be a valid integer"),
        ({"batch_size": "64"}, "batch_size is '64'; it should be a valid integer"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it should be a finite number"),
        ({"mixup": "0.3"}, "mixup is '0.3'; it should be a valid number"),
        ({"optimizer": 3}, "optimizer is 3; it should be 'sgd', 'lars' or 'adamw'"),
    ],
)
def test_what_cannot_be_is_refused(changes, says):
    with pytest.raises(UsageError, match=says):
        load("esc50", changes)


def test_a_file_is_a_recipe_and_a_misspelt_name_is_not(tmp_path):
    (tmp_path / "mine.yaml").write_text("optimizer: adamw\nlearning_rate: 1e-3\n")
    assert load(tmp_path / "mine.yaml") == Recipe(optimizer="adamw", learning_rate=1e-3)
    with pytest.raises(UsageError, match="Did you mean esc50"):
        load("esc5O")


def test_a_tasks_recipe_is_the_one_of_its_name(caplog):
    assert recipes.name_for("esc50") == "esc50"
    assert recipes.name_for("evar:as20k") == "as20k"
    assert not caplog.text
    assert recipes.name_for("us8k") == "esc50"
    assert "us8k has no recipe of its own" in caplog.text
