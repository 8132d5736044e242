"""Encoders of transformers: the library's own numbers, whatever the batch, or a message that says what to do."""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from m2d_bench import linear
from m2d_bench.cli import main
from m2d_bench.encoders import zoo
from m2d_bench.encoders.check import check_encoder
from m2d_bench.encoders.huggingface import import_transformers
from m2d_bench.encoders.precision import TOLERANCE
from m2d_bench.encoders.protocol import AudioEncoder, wrap
from m2d_bench.errors import CheckpointError, UsageError
from m2d_bench.settings import Compute
from tests.encoders.transformers_models import SPEECH as SMALL

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: pip install 'm2d-bench[hf]'"
)

CPU = Compute(device="cpu", precision="fp32")
BASE = {"feat_extract_norm": "group"}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS = {
    "hubert-base": ("hubert", BASE),
    "hubert-large": ("hubert", LARGE),
    "wav2vec2-base": ("wav2vec2", BASE),
    "wav2vec2-large": ("wav2vec2", LARGE),
    "wav2vec2-adapter": ("wav2vec2", {**BASE, "add_adapter": True}),
    "wavlm-base": ("wavlm", BASE),
    "wavlm-large": ("wavlm", LARGE),
    "data2vec-audio": ("data2vec-audio", {"num_conv_pos_embeddings": 2}),
    "unispeech": ("unispeech", BASE),
    "unispeech-sat": ("unispeech-sat", BASE),
    "wav2vec2-conformer": ("wav2vec2-conformer", LARGE),
}


def save(folder, kind, do_normalize=True):
    """A small random model and its feature extractor, as a repository holds them."""
    transformers = import_transformers()
    model_type, settings = KINDS[kind]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **settings})
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: save(root / kind, kind, do_normalize=kind != "wavlm-base") for kind in KINDS}


def noise(*lengths):
    """Clips that are neither centred nor of unit variance, padded with what must not be heard."""
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.rand(len(lengths), max(lengths), generator=generator), list(lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_transformers(folders, kind):
    encoder = zoo.load(f"hf:{folders[kind]}", compute=CPU)
    transformers = import_transformers()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folders[kind])
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    model.adapter = None  # shortens the last layer
    clip = noise(9000)[0]
    inputs = extractor(clip[0].numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        output = model(inputs.input_values, output_hidden_states=True)
    expected = [*output.hidden_states[1:-1], output.last_hidden_state]
    for found, state in zip(encoder.hidden_states(clip), expected, strict=True):
        torch.testing.assert_close(found, state, rtol=1e-4, atol=1e-5)
    second = zoo.load(f"hf:{folders[kind]}@layer=2", compute=CPU)
    torch.testing.assert_close(second.scene_embeddings(clip), output.hidden_states[2].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.scene_embeddings(clip), output.last_hidden_state.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_does_not_depend_on_batch_mates_or_padding(folders, kind, precision):
    encoder = zoo.load(f"hf:{folders[kind]}@layer=2", device="cpu", precision=precision)
    batch, lengths = noise(9000, 4000, 9000, 400)
    frames = encoder.frame_counts(torch.tensor(lengths)).tolist()
    together = encoder.hidden_states(batch, lengths)[1]
    scenes = encoder.scene_embeddings(batch, lengths)
    for row, (length, count) in enumerate(zip(lengths, frames, strict=True)):
        alone, _ = encoder.timestamp_embeddings(batch[row, :length])
        assert alone.shape == (1, count, 32)
        assert alone.dtype == torch.float32
        allowed = TOLERANCE[precision] * alone.abs().max()
        assert (together[row, :count] - alone[0]).abs().max() <= allowed
        assert (scenes[row] - alone[0].mean(0)).abs().max() <= allowed
        assert not together[row, count:].any()


def test_it_keeps_the_contract(folders):
    encoder = zoo.load(f"hf:{folders['hubert-base']}", compute=CPU)
    assert isinstance(encoder, AudioEncoder)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert (encoder.sample_rate, encoder.hop_ms, encoder.scene_embedding_size) == (16000, 20.0, 32)
    assert all(finding.kept is not False for finding in check_encoder(encoder, long=False))
    _, times = encoder.timestamp_embeddings(noise(1040)[0])
    assert times.tolist() == [[12.5, 32.5, 52.5]]


@pytest.mark.parametrize("samples", [1, 300, 400, 719])
def test_a_clip_of_less_than_two_frames_gives_one(folders, samples):
    encoder = zoo.load(f"hf:{folders['wavlm-large']}", compute=CPU)
    embeddings, times = encoder.timestamp_embeddings(noise(samples)[0])
    assert embeddings.isfinite().all()
    assert times.tolist() == [[min(12.5, samples / 16)]]


def test_the_digest_tells_layers_and_weights_apart_but_not_folders(folders, tmp_path):
    name = f"hf:{folders['hubert-base']}"
    digest = zoo.load(name, compute=CPU).digest
    copy = save(tmp_path / "copy", "hubert-base")
    assert zoo.load(f"hf:{copy}@layer=3", compute=CPU).digest == digest
    assert zoo.load(f"{name}@layer=2", compute=CPU).digest != digest
    assert zoo.load(f"hf:{save(tmp_path / 'raw', 'hubert-base', False)}", compute=CPU).digest != digest
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, "encoder.layer_norm.bias": torch.ones(32)}, copy / "model.safetensors", {"format": "pt"})
    changed = zoo.load(f"hf:{copy}", compute=CPU)
    assert changed.digest != digest
    assert wrap(changed).name == "hf:copy"


def test_a_vector_that_is_used_in_training_alone_may_be_missing(folders, tmp_path):
    copy = save(tmp_path / "copy", "hubert-base")
    weights = load_file(copy / "model.safetensors")
    del weights["masked_spec_embed"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    digests = {zoo.load(f"hf:{folder}", compute=CPU).digest for folder in (copy, copy, folders["hubert-base"])}
    assert len(digests) == 1


def test_weights_as_released_years_ago_are_read(folders, tmp_path):
    """A pickle, keys of a model with a head, weight normalisation under its old names."""
    copy = save(tmp_path / "copy", "hubert-base")
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, name in old.items():
        weights = {key.replace(new, name): value for key, value in weights.items()}
    torch.save(
        {**{f"hubert.{key}": value for key, value in weights.items()}, "lm_head.weight": torch.zeros(32, 32)},
        copy / "pytorch_model.bin",
    )
    clip = noise(5000)[0]
    expected = zoo.load(f"hf:{folders['hubert-base']}", compute=CPU).scene_embeddings(clip)
    torch.testing.assert_close(zoo.load(f"hf:{copy}", compute=CPU).scene_embeddings(clip), expected)


class Malicious:
    def __reduce__(self):
        return (print, ("code of a file ran",))


def damage_lacking(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer_norm.bias"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def damage_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"hubert": Malicious()}, folder / "pytorch_model.bin")


def damage_truncated(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def damage_remote_code(folder):
    change_config(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"})
    (folder / "mine.py").write_text("print('code of a file ran')")


def damage_text(folder):
    import_transformers().AutoConfig.for_model("bert").save_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()


def damage_extractor(folder):
    import_transformers().ASTFeatureExtractor().save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_lacking, "lack encoder.layers.1.attention.k_proj.weight"),
        (damage_shape, "encoder.layer_norm.bias, or have them in another shape"),
        (damage_extractor, "belongs to ASTFeatureExtractor"),
        (damage_pickle, "Weights only load failed"),
        (damage_truncated, "cannot load it"),
        (damage_text, "load feature extractor"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load it"),
        (
            lambda folder: (folder / "config.json").unlink(),
            "and model.safetensors. One that M2DEncoder.save_pretrained wrote is named without hf:.",
        ),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "load feature extractor"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused_and_runs_no_code(tmp_path, damage, words, capfd):
    damage(save(tmp_path / "hubert", "hubert-base"))
    with pytest.raises(CheckpointError) as error:
        zoo.load(f"hf:{tmp_path / 'hubert'}", compute=CPU)
    assert words in str(error.value)
    assert "code of a file ran" not in capfd.readouterr().out


@pytest.mark.parametrize("layer", ["99", "4", "0", "-1", "last", "1.5", "", "01", "２"])
def test_a_layer_that_is_not_there_is_refused_with_the_range(folders, layer):
    with pytest.raises(UsageError, match=f"layer is '{layer}'; it is a whole number from 1 to 3"):
        zoo.load(f"hf:{folders['hubert-base']}@layer={layer}", compute=CPU)


def test_code_of_a_folder_does_not_run_unasked(tmp_path, capfd):
    damage_remote_code(save(tmp_path / "hubert", "hubert-base"))
    with pytest.raises(UsageError, match=r"hubert: comes with code of its own.*--trust-remote-code"):
        zoo.load(f"hf:{tmp_path / 'hubert'}", compute=CPU)
    assert "code of a file ran" not in capfd.readouterr().out


@pytest.mark.parametrize("source", ["facebook/no-such-model", "/no/such/folder"])
def test_without_network_it_says_what_was_looked_for(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as error:
        zoo.load(f"hf:{source}@layer=9", compute=CPU)
    assert f"no folder {source!r}" in str(error.value)
    assert "huggingface.co" in str(error.value)
    assert "hf:FOLDER" in str(error.value)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'm2d-bench\[hf\]'"):
        zoo.load("hf:facebook/hubert-base-ls960")


def test_settings_of_the_family_are_refused(folders):
    for settings in ({"features": "flat"}, {"encoding": "one_pass"}):
        with pytest.raises(UsageError, match=r"no settings \w+; it is not of the M2D family\.$"):
            zoo.load(f"hf:{folders['hubert-base']}", **settings)
    with pytest.raises(UsageError, match=r"no settings layer; .*@layer=9"):
        zoo.load(f"hf:{folders['hubert-base']}", layer=9)


def test_what_needs_a_model_of_the_family_says_so_before_it_loads_anything():
    for function in (zoo.read, zoo.load_m2d, zoo.load_classifier):
        with pytest.raises(UsageError, match=r"no model of the M2D family.*linear, embed and check take"):
            function("hf:facebook/no-such-model")


def test_embed_takes_it(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"hf:{folders['hubert-base']}@layer=2"
    clip = noise(9000)[0]
    soundfile.write("clip.wav", clip[0].numpy(), 16000, subtype="FLOAT")
    assert main(["embed", "clip.wav", "-o", "out.npz", "--model", name, "--precision", "fp32", "--device", "cpu"]) == 0
    expected = zoo.load(name, compute=CPU).scene_embeddings(clip)
    np.testing.assert_allclose(np.load("out.npz")["embeddings"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_check_finds_nothing_broken(folders, precision, capsys):
    name = f"hf:{folders['hubert-base']}@layer=2"
    assert main(["check", name, "--precision", precision, "--device", "cpu", "--no-long"]) == 0, capsys.readouterr().out


def test_linear_takes_it_and_records_the_layer(folders, tmp_path, tones):
    name = f"hf:{folders['hubert-base']}@layer=2"
    (run,) = linear(name, "esc10", data=tones, seeds=1, epochs=2, device="cpu", cache=tmp_path, runs=tmp_path / "runs")
    assert run.encoder["name"] == "hf:hubert-base@layer=2"
    assert run.encoder["config"]["layer"] == 2


def test_loading_draws_no_bar_where_stderr_is_no_terminal(folders, capfd):
    zoo.load(f"hf:{folders['hubert-base']}", compute=CPU)
    assert "%" not in capfd.readouterr().err
