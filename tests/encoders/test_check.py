"""The certificate of an encoder: each planted fault is found by its rule, and encoders without a fault have none."""

import copy
import math
import re

import pytest
import torch
from torch.nn.functional import dropout, pad

from m2d_bench.encoders import zoo
from m2d_bench.encoders.check import LENGTHS, check_encoder
from m2d_bench.errors import AudioError
from tests.conftest import small_encoder

FRAME = 160


class Energy(torch.nn.Module):
    """Log energies of eight filters in frames of 20 ms; it takes lengths."""

    sample_rate, hop_ms = 8000, 20.0
    scene_embedding_size = timestamp_embedding_size = 8

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.filters = torch.nn.Conv1d(1, 8, FRAME, stride=FRAME)
        self.eval().requires_grad_(False)

    def timestamp_embeddings(self, waveform, lengths=None):
        whole = pad(waveform, (0, -waveform.shape[1] % FRAME))
        frames = self.filters(whole[:, None]).square().clamp(min=1e-6).log().transpose(1, 2)
        return frames, ((torch.arange(frames.shape[1]) + 0.5) * 20).expand(len(frames), -1)

    def scene_embeddings(self, waveform, lengths=None):
        frames, _ = Energy.timestamp_embeddings(self, waveform)
        counts = -(-torch.tensor(lengths or [waveform.shape[1]] * len(waveform)) // FRAME)[:, None]
        return (frames * (torch.arange(frames.shape[1]) < counts)[..., None]).sum(1) / counts


class Spoilt(Energy):
    """Takes no lengths; its answers pass through functions of them and the waveform.

    Args:
        scenes: Of scene embeddings.
        frames: Of timestamp embeddings and timestamps.
        attributes: What it is said to have.
    """

    def __init__(self, scenes=None, frames=None, **attributes):
        super().__init__()
        self.scenes, self.frames = scenes or (lambda e, w: e), frames or (lambda e, t, w: (e, t))
        for name, value in attributes.items():
            setattr(self, name, value)

    def scene_embeddings(self, waveform):
        return self.scenes(super().scene_embeddings(waveform), waveform)

    def timestamp_embeddings(self, waveform):
        return self.frames(*super().timestamp_embeddings(waveform), waveform)


class HearsPadding(Energy):
    def scene_embeddings(self, waveform, lengths=None):
        return super().scene_embeddings(waveform)


class HearsPaddingInFrames(Energy):
    def timestamp_embeddings(self, waveform, lengths=None):
        frames, times = super().timestamp_embeddings(waveform)
        return frames - frames.mean(1, keepdim=True), times


class Keeping(Energy):
    """Keeps something when it is called that changes no embedding.

    Args:
        keep: Keeps it in the encoder that it is given.
    """

    def __init__(self, keep):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.keep, self.cache = keep, {}

    def scene_embeddings(self, waveform, lengths=None):
        self.keep(self, waveform)
        return super().scene_embeddings(waveform, lengths)


class RoughInBf16(Energy):
    def __init__(self):
        super().__init__()
        self.precision = "fp32"

    def scene_embeddings(self, waveform, lengths=None):
        return super().scene_embeddings(waveform, lengths).roll(1 if self.precision == "bf16" else 0, dims=1)


class KeepsState(Energy):
    last = 0

    def scene_embeddings(self, waveform, lengths=None):
        self.last = 0.5 * self.last + super().scene_embeddings(waveform, lengths).mean().item()
        return super().scene_embeddings(waveform, lengths) + self.last


class LoudestSoFar(Energy):
    peak = 0.0

    def scene_embeddings(self, waveform, lengths=None):
        self.peak = max(self.peak, waveform.abs().max().item())
        return super().scene_embeddings(waveform, lengths) / self.peak


class Half(torch.nn.Module):
    """Two layers in a type of fewer bits, which rounds otherwise for another batch size.

    Args:
        dtype: Of the weights.
        pooled: What becomes of the embeddings.
    """

    sample_rate = 8000

    def __init__(self, dtype, pooled=lambda e: e, weights=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(FRAME, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))
        self.to(weights or dtype).eval().requires_grad_(False)
        self.dtype, self.pooled = dtype, pooled

    def scene_embeddings(self, waveform):
        frames = pad(waveform, (0, -waveform.shape[1] % FRAME)).unfold(1, FRAME, FRAME).to(self.dtype)
        layers = copy.deepcopy(self.layers).to(self.dtype)
        rounding = 1 + torch.finfo(self.dtype).eps * (len(waveform) > 1)
        return self.pooled(layers(frames).mean(1) * rounding)


class NoModule:
    sample_rate = 8000

    def scene_embeddings(self, waveform):
        return waveform.square().mean(1, keepdim=True)


def refuse(error, shorter=0.0, longer=60.5):
    """Of embeddings of clips beyond these lengths in seconds, the error."""

    def scenes(embeddings, waveform):
        if not shorter <= waveform.shape[1] / 8000 <= longer:
            raise error
        return embeddings

    return scenes


def crop_at_random(embeddings, waveform):
    if waveform.shape[1] <= 80000:
        return embeddings
    start = int(torch.randint(waveform.shape[1] - 80000, ()))
    return Energy().scene_embeddings(waveform[:, start : start + 80000])


def spoil_waveform(embeddings, waveform):
    waveform *= 0.5
    return embeddings


def hoard(embeddings, waveform):
    return embeddings + (0 * torch.ones(2**25).sum() if waveform.shape[1] > 240000 else 0)


def swapped(embeddings, times, waveform):
    order = torch.arange(times.shape[1])
    order[10:12] = order[10:12].flip(0)
    return embeddings, times[:, order]


BY_HAND = "scene_embeddings: called by hand"
SCENES = {f"scene_embeddings: {name}" for name in ("the same again", "batch mates", "padding")}
FAULTS = {
    "one row": (Spoilt(lambda e, w: e[:1]), {"scene_embeddings"}),
    "no batch": (Spoilt(lambda e, w: e[0]), {"scene_embeddings"}),
    "size declared": (Spoilt(scene_embedding_size=4), {"scene_embeddings"}),
    "size of frames declared": (Spoilt(timestamp_embedding_size=4), {"timestamp_embeddings"}),
    "frames without timestamps": (Spoilt(frames=lambda e, t, w: e), {"timestamp_embeddings"}),
    "layers": (Spoilt(hidden_states=lambda w: [w]), {"hidden_states"}),
    "NaN": (Spoilt(lambda e, w: e / 0 * 0), {"scene_embeddings"}),
    "training": (Spoilt(training=True), {"mode"}),
    "no digest": (NoModule(), {"digest"}),
    "dropout": (Spoilt(lambda e, w: dropout(e)), {"scene_embeddings: the same again"}),
    "half precision and batch mean": (
        Half(torch.float16, lambda e: (e - e.mean(0)).float()),
        {"scene_embeddings: batch mates"},
    ),
    "D grows with the length": (
        Spoilt(lambda e, w: w.unfold(1, FRAME, FRAME).mean(2)[:, :50], scene_embedding_size=50),
        {"25 ms", "100 ms"},
    ),
    "D grows without end": (
        Spoilt(lambda e, w: w.unfold(1, FRAME, FRAME).mean(2), scene_embedding_size=50),
        {"scene_embeddings: the same again", "25 ms", "100 ms", "10 s", "1 min"},
    ),
    "frames' D grows with the length": (
        Spoilt(frames=lambda e, t, w: (e[..., : w.shape[1] // 200], t)),
        {"25 ms", "100 ms"},
    ),
    "squeezed": (Spoilt(lambda e, w: e if w.shape[1] > 80 * FRAME // 10 else e.squeeze()), {"25 ms", "100 ms"}),
    "random crops": (Spoilt(crop_at_random), {"scene_embeddings: the same again"}),
    "batch mean": (Spoilt(lambda e, w: e - e.mean(0)), {"scene_embeddings: batch mates"}),
    "batch peak": (Spoilt(lambda e, w: e / (1 + w.abs().max())), {"scene_embeddings: batch mates"}),
    "frames' batch mean": (Spoilt(frames=lambda e, t, w: (e - e.mean(0), t)), {"timestamp_embeddings: batch mates"}),
    "padding": (HearsPadding(), {"scene_embeddings: padding"}),
    "frames' padding": (HearsPaddingInFrames(), {"timestamp_embeddings: padding"}),
    "in place": (Spoilt(spoil_waveform), {"waveform"}),
    "divides by the peak": (Spoilt(lambda e, w: e / w.abs().amax(1, keepdim=True)), {"silence"}),
    "divides by the deviation": (Spoilt(lambda e, w: e / w.std(1, keepdim=True)), {"silence", "constant offset"}),
    "divides by the median": (
        Spoilt(lambda e, w: e / w.abs().median(1, keepdim=True).values),
        {"silence", "one impulse"},
    ),
    "headroom": (Spoilt(lambda e, w: e + (1.5 - w.amax(1, keepdim=True)).log()), {"twice full scale"}),
    "crash below a frame": (Spoilt(refuse(IndexError("frame"), shorter=0.05)), {"25 ms"}),
    "crash below a second": (Spoilt(refuse(RuntimeError("kernel"), shorter=0.5)), {"25 ms", "100 ms"}),
    "positions for 30 s": (Spoilt(refuse(IndexError("position"), longer=30)), {"1 min"}),
    "milliseconds": (Spoilt(frames=lambda e, t, w: (e, t / 1000)), {"timestamps: hop_ms", "timestamps: last"}),
    "left edges of later frames": (
        Spoilt(frames=lambda e, t, w: (e, t + 40)),
        {"timestamps: first", "timestamps: last"},
    ),
    "order": (Spoilt(frames=swapped), {"timestamps: order"}),
    "hop declared": (Spoilt(hop_ms=19.0), {"timestamps: hop_ms"}),
    "rate declared": (Spoilt(frames=lambda e, t, w: (e, 2 * t), hop_ms=40.0), {"timestamps: last"}),
}
ADVICE = {
    "counts calls": (Keeping(lambda e, w: e.calls.add_(1)), {"digest"}),
    "attribute of the first call": (Keeping(lambda e, w: setattr(e, "cache", torch.ones(8))), {"digest"}),
    "module of the first call": (Keeping(lambda e, w: e.add_module("part", torch.nn.Identity())), {"digest"}),
    "buffer of the first call": (Keeping(lambda e, w: e.register_buffer("window", torch.ones(8))), {"digest"}),
    "a mask for each length": (Keeping(lambda e, w: e.cache.update({w.shape[1]: torch.ones(8)})), {"digest"}),
    "half precision": (Half(torch.float16), {BY_HAND}),
    "bfloat16": (Half(torch.bfloat16), {BY_HAND}),
    "half precision of float32 weights": (Half(torch.float16, weights=torch.float32), {BY_HAND}),
    "rough under autocast": (Spoilt(lambda e, w: e.roll(int(torch.is_autocast_enabled("cpu")), dims=1)), {"precision"}),
    "fails under autocast": (Spoilt(lambda e, w: e / (not torch.is_autocast_enabled("cpu"))), {"precision"}),
    "float64": (Spoilt(lambda e, w: e.double()), {BY_HAND}),
    "gradient": (Energy().requires_grad_(True), {BY_HAND, BY_HAND.replace("scene", "timestamp")}),
    "refuses what is too short": (Spoilt(refuse(AudioError("too short"), shorter=0.05)), {"25 ms"}),
    "bf16": (RoughInBf16(), {"precision"}),
    "memory": (Spoilt(hoard), {"memory a minute"}),
}


def not_kept(encoder):
    return {(f.rule, f.verdict) for f in check_encoder(encoder, long=False) if f.kept is False}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_rule(fault):
    encoder, rules = FAULTS[fault]
    assert not_kept(encoder) == {(rule, "BROKEN") for rule in rules}


@pytest.mark.parametrize("fault", ADVICE)
def test_what_makes_no_score_wrong_is_advice(fault, monkeypatch):
    monkeypatch.setattr("m2d_bench.encoders.check.LARGE_MEMORY", 64 * 2**20)
    encoder, rules = ADVICE[fault]
    assert not_kept(encoder) == {(rule, "advice") for rule in rules}


@pytest.mark.parametrize("kind", [KeepsState, LoudestSoFar])
def test_what_is_kept_from_call_to_call_is_broken_where_it_changes_embeddings(kind):
    found = {f.rule: f for f in check_encoder(kind(), long=False) if f.kept is False}
    again = found.pop("scene_embeddings: the same again")
    assert (again.verdict, "keep nothing from call to call" in again.remedy) == ("BROKEN", True)
    assert {rule: f.verdict for rule, f in found.items()} == {"digest": "advice"}


@pytest.mark.parametrize(
    "load", [Energy, Spoilt, small_encoder, lambda: small_encoder((80, 2), 200), lambda: zoo.load("logmel")]
)
def test_an_encoder_without_a_fault_keeps_every_rule(load):
    found = check_encoder(load(), long=False)
    assert [f for f in found if f.kept is False] == []
    assert {f.rule for f in found} > {*LENGTHS, "silence", "waveform", "digest", "timestamps: last", *SCENES}


def test_what_is_no_encoder_is_told_what_it_lacks():
    (finding,) = check_encoder(torch.nn.Linear(2, 2))
    assert finding.verdict == "BROKEN"
    assert "Add an attribute sample_rate" in finding.measured


def test_a_finding_has_a_number_and_says_what_to_do():
    (finding,) = [f for f in check_encoder(HearsPadding(), long=False) if f.kept is False]
    assert "cosine 0." in finding.measured
    assert "Pass lengths on to the attention mask" in finding.remedy


@pytest.mark.parametrize(
    ("fault", "rule", "remedy"),
    [
        ("one row", "scene_embeddings", "a row a clip"),
        ("no batch", "scene_embeddings", "keep the axis of clips"),
        ("NaN", "scene_embeddings", "clamp"),
        ("layers", "hidden_states", r"layers \[B, T, D\]"),
        ("frames without timestamps", "timestamp_embeddings", "timestamps"),
        ("D grows with the length", "25 ms", "D must not depend on the length"),
        ("D grows without end", "scene_embeddings: the same again", "D must not depend on the length"),
        ("squeezed", "25 ms", "No squeeze"),
        ("dropout", "scene_embeddings: the same again", "dropout"),
    ],
)
def test_the_remedy_is_the_faults(fault, rule, remedy):
    (finding,) = [f for f in check_encoder(FAULTS[fault][0], long=False) if f.rule == rule]
    assert re.search(remedy, finding.remedy)


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (lambda e: e.mean(1), "keep the axis of clips"),
        (lambda e: e[None], "keep the axis of clips"),
        (lambda e: e.long(), "as floats"),
        (lambda e: e > 0, "as floats"),
        (lambda e: e.numpy().astype(object), "as floats"),
        (lambda e: (e, e), "tensor in the tuple"),
        (lambda e: {"embeddings": e}, "tensor in the dict"),
        (lambda e: None, "tensor in the NoneType"),
    ],
)
def test_an_answer_of_another_form_gets_a_remedy(answer, remedy):
    finding = check_encoder(Spoilt(lambda e, w: answer(e)))[0]
    assert (finding.verdict, remedy in finding.remedy) == ("BROKEN", True), finding


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (lambda e, t: (e, t.long()), "as floats"),
        (lambda e, t: (e, t[0]), "keep the axis of clips"),
        (lambda e, t: (e, t, t), "timestamps"),
        (lambda e, t: (e[:1], t), "a row a clip"),
        (lambda e, t: (e, t.tolist()), "tensor in the list"),
    ],
)
def test_frames_of_another_form_get_a_remedy(answer, remedy):
    finding = check_encoder(Spoilt(frames=lambda e, t, w: answer(e, t)))[1]
    assert (finding.verdict, remedy in finding.remedy) == ("BROKEN", True), finding


def test_what_cannot_be_compared_is_not_tried(caplog):
    found = {f.rule: f for f in check_encoder(FAULTS["dropout"][0], long=False)}
    assert [found[rule].verdict for rule in sorted(SCENES)] == ["–", "–", "BROKEN"]
    assert "not comparable" in found["scene_embeddings: batch mates"].measured
    assert "one length at a time" in found["timestamp_embeddings: padding"].measured
    assert "takes no lengths" not in caplog.text


@pytest.mark.parametrize(
    ("patience", "free", "tried"), [(math.inf, math.inf, True), (0.0, math.inf, False), (math.inf, -1, False)]
)
def test_ten_minutes_are_tried_where_a_minute_takes_little_and_when_asked_for(patience, free, tried, monkeypatch):
    def longest(**settings):
        (finding,) = [f for f in check_encoder(Energy(), **settings) if f.rule == "10 min"]
        return finding

    monkeypatch.setattr("m2d_bench.encoders.check._PATIENCE", patience)
    monkeypatch.setattr("m2d_bench.encoders.check.free_memory", lambda device: free)
    unasked = longest()
    assert unasked.kept == (tried or None)
    assert ("--long tries it" in unasked.measured) != tried
    assert longest(long=True).kept
