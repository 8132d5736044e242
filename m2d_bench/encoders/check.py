"""Whether anybody's encoder keeps the contract: a certificate, one finding a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from m2d_bench.encoders.cost import Cost, free_memory, measure, mebibytes
from m2d_bench.encoders.findings import POOL, Finding, distance, mended, said, same, tensor, tolerance, tried
from m2d_bench.encoders.precision import TOLERANCE
from m2d_bench.encoders.protocol import AnswerError, Encoder, SceneEncoder, takes_lengths, wrap
from m2d_bench.encoders.waveform import noise
from m2d_bench.errors import AudioError, DataError, UsageError
from m2d_bench.progress import track

LENGTHS = {"25 ms": 0.025, "100 ms": 0.1, "1 s": 1.0, "10 s": 10.0, "1 min": 60.0, "10 min": 600.0}
"""Seconds of the clips that are tried; the last one where a minute took little, or when asked for."""

_MATES, _SHORT, _LONG = 2.74, 1.0, 5.0
"""Seconds of clips in batches: of one length, and of two."""

_CROPPED = 11.0
"""Seconds of a clip longer than the 10 s to which many encoders crop."""

LARGE_MEMORY = 2**30
"""Bytes for a minute above which it is said how to lower them."""

_LEAST_COSINE = 0.99
"""Between embeddings in bf16 and in fp32."""
_ALIKE = f"cosine of bf16 and fp32 at least {_LEAST_COSINE:g}"

_PATIENCE = 30.0
"""Seconds that ten minutes of audio may take unasked."""

_USES = {
    "scene_embeddings": "[B, D]",
    "timestamp_embeddings": "[B, T, D], for event tasks and teachers",
    "hidden_states": "layers [B, T, D], for a choice of layer",
}
_LEVELS: dict[str, Callable[[Tensor], Tensor]] = {
    "silence": torch.zeros_like,
    "full scale": torch.sign,
    "twice full scale": lambda clip: 2 * clip.sign(),
    "constant offset": partial(torch.full_like, fill_value=0.5),
    "one impulse": lambda clip: torch.zeros_like(clip).index_fill(1, torch.tensor([clip.shape[1] // 2]), 1.0),
}
_AGAIN, _COMPARED = "the same again", ("batch mates", "padding", "precision")
"""The rule without which others compare nothing."""
_COARSE = "One that computes below float32 inside says so: precision = 'bf16'."
_FINITE = "Keep logarithms, roots and divisions away from 0, as with x.clamp(min=1e-6)."
_WINDOWS = "Encode long clips in windows and average these, weighted by their durations."


def check_encoder(encoder: SceneEncoder, *, long: bool | None = None) -> list[Finding]:
    """Tries the rules that every encoder must keep to be evaluated.

    Args:
        encoder: Anybody's, as `linear` takes it.
        long: Whether to try ten minutes of audio; by default where a minute took little time and memory.
    """
    try:
        wrapped = wrap(encoder)
    except UsageError as error:
        return [Finding("encoder", "sample_rate and scene_embeddings", str(error), False)]
    untouched = Encoder(wrapped.encoder)
    with suppress(Exception):  # which the digest's rule tells
        _ = untouched.digest  # kept, as it is before the first call
    shapes = [finding for method in _USES for finding in tried(method, _shape(wrapped, method))]
    if any(finding.kept is False for finding in shapes):
        return [*shapes, Finding("all other rules", "the right shapes", "not tried", None)]
    rules = _rules(wrapped, untouched, long)
    found = shapes
    for rule, findings in track(rules.items(), "Checking", len(rules), "rules"):
        method, _, name = rule.rpartition(": ")
        again = f"{method or 'scene_embeddings'}: {_AGAIN}"
        if name in _COMPARED and any(f.rule == again and not f.kept for f in found):
            found.append(Finding(rule, "the same embeddings", f"not comparable while {_AGAIN} is BROKEN", None))
        else:
            found += tried(rule, findings, _FINITE if rule in _LEVELS else "")
    return found


def _rules(encoder: Encoder, untouched: Encoder, long: bool | None) -> dict[str, Iterator[Finding]]:
    """The rules by name, of an encoder that gives embeddings."""
    return {
        "mode": _mode(encoder),
        "digest": _digest(encoder, untouched),
        **{
            f"{method}: {name}": rule(encoder, method, f"{method}: {name}")
            for method in _methods(encoder)
            for name, rule in _OF_A_METHOD.items()
        },
        "waveform": _waveform(encoder),
        **{name: _level(encoder, name) for name in _LEVELS},
        "lengths": _lengths(encoder, long),
        "timestamps": _timestamps(encoder),
        "precision": _precision(encoder),
    }


def _methods(encoder: Encoder) -> list[str]:
    return ["scene_embeddings", *(["timestamp_embeddings"] if encoder.has_frames else [])]


def _noise(encoder: Encoder, seconds: float, rows: int = 1) -> Tensor:
    return noise(rows, round(seconds * encoder.sample_rate))


def _embed(encoder: Encoder, method: str, waveform: Tensor, lengths: list[int] | None = None) -> Tensor:
    """Embeddings of a copy of the waveform, which the encoder may spoil."""
    return _embeddings(method, getattr(encoder, method)(waveform.clone(), lengths)).cpu()


def _embeddings(method: str, answer: Any) -> Tensor:
    """The embeddings in what a method returned, some with timestamps beside them."""
    return answer[0] if method == "timestamp_embeddings" else answer  # type: ignore[no-any-return]


def _by_hand(encoder: Encoder, method: str, rows: int = 1) -> Any:
    """What a method of the encoder itself returns for noise, as other tools call it."""
    return getattr(encoder.encoder, method)(_noise(encoder, 1.0, rows).to(_device(encoder)))


def _tolerance(encoder: Encoder, method: str) -> float:
    return tolerance(encoder, torch.as_tensor(_embeddings(method, _by_hand(encoder, method))).dtype)


def _device(encoder: Encoder) -> torch.device:
    return next(chain(encoder.parameters(), encoder.buffers()), torch.empty(0)).device


def _shape(encoder: Encoder, method: str) -> Iterator[Finding]:
    if not hasattr(encoder.encoder, method):
        yield Finding(method, _USES[method], "none", None)
        return
    try:
        answer = getattr(encoder, method)(_noise(encoder, 1.0, rows=2))
    except (AnswerError, DataError) as error:
        remedy = _FINITE if isinstance(error, DataError) else mended(method, _by_hand(encoder, method, rows=2), rows=2)
        yield Finding(method, _USES[method], said(error), False, remedy)
        return
    if method == "hidden_states":
        yield Finding(method, _USES[method], f"{len(answer)} of {list(answer[-1].shape)}", True)
        return
    size = getattr(encoder, method.replace("embeddings", "embedding_size"))
    shape = list(_embeddings(method, answer).shape)
    expected = [*shape[:-1], size]
    yield Finding(method, f"{expected}", f"{shape}", shape == expected, f"Declare {shape[-1]}, or give {size} numbers.")


def _mode(encoder: Encoder) -> Iterator[Finding]:
    training = getattr(encoder.encoder, "training", False)
    yield Finding("mode", "evaluation", "training" if training else "evaluation", not training, "Call .eval().")


def _digest(encoder: Encoder, untouched: Encoder) -> Iterator[Finding]:
    """Whether encoding leaves the digest; whether it leaves embeddings, "the same again" finds."""
    for method in _methods(encoder):
        _embed(encoder, method, _noise(encoder, 1.0))
    before, after = untouched.digest, Encoder(encoder.encoder).digest
    remedy = (
        "Used again, it counts as another encoder: its embeddings are computed anew, its results stand under two "
        "names. Make in __init__ what is kept, as a setting, not from the audio; or add digest, a str that stays."
    )
    yield Finding("digest", f"{before} after encoding too", after, before == after, remedy, advice=True)


def _again(encoder: Encoder, method: str, rule: str) -> Iterator[Finding]:
    """A clip twice, the second time after a louder one and with another random seed."""
    clip, device = _noise(encoder, _CROPPED), _device(encoder)
    first = _embed(encoder, method, clip)
    _embed(encoder, method, _noise(encoder, 1.0).sign())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(1)
        second = _embed(encoder, method, clip)
    remedy = (
        "Turn off dropout, noise and random crops where self.training is False, and keep nothing from call to call "
        "(counters, caches, running statistics)."
    )
    yield same(rule, second, first, 0.0, remedy)


def _mates(encoder: Encoder, method: str, rule: str) -> Iterator[Finding]:
    """Loud and quiet clips together and alone."""
    clips = _noise(encoder, _MATES, rows=3) * torch.tensor([[1.0], [0.1], [0.01]])
    together = _embed(encoder, method, clips)
    alone = torch.cat([_embed(encoder, method, clip[None]) for clip in clips])
    remedy = "Normalise each clip by itself, with no statistics of the batch; call .eval()."
    yield same(rule, together, alone, _tolerance(encoder, method), f"{remedy} {_COARSE}")


def _padding(encoder: Encoder, method: str, rule: str) -> Iterator[Finding]:
    """A short clip beside a long one, zero-padded, and alone."""
    if not takes_lengths(getattr(encoder.encoder, method)):
        yield Finding(rule, "padding changes nothing", "takes no lengths: one length at a time", None)
        return
    clips, short = _noise(encoder, _LONG, rows=2), round(_SHORT * encoder.sample_rate)
    clips[0, short:] = 0
    alone = _embed(encoder, method, clips[:1, :short])
    together = _embed(encoder, method, clips, [short, clips.shape[1]])[:1]
    if method == "timestamp_embeddings":
        together = together[:, : alone.shape[1]]
    remedy = (
        "Pass lengths on to the attention mask and leave padding out of means and norms; or take no lengths: clips "
        f"then go in one length at a time. {_COARSE}"
    )
    yield same(rule, together, alone, _tolerance(encoder, method), remedy)


def _plain(encoder: Encoder, method: str, rule: str) -> Iterator[Finding]:
    """What tools get that call the encoder by hand; m2d-bench itself converts and turns gradients off."""
    embeddings = _embeddings(method, _by_hand(encoder, method))
    if isinstance(embeddings, Tensor):
        remedy = "Other tools may fail: return embeddings.detach().float(), or call .requires_grad_(False)."
        yield tensor(rule, embeddings, embeddings.shape, remedy, advice=True)


_OF_A_METHOD: dict[str, Callable[[Encoder, str, str], Iterator[Finding]]] = {
    _AGAIN: _again,
    "batch mates": _mates,
    "padding": _padding,
    "called by hand": _plain,
}


def _waveform(encoder: Encoder) -> Iterator[Finding]:
    before = _noise(encoder, 1.0)
    after = before.clone()
    for method in _methods(encoder):
        getattr(encoder, method)(after)
    change = (after - before).abs().max().item()
    yield Finding("waveform", "left as it is", f"changed by {change:g}", change == 0, "Begin with waveform.clone().")


def _level(encoder: Encoder, name: str) -> Iterator[Finding]:
    clip = _LEVELS[name](_noise(encoder, 1.0))
    largest = max(_embed(encoder, method, clip).abs().max().item() for method in _methods(encoder))
    yield Finding(name, "finite", f"largest value {largest:.3g}", True)


def _lengths(encoder: Encoder, long: bool | None) -> Iterator[Finding]:
    """Clips of every length, and the memory of a minute."""
    *usual, longest = LENGTHS
    costs: list[Cost | None] = []
    for length in usual:
        finding, cost = _length(encoder, length)
        costs.append(cost)
        yield finding
    *_, shorter, minute = costs
    memory = minute.memory if minute else None
    allowed, kept = f"at most {mebibytes(LARGE_MEMORY)}", None if memory is None else memory <= LARGE_MEMORY
    remedy = f"{_WINDOWS} Else lower --batch-size for long clips."
    yield Finding("memory a minute", allowed, mebibytes(memory), kept, remedy, advice=True)
    if long or (long is None and shorter and minute and _is_affordable(shorter, minute, _device(encoder))):
        yield _length(encoder, longest)[0]
    else:
        reason = f"a minute took {minute}" if minute else "a minute failed"
        yield Finding(longest, "embeddings", f"not tried, {reason}; --long tries it", None)


def _length(encoder: Encoder, length: str) -> tuple[Finding, Cost | None]:
    """Whether clips of this length are encoded, and what it took."""
    clip, short = _noise(encoder, LENGTHS[length]), LENGTHS[length] < 1
    try:
        cost = measure(lambda: [_sized(encoder, method, clip) for method in _methods(encoder)], _device(encoder))
    except AnswerError as error:
        return Finding(length, "embeddings", said(error), False, POOL), None
    except Exception as error:  # of anybody's code
        refused = isinstance(error, AudioError | UsageError) and error.__cause__ is None
        remedy = "Zero-pad short clips inside the encoder, as with torch.nn.functional.pad." if short else _WINDOWS
        return Finding(length, "embeddings", said(error), False, remedy, advice=short and refused), None
    return Finding(length, "embeddings", str(cost), True), cost


def _sized(encoder: Encoder, method: str, clip: Tensor) -> int:
    """Encodes a clip and gives the embeddings' size; an AnswerError if it is not that of other clips."""
    found = _embed(encoder, method, clip).shape[-1]
    if found != (size := getattr(encoder, method.replace("embeddings", "embedding_size"))):
        raise AnswerError(f"{method} returned embeddings of {found} numbers, {size} for other clips.")
    return found


def _is_affordable(shorter: Cost, minute: Cost, device: torch.device) -> bool:
    """Whether ten minutes are: time grows on as from 10 s to a minute, memory with the square of the length."""
    growth = min((minute.seconds / shorter.seconds) ** (math.log(10) / math.log(6)), 100)
    return growth * minute.seconds <= _PATIENCE and 100 * (minute.memory or 0) <= free_memory(device)


def _timestamps(encoder: Encoder) -> Iterator[Finding]:
    """Whether the time axis is the audio's: a wrong sample rate or hop shows here."""
    if not encoder.has_frames:
        return
    end, hop = 10_000.0, encoder.hop_ms
    times = encoder.timestamp_embeddings(_noise(encoder, end / 1000))[1][0].cpu().double()
    first, last = times[0].item(), times[-1].item()
    remedy = "A timestamp is the centre of its frame in milliseconds from the start."
    if len(times) > 1:
        steps = times.diff()
        shortest, step = steps.min().item(), steps.median().item()
        yield Finding("timestamps: order", "increasing", f"steps from {shortest:g} ms", shortest > 0, remedy)
        kept = abs(step - hop) <= 0.01 * hop
        yield Finding("timestamps: hop_ms", f"{hop:g} ms to 1%", f"{step:g} ms", kept, "Correct hop_ms or timestamps.")
    yield Finding("timestamps: first", f"0 to {hop:g} ms", f"{first:g} ms", 0 <= first <= hop, remedy)
    earliest, latest = max(0.0, end - hop - first), end + hop / 2  # the last frame may be left out, or padded
    remedy = f"The network may not take {encoder.sample_rate} Hz, or its frames may not last {hop:g} ms."
    allowed = f"{earliest:g} to {latest:g} ms in {end:g} ms of {encoder.sample_rate} Hz"
    yield Finding("timestamps: last", allowed, f"{last:g} ms", earliest <= last <= latest, remedy)


def _precision(encoder: Encoder) -> Iterator[Finding]:
    module: Any = encoder.encoder
    clip, before = _noise(encoder, 1.0), getattr(module, "__dict__", {}).get("precision")
    if before not in TOLERANCE:
        yield _autocast(encoder, clip)
        return
    scenes = {}
    try:
        for precision in TOLERANCE:
            module.precision = precision
            scenes[precision] = encoder.scene_embeddings(clip)
    finally:
        module.precision = before
    difference, cosine = distance(scenes["bf16"], scenes["fp32"])
    measured = f"{cosine:.4f}, difference {difference:.2g}; {before} in force"
    yield Finding("precision", _ALIKE, measured, cosine >= _LEAST_COSINE, "Pass --precision fp32.", advice=True)


def _autocast(encoder: Encoder, clip: Tensor) -> Finding:
    """Whether autocast to bf16 leaves an encoder as it is that keeps its own precision."""
    if not isinstance(encoder.encoder, nn.Module):
        reason = "its own, which --precision does not change; as a torch.nn.Module it is tried under autocast"
        return Finding("precision", _ALIKE, reason, None)
    remedy = "It keeps its own precision, whatever --precision says; call it under no torch.autocast."
    try:
        with torch.autocast(_device(encoder).type, dtype=torch.bfloat16):
            rounded = encoder.scene_embeddings(clip)
    except Exception as error:  # of anybody's code
        return Finding("precision", _ALIKE, f"under autocast {said(error)}", False, remedy, advice=True)
    difference, cosine = distance(rounded, encoder.scene_embeddings(clip))
    measured = f"{cosine:.4f}, difference {difference:.2g} under autocast; its own in force"
    return Finding("precision", _ALIKE, measured, cosine >= _LEAST_COSINE, remedy, advice=True)
