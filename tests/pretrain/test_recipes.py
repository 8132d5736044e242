"""Recipes say what the papers say; every one of them can be built."""

import csv
from importlib.resources import files

import pytest
import torch

from m2d_bench.errors import UsageError
from m2d_bench.pretrain import recipe as recipes
from m2d_bench.pretrain.recipe import PRESETS, load, resolve
from m2d_bench.training.recipes import parse
from m2d_bench.training.schedules import learning_rate, scaled_rate

OWN = ["debug", "debug_m2d_x", "m2d_tiny_cpu", "msm_mae_tiny_cpu"]
IMAGES = ["m2d_image", "mae_image"]
SUPERVISED = ["m2d_as_base", "m2d_as_base_32k"]
SPEECH = ["m2d_s_base_400", "m2d_s_base_512", "m2d_s_base_608"]
FURTHER = ["m2d_x_icbhi2017", "m2d_x_sprsound"]
M2D = ["m2d_base", "m2d_base_all_patches", "m2d_base_mr6", "m2d_base_p16x4", "m2d_small", "m2d_tiny"]
AUDIOSET = [*M2D, "msm_mae_base", *SUPERVISED]
PUBLISHED = [*AUDIOSET, *IMAGES, *SPEECH, *FURTHER]


def published(setting):
    """The values of a setting in pretrain_settings.csv, each once; several where several were tried."""
    found = {}
    with files("m2d_bench.results.papers").joinpath("pretrain_settings.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["model_setting"] == setting:
                found.setdefault(row["parameter"], {})[row["value"]] = None
    assert found
    return {parameter: list(values) for parameter, values in found.items()}


def test_every_recipe_of_the_plan_is_there():
    assert recipes.names() == sorted(OWN + PUBLISHED)


@pytest.mark.parametrize("name", OWN + PUBLISHED)
def test_every_recipe_can_be_built_and_written_down(name):
    recipe = load(name)
    with torch.device("meta"):
        method = recipe.build()
    assert method.encoder.config == recipe.vit
    assert resolve(recipe.values()) == recipe


@pytest.mark.parametrize("name", IMAGES)
def test_recipes_of_images_carry_the_published_setup(name):
    recipe, rows = load(name), published("M2D and MAE on images")
    assert rows["epochs"] == [str(recipe.epochs)]
    assert rows["batch size"] == [str(recipe.effective_batch)]
    assert rows["masking ratio"] == [str(recipe.arguments["mask_ratio"])]
    assert (recipe.input_size, recipe.patch_size, recipe.channels) == ((224, 224), (16, 16), 3)


@pytest.mark.parametrize("name", AUDIOSET)
def test_recipes_of_audioset_carry_the_published_setup(name):
    recipe, rows = load(name), published("M2D and MSM-MAE (common)")
    assert rows["epochs"] == [str(recipe.epochs)]
    assert rows["batch size"] == [str(recipe.effective_batch)]
    assert rows["warm-up epochs"] == [str(recipe.warmup_epochs)]
    assert float(rows["base learning rate"][0]) == recipe.base_rate
    assert rows["sampling frequency (Hz)"] == [str(recipe.sample_rate)] or name == "m2d_as_base_32k"
    if name != "m2d_base_p16x4":
        assert rows["input spectrogram size (freq bins x time frames)"] == ["x".join(map(str, recipe.input_size))]
        assert rows["number of patches along frequency"] == [str(recipe.vit.grid_size[0])]
        assert rows["number of patches along time"] == [str(recipe.vit.grid_size[1])]


@pytest.mark.parametrize("name", ["m2d_base", "m2d_base_mr6", "m2d_base_all_patches"])
def test_m2ds_recipes_carry_its_arguments(name):
    recipe, rows = load(name), published("M2D")
    assert rows["patch size"] == ["x".join(map(str, recipe.patch_size))]
    assert rows["masking ratio"] == ["0.6", "0.7"]
    assert recipe.arguments["mask_ratio"] == (0.6 if name == "m2d_base_mr6" else 0.7)
    assert float(rows["EMA decay start"][0]) == recipe.arguments["ema_decay_start"]
    assert float(rows["EMA decay end"][0]) == recipe.arguments["ema_decay_end"]
    assert rows["encoder output dimension"] == [str(recipe.vit.width)]
    assert (recipe.arguments["target_input"] == "all") == (name == "m2d_base_all_patches")


@pytest.mark.parametrize("name", SUPERVISED)
def test_m2d_as_carries_its_arguments(name):
    recipe, rows = load(name), published("M2D-AS (M2D-X for AudioSet)")
    arguments = recipe.method_arguments
    assert rows["masking ratio"] == [str(arguments.mask_ratio)]
    assert rows["offline task"] == ["supervised learning of labels"]
    assert (arguments.scenario, arguments.m2d_weight, arguments.offline_weight) == ("supervised", 1, 1)
    assert rows["background noise"] == ["not used"]
    assert recipe.noise_ratio == 0
    assert recipe.sample_rate == (32000 if name.endswith("32k") else 16000)


@pytest.mark.parametrize("name", SPEECH)
def test_m2d_s_carries_its_setup(name):
    recipe, rows = load(name), published("M2D-S (M2D-X for speech)")
    arguments = recipe.method_arguments
    assert rows["masking ratio"] == [str(arguments.mask_ratio)]
    assert rows["epochs"] == [str(recipe.epochs)]
    assert rows["warm-up epochs"] == [str(recipe.warmup_epochs)]
    assert rows["offline encoder"] == [arguments.teacher.removeprefix("hf:")]
    assert rows["offline encoder layer"] == ["ninth transformer layer output"]
    assert arguments.teacher_layer == 9
    assert recipe.input_size[1] / 100 in {float(seconds) for seconds in rows["input duration (s) (Table X)"]}
    assert (recipe.patch_size, recipe.noise_ratio, recipe.effective_batch) == ((80, 2), 0.2, 2048)
    assert (arguments.scenario, arguments.m2d_weight, arguments.offline_weight) == ("distillation", 1, 0.5)


@pytest.mark.parametrize("name", FURTHER)
def test_further_pre_training_carries_its_setup(name):
    recipe, rows = load(name), published("M2D-X for ICBHI2017 (further pre-training)")  # "same as ICBHI2017 experiment"
    arguments = recipe.method_arguments
    assert rows["masking ratio"] == [str(arguments.mask_ratio)]
    assert rows["epochs"] == [str(recipe.epochs)]
    assert rows["warm-up epochs"] == [str(recipe.warmup_epochs)]
    assert rows["effective batch size"] == [str(recipe.effective_batch)]
    assert rows["virtual samples per epoch"] == [str(recipe.epoch_clips)]
    assert recipe.noise_ratio == (0.3 if name == "m2d_x_icbhi2017" else 0.01)
    assert (recipe.patch_size, recipe.input_size) == ((16, 4), (80, 200))
    assert (arguments.scenario, arguments.m2d_weight, arguments.offline_weight) == ("regularisation", 1, 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_carry_maes_optimizer(name):
    recipe = load(name)  # "optimizer: same as MAE" (arXiv 2111.06377, appendix A.1); clipping as the reference tool
    assert (recipe.weight_decay, recipe.beta1, recipe.beta2, recipe.clip_norm) == (0.05, 0.9, 0.95, 3.0)


@pytest.mark.parametrize("name", ["m2d_base_p16x4", "m2d_small", "m2d_tiny"])
def test_variants_of_m2d_differ_from_it_in_what_their_name_says(name):
    base, recipe = load("m2d_base").values(), load(name).values()
    differing = {key for key in base if base[key] != recipe[key]}
    assert differing == ({"patch_size", "input_size"} if name == "m2d_base_p16x4" else {"size"})


def test_msm_maes_recipe_carries_its_arguments():
    arguments, rows = load("msm_mae_base").arguments, published("MSM-MAE")
    assert rows["decoder"] == ["four layers; six heads"]
    assert (arguments["predictor_depth"], arguments["predictor_heads"]) == (4, 6)
    assert rows["decoder width"] == [str(arguments["predictor_width"])]
    assert rows["masking ratio"] == [str(arguments["mask_ratio"])]


def test_presets_are_the_papers_by_the_size_of_the_data():
    speech, medical = published("M2D-S (M2D-X for speech)"), published("M2D-X for ICBHI2017 (further pre-training)")
    librispeech, small = load("m2d_base", "librispeech"), load("m2d_base", "small")
    assert speech["epochs"] == [str(librispeech.epochs)]
    assert speech["warm-up epochs"] == [str(librispeech.warmup_epochs)]
    assert medical["epochs"] == [str(small.epochs)]
    assert medical["warm-up epochs"] == [str(small.warmup_epochs)]
    assert medical["effective batch size"] == [str(small.effective_batch)]
    assert medical["virtual samples per epoch"] == [str(small.epoch_clips)]
    assert load("m2d_base", "audioset") == load("m2d_base")
    assert len(PRESETS) == 3


def test_any_value_can_be_set():
    changes = parse(["mask-ratio=0.6", "epochs=3", "warmup_epochs=1", "base_rate=1e-3", "patch_size=[16, 4]"])
    changes |= parse(["ema_decay_start=9e-1"])  # text, to YAML 1.1
    recipe = load("m2d_base", changes=changes)
    assert (recipe.arguments["mask_ratio"], recipe.arguments["ema_decay_start"]) == (0.6, 0.9)
    assert (recipe.epochs, recipe.base_rate, recipe.patch_size) == (3, 0.001, (16, 4))


def test_a_recipe_may_be_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("method: msm_mae\nmask_ratio: 0.8\nsize: tiny\n")
    recipe = load(tmp_path / "mine.yaml")
    assert (recipe.method, recipe.arguments["mask_ratio"], recipe.epochs) == ("msm_mae", 0.8, 300)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("m2d_bas", {}, "Did you mean m2d_base"),
        ("m2d_base", {"epoch": 3}, "Did you mean epochs"),
        ("m2d_base", {"size": "huge"}, "Unknown size"),
        ("m2d_base", {"epochs": 0}, "epochs is 0"),
        ("m2d_base", {"beta1": 2}, "beta1 is 2"),
        ("m2d_base", {"mask_ratio": "much"}, "mask_ratio is 'much'; it should be a valid number"),
        ("m2d_base", {"epochs": 2.5}, "epochs is 2.5; it should be a valid integer"),
        ("m2d_base", {"patch_size": 16}, "patch_size is 16; it should be a list, such as "),
        ("m2d_base", {"patch_size": [16.9, 16.2]}, "patch_size.0 is 16.9; it should be a valid integer"),
        ("m2d_base", {"patch_size": [16, 16, 16]}, "patch_size is .* at most 2 items"),
        ("m2d_base", {"patch_size": [[16, 16], 16]}, "patch_size.0 is .*; it should be a valid integer"),
        ("m2d_base", {"epochs": True}, "epochs is True; it should be a valid integer"),
        ("m2d_base", {"base_rate": "fast"}, "base_rate is 'fast'; it should be a valid number"),
        ("m2d_base", {"seed": None}, "seed is None; it should be a valid integer"),
        ("m2d_base", {"warmup_epochs": 400}, "from 0 to epochs=300"),
        ("msm_mae_base", {"ema_decay_start": 0.9}, "Unknown value of a recipe 'ema_decay_start'"),
    ],
)
def test_what_no_recipe_knows_is_refused(name, changes, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        load(name, changes=changes)
    with pytest.raises(UsageError, match="Unknown preset"):
        load("m2d_base", "audiset")
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parse(["epochs"])
    with pytest.raises(UsageError, match="no value YAML knows"):
        parse(["epochs=["])
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(UsageError, match="NAME: VALUE lines"):
        load(tmp_path / "empty.yaml")


def test_learning_rate_rises_linearly_and_falls_as_half_a_cosine():
    rates = [learning_rate(step, peak=2.0, warmup_steps=20, total_steps=300) for step in range(301)]
    assert rates[0] == 0
    assert rates[10] == pytest.approx(1.0)
    assert rates[20] == 2.0
    assert rates[160] == pytest.approx(1.0)
    assert rates[300] == pytest.approx(0, abs=1e-12)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert scaled_rate(3e-4, 2048) == pytest.approx(2.4e-3)
