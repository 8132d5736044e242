"""`m2d-bench check MODEL`: the rules of every encoder and those of the HEAR 2021 common API, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from tabulate import tabulate

from m2d_bench.encoders import zoo
from m2d_bench.encoders.check import check_encoder
from m2d_bench.encoders.findings import Finding, same, tensor, tolerance, tried
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.encoders.protocol import wrap
from m2d_bench.encoders.waveform import noise
from m2d_bench.encoders.zoo import LoadedEncoder
from m2d_bench.hear_api.api import HearModel, get_timestamp_embeddings
from m2d_bench.output import Output
from m2d_bench.progress import track
from m2d_bench.settings import Compute

SAMPLE_RATES = (16000, 22050, 32000, 44100, 48000)
LENGTHS = (0.025, 1.07, 1.98, 4.0)
"""Seconds of noise: the shortest sound, and the lengths of hearvalidator 2021.0.6."""

HOUR = 3600.0
_SMALL = 30_000_000
"""Parameters up to which an hour of audio is tried unasked."""

_WIDEST = 80
"""Characters of a column, after which its text goes on below."""


def check(
    model: str = zoo.DEFAULT,
    /,
    *,
    hop_ms: float | None = None,
    long: bool | None = None,
    device: str = "auto",
    precision: str = "auto",
    trust_remote_code: bool = False,
) -> Output:
    """Check that a model can be evaluated: one line a rule, what is allowed and what was measured.

    HEAR: names the rules of HEAR's common API, for models that give timestamp embeddings. BROKEN ends with exit code 1;
    advice costs no score.

    Args:
        model: Any name of m2d-bench models.
        hop_ms: Milliseconds between HEAR's timestamps; by default the model's own up to 50, finer by shifted passes
            above.
        long: Whether to try ten minutes of audio, and an hour for HEAR; by default where it takes seconds.
        device: auto (a GPU if there is one), cpu, cuda, …
        precision: auto, fp32 or bf16.
        trust_remote_code: Run the code that the repository of an hf: model holds. Read it first.
    """
    compute = Compute(device=device, precision=precision, trust_remote_code=trust_remote_code)  # type: ignore[arg-type]
    encoder = zoo.load(model, compute=compute)
    rules = check_encoder(encoder, long=long)
    rules += [replace(finding, rule=f"HEAR: {finding.rule}") for finding in _hear(encoder, rules, hop_ms, long)]
    rows = [(f.verdict, f.rule, f.allowed, f.measured) for f in rules]
    widths = [None, None, _WIDEST, _WIDEST]
    text = tabulate(rows, headers=("", "rule", "allowed", "measured"), tablefmt="simple", maxcolwidths=widths)
    mended = [f for f in rules if f.kept is False and f.remedy]
    remedies = [
        f"{', '.join(f.rule for f in mended if f.remedy == remedy)}: {remedy}"
        for remedy in dict.fromkeys(f.remedy for f in mended)
    ]
    broken = [f.rule for f in rules if f.verdict == "BROKEN"]
    failures = (f"{model}: BROKEN is {', '.join(broken)}.",) if broken else ()
    return Output("\n".join([text, *([""] if remedies else []), *remedies]), failures)


def _hear(encoder: LoadedEncoder, rules: list[Finding], hop_ms: float | None, long: bool | None) -> list[Finding]:
    """HEAR's rules, of an encoder that gives timestamp embeddings and keeps the other rules."""
    if not wrap(encoder).has_frames:
        return [Finding("timestamps", "timestamp_embeddings, for event tasks", "none", None)]
    if any(finding.verdict == "BROKEN" for finding in rules):
        return [Finding("all rules", "the rules above kept", "not tried", None)]
    if long is None:
        size = sum(parameter.numel() for parameter in encoder.parameters())
        long = size <= _SMALL and isinstance(encoder, M2DEncoder)  # others encode it in one piece
    return findings(HearModel(encoder, hop_ms).eval(), hour=long)


def findings(model: HearModel, *, hour: bool = False) -> list[Finding]:
    """Tries HEAR's rules.

    Args:
        model: What `load_model` returned.
        hour: Whether to try an hour of audio.

    Source: https://hearbenchmark.com/hear-api.html; hearvalidator 2021.0.6.
    """
    rules = list(_attributes(model))
    for seconds in track((*LENGTHS, HOUR) if hour else LENGTHS, "Checking", len(LENGTHS) + hour, "lengths"):
        rules += tried(f"{seconds:g} s: timestamps", _timestamps(model, seconds))
    if not hour:
        rules.append(Finding(f"{HOUR:g} s of audio", "as above", "not tried; --long tries it", None))
    return [*rules, *tried("batch mates", _batch_mates(model))]


def _attributes(model: HearModel) -> Iterator[Finding]:
    rates = f"one of {', '.join(map(str, SAMPLE_RATES))}"
    known = model.sample_rate in SAMPLE_RATES
    remedy = "HEAR's tools resample to no other rate."
    yield Finding("sample_rate", rates, str(model.sample_rate), known, remedy, advice=True)
    size = model.timestamp_embedding_size
    yield Finding("timestamp_embedding_size", "an int above 0", repr(size), isinstance(size, int) and size > 0)


def _timestamps(model: HearModel, seconds: float) -> Iterator[Finding]:
    """The rules of `get_timestamp_embeddings` on noise of one length."""
    rows, end = 1 if seconds == HOUR else 2, 1000 * seconds
    about = f"{seconds:g} s: "
    embeddings, times = get_timestamp_embeddings(noise(rows, int(seconds * model.sample_rate)), model)
    yield tensor(f"{about}timestamp embeddings", embeddings, (rows, times.shape[-1], model.timestamp_embedding_size))
    shape = list(times.shape)
    kept = times.is_floating_point() and shape == list(embeddings.shape[:2]) and shape[-1] > 0
    yield Finding(f"{about}timestamps", f"floats {list(embeddings.shape[:2])}", f"{times.dtype} {shape}", kept)
    if not times.numel():
        return
    first, last = times.min().item(), times.max().item()
    if shape[-1] > 1:
        times = times.double().cpu()
        steps = times.diff()
        hop = steps.mean().item()
        deviation = (steps - hop).abs().max().item()
        yield Finding(f"{about}hop regular", "to 1 ms", f"to {deviation:.3g} ms", deviation < 1)
        remedy = "Onsets are to be found within 100 ms: give finer timestamps, of the M2D family with --hop-ms."
        yield Finding(f"{about}hop for event tasks", "at most 50 ms", f"{hop:g} ms", hop <= 50, remedy, advice=True)
        grid = first + torch.arange(shape[-1], dtype=torch.float64) * model.hop_ms
        drift = (times - grid).abs().max().item()
        yield Finding(f"{about}drift", f"below 1 ms from a grid of {model.hop_ms:g} ms", f"{drift:.3g} ms", drift < 1)
    yield Finding(f"{about}first", f"0 to {model.hop_ms:g} ms", f"{first:g} ms", 0 <= first <= model.hop_ms)
    nearest = max(0.0, end - model.hop_ms - first)  # a frame that would not be full may be left out
    yield Finding(f"{about}last", f"{nearest:.9g} to {end:.9g} ms", f"{last:.9g} ms", nearest <= last <= end)


def _batch_mates(model: HearModel) -> Iterator[Finding]:
    audio = noise(3, int(LENGTHS[1] * model.sample_rate))
    together, alone = (get_timestamp_embeddings(clips, model)[0] for clips in (audio, audio[:1]))
    rule = "timestamp embeddings whatever the batch"
    yield same(rule, together[:1], alone, tolerance(wrap(model.encoder), together.dtype))
