"""Models of transformers behind a feature extractor: the library's own numbers, for clips of any length."""

import json
import re
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from m2d_bench import linear
from m2d_bench.cli import main
from m2d_bench.encoders import zoo
from m2d_bench.encoders.huggingface import import_transformers
from m2d_bench.encoders.precision import TOLERANCE
from m2d_bench.encoders.protocol import AudioEncoder, facts_of
from m2d_bench.errors import CheckpointError, UsageError
from m2d_bench.hear_api import load_model
from m2d_bench.pretrain.run import RunSettings, _compute
from m2d_bench.settings import Compute
from tests.encoders import transformers_models
from tests.encoders.transformers_models import MEASURED, WINDOWED, save, save_with_code

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: pip install 'm2d-bench[hf]'"
)

CPU = Compute(device="cpu", precision="fp32")
TRUSTING = Compute(device="cpu", precision="fp32", trust_remote_code=True)
KINDS = {
    # frames of a window, hop and first timestamp in ms, samples of a window
    "whisper": (50, 20.0, 0.0, 16000),
    "ast": (5, 100.0, 87.5, 10480),
    "clap": (16, 62.5, 31.25, 16000),
    "clap-fused": (16, 62.5, 31.25, 16000),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: save(root / kind, *made) for kind, made in {**WINDOWED, **MEASURED}.items()}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Where transformers puts code of repositories."""
    import_transformers()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")


def load(folder, layer="", compute=CPU):
    return zoo.load(f"hf:{folder}{layer}", compute=compute)


def noise(*lengths):
    """Clips that grow louder, padded with what must not be heard."""
    generator = torch.Generator().manual_seed(1)
    clips = 0.3 * torch.randn(len(lengths), max(lengths), generator=generator)
    return clips * torch.linspace(0.1, 1, max(lengths)), list(lengths)


def by_hand(folder, clip):
    """A window of a clip [S] through transformers: frames [T, D] of every layer, and what stands for the whole."""
    transformers = import_transformers()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        if model.config.model_type == "whisper":
            output = model.encoder(**inputs, output_hidden_states=True)
            return [*output.hidden_states[1:-1], output.last_hidden_state], None
        if model.config.model_type == "clap":
            output = model.audio_model(**inputs)
            return [output.last_hidden_state.mean(2).transpose(1, 2)], output.pooler_output
        output = model(**inputs, output_hidden_states=True)
        layers = [*output.hidden_states[1:-1], output.last_hidden_state]
        return [layer[:, 2:].reshape(1, 2, 5, 32).mean(1) for layer in layers], output.pooler_output


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_a_window_are_those_of_transformers(folders, kind):
    n_frames, hop, first, window = KINDS[kind]
    encoder = load(folders[kind])
    clip = noise(window)[0]
    layers, whole = by_hand(folders[kind], clip[0])
    frames, times = encoder.timestamp_embeddings(clip)
    for found, expected in zip(encoder.hidden_states(clip), layers, strict=True):
        close(found, expected)
    close(frames, layers[-1])
    close(encoder.scene_embeddings(clip), layers[-1].mean(1) if whole is None else whole)
    assert times[0].tolist() == pytest.approx([first + hop * number for number in range(n_frames)])
    assert encoder.hop_ms == hop


@pytest.mark.parametrize("kind", KINDS)
def test_longer_clips_are_encoded_in_windows_weighted_by_their_frames(folders, kind):
    n_frames, hop, _, window = KINDS[kind]
    encoder = load(folders[kind])
    step = int(n_frames * hop * 16)
    clip = noise(2 * step + 7000)[0]
    windows = [by_hand(folders[kind], clip[0, start : start + window]) for start in (0, step, 2 * step)]
    count = int(encoder.frame_counts(torch.tensor(clip.shape[1])))
    frames = torch.cat([layers[-1] for layers, _ in windows], 1)[:, :count]
    found, times = encoder.timestamp_embeddings(clip)
    close(found, frames)
    assert times.diff().numpy() == pytest.approx(hop)
    weights = (n_frames, n_frames, count - 2 * n_frames)
    assert 0 < weights[2] < n_frames
    if windows[0][1] is None:
        expected = frames.mean(1)
    else:
        expected = sum(n * whole for n, (_, whole) in zip(weights, windows, strict=True)) / count
    close(encoder.scene_embeddings(clip), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_does_not_depend_on_batch_mates_or_padding(folders, kind, precision):
    encoder = zoo.load(f"hf:{folders[kind]}", device="cpu", precision=precision)
    batch, lengths = noise(9000, 17000, 9000, 400)
    together, _ = encoder.timestamp_embeddings(batch, lengths)
    scenes = encoder.scene_embeddings(batch, lengths)
    for row, (length, count) in enumerate(zip(lengths, encoder.frame_counts(torch.tensor(lengths)), strict=True)):
        alone, _ = encoder.timestamp_embeddings(batch[row, :length])
        assert alone.shape == (1, count, 32)
        allowed = TOLERANCE[precision] * alone.abs().max()
        assert (together[row, :count] - alone[0]).abs().max() <= allowed
        assert (scenes[row] - encoder.scene_embeddings(batch[row, :length])[0]).abs().max() <= allowed
        assert not together[row, count:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_contract(folders, kind):
    encoder = load(folders[kind])
    assert isinstance(encoder, AudioEncoder)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.scene_embeddings(noise(1)[0]).isfinite().all()
    assert encoder.timestamp_embeddings(noise(100)[0])[1].tolist() == [[min(KINDS[kind][2], 6.25)]]


@pytest.mark.parametrize("kind", ["whisper", "ast"])
def test_a_layer_by_its_number(folders, kind):
    clip = noise(5000)[0]
    last, second = load(folders[kind]), load(folders[kind], "@layer=2")
    close(second.timestamp_embeddings(clip)[0], last.hidden_states(clip)[1])
    assert second.digest != last.digest
    with pytest.raises(UsageError, match="whole number from 1 to 3"):
        load(folders[kind], "@layer=4")


def test_clap_has_one_layer(folders):
    with pytest.raises(UsageError, match="whole number from 1 to 1"):
        load(folders["clap"], "@layer=2")


def test_weights_of_the_other_side_are_not_needed(folders, tmp_path):
    copy = save(tmp_path / "whisper", *WINDOWED["whisper"])
    weights = load_file(copy / "model.safetensors")
    encoder = {key: value for key, value in weights.items() if key.startswith("encoder.")}
    save_file(encoder, copy / "model.safetensors", {"format": "pt"})
    assert load(copy).digest == load(folders["whisper"]).digest
    encoder.pop("encoder.layers.1.fc1.weight")
    save_file(encoder, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack encoder\.layers\.1\.fc1\.weight"):
        load(copy)


def test_the_digest_tells_feature_extractors_apart(folders, tmp_path):
    kind, settings, extractor, prepared = WINDOWED["ast"]
    copy = save(tmp_path / "ast", kind, settings, extractor, {**prepared, "mean": -5.0})
    assert load(copy).digest != load(folders["ast"]).digest


def test_a_feature_extractor_of_another_length_is_named(tmp_path):
    kind, settings, extractor, prepared = WINDOWED["whisper"]
    folder = save(tmp_path / "whisper", kind, settings, extractor, {**prepared, "chunk_length": 2})
    with pytest.raises(UsageError, match=r"hf:whisper: .*expects the mel input features to be of length 100"):
        load(folder).scene_embeddings(noise(16000)[0])


@pytest.mark.parametrize(("kind", "hop", "depth"), [("wav2vec2-bert", 20.0, 3), ("moonshine", 24.0, 3)])
def test_any_other_model_that_gives_frames(folders, kind, hop, depth):
    encoder = load(folders[kind])
    clip = noise(9000)[0]
    transformers = import_transformers()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folders[kind])
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    model = model.encoder if kind == "moonshine" else model
    with torch.no_grad():
        inputs = extractor(clip[0].numpy(), sampling_rate=16000, return_tensors="pt")
        output = model(**inputs, output_hidden_states=True)
    layers = encoder.hidden_states(clip)
    assert len(layers) == depth
    close(layers[1], output.hidden_states[2])
    close(encoder.scene_embeddings(clip), output.last_hidden_state.mean(1))
    assert encoder.hop_ms == hop
    assert encoder.timestamp_embeddings(clip)[1][0, :2].tolist() == [hop / 2, 1.5 * hop]
    assert encoder.scene_embeddings(noise(400)[0]).isfinite().all()


def test_a_model_that_gives_no_frames_is_refused_with_what_it_gives(folders):
    with pytest.raises(
        UsageError, match=r"EncodecModel gives .*audio_codes.*needed is last_hidden_state \[1, frames, D\]"
    ):
        load(folders["encodec"])


@pytest.mark.parametrize(
    ("gives", "words"),
    [("one vector", r"pooler_output': \[1, 6\]"), ("one window", r"20 frames for a second .* and 20 for 7 s")],
)
def test_what_is_no_frames_in_time_is_refused(tmp_path, gives, words):
    with pytest.raises(UsageError, match=words):
        load(save_with_code(tmp_path / "mine", gives), compute=TRUSTING)


def test_code_of_a_repository_runs_only_where_it_is_trusted(tmp_path, capfd):
    folder = save_with_code(tmp_path / "mine")
    with pytest.raises(UsageError, match=r"code of its own.*--trust-remote-code"):
        load(folder)
    assert "ran" not in capfd.readouterr().out
    encoder = load(folder, compute=TRUSTING)
    with pytest.raises(UsageError, match="trust-remote-code"):  # what was registered stays so
        load(folder)
    assert "ran" in capfd.readouterr().out
    weights = encoder.state_dict()
    clip = noise(9000)[0]
    frames = clip.unfold(1, 400, 400) @ weights["encoder.model.linear.weight"].T + weights["encoder.model.linear.bias"]
    close(encoder.timestamp_embeddings(clip)[0], frames)
    close(encoder.scene_embeddings(clip), frames.mean(1))
    assert encoder.hop_ms == 25


def test_code_is_trusted_in_python_and_where_a_tool_takes_a_name_alone(tmp_path):
    name = f"hf:{save_with_code(tmp_path / 'mine')}"
    encoder = zoo.load(name, trust_remote_code=True, device="cpu")
    assert load_model(name, trust_remote_code=True, device="cpu").encoder.digest == encoder.digest
    call = f"m2d_bench.load_encoder({name!r}, trust_remote_code=True)"
    with pytest.raises(UsageError, match=re.escape(call)):
        zoo.load(name)
    (tmp_path / "trusting.py").write_text(f"import m2d_bench\n\n\ndef make():\n    return {call}\n")
    clip = noise(9000)[0]
    by_file = zoo.load(f"{tmp_path / 'trusting.py'}:make", device="cpu")
    close(by_file.scene_embeddings(clip), encoder.scene_embeddings(clip))
    assert by_file.hop_ms == encoder.hop_ms


def test_the_digest_tells_code_apart_but_not_folders(tmp_path):
    code = transformers_models.CODE
    first, copy, other = (
        load(save_with_code(tmp_path / name, code=text), compute=TRUSTING)
        for name, text in (("a", code), ("b", code), ("c", f"{code}\n# changed\n"))
    )
    assert first.digest == copy.digest != other.digest
    assert len(first.config.code) == 64


def test_the_flag_reaches_every_verb_that_takes_a_model(tmp_path, tones, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"hf:{save_with_code(tmp_path / 'mine')}"
    clip = noise(9000)[0]
    soundfile.write("clip.wav", clip[0].numpy(), 16000, subtype="FLOAT")
    embed = ["embed", "clip.wav", "-o", "out.npz", "--model", name, "--device", "cpu"]
    assert main(embed) == 2
    assert main([*embed, "--trust-remote-code"]) == 0
    assert main(["check", name, "--device", "cpu", "--trust-remote-code", "--no-long"]) == 0
    close(torch.from_numpy(np.load("out.npz")["embeddings"]), load(name[3:], compute=TRUSTING).scene_embeddings(clip))
    settings = {"data": tones, "seeds": 1, "epochs": 2, "device": "cpu", "cache": tmp_path, "runs": tmp_path / "runs"}
    (run,) = linear(name, "esc10", trust_remote_code=True, **settings)
    assert len(run.encoder["config"]["code"]) == 64
    (tmp_path / "sounds").mkdir()
    soundfile.write("sounds/clip.wav", clip[0].numpy(), 16000)
    assert main(["prepare", "sounds", "shards", "--teacher", name, "--device", "cpu", "--trust-remote-code"]) == 0
    training = _compute(SimpleNamespace(device="cpu"), RunSettings(precision="fp32", trust_remote_code=True))
    assert training == TRUSTING


@pytest.mark.parametrize("kind", ["whisper", "ast", "clap"])
def test_embed_and_check_take_it(folders, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clip = noise(9000)[0]
    soundfile.write("clip.wav", clip[0].numpy(), 16000, subtype="FLOAT")
    options = ["--device", "cpu", "--precision", "fp32"]
    assert main(["embed", "clip.wav", "-o", "out.npz", "--model", f"hf:{folders[kind]}", *options]) == 0
    close(torch.from_numpy(np.load("out.npz")["embeddings"]), load(folders[kind]).scene_embeddings(clip))
    assert main(["check", f"hf:{folders[kind]}", *options, "--no-long"]) == 0, capsys.readouterr().out


def test_records_hold_layer_and_feature_extractor(folders):
    facts = json.loads(json.dumps(facts_of(load(folders["whisper"], "@layer=2"))))
    assert facts["name"] == "hf:whisper@layer=2"
    assert (facts["config"]["layer"], facts["config"]["extractor"]["chunk_length"]) == (2, 1)
