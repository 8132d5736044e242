"""Synthetic tasks: what a generator yields, and the room, noise, microphone and level that all of them share.

A generator is a function `() -> Iterator[Clip]`, named in `Task.generator`. It yields the task's clips in a fixed
order, the same to the byte in every process, and writes nothing: its caller stores the clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from m2d_bench.errors import DataError

SAMPLE_RATE = 32000
FADE_SECONDS = 0.01
LOWEST = 31.25  # Hz: below it the microphone falls off; octaves are counted from here


@dataclass(frozen=True)
class Clip:
    """One clip of a synthetic task.

    Args:
        waveform: float32 [S] in [-1, 1] at `SAMPLE_RATE`, S = the task's clip_seconds × SAMPLE_RATE.
        label: Name of the class.
        fold: Test fold the clip belongs to, from 0.
    """

    waveform: np.ndarray
    label: str
    fold: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """How a dry sound is recorded; each range is drawn from uniformly, once a clip.

    Args:
        seconds: Length of the clip.
        snr: Mean power of the sound over that of the background noise, in dB.
        reverberation: Time in which the room decays by 60 dB, in seconds.
        wet: Effective amplitude of the reverberation over that of the direct sound.
        channel: Standard deviation of the microphone's response from octave to octave, in dB.
        level: Peak of the clip, as an amplitude.
    """

    seconds: float
    snr: tuple[float, float]
    reverberation: tuple[float, float] = (0.1, 0.5)
    wet: tuple[float, float] = (0.1, 1.0)
    channel: float = 4.0
    level: tuple[float, float] = (0.1, 0.9)


def record(dry: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A dry sound placed at random in a clip, in a room, with background noise, through a microphone.

    A sound longer than the clip is cropped at random, a shorter one starts at random so that it is heard whole.

    Args:
        dry: The sound, float [N] at `SAMPLE_RATE`, of any length and level but not silent.
        scene: What to do to it.
        rng: Where every random choice comes from.

    Returns:
        float32 [S], S = scene.seconds × SAMPLE_RATE, its peak within scene.level.
    """
    size = round(scene.seconds * SAMPLE_RATE)
    sound = place(dry, size, rng)
    room = _room(rng.uniform(*scene.reverberation), rng.uniform(*scene.wet), rng)
    length = next_fast_len(size + len(room) - 1, real=True)
    sound = irfft(rfft(sound, length) * rfft(room, length), length)[:size]

    length = next_fast_len(size, real=True)
    frequencies = rfftfreq(length, 1 / SAMPLE_RATE).astype(np.float32)
    octaves = np.log2(np.maximum(frequencies, LOWEST) / LOWEST)
    response = _microphone(octaves, scene.channel, rng) * np.minimum(frequencies / LOWEST, 1)
    noise = irfft(rfft(rng.standard_normal(length, np.float32)) * _noise_slope(octaves, rng), length)[:size]
    noise *= np.sqrt(np.mean(sound**2) / np.mean(noise**2)) * 10 ** (-rng.uniform(*scene.snr) / 20)
    clip = irfft(rfft(sound + noise, length) * response, length)[:size]
    levelled: np.ndarray = (clip * (rng.uniform(*scene.level) / np.abs(clip).max())).astype(np.float32)
    return levelled


def place(dry: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A sound cropped or placed at random in `size` samples, its ends faded; float32 [size]."""
    sound = np.zeros(size, np.float32)
    if len(dry) > size:
        start = rng.integers(len(dry) - size + 1)
        sound[:] = fade(dry[start : start + size])
    else:
        start = rng.integers(size - len(dry) + 1)
        sound[start : start + len(dry)] = fade(dry)
    return sound


def fade(sound: np.ndarray, seconds: float = FADE_SECONDS) -> np.ndarray:
    """A copy whose first and last `seconds` rise from and fall to zero; float32 [N]."""
    size = min(round(seconds * SAMPLE_RATE), len(sound) // 2)
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / max(size, 1)
    faded = sound.astype(np.float32)
    faded[:size] *= ramp
    faded[len(faded) - size :] *= ramp[::-1]
    return faded


def missing_package(package: str, role: str) -> DataError:
    """The error for a package of the extra `demo` that is not installed."""
    return DataError(
        f"The synthetic tasks need the package {package}, {role}; it is not installed. "
        "Install it: pip install 'm2d-bench[demo]'"
    )


def _room(decay: float, wet: float, rng: np.random.Generator) -> np.ndarray:
    """Impulse response of a room: the direct sound, then noise that decays by 60 dB in `decay` seconds; float32 [N]."""
    size = round(decay * SAMPLE_RATE)
    tail = rng.standard_normal(size, np.float32) * np.exp(np.linspace(0, -np.log(1000), size, dtype=np.float32))
    tail *= wet / np.sqrt(np.sum(tail**2))
    tail[0] = 1
    return tail


def _noise_slope(octaves: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Amplitude of the background noise by frequency: falling by 0 to 6 dB an octave, from white to brown; [F]."""
    return 10 ** (-rng.uniform(0, 6) / 20 * octaves)


def _microphone(octaves: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Amplitude response of a random microphone: normal in dB at each octave from 31 Hz, straight in between; [F]."""
    knots = rng.normal(0, spread, 10)
    gains: np.ndarray = 10 ** (np.interp(octaves, np.arange(10), knots) / 20).astype(np.float32)
    return gains
