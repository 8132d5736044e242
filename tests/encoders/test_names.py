"""Encoders of others by any form of name: the numbers of calling them by hand, wherever a model is asked for."""

import sys
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import soundfile
import torch

from m2d_bench import linear
from m2d_bench.cli import main
from m2d_bench.encoders import foreign, s3prl, zoo
from m2d_bench.encoders.frontend import LogMel
from m2d_bench.encoders.protocol import AudioEncoder, wrap
from m2d_bench.encoders.vit import ViTConfig
from m2d_bench.errors import UsageError
from m2d_bench.pretrain.data.teachers import SpeechTeacher
from m2d_bench.pretrain.weights import encoder_of
from m2d_bench.settings import Compute
from tests.conftest import small_encoder
from tests.encoders import own_encoders

CPU = Compute(device="cpu", precision="fp32")


def logmel_by_hand():
    def frames(audio):
        return LogMel(16000)(audio)[:, 0].transpose(1, 2)

    return frames, lambda audio: torch.cat([frames(audio).mean(1), frames(audio).std(1, correction=0)], 1)


def own_by_hand():
    model = foreign.load_module("own.py").Loudness()
    return lambda audio: model.timestamp_embeddings(audio)[0], model.scene_embeddings


def hear_by_hand():
    module = foreign.load_module("hear_own.py")
    model = module.load_model()
    return (
        lambda audio: module.get_timestamp_embeddings(audio, model)[0],
        lambda audio: module.get_scene_embeddings(audio, model),
    )


def s3prl_by_hand(name):
    upstream = import_module("s3prl.nn").S3PRLUpstream(name).eval()

    def frames(audio):
        return upstream(audio, torch.full((len(audio),), audio.shape[1]))[0][-1]

    return frames, lambda audio: frames(audio).mean(1)


NEEDS_S3PRL = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("s3prl") is None, reason="s3prl is not installed: pip install 'm2d-bench[superb]'"),
]
NAMES = {
    "logmel": logmel_by_hand,
    "own.py:Loudness": own_by_hand,
    "own.py:make": own_by_hand,
    "own:Loudness": own_by_hand,
    "hear:hear_own.py": hear_by_hand,
    "hear:hear_own": hear_by_hand,
    "s3prl:fbank": lambda: s3prl_by_hand("fbank"),
    "s3prl:mel": lambda: s3prl_by_hand("mel"),
}
EVERY_NAME = [pytest.param(name, marks=NEEDS_S3PRL if name.startswith("s3prl:") else []) for name in NAMES]
ONE_OF_A_KIND = [name for name in EVERY_NAME if name.values[0] not in ("own.py:make", "own:Loudness", "hear:hear_own")]


@pytest.fixture(autouse=True)
def folder(encoder_folder):
    return encoder_folder


def noise(*lengths):
    return 0.3 * torch.rand(len(lengths), max(lengths), generator=torch.Generator().manual_seed(1)), list(lengths)


@pytest.mark.parametrize("name", EVERY_NAME)
def test_numbers_are_those_of_calling_the_model_by_hand_whatever_the_padding(name):
    encoder = zoo.load(name, compute=CPU)
    frames, scenes = NAMES[name]()
    batch, lengths = noise(32000, 8000, 8000)
    assert isinstance(encoder, AudioEncoder)
    assert encoder.name == name
    embeddings, times = encoder.timestamp_embeddings(batch, lengths)
    with torch.no_grad():
        torch.testing.assert_close(encoder.timestamp_embeddings(batch)[0], frames(batch))
        for number, length in enumerate(lengths):
            clip = batch[number : number + 1, :length]
            torch.testing.assert_close(encoder.scene_embeddings(batch, lengths)[number : number + 1], scenes(clip))
            alone, centres = encoder.timestamp_embeddings(clip)
            torch.testing.assert_close(embeddings[number, : alone.shape[1]], alone[0])
            torch.testing.assert_close(times[number, : alone.shape[1]], centres[0])
            assert not embeddings[number, alone.shape[1] :].any()


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_timestamps_are_regular_and_lie_within_the_audio(name):
    encoder = zoo.load(name, compute=CPU)
    for samples in (321, 801, 16000, 16079, 16090):
        embeddings, times = encoder.timestamp_embeddings(noise(samples)[0])
        assert embeddings.shape == (1, times.shape[1], encoder.timestamp_embedding_size)
        assert 0 <= times.min() <= times.max() <= 1000 * samples / 16000
        torch.testing.assert_close(times.double().diff(), torch.full_like(times.double(), encoder.hop_ms)[:, 1:])


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_linear_embed_check_and_teachers_take_it(name, tmp_path, tones, capsys):
    (run,) = linear(name, "esc10", data=tones, seeds=1, epochs=2, device="cpu", cache=tmp_path, runs=tmp_path / "runs")
    assert run.encoder["name"] == name
    clip = noise(9000)[0]
    soundfile.write("clip.wav", clip[0].numpy(), 16000, subtype="FLOAT")
    assert main(["embed", "clip.wav", "-o", "out.npz", "--model", name, "--device", "cpu"]) == 0
    encoder = zoo.load(name, compute=CPU)
    np.testing.assert_allclose(np.load("out.npz")["embeddings"], encoder.scene_embeddings(clip), rtol=1e-5, atol=1e-5)
    assert main(["check", name, "--device", "cpu", "--no-long"]) == 0, capsys.readouterr().out
    long = noise(7 * 16000 + 300)[0]
    (features,) = SpeechTeacher(name, None, 16000, CPU).features(list(long))
    with torch.no_grad():
        torch.testing.assert_close(features, NAMES[name]()[0](long)[0, : len(features)])


@pytest.mark.parametrize("name", ["no-such-model", "no_such_module:Encoder", "logmel:80", "huggingface:model"])
def test_an_unknown_name_is_told_the_forms(name):
    with pytest.raises(UsageError, match=rf"Unknown model '{name}'\..*FILE\.py:NAME.*hear:MODULE.*s3prl:NAME.*hf:REPO"):
        zoo.load(name)


@pytest.mark.parametrize("name", ["logmel", "own.py:Loudness", "hear:hear_own", "s3prl:fbank"])
def test_what_needs_a_model_of_the_family_says_so(name):
    vit = ViTConfig(width=64, depth=1, patch_size=(16, 16), input_size=(80, 208))
    for function in (zoo.read, zoo.load_m2d, zoo.load_classifier, lambda name: encoder_of(name, vit)):
        with pytest.raises(UsageError, match=rf"no model of the M2D family.*random:NAME or.*linear, .* take {name}"):
            function(name)
    with pytest.raises(UsageError, match="no settings features"):
        zoo.load(name, features="flat")


def test_fine_tuning_says_what_it_takes_and_names_linear_evaluation(tones, capsys):
    assert main(["finetune", "--model", "own.py:Loudness", "--tasks", "esc10", "--data", str(tones)]) == 2
    error = capsys.readouterr().err
    assert "it takes m2d_tiny, a released name, random:NAME or a checkpoint's path" in error
    assert "linear, embed and check take own.py:Loudness" in error


def test_the_models_verb_lists_every_form(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for form in ("random:NAME", "logmel", "FILE.py:NAME", "hear:MODULE[@WEIGHTS]", "s3prl:NAME[@CKPT]", "hf:REPO"):
        assert form in out


@pytest.mark.parametrize("name", ["logmel", "own.py:Loudness", "hear:hear_own"])
def test_it_moves_between_devices_as_a_module(name):
    encoder = zoo.load(name, compute=CPU).to("meta")
    assert {tensor.device.type for tensor in (*encoder.parameters(), *encoder.buffers())} == {"meta"}


def test_precision_that_is_asked_for_in_vain_is_told(caplog):
    assert zoo.load("logmel", device="cpu", precision="bf16").precision == "fp32"
    assert caplog.messages == ["logmel computes in fp32, whatever precision is asked for."]


def test_weights_code_and_name_tell_digests_apart(folder):
    def digest():
        return wrap(zoo.load("own.py:Loudness", compute=CPU)).digest

    first = digest()
    assert digest() == first
    text = (folder / "own.py").read_text()
    (folder / "own.py").write_text(text.replace("frames.std(2)", "frames.amax(2)"))
    edited = digest()
    (folder / "own.py").write_text(text.replace("SCALE, 1.0", "SCALE, 1.25"))
    others = [zoo.load(name, compute=CPU).digest for name in ("own.py:make", "logmel")]
    assert len({first, edited, digest(), *others}) == 5


CLASS = "class Mine(__import__('torch').nn.Module):\n    sample_rate = 16000\n"


SCENES = f"{CLASS}\n    def scene_embeddings(self, waveform):\n        return waveform[:, :2]\n"


@pytest.mark.parametrize(
    ("code", "name", "says"),
    [
        ("", "none.py:Mine", r"none\.py: no such file"),
        ("", "mine.py", r"Write mine\.py:CLASS_OR_FUNCTION"),
        (CLASS, "mine.py:Mina", r"'Mina'\. Did you mean Mine\? See mine\.py, which defines Mine"),
        ("x = 1\nimport no_such_package", "mine.py:Mine", r"mine\.py, line 2: ModuleNotFoundError.*no_such_package"),
        ("def Mine(:", "mine.py:Mine", r"SyntaxError: .*mine\.py, line 1"),
        (
            "def Mine(depth):\n    pass",
            "mine.py:Mine",
            r"called without arguments: .*'depth'.*return Mine\(…\), and name mine\.py:make",
        ),
        (
            f"{CLASS}\n    def __init__(self, width):\n        ...",
            "mine.py:Mine",
            r"mine\.py:Mine is called without.*'width'",
        ),
        ("def Mine():\n    pass", "./mine.py:Mine", r"^\./mine\.py:Mine gives None, no encoder; .*return"),
        (
            "Mine = 3",
            "mine.py:Mine",
            r"mine\.py:Mine: int is no encoder: it has no sample_rate\..* And it has no method scene_emb",
        ),
        ("def Mine():\n    return 'x'", "mine.py:Mine", r"mine\.py:Mine: str is no encoder"),
        ("x = 1\nexit()", "mine.py:Mine", r"mine\.py, line 2: SystemExit"),
        (
            "import argparse\ndef Mine():\n    argparse.ArgumentParser().parse_args(['-x'])",
            "mine.py:Mine",
            "line 3: SystemExit: 2",
        ),
        ("import json\ndef Mine():\n    return json.loads('{')", "mine.py:Mine", r"mine\.py, line 3: JSONDecodeError"),
        ("class Mine:\n    pass", "mine.py:Mine", "Mine is no encoder.*Add an attribute sample_rate.*no method scene"),
        (CLASS, "mine.py:Mine", r"no method scene_embeddings\. Add scene_embeddings\(self, waveform\)"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(folder, code, name, says):
    (folder / "mine.py").write_text(code)
    with pytest.raises(UsageError, match=says):
        zoo.load(name)


def test_an_error_while_embedding_names_the_line_and_keeps_its_traceback(folder, capsys, caplog, tones):
    (folder / "mine.py").write_text(
        f"{CLASS}\n    def scene_embeddings(self, waveform):\n        return waveform @ waveform\n"
    )
    words = ["linear", "--model", "mine.py:Mine", "--tasks", "esc10", "--data", str(tones)]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "scene_embeddings of mine.py:Mine: " in err
    assert "mine.py, line 5: RuntimeError" in err
    assert "bug of m2d-bench" not in err
    assert main([*words, "--verbose"]) == 1
    assert "return waveform @ waveform" in caplog.text


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (own_encoders.HEAR.replace("def get_scene", "def got_scene"), "lacks get_scene_embeddings; needed functions"),
        (own_encoders.HEAR.replace("sample_rate = ", "rate = "), "lacks sample_rate; needed attributes"),
        (own_encoders.HEAR.replace("= 16000", "= None"), "numbers of the model: .*TypeError"),
        (own_encoders.HEAR.replace("return model\n", "return 1\n"), "load_model gave a int"),
        (own_encoders.HEAR.replace("Model()\n", "Model(1)\n"), r"load_model of hear:mine\.py: .*mine\.py, line 16"),
    ],
)
def test_what_is_no_hear_module_is_told(folder, code, says):
    (folder / "mine.py").write_text(code)
    with pytest.raises(UsageError, match=says):
        zoo.load("hear:mine.py")


def test_a_hear_module_gets_its_weights(folder):
    weights = foreign.load_module("hear_own.py").load_model().state_dict()
    torch.save({key: 2 * value for key, value in weights.items()}, "twice.pt")
    plain, twice = (zoo.load(f"hear:hear_own.py{at}", compute=CPU) for at in ("", "@twice.pt"))
    assert twice.name == "hear:hear_own.py@twice.pt"
    torch.testing.assert_close(twice.scene_embeddings(noise(8000)[0]), 2 * plain.scene_embeddings(noise(8000)[0]))
    assert plain.digest != twice.digest


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("def get_timestamp", "def got_timestamp"),
        ("scene_embedding_size = timestamp_embedding_size", "scene_embedding_size"),
        ("scene_embedding_size = timestamp_embedding_size", "size"),
    ],
)
def test_a_hear_module_needs_no_timestamps_and_no_sizes(folder, text, instead):
    code = own_encoders.HEAR.replace(
        "get_timestamp_embeddings(audio, model)[0].mean(1)", "model.linear(audio[:, :320])"
    )
    (folder / "mine.py").write_text(code.replace(text, instead))
    encoder = zoo.load("hear:mine.py", compute=CPU)
    assert encoder.scene_embeddings(noise(16000)[0]).shape == (1, encoder.scene_embedding_size) == (1, 3)
    assert not encoder.has_frames


@pytest.mark.parametrize("times", ["times", "times.numpy()"])
def test_timestamps_of_a_hear_module_may_be_shared_by_the_batch(folder, times):
    (folder / "mine.py").write_text(own_encoders.HEAR.replace("times.expand(len(audio), -1)", times))
    found, expected = (zoo.load(f"hear:{name}.py", compute=CPU) for name in ("mine", "hear_own"))
    torch.testing.assert_close(*(encoder.timestamp_embeddings(noise(4000, 4000)[0]) for encoder in (found, expected)))


BESIDE = """
import torch


class Model(torch.nn.Module):
    sample_rate = 16000

    def __init__(self, file):
        super().__init__()
        self.file = open(file) if file.endswith('.bin') else None  # whose content no digest of the module sees


def load_model(file=""):
    return Model(file)


def get_scene_embeddings(audio, model):
    return audio[:, :2]
"""


def test_content_of_a_hear_models_weights_tells_digests_apart(folder):
    (folder / "mine.py").write_text(BESIDE)
    for name, content in {"a/w.bin": "1", "b/w.bin": "2", "c/w.bin": "1", "d/e/w.bin": "1"}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)

    def digest(weights):
        return zoo.load(f"hear:mine.py@{weights}", compute=CPU).digest

    assert digest("a/w.bin") == digest("c/w.bin") != digest("b/w.bin")
    folders = [digest(name) for name in ("a", "b", "d", "repository/name")]
    assert len({*folders, digest("a/w.bin")}) == 5
    (folder / "a" / "w.bin").write_text("3")
    assert digest("a") != folders[0]


def test_settings_in_a_familys_file_tell_digests_of_its_hear_model_apart(folder):
    paths = [folder / name / "model.safetensors" for name in ("a", "b")]
    for path, mean in zip(paths, (-7.0, -6.0), strict=True):
        small_encoder(norm_stats=(mean, 4.0)).save_pretrained(path.parent)
    assert len({zoo.load(f"hear:m2d_bench.hear_api@{path}", compute=CPU).digest for path in paths}) == 2


def test_modules_beside_a_file_that_it_imports_tell_digests_apart(folder, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path, str(folder)])
    (folder / "parts" / "deep").mkdir(parents=True)
    files = {"parts/__init__.py": "", "parts/deep/net.py": "from ..other import A", "parts/other.py": "A = 1"}
    files |= {"unused.py": "", "mine.py": f"import json, numpy\nfrom parts.deep.net import A\n{SCENES}"}
    for name, text in files.items():
        (folder / name).write_text(text)
    digests = [zoo.load("mine.py:Mine", compute=CPU).digest]
    import_module("unused")
    for name in ("unused.py", *list(files)[:3]):
        (folder / name).write_text(f"{files[name]}\nB = 2")
        digests.append(zoo.load("mine.py:Mine", compute=CPU).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    for name in [name for name in sys.modules if name.split(".")[0] in ("parts", "unused")]:
        del sys.modules[name]


@pytest.mark.parametrize("form", ["hear:", "s3prl:", "hf:", "hear:@weights.pt"])
def test_a_prefix_alone_is_told_its_form(form):
    for function in (zoo.load, zoo.read):
        with pytest.raises(UsageError, match=rf"{form} names no model\. Write {form.partition('@')[0]}[A-Z_]+\[@"):
            function(form)


@pytest.mark.parametrize("encoder", [None, 3, torch.nn.Linear(2, 2), b"logmel"])
def test_an_object_is_no_name_and_is_told_where_it_goes(encoder):
    with pytest.raises(UsageError, match=rf"got {type(encoder).__name__}\..*linear\(encoder"):
        zoo.load(encoder)


@pytest.mark.parametrize(
    ("weights", "takes_any", "says"),
    [
        ("layer=1", False, "linear takes one as --layer"),
        ("layer=1", True, "linear takes one as --layer"),
        ("own.py", False, "takes no weights"),
        ("https://host/w.pt", False, "takes no weights"),
        ("nofile", True, "nofile is neither a file that exists nor an address"),
    ],
)
def test_what_s3prl_would_ignore_is_refused(weights, takes_any, says):
    with pytest.raises(UsageError, match=f"s3prl:x@{weights}: .*{says}"):
        s3prl._check_weights(f"s3prl:x@{weights}", weights, takes_any)
    for name, given in (("s3prl:x", ""), ("s3prl:x", "own.py"), ("s3prl:x", "s3://w"), ("s3prl:hf_x", "owner/name")):
        s3prl._check_weights(f"{name}@{given}", given, True)


@pytest.mark.slow
@NEEDS_S3PRL[1]
def test_s3prl_gives_layers_tells_upstreams_apart_and_suggests_names():
    fbank, mel = (zoo.load(f"s3prl:{name}", compute=CPU) for name in ("fbank", "mel"))
    assert fbank.digest != mel.digest == zoo.load("s3prl:mel", compute=CPU).digest
    batch, _ = noise(4000, 4000)
    batch[0, 3000:] = 0
    torch.testing.assert_close(mel.scene_embeddings(batch)[:1], mel.scene_embeddings(batch[:1]))
    (layer,) = fbank.hidden_states(noise(16000)[0])
    assert layer.shape == (1, 100, 240)
    with pytest.raises(UsageError, match=r"Unknown upstream of s3prl 'fbanc'\. Did you mean fbank"):
        zoo.load("s3prl:fbanc")
    with pytest.raises(UsageError, match=r"s3prl:fbank@own\.py: takes no weights"):
        zoo.load("s3prl:fbank@own.py")
    with pytest.raises(UsageError, match=r"s3prl:baseline_local@no\.yaml: "):
        zoo.load("s3prl:baseline_local@no.yaml")


def test_without_s3prl_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("m2d_bench.encoders.s3prl.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'm2d-bench\[superb\]'"):
        zoo.load("s3prl:fbank")
