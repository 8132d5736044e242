"""Layers and poolings: what a probe is given is what the encoder gives, pooled by hand."""

import inspect
import itertools

import numpy as np
import pytest
import torch

from m2d_bench import linear, runs, tasks
from m2d_bench.encoders.protocol import wrap
from m2d_bench.errors import StorageError, UsageError
from m2d_bench.evaluation import embeddings, representations
from m2d_bench.evaluation import linear as evaluation
from m2d_bench.evaluation.representations import Representation, asked, kept_for
from m2d_bench.evaluation.settings import LinearSettings
from m2d_bench.runs import TasksFailed
from m2d_bench.settings import Compute, Storage
from m2d_bench.tasks import dataset
from tests.conftest import small_encoder

COMPUTE = Compute(device="cpu", precision="fp32")
SAMPLES = 80000
"""Of a clip of ESC-10."""


class Layered:
    """Three layers of frames, cheap, and not of the M2D family; counts the clips it is given."""

    sample_rate, scene_embedding_size = 8000, 8
    made = itertools.count()

    def __init__(self):
        self.clips, self.digest = 0, f"layered{next(self.made)}"

    def hidden_states(self, waveform):
        self.clips += len(waveform)
        frames = waveform.unfold(1, 4000, 4000)
        bands = torch.fft.rfft(frames, dim=2).abs()[:, :, 80:1040].unflatten(2, (8, 120)).mean(3)
        return [bands.amax(2, keepdim=True).expand_as(bands), bands, bands.log1p()]

    def timestamp_embeddings(self, waveform):
        features = self.hidden_states(waveform)[1]
        return features, torch.arange(features.shape[1]).double().expand(len(waveform), -1) * 500

    def scene_embeddings(self, waveform):
        return self.timestamp_embeddings(waveform)[0].mean(1)


@pytest.fixture
def storage(tones):
    return Storage(data=tones)  # the session's cache: other tests have read the clips


@pytest.fixture
def settings(tmp_path, tones):
    return {
        "data": tones,
        "runs": tmp_path / "runs",
        "device": "cpu",
        "precision": "fp32",
        "seeds": 2,
        "epochs": 5,
        "learning_rate": 1e-2,
    }


def given(encoder, storage, *wanted):
    data = dataset.load(tasks.get("esc10"), storage)
    kept = kept_for(wrap(encoder), wanted, 5 * encoder.sample_rate)
    return data, embeddings.encode(encoder, data, COMPUTE, storage, kept).features


BY_HAND = {
    "mean": lambda frames: frames.mean(0),
    "max": lambda frames: frames.max(0).values,
    "mean+std": lambda frames: torch.cat([frames.mean(0), frames.std(0, correction=0)]),
}


@pytest.mark.parametrize("pooling", [*BY_HAND, "flat"])
def test_pooled_layers_are_those_of_the_encoder_pooled_by_hand(storage, pooling):
    encoder = Layered()
    data, features = given(encoder, storage, Representation(layer=3, pooling=pooling))
    by_hand = BY_HAND.get(pooling, torch.flatten)  # other encoders' frames one after the other
    for clip in (0, 399):
        frames = encoder.hidden_states(torch.from_numpy(data.waveform(clip, 8000))[None])[2][0]
        torch.testing.assert_close(features[clip], by_hand(frames))


@pytest.mark.parametrize("pooling", [*BY_HAND, "flat"])
def test_pooled_layers_of_the_family_are_those_of_single_clips(pooling):
    encoder = small_encoder()
    kept = kept_for(wrap(encoder), [Representation(layer=n, pooling=pooling) for n in (2, 1)], SAMPLES)
    waveforms = torch.randn(3, SAMPLES, generator=torch.Generator().manual_seed(0)) / 10
    pooled = kept.given(kept.embed(waveforms, ["a", "b", "c"]).numpy())
    patches_averaged = lambda frames: frames.unflatten(1, (5, 128)).mean((0, 1))  # noqa: E731
    for view, layer in enumerate((1, 0)):
        frames = encoder.hidden_states(waveforms[1])[layer][0]
        expected = BY_HAND.get(pooling, patches_averaged)(frames)
        torch.testing.assert_close(torch.from_numpy(pooled[view, 1]), expected, atol=1e-5, rtol=1e-4)


def test_the_mean_of_the_last_layer_is_the_scene_embedding():
    encoder, waveforms = small_encoder(), torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0)) / 10
    kept = kept_for(wrap(encoder), [Representation(layer=2, pooling="mean")], SAMPLES)
    assert np.array_equal(kept.given(kept.embed(waveforms, "ab").numpy())[0], encoder.scene_embeddings(waveforms))


def test_all_layers_and_poolings_are_encoded_once_and_their_frames_once_a_layer(storage):
    encoder = Layered()
    for layer, pooling in ((1, "mean"), (3, "max"), ("weighted", "mean+std")):
        given(encoder, storage, Representation(layer=layer, pooling=pooling))
    assert encoder.clips == 400 + 3  # and a clip of noise each time, for the shapes
    for pooling in ("flat", "attention"):
        given(encoder, storage, Representation(layer=2, pooling=pooling))
    assert encoder.clips == 800 + 5


def test_views_of_several_layers_lie_one_below_the_other(storage):
    encoder = Layered()
    layers = [Representation(layer=n, pooling="max") for n in (1, 2, 3)]
    _, together = given(encoder, storage, *layers)
    assert together.shape == (1200, 8)
    for view, layer in enumerate(layers):
        assert torch.equal(together[400 * view : 400 * (view + 1)], given(encoder, storage, layer)[1])
    assert given(encoder, storage, Representation(layer="weighted", pooling="max"))[1].shape == (400, 3, 8)
    assert given(encoder, storage, Representation(layer=1, pooling="attention"))[1].shape == (400, 10, 8)


def test_what_the_disk_cannot_hold_is_refused_before_anything_is_encoded(storage, monkeypatch):
    encoder = Layered()
    room = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    with pytest.raises(StorageError, match=r"the disk is full.*MiB are to be written.*--cache"):
        given(encoder, storage, Representation(layer=1, pooling="mean"))
    assert encoder.clips == 1


def test_what_is_much_is_said_before_it_is_written(storage, monkeypatch, caplog):
    monkeypatch.setattr(embeddings, "_WORTH_SAYING", 10000)
    given(Layered(), storage, Representation(layer=1, pooling="attention"))
    assert "0.0 GB are going to be written" in caplog.text


def scores(run):
    return {(score.seed, score.fold): score.score for score in run.scores}


def test_every_layer_and_pooling_has_a_record_with_the_scores_it_gets_alone(settings):
    encoder = Layered()
    together = linear(encoder, "esc10", layer="all", pooling=("mean", "max"), **settings)
    asked_for = [(run.settings["layer"], run.settings["pooling"]) for run in together]
    assert asked_for == [(layer, pooling) for pooling in ("mean", "max") for layer in (1, 2, 3)]
    assert len({run.key for run in together}) == 6
    assert len({tuple(scores(run).values()) for run in together}) > 2
    settings["runs"] = settings["runs"].with_name("alone")
    for run in together:
        layer, pooling = run.settings["layer"], run.settings["pooling"]
        (alone,) = linear(encoder, "esc10", layer=layer, pooling=(pooling,), **settings)
        assert scores(alone) == scores(run)
        assert alone.key == run.key


def test_only_what_is_missing_is_computed(settings, monkeypatch):
    encoder = Layered()
    linear(encoder, "esc10", layer=2, pooling=("max",), **settings)
    linear(encoder, "esc10", layer=3, pooling=("max",), **{**settings, "seeds": 1})
    probed = []
    run_probes = evaluation.run_probes

    def spy(features, labels, problems, *args, **kwargs):
        probed.extend((problem.view, problem.seed) for problem in problems)
        return run_probes(features, labels, problems, *args, **kwargs)

    monkeypatch.setattr(evaluation, "run_probes", spy)
    assert len(linear(encoder, "esc10", layer="all", pooling=("max",), **settings)) == 3
    assert sorted(set(probed)) == [(0, 42), (0, 43), (1, 43)]


def test_features_that_do_not_fit_are_probed_in_parts(settings, monkeypatch):
    encoder = Layered()
    whole = linear(encoder, "esc10", layer="all", **settings)
    monkeypatch.setattr(evaluation, "_FEATURE_BYTES", 2 * 400 * 32)
    settings["runs"] = settings["runs"].with_name("parts")
    assert [scores(run) for run in linear(encoder, "esc10", layer="all", **settings)] == [scores(r) for r in whole]


def test_without_a_layer_the_encoders_own_frames_are_pooled(settings):
    encoder = Layered()
    (own,) = linear(encoder, "esc10", pooling=("mean",), **settings)
    (second,) = linear(encoder, "esc10", layer=2, **settings)
    (scene,) = linear(encoder, "esc10", **settings)
    assert scores(own) == scores(second) == scores(scene)
    assert [run.settings.get("pooling") for run in (own, second, scene)] == ["mean", "mean", None]
    assert "layer" not in scene.settings
    assert len({run.key for run in (own, second, scene)}) == 3


def test_weights_of_layers_and_attention_are_learned_and_recorded(settings):
    encoder = Layered()
    (weighted,) = linear(encoder, "esc10", layer="weighted", **settings)
    for score in weighted.scores:
        weights = [score.chosen[f"layer {n}"] for n in (1, 2, 3)]
        assert sum(weights) == pytest.approx(1, abs=1e-3)
        assert max(weights) - min(weights) > 0.001
    (attentive,) = linear(encoder, "esc10", probe="attentive", layer=3, **settings)
    assert (attentive.protocol, attentive.settings["layer"]) == ("attentive", 3)
    assert attentive.repeated[:2] == ("initialisation", "shuffling")
    for run in (weighted, attentive):
        assert run.settings["mixing_learning_rate"] == 3e-3


@pytest.mark.parametrize("probe", ["knn", "logreg"])
def test_other_probes_take_layers_too(settings, probe):
    found = linear(Layered(), "esc10", layer="all", probe=probe, **{**settings, "seeds": 1})
    assert [run.protocol for run in found] == [probe] * 3
    assert len({tuple(scores(run).values()) for run in found}) > 1


def test_one_pass_is_another_encoder_and_the_record_says_so(storage, small_model):
    data = dataset.load(tasks.get("esc10"), storage)

    def blank(encoding):
        settings = LinearSettings(encoding=encoding, device="cpu")
        return evaluation._blank_run(wrap(evaluation._load(small_model, settings)), data, settings)

    own, chunks, one_pass = map(blank, (None, "chunks", "one_pass"))
    assert chunks.key == own.key
    assert own.encoder["digest"] != one_pass.encoder["digest"]
    assert (own.settings.get("encoding"), one_pass.settings["encoding"]) == (None, "one_pass")


def test_a_record_is_repeated_by_its_own_command(settings, tmp_path):
    source = f"import itertools\nimport torch\n\n\n{inspect.getsource(Layered)}"
    (tmp_path / "own.py").write_text(source)
    model = f"{tmp_path / 'own.py'}:Layered"
    found = linear(model, "esc10", layer="all", pooling=("max", "mean"), **{**settings, "seeds": 1})
    assert [run.command.partition(" --layer ")[2] for run in found] == [
        f"{layer} --pooling {pooling}" for pooling in ("max", "mean") for layer in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 4}, "layer is 4; Layered has 1 to 3"),
        ({"layer": 0}, "layer is 0"),
        ({"layer": "every"}, "layer is 'every'"),
        ({"pooling": ("median",)}, "median"),
        ({"layer": "all", "pooling": ("mean", "flat")}, "flat takes the frames of one layer of Layered, got all"),
        ({"layer": "weighted", "pooling": ("flat",)}, "flat takes the frames of one layer of Layered, got weighted"),
        ({"probe": "attentive", "pooling": ("mean",)}, "leave out pooling"),
        ({"probe": "attentive", "layer": "all"}, "frames of one layer, got all"),
        ({"probe": "knn", "layer": "weighted"}, "weighted with probe linear, got knn"),
        ({"encoding": "one_pass"}, r"linear\(load_encoder\(name, encoding='one_pass'\), …\)"),
    ],
)
def test_what_cannot_be_probed_is_said_before_any_work(settings, changes, message):
    encoder = Layered()
    with pytest.raises(UsageError, match=message):
        linear(encoder, "esc10", **{**settings, **changes})
    assert encoder.clips <= 1


class Scenes:
    sample_rate, scene_embedding_size, digest = 8000, 1, "scenes"

    def scene_embeddings(self, waveform):
        return waveform.std(1, keepdim=True)


class Widening(Scenes):
    def hidden_states(self, waveform):
        return [waveform.unfold(1, size, size) for size in (10, 20)]


class Framed(Scenes):
    def timestamp_embeddings(self, waveform):
        return waveform[:, :80].unflatten(1, (10, 8)), torch.arange(10).expand(len(waveform), -1)


@pytest.mark.parametrize(
    ("encoder", "changes", "lacks"),
    [
        (Scenes(), {"layer": 1}, "Scenes has no hidden_states"),
        (Framed(), {"layer": 1}, r"Framed has no hidden_states.*\[B, T, D\].*docs/your-encoder.md"),
        (Framed(), {"layer": "all"}, "Framed has no hidden_states"),
        (Framed(), {"layer": "weighted"}, "Framed has no hidden_states"),
        (Framed(), {"layer": 1, "probe": "attentive"}, "Framed has no hidden_states"),
        (Scenes(), {"pooling": ("max",)}, r"Scenes has no timestamp_embeddings.*\[B, T\] .*docs/your-encoder.md"),
        (Scenes(), {"probe": "attentive"}, "Scenes has no timestamp_embeddings"),
        (Widening(), {"layer": "all"}, "layers of Widening are 10, 20 wide"),
        (Widening(), {"layer": "weighted"}, "layers of Widening are 10, 20 wide"),
    ],
)
def test_an_encoder_that_lacks_layers_or_frames_is_told_so(settings, encoder, changes, lacks):
    with pytest.raises(UsageError, match=lacks):
        linear(encoder, "esc10", **{**settings, **changes})


@pytest.mark.parametrize(("layer", "pooling"), [(1, "mean"), (2, "max"), (2, "mean+std"), (2, "flat")])
def test_one_layer_needs_no_others_of_its_width(layer, pooling):
    waveforms = torch.randn(2, 80, generator=torch.Generator().manual_seed(0))
    wanted = asked(LinearSettings(layer=layer, pooling=(pooling,)), wrap(Widening()))
    kept = kept_for(wrap(Widening()), wanted, 80)
    (pooled,) = kept.given(kept.embed(waveforms, "ab").numpy())
    frames = Widening().hidden_states(waveforms)[layer - 1][1]
    torch.testing.assert_close(torch.from_numpy(pooled[1]), BY_HAND.get(pooling, torch.flatten)(frames))


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"layer": 3}, lambda layers: layers[:2]),
        ({"layer": "all"}, lambda layers: layers[:2]),
        ({"layer": 1}, lambda layers: [*layers, layers[0]]),
        ({"layer": 1}, lambda layers: [layer[:, :, :4] for layer in layers]),
        ({"layer": 3, "probe": "attentive"}, lambda layers: layers[:2]),
        ({"layer": 1, "probe": "attentive"}, lambda layers: [layer[:, :4] for layer in layers]),
        ({"layer": 1, "pooling": "flat"}, lambda layers: [layer[:, :4] for layer in layers]),
        ({"pooling": "flat"}, lambda layers: [layer[:, :4] for layer in layers]),
    ],
)
def test_a_clip_with_other_layers_or_frames_than_noise_is_named(settings, changes, layers):
    class Varying(Layered):
        def hidden_states(self, waveform):
            found = super().hidden_states(waveform)
            return found if waveform.min() < -0.99 else layers(found)  # noise, or a clip

    with pytest.raises(TasksFailed, match=r"audio/0\.wav.*must be the same for clips of one length"):
        linear(Varying(), "esc10", **{**settings, **changes})


def test_a_clip_whose_layer_is_not_finite_is_named(settings, monkeypatch):
    class Broken(Layered):
        def hidden_states(self, waveform):
            first, second, third = super().hidden_states(waveform)
            broken = (waveform.std(1) > 0)[:, None, None] & (len(waveform) > 1)
            return [first, second.masked_fill(broken, np.nan), third]

    with pytest.raises(TasksFailed, match=r"\(layer 2\) of Broken returned NaN or infinity for .*audio/0\.wav"):
        linear(Broken(), "esc10", layer=1, **settings)


def test_asked_keeps_the_order_and_drops_what_is_named_twice():
    settings = LinearSettings(layer="all", pooling=("max", "mean", "max"))
    wanted = asked(settings, wrap(Layered()))
    assert [(each.pooling, each.layer) for each in wanted] == [(p, n) for p in ("max", "mean") for n in (1, 2, 3)]
    assert asked(LinearSettings(), wrap(Layered())) == [Representation()]
    assert representations.scenes(wrap(Layered())).name == ""
    assert Representation().facts == {}


@pytest.mark.parametrize("layer", [2, "2", 2.0, "2.0", np.int64(2), np.float32(2)])
def test_a_layer_may_be_given_as_any_number(layer):
    settings = LinearSettings(layer=layer)
    assert (type(settings.layer), settings.layer) == (int, 2)


@pytest.mark.parametrize("layer", [0, -1, 1.5, "two", "\uff12", "", True, np.nan, (2,), np.array([2, 3])])
def test_what_names_no_layer_is_refused_in_the_settings_own_words(layer):
    with pytest.raises(UsageError, match=r"^layer is .*; it is a number from 1, all or weighted\.$"):
        LinearSettings(layer=layer)


@pytest.mark.parametrize("pooling", ["mean,max", "mean, max", ["mean", "max"], ("mean", "max")])
def test_poolings_may_be_one_text(pooling):
    assert LinearSettings(pooling=pooling).pooling == ("mean", "max")
    assert LinearSettings(pooling="flat").pooling == ("flat",)


@pytest.mark.parametrize("pooling", ["median", "mean,median", ["mean,median"]])
def test_an_unknown_pooling_is_named_with_what_is_allowed(pooling):
    with pytest.raises(UsageError, match=r"Unknown pooling .*median.*mean"):
        LinearSettings(pooling=pooling)


def test_a_record_of_one_layer_stands_beside_the_encoders_own(settings):
    encoder = Layered()
    from m2d_bench.results import summary

    linear(encoder, "esc10", layer=2, **settings)
    linear(encoder, "esc10", **settings)
    rows = summary(runs.read(settings["runs"])[0].values())
    assert {row["model"] for row in rows} == {"Layered", "Layered (layer=2, pooling=mean)"}
