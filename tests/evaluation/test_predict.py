"""Classifiers from checkpoints, and what they say of files."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from m2d_bench.cli import main
from m2d_bench.encoders import checkpoint, zoo
from m2d_bench.encoders.checkpoint import Checkpoint, Labels
from m2d_bench.encoders.classifier import Head, build
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.errors import CheckpointError, UsageError
from m2d_bench.evaluation import predict
from m2d_bench.evaluation.predict import predict_files, read_classes
from m2d_bench.randomness import generator_of
from m2d_bench.settings import Compute
from tests.conftest import small_encoder

NAMES = ("bark", "meow", "rain")
LABELS = Labels(classes=NAMES, multilabel=False, clip_seconds=1.0)
CPU = Compute(device="cpu", precision="fp32")


def checkpoint_of(n_classes=3):
    """A random encoder with a random head whose outputs differ from file to file."""
    encoder = small_encoder(features="flat")
    head = Head(encoder.scene_embedding_size, n_classes).initialise(generator_of("head"))
    state = head.state()
    state["running_mean"].normal_(generator=generator_of("mean"))
    state["running_var"].uniform_(0.5, 2, generator=generator_of("variance"))
    state["weight"].mul_(20)
    return Checkpoint(config=encoder.config, encoder=encoder.vit.state_dict(), head=state, labels=LABELS)


@pytest.fixture
def fine_tuned(tmp_path):
    path = tmp_path / "best.safetensors"
    checkpoint.save(checkpoint_of(), path)
    return path


@pytest.fixture
def sounds(tmp_path):
    """A file at the model's rate, a short one, a long one at another rate."""
    rng = np.random.default_rng(0)
    files = []
    for number, (seconds, rate) in enumerate(((1.0, 16000), (0.3, 16000), (5.0, 22050))):
        files.append(tmp_path / f"{number}.wav")
        soundfile.write(files[-1], 0.1 * rng.standard_normal(round(seconds * rate)), rate)
    return files


def test_a_head_and_its_labels_are_read_back(fine_tuned, tmp_path):
    first = checkpoint_of()
    checkpoint.save(first, tmp_path / "m2d_vit_small-80x208p16x16" / "weights.pth")
    for path in (fine_tuned, tmp_path / "m2d_vit_small-80x208p16x16"):
        again = checkpoint.read(path)
        assert again.labels == first.labels
        assert again.config.features == "flat"
        for key, value in first.head.items():
            assert torch.equal(again.head[key], value)


def test_a_classifier_gives_the_probabilities_of_a_plain_computation(fine_tuned, sounds):
    found = checkpoint.read(fine_tuned)
    encoder = M2DEncoder.from_checkpoint(found)
    waveform = soundfile.read(sounds[0], dtype="float32")[0]
    features = encoder.scene_embeddings(torch.from_numpy(waveform))[0].double().numpy()
    state = {key: value.double().numpy() for key, value in found.head.items()}
    logits = (features - state["running_mean"]) / np.sqrt(state["running_var"] + 1e-5) @ state["weight"].T
    expected = np.exp(logits + state["bias"]) / np.exp(logits + state["bias"]).sum()
    (prediction,), failures = predict_files(zoo.load_classifier(fine_tuned, compute=CPU), sounds[:1], CPU, top=9)
    assert not failures
    order = np.argsort(-expected)
    assert prediction.classes == tuple(NAMES[place] for place in order)
    np.testing.assert_allclose(prediction.probabilities, expected[order], atol=1e-5)


def test_short_files_are_padded_as_the_clips_were_and_batch_mates_change_nothing(fine_tuned, sounds, tmp_path):
    classifier = zoo.load_classifier(fine_tuned, compute=CPU)
    padded = tmp_path / "padded.wav"
    short, rate = soundfile.read(sounds[1])
    soundfile.write(padded, np.pad(short, (0, rate - len(short))), rate)
    together, _ = predict_files(classifier, [*sounds, padded], CPU)
    assert [each.file for each in together] == [str(file) for file in [*sounds, padded]]
    np.testing.assert_allclose(together[1].probabilities, together[3].probabilities, atol=1e-4)
    for each, file in zip(together, [*sounds, padded], strict=True):
        (alone,), _ = predict_files(classifier, [file], CPU)
        np.testing.assert_allclose(each.probabilities, alone.probabilities, atol=1e-5)


def test_classes_of_several_labels_each_have_a_probability_of_their_own(fine_tuned, sounds):
    several = build(replace(checkpoint.read(fine_tuned), labels=Labels(classes=NAMES, multilabel=True, clip_seconds=0)))
    assert several.labels.multilabel
    (found,), _ = predict_files(several, sounds[:1], CPU)
    assert sum(found.probabilities) != pytest.approx(1, abs=1e-3)
    assert build(checkpoint.read(fine_tuned), multilabel=True).labels.multilabel


def test_probabilities_that_are_not_finite_are_failures(fine_tuned, sounds):
    made = checkpoint.read(fine_tuned)
    damaged = build(replace(made, head={**made.head, "running_var": -torch.ones_like(made.head["running_var"])}))
    predictions, failures = predict_files(damaged, sounds[:1], CPU)
    assert predictions == []
    (failure,) = failures
    assert str(sounds[0]) in failure


# Released AudioSet models


def evar_file(folder, n_classes=527):
    """A file as EVAR's fine-tuning writes it: 527 outputs, no names."""
    made = checkpoint_of(n_classes)
    state = {f"module.ar.runtime.backbone.{key}": value for key, value in made.encoder.items()}
    state |= {f"module.head.norm.{key}": made.head[key] for key in ("running_mean", "running_var")}
    state |= {f"module.head.mlp.mlp.0.{key}": made.head[key] for key in ("weight", "bias")}
    folder.mkdir()
    torch.save(state, folder / "weights_ep69it3124-0.47929.pth")
    return folder


def class_labels(path, n_classes=527):
    """AudioSet's table: its index is in another order than its mid."""
    order = np.random.default_rng(1).permutation(n_classes)
    with path.open("w", newline="") as file:
        rows = [(index, f"/m/{order[index]:05d}", f"Sound, of {order[index]}") for index in range(n_classes)]
        csv.writer(file).writerows([("index", "mid", "display_name"), *rows])
    return path


def test_audiosets_names_go_by_their_mid_as_evar_sorts_its_labels(tmp_path, sounds):
    names = read_classes(class_labels(tmp_path / "class_labels_indices.csv"))
    assert names == tuple(f"Sound, of {number}" for number in range(527))
    folder = evar_file(tmp_path / "m2d_vit_small-80x208p16x16-ft")
    classifier = zoo.load_classifier(folder, classes=names, compute=CPU)
    assert classifier.labels == Labels(classes=names, multilabel=True, clip_seconds=0.0)
    (found,), _ = predict_files(classifier, sounds[:1], CPU, top=527)
    encoder = classifier.encoder
    waveform = torch.from_numpy(soundfile.read(sounds[0], dtype="float32")[0])
    logits = classifier.head(encoder.scene_embeddings(waveform))[0]
    assert found.classes[0] == names[int(logits.argmax())]
    assert found.probabilities[0] == pytest.approx(float(logits.max().sigmoid()), abs=1e-5)


def test_clips_are_padded_to_a_duration_that_the_model_does_not_say(tmp_path, sounds, capsys):
    folder = evar_file(tmp_path / "m2d_vit_small-80x208p16x16-ft", n_classes=3)
    waveform = soundfile.read(sounds[0])[0]
    soundfile.write(tmp_path / "padded.wav", np.pad(waveform, (0, 5 * 16000 - len(waveform))), 16000, subtype="FLOAT")
    words = ["--format", "csv", "--device", "cpu", "--precision", "fp32"]
    main(["predict", str(folder), str(sounds[0]), "--clip-seconds", "5", *words])
    main(["predict", str(folder), str(tmp_path / "padded.wav"), *words])
    told, padded = [
        block.splitlines()[1:] for block in capsys.readouterr().out.split("file,rank,class,probability")[1:]
    ]
    assert len(told) == 3
    assert [line.split(",")[1:] for line in told] == [line.split(",")[1:] for line in padded]


def test_without_names_classes_are_numbered_and_it_is_said(tmp_path, sounds, caplog):
    folder = evar_file(tmp_path / "m2d_vit_small-80x208p16x16-ft")
    classifier = zoo.load_classifier(folder, compute=CPU)
    assert classifier.labels.classes[:2] == ("0", "1")
    assert "does not name its 527 classes" in caplog.text
    assert "of several labels a clip, as AudioSet's" in caplog.text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name\nrain\nbark\n", ("rain", "bark")),
        ("index,label\n10,rain\n9,bark\n", ("bark", "rain")),
        ("id,class\n1,rain\n2,bark\n", ("rain", "bark")),
        ("rain\nbark\nNA\n", ("rain", "bark", "NA")),
    ],
)
def test_class_names_are_read_from_the_usual_files(tmp_path, text, names):
    (tmp_path / "names.csv").write_text(text)
    assert read_classes(tmp_path / "names.csv") == names


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "", None])
def test_a_file_without_class_names_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "names.csv").write_text(text)
    with pytest.raises(UsageError, match=r"names\.csv"):
        read_classes(tmp_path / "names.csv")


# The verb


def said(capsys, *words):
    assert main(["predict", *map(str, words), "--device", "cpu", "--precision", "fp32"]) == 0
    return capsys.readouterr().out


def test_predictions_are_a_table_csv_or_json_lines(fine_tuned, sounds, capsys):
    table = said(capsys, fine_tuned, *sounds, "--top", "2")
    assert len(table.splitlines()) == 2 + 2 * 3
    rows = list(csv.DictReader(io.StringIO(said(capsys, fine_tuned, *sounds, "--format", "csv", "--top", 2))))
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    lines = [json.loads(line) for line in said(capsys, fine_tuned, *sounds, "--format", "jsonl").splitlines()]
    assert [line["file"] for line in lines] == [str(file) for file in sounds]
    assert [line["classes"][0] for line in lines] == [row["class"] for row in rows[::2]]
    assert sum(lines[0]["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert rows[0]["class"] in table


def test_a_broken_file_is_named_last_and_stops_no_other(fine_tuned, sounds, tmp_path, capsys):
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    assert main(["predict", *map(str, (fine_tuned, sounds[0], tmp_path / "broken.wav"))]) == 1
    found = capsys.readouterr()
    assert str(sounds[0]) in found.out
    assert "broken.wav: cannot be decoded" in found.err.splitlines()[-1]


def test_folders_are_walked_and_damaged_files_are_named_after_the_others(fine_tuned, sounds, tmp_path, capsys):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    for file in sounds:
        file.rename(folder / file.name)
    (folder / "notes.txt").touch()
    (tmp_path / "none").mkdir()
    soundfile.write(folder / "loud.wav", np.full(16000, 1e20), 16000, subtype="FLOAT")
    (folder / "cut.wav").write_bytes((folder / "2.wav").read_bytes()[:100_000])
    words = [str(fine_tuned), str(tmp_path / "none"), str(tmp_path / "in"), "--format", "jsonl"]
    assert main(["predict", *words]) == 1
    found = capsys.readouterr()
    lines = [json.loads(line) for line in found.out.splitlines()]
    assert [line["file"] for line in lines] == [str(folder / file.name) for file in sounds]
    errors = [line.removeprefix("ERROR: ") for line in found.err.splitlines() if line.startswith("ERROR: ")]
    named = [error.split(": ")[0].removeprefix(str(tmp_path)) for error in errors]
    assert sorted(named) == ["/in/deep/cut.wav", "/in/deep/loud.wav", "/none"]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--format", "xml"], 2, "Unknown format 'xml'. See these: text, csv, jsonl"),
        (["--top", "0"], 2, "top is 0; it must be at least 1"),
        (["--classes", "none.csv"], 2, "none.csv: no CSV file of class names"),
        (["--clip-seconds", "-1"], 2, 'Invalid value "-1.0" for --clip-s'),
    ],
)
def test_bad_usage_is_said(fine_tuned, sounds, more, code, says, capsys):
    assert main(["predict", str(fine_tuned), str(sounds[0]), *more]) == code
    assert says in capsys.readouterr().err


def test_names_that_do_not_fit_the_head_are_refused(fine_tuned, tmp_path):
    with pytest.raises(CheckpointError, match="its head has 3 outputs, but 2 class names were given"):
        zoo.load_classifier(fine_tuned, classes=("a", "b"))


def test_a_model_without_a_head_says_how_to_get_one(sounds, capsys):
    assert main(["predict", "random:m2d_vit_tiny-80x208p16x16", str(sounds[0])]) == 1
    assert "has no head, so it tells no classes. Fine-tune it with m2d-bench finetune" in capsys.readouterr().err


def test_the_formats_are_those_that_can_be_rendered():
    assert all(predict.render([], style) is not None for style in predict.FORMATS)
