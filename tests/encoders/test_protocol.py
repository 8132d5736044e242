"""Anybody's encoder is taken, and what it returns is checked where it enters."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from m2d_bench import linear
from m2d_bench.encoders import zoo
from m2d_bench.encoders.digest import digest_of
from m2d_bench.encoders.protocol import AudioEncoder, facts_of, wrap
from m2d_bench.errors import AudioError, DataError, UsageError
from tests.conftest import small_encoder


class Statistics(torch.nn.Module):
    """The least an encoder is: two attributes."""

    sample_rate = 8000

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(2))
        self.eval()

    def scene_embeddings(self, waveform):
        return torch.stack([waveform.mean(1), waveform.std(1)], dim=1) * self.scale


class Returning:
    """An encoder that returns what it is told."""

    sample_rate, digest = 8000, "returning"

    def __init__(self, output):
        self.output = output

    def scene_embeddings(self, waveform):
        return self.output(len(waveform))


def test_a_module_with_rate_and_scene_embeddings_is_evaluated(tones, tmp_path):
    settings = {"data": tones, "runs": tmp_path / "runs", "cache": tmp_path, "device": "cpu", "epochs": 2}
    (run,) = linear(Statistics(), "esc10", seeds=1, **settings)
    assert run.encoder["name"] == "Statistics"
    assert run.encoder["digest"] == wrap(Statistics()).digest
    assert len(run.scores) == 5


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({}, "Add an attribute sample_rate"),
        ({}, r"And it has no method scene_embeddings\."),
        ({"sample_rate": 16000.5}, "sample_rate is 16000.5"),
        ({"sample_rate": 16000.0}, r"sample_rate is 16000\.0; it must be a whole number"),
        ({"sample_rate": "16000"}, "sample_rate is '16000'; it must be a whole number"),
        ({"sample_rate": 16000}, r"Add scene_embeddings\(self, waveform\).* at 16000 Hz"),
    ],
)
def test_what_a_module_lacks_is_said(attributes, says):
    module = torch.nn.Linear(2, 2)
    for name, value in attributes.items():
        setattr(module, name, value)
    with pytest.raises(UsageError, match=f"Linear is no encoder: .*{says}|{says}"):
        linear(module, "esc10")


@pytest.mark.parametrize(
    ("output", "error", "says"),
    [
        (lambda n: torch.ones(1, 4), UsageError, r"floats \[3, D\], one row a clip; .* \[1, 4\] for a\.wav"),
        (lambda n: torch.ones(n), UsageError, r"\[3\]"),
        (lambda n: torch.ones(n, 0), UsageError, r"\[3, 0\]"),
        (lambda n: torch.ones(n, 2, 4), UsageError, r"\[3, 2, 4\]"),
        (lambda n: torch.ones(n, 4, dtype=torch.int64), UsageError, "int64"),
        (lambda n: [[1.0]] * n, UsageError, "list"),
        (lambda n: torch.tensor([[1.0], [float("nan")], [1.0]])[:n], DataError, r"NaN or infinity for b\.wav\.$"),
        (lambda n: torch.ones(n, n), UsageError, "3 numbers for a.wav, 1 before"),
    ],
)
def test_what_an_encoder_returns_is_checked(output, error, says):
    with pytest.raises(error, match=f"Returning.*{says}"):
        wrap(Returning(output)).scene_embeddings(torch.rand(3, 8000), clips=["a.wav", "b.wav", "c.wav"])


@pytest.mark.parametrize("size", [lambda samples: samples // 1000, lambda samples: 2 + samples % 3])
def test_embeddings_whose_size_depends_on_the_clip_are_refused_in_a_batch_of_unlike_clips(size):
    class Varying(Statistics):
        def scene_embeddings(self, waveform):
            return torch.ones(len(waveform), size(waveform.shape[1]))

    with pytest.raises(UsageError, match=r"Varying returned embeddings of \d+ numbers for [ab]\.wav, \d+ before"):
        wrap(Varying()).scene_embeddings(torch.rand(2, 8000), [8000, 4003], clips=["a.wav", "b.wav"])


def test_arrays_and_half_precision_are_taken():
    for output in (lambda n: np.ones((n, 4)), lambda n: torch.ones(n, 4, dtype=torch.bfloat16)):
        found = wrap(Returning(output)).scene_embeddings(torch.rand(3, 8000))
        assert torch.equal(found, torch.ones(3, 4))


def test_clips_of_different_lengths_are_encoded_one_length_at_a_time_without_lengths(caplog):
    encoder, waveform = wrap(Statistics()), torch.rand(4, 8000)
    for _ in range(2):
        found = encoder.scene_embeddings(waveform, [8000, 500, 4000, 500])
    for row, samples, scene in zip(waveform, (8000, 500, 4000, 500), found, strict=True):
        assert torch.allclose(Statistics().scene_embeddings(row[None, :samples])[0], scene)
    assert caplog.text.count("only clips of one length") == 1


class Frames(Statistics):
    """Frames of 100 samples, and two layers of another number of features."""

    hop_ms = 12.5

    def timestamp_embeddings(self, waveform):
        frames = waveform.unfold(1, 100, 100)
        return frames.mean(2, keepdim=True), (torch.arange(frames.shape[1]) + 0.5).expand(len(frames), -1) * self.hop_ms


class Layers(Frames):
    def hidden_states(self, waveform):
        frames, _ = self.timestamp_embeddings(waveform)
        return [frames, frames.repeat(1, 2, 3)]


@pytest.mark.parametrize("kind", [Frames, Layers])
def test_frames_do_not_depend_on_padding_and_stand_for_layers_where_there_are_none(kind, caplog):
    encoder, waveform, lengths = wrap(kind()), torch.rand(4, 8000), [8000, 500, 4000, 500]
    layers = encoder.hidden_states(waveform, lengths)
    assert len(layers) == (2 if kind is Layers else 1)
    assert torch.equal(layers[0], encoder.timestamp_embeddings(waveform, lengths)[0])
    for row, samples in enumerate(lengths):
        for layer, alone in zip(layers, encoder.hidden_states(waveform[row, :samples]), strict=True):
            assert torch.equal(layer[row, : alone.shape[1]], alone[0])
            assert not layer[row, alone.shape[1] :].any()
    assert not layers[0].requires_grad
    assert not layers[0].is_inference()  # a downstream model keeps it for its gradient
    assert caplog.text.count("only clips of one length") == 1


def test_lengths_are_given_to_whom_takes_them_and_only_where_rows_are_padded():
    given = []

    class Taking(Statistics):
        def scene_embeddings(self, waveform, lengths=None):
            given.append(lengths)
            return super().scene_embeddings(waveform)

    encoder = wrap(Taking())
    assert encoder.scene_embedding_size == 2
    encoder.scene_embeddings(torch.rand(2, 8000), [8000, 8000])
    encoder.scene_embeddings(torch.rand(2, 8000), [8000, 500])
    assert given == [None, None, [8000, 500]]


def test_lengths_are_always_given_to_whom_needs_them():
    given = []

    class Needing(Frames):
        def scene_embeddings(self, waveform, lengths):
            given.append(lengths)
            return super().scene_embeddings(waveform)

        def timestamp_embeddings(self, waveform, *, lengths):
            given.append(lengths)
            return super().timestamp_embeddings(waveform)

    encoder = wrap(Needing())
    assert encoder.scene_embedding_size == 2
    encoder.scene_embeddings(torch.rand(2, 800))
    encoder.timestamp_embeddings(torch.rand(2, 800), [800, 500])
    assert encoder.timestamp_embedding_size == 1
    assert given == [[8000], [800, 800], [800, 500], [80000]]


def test_a_wrapped_encoder_fulfils_the_contract_and_names_what_is_absent():
    family, other = wrap(small_encoder()), wrap(Statistics())
    assert isinstance(family, AudioEncoder)
    assert wrap(family) is family
    waveform, lengths = torch.rand(2, 16000), [16000, 9000]
    embeddings, timestamps = family.timestamp_embeddings(waveform, lengths)
    assert embeddings.shape == (*timestamps.shape, family.timestamp_embedding_size)
    assert torch.equal(family.hidden_states(waveform, lengths)[-1], embeddings)
    assert torch.equal(family.scene_embeddings(waveform), small_encoder().scene_embeddings(waveform))
    for use in (lambda: other.hop_ms, lambda: other.hidden_states(waveform), lambda: other.timestamp_embedding_size):
        with pytest.raises(UsageError, match="Statistics has no"):
            use()


def test_the_digest_tells_weights_class_and_configuration_and_is_computed_once(monkeypatch):
    @dataclass
    class Config:
        layer: int = 3

    class Other(Statistics):
        pass

    def configured(layer):
        encoder = Statistics()
        encoder.config = Config(layer)
        return encoder

    changed = Statistics()
    changed.scale.data[0] = 2
    digests = [wrap(e).digest for e in (Statistics(), Other(), configured(3), configured(4), changed)]
    assert len(set(digests)) == 5
    assert wrap(Statistics()).digest == digests[0]
    assert facts_of(configured(4))["config"] == {"layer": 4}

    computed = []
    monkeypatch.setattr("m2d_bench.encoders.m2d.digest_of", lambda *args: computed.append(1) or digest_of(*args))
    encoder = wrap(small_encoder())
    assert {encoder.digest for _ in range(3)} == {small_encoder().digest}
    assert len(computed) == 2


def test_digests_of_encoders_that_say_theirs_stand():
    assert zoo.load("logmel", device="cpu").digest == "a24ae2a8733cd3ba"
    assert wrap(small_encoder()).digest == small_encoder().digest


def test_the_digest_is_of_the_encoder_as_it_was_wrapped():
    class Counting(Statistics):
        calls = 0

        def scene_embeddings(self, waveform):
            self.calls += 1
            return super().scene_embeddings(waveform)

    expected, encoder = wrap(Counting()).digest, wrap(Counting())
    encoder.scene_embeddings(torch.rand(8000))
    assert encoder.digest == expected


def test_an_encoder_that_is_no_module_says_its_digest():
    class Plain:
        sample_rate, scene_embeddings = 8000, Statistics.scene_embeddings

    with pytest.raises(UsageError, match=r"Plain is neither .* add digest"):
        wrap(Plain()).digest  # noqa: B018


@pytest.mark.parametrize("config", [{"name": "x"}, type("Config", (), {"name": None})])
def test_an_encoder_whose_configuration_has_no_name_is_called_by_its_class(config):
    encoder = Statistics()
    encoder.config = config
    assert wrap(encoder).name == "Statistics"


def test_fp32_is_advised_only_to_whom_it_may_help():
    encoder = Returning(lambda n: torch.full((n, 4), torch.inf))
    encoder.precision = "bf16"
    with pytest.raises(DataError, match=r"infinity for row 0; try --precision fp32\.$"):
        wrap(encoder).scene_embeddings(torch.rand(8000))


@pytest.mark.parametrize("shape", [(4000, 2), (100, 1), (9000, 6)])
def test_samples_by_channels_are_no_batch(shape):
    for embed in (small_encoder().scene_embeddings, small_encoder().hidden_states, wrap(Statistics()).scene_embeddings):
        with pytest.raises(AudioError, match=rf"got shape \[{shape[0]}, {shape[1]}\]: .*waveform\.mean\(1\)"):
            embed(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("change", [lambda batch: batch.to("meta"), lambda batch: batch.to_sparse()])
def test_a_waveform_holds_values_and_is_dense(change):
    for embed in (small_encoder().scene_embeddings, wrap(Statistics()).scene_embeddings):
        with pytest.raises(AudioError, match=r"dense tensor that holds values, got one of (device meta|layout)"):
            embed(change(torch.rand(2, 8000)))


def test_many_short_clips_are_a_batch():
    assert wrap(Statistics()).scene_embeddings(torch.rand(300, 200)).shape == (300, 2)


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ([1.0, 0.5], r"float32 \[1\.0, 0\.5\]"),
        (torch.tensor([799.7, 800.0]), "float32"),
        (np.array([800.0, 400.0]), "float64"),
        (torch.tensor([True, True]), r"bool \[True, True\]"),
        ([[800, 800]], r"int64 \[800, 800\]"),
        (800, r"int64 \[800\]"),
        ([], r"float32 \[\]"),
        ([800, None], "NoneType"),
        (["800", "400"], "got"),
        ([2**70, 1], "got"),
    ],
)
def test_lengths_are_whole_samples(lengths, says):
    for embed in (small_encoder().scene_embeddings, wrap(Statistics()).scene_embeddings):
        with pytest.raises(AudioError, match=rf"lengths must be 2 whole numbers of samples.*{says}"):
            embed(torch.rand(2, 800), lengths)


def test_lengths_of_any_whole_type_are_taken():
    waveform, encoder = torch.rand(2, 8000), wrap(Statistics())
    expected = encoder.scene_embeddings(waveform, [8000, 400])
    for lengths in (
        np.array([8000, 400], dtype=np.int16),
        torch.tensor([8000, 400]).int(),
        torch.tensor([8000, 400]),
        (8000, 400),
    ):
        assert torch.equal(encoder.scene_embeddings(waveform, lengths), expected)


class ReturningFrames(Returning):
    """Returns what it is told as hidden states and as timestamp embeddings."""

    def hidden_states(self, waveform, lengths=None):
        return self.output(len(waveform))

    timestamp_embeddings = hidden_states


@pytest.mark.parametrize(
    ("method", "output", "error", "says"),
    [
        ("hidden_states", lambda n: None, UsageError, "a list of layers; it returned NoneType"),
        ("hidden_states", lambda n: [], UsageError, "a list of layers; it returned list"),
        ("hidden_states", lambda n: [torch.ones(n, 5)], UsageError, r"floats \[2, T, D\].* Tensor .*\[2, 5\]"),
        ("hidden_states", lambda n: [torch.ones(1, 5, 4)], UsageError, r"\[1, 5, 4\] for row 0"),
        ("hidden_states", lambda n: [torch.ones(n, 5, 4) / 0], DataError, "infinity for row 0, row 1"),
        ("timestamp_embeddings", lambda n: torch.ones(n, 5, 4), UsageError, "must return embeddings and timestamps"),
        ("timestamp_embeddings", lambda n: (torch.ones(n, 5, 4), torch.ones(5)), UsageError, r"\[2, 5\].* \[5\]"),
        ("timestamp_embeddings", lambda n: (torch.ones(n, 5, 4), torch.ones(n, 4)), UsageError, r"\[2, 4\] for row 0"),
    ],
)
def test_frames_an_encoder_returns_are_checked(method, output, error, says):
    with pytest.raises(error, match=says):
        getattr(wrap(ReturningFrames(output)), method)(torch.rand(2, 8000))


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (lambda n: np.array([["x"]] * n, dtype=object), "ndarray object"),
        (lambda n: np.ones((n, 4), dtype=complex), "complex128"),
        (lambda n: torch.ones(n, 4).to_sparse(), "Tensor"),
        (lambda n: torch.ones(n, 4, device="meta"), "Tensor"),
        (lambda n: torch.ones(()), r"float32 \[\]"),
        (lambda n: (torch.ones(n, 4), None), "tuple"),
    ],
)
def test_an_embedding_is_a_plain_tensor_or_array(output, says):
    with pytest.raises(UsageError, match=rf"scene_embeddings of Returning must return .*floats \[2, D\].*{says}"):
        wrap(Returning(output)).scene_embeddings(torch.rand(2, 8000))


def test_an_embedding_too_large_for_float32_is_not_finite():
    with pytest.raises(DataError, match="infinity for row 0"):
        wrap(Returning(lambda n: torch.full((n, 4), 1e300, dtype=torch.float64))).scene_embeddings(torch.rand(1, 8000))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("scene_embedding_size", "many", "is 'many'; it must be a whole number above 0"),
        ("scene_embedding_size", 0, "is 0"),
        ("timestamp_embedding_size", 8.5, r"is 8\.5; it must be a whole number"),
        ("hop_ms", float("nan"), "is nan; it must be a number above 0"),
        ("hop_ms", True, "is True"),
    ],
)
def test_a_number_an_encoder_declares_is_checked(name, value, says):
    encoder = Returning(lambda n: torch.ones(n, 4))
    setattr(encoder, name, value)
    with pytest.raises(UsageError, match=f"{name} of Returning {says}"):
        getattr(wrap(encoder), name)
