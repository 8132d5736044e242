"""Ten everyday sounds, each made by a few lines of signal processing with random parameters.

A maker takes a generator of random numbers and returns a dry sound, float [N] of 0.2–2.5 s at SAMPLE_RATE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.signal import butter, lfilter, sosfilt

from m2d_bench.tasks.synthetic.scene import SAMPLE_RATE, Clip, Scene, record

N_FOLDS = 5
CLIPS_PER_FOLD = 14
SCENE = Scene(seconds=2.0, snr=(-5, 15), channel=5)
LONGEST = 2.5

Maker = Callable[[np.random.Generator], np.ndarray]


def clips() -> Iterator[Clip]:
    """Clips of `events`: 14 of each class in each of the five folds."""
    rng = np.random.default_rng(20_006)
    for fold in range(N_FOLDS):
        for label, make in MAKERS.items():
            for _ in range(CLIPS_PER_FOLD):
                yield Clip(record(make(rng), SCENE, rng), label, fold)


def bell(rng: np.random.Generator) -> np.ndarray:
    """One to three strokes on inharmonic partials that ring."""
    frequency = rng.uniform(300, 1800)
    ratios = np.array([0.5, 1, 1.2, 1.5, 2, 2.7, 3.6, 5.1]) * rng.uniform(0.98, 1.02, 8)
    gains, decay = rng.uniform(0.1, 1, 8), rng.uniform(0.2, 1.2)
    time = _time(2.0)
    stroke = np.zeros_like(time)
    for ratio, gain in zip(ratios, gains, strict=True):
        stroke += gain * np.sin(2 * np.pi * frequency * ratio * time) * np.exp(-time * ratio**0.7 / decay)
    return _repeat(lambda: stroke * rng.uniform(0.5, 1), int(rng.integers(1, 4)), rng.uniform(0.25, 0.8), 0.1, rng)


def knock(rng: np.random.Generator) -> np.ndarray:
    """Two to five knocks on wood: short bursts through two low resonances."""
    low, high = rng.uniform(120, 500), rng.uniform(500, 1500)

    def hit() -> np.ndarray:
        burst = _burst(rng, 0.15, rng.uniform(0.002, 0.006))
        return rng.uniform(0.5, 1) * (_resonance(burst, low, 6) + 0.5 * _resonance(burst, high, 5))

    return _repeat(hit, int(rng.integers(2, 6)), rng.uniform(0.15, 0.4), 0.1, rng)


def clock_tick(rng: np.random.Generator) -> np.ndarray:
    """Regular ticks, every other one lower."""
    tick, tock = rng.uniform(1500, 5000), rng.uniform(0.6, 0.95)
    pitches = iter([tick, tick * tock] * 10)

    def hit() -> np.ndarray:
        burst = _burst(rng, 0.08, rng.uniform(0.0005, 0.002))
        return _resonance(burst, next(pitches), 12)

    return _repeat(hit, int(rng.integers(3, 9)), rng.uniform(0.2, 0.5), 0.0, rng)


def footsteps(rng: np.random.Generator) -> np.ndarray:
    """Steps of a thud and a scrape, at walking to running pace."""
    thud, scrape = rng.uniform(80, 250), rng.uniform(800, 4000)

    def step() -> np.ndarray:
        heel = _resonance(_burst(rng, 0.2, rng.uniform(0.005, 0.02)), thud, 2)
        sole = _resonance(_burst(rng, 0.2, rng.uniform(0.02, 0.05)), scrape, 0.8)
        sound: np.ndarray = heel / np.abs(heel).max() + rng.uniform(0.1, 0.8) * np.roll(sole, 800) / np.abs(sole).max()
        return sound

    return _repeat(step, int(rng.integers(3, 7)), rng.uniform(0.3, 0.6), 0.12, rng)


def rain(rng: np.random.Generator) -> np.ndarray:
    """Steady hiss with many small drops."""
    size = round(LONGEST * SAMPLE_RATE)
    drops = (rng.random(size) < rng.uniform(50, 800) / SAMPLE_RATE) * rng.normal(0, 1, size)
    pattering = _resonance(drops, rng.uniform(1000, 6000), 1.5)
    hiss = _band(rng.standard_normal(size), rng.uniform(300, 1000), rng.uniform(5000, 14000))
    sound: np.ndarray = hiss / hiss.std() + rng.uniform(0.5, 2) * pattering / pattering.std()
    return sound


def wind(rng: np.random.Generator) -> np.ndarray:
    """Low noise whose loudness and whistle come and go."""
    size = round(LONGEST * SAMPLE_RATE)
    gusts = _smooth(rng, size, rng.uniform(0.5, 3))
    howl = _resonance(rng.standard_normal(size), rng.uniform(200, 900), rng.uniform(2, 15))
    rumble = _band(rng.standard_normal(size), 30, rng.uniform(200, 2500))
    sound: np.ndarray = (rumble / rumble.std() + rng.uniform(0, 1.5) * howl / howl.std()) * np.exp(gusts)
    return sound


def engine(rng: np.random.Generator) -> np.ndarray:
    """Pulses at the firing rate through a pipe, slowly speeding up or down, over noise."""
    time = _time(LONGEST)
    rate = rng.uniform(20, 110) * np.exp(rng.uniform(-0.3, 0.3) * time + 0.03 * _smooth(rng, len(time), 8))
    phase = np.cumsum(rate) / SAMPLE_RATE
    pulses = np.exp(-rng.uniform(5, 20) * (phase % 1)) * (1 + 0.3 * np.cos(np.pi * np.floor(phase)))
    noise = rng.standard_normal(len(time)) * pulses
    pipe = _resonance(pulses - pulses.mean() + rng.uniform(0.1, 0.6) * noise, rng.uniform(80, 400), 1)
    sound: np.ndarray = pipe / pipe.std() + 0.3 * _band(noise, 300, rng.uniform(1500, 6000))
    return sound


def siren(rng: np.random.Generator) -> np.ndarray:
    """A tone with harmonics that sweeps up and down."""
    time = _time(LONGEST)
    low, span = rng.uniform(350, 900), rng.uniform(0.4, 1.2)
    sweep = 0.5 - 0.5 * np.cos(2 * np.pi * (rng.uniform(0.3, 3) * time + rng.random()))
    phase = 2 * np.pi * np.cumsum(low * 2 ** (span * sweep)) / SAMPLE_RATE
    sound = np.zeros_like(time)
    for order in range(1, 6):
        sound += np.sin(order * phase) / order ** rng.uniform(0.8, 2)
    return sound


def bark(rng: np.random.Generator) -> np.ndarray:
    """One to four barks: a rough falling voice through two formants."""
    pitch, first = rng.uniform(180, 600), rng.uniform(400, 1000)
    second, length = first * rng.uniform(1.6, 3), rng.uniform(0.12, 0.3)

    def one() -> np.ndarray:
        time = _time(length)
        glide = 1 + 0.4 * np.sin(np.pi * np.minimum(time / length * 1.3, 1)) - 0.3 * time / length
        roughness = np.exp(0.1 * _smooth(rng, len(time), 80))
        phase = np.cumsum(pitch * rng.uniform(0.9, 1.1) * glide * roughness) / SAMPLE_RATE
        source = 2 * (phase % 1) - 1 + rng.uniform(0.2, 0.8) * rng.standard_normal(len(time))
        voice = _resonance(source, first, 4) + 0.6 * _resonance(source, second, 5)
        return voice * np.sin(np.pi * (time / length) ** 0.5) ** 1.5

    return _repeat(one, int(rng.integers(1, 5)), rng.uniform(0.3, 0.6), 0.15, rng)


def water_drops(rng: np.random.Generator) -> np.ndarray:
    """Drops and bubbles: short tones that rise while they die away."""
    low = rng.uniform(400, 1500)

    def drop() -> np.ndarray:
        time = _time(0.15)
        start, rise = low * 2 ** rng.uniform(0, 1.2), rng.uniform(1, 12)
        phase = 2 * np.pi * start * (time + rise * time**2 / 2)
        return rng.uniform(0.2, 1) * np.sin(phase) * np.exp(-time / rng.uniform(0.01, 0.04))

    return _repeat(drop, int(rng.integers(2, 16)), rng.uniform(0.08, 0.4), 0.6, rng)


MAKERS: dict[str, Maker] = {
    make.__name__: make for make in (bark, bell, clock_tick, engine, footsteps, knock, rain, siren, water_drops, wind)
}


def _time(seconds: float) -> np.ndarray:
    """Times of samples in seconds, float64 [S]."""
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _burst(rng: np.random.Generator, seconds: float, decay: float) -> np.ndarray:
    """Noise that dies away with a time constant of `decay` seconds, float64 [S]."""
    time = _time(seconds)
    return rng.standard_normal(len(time)) * np.exp(-time / decay)


def _resonance(sound: np.ndarray, frequency: float, quality: float) -> np.ndarray:
    """Two-pole band-pass at `frequency` Hz, as wide as frequency / quality, with unit gain at its peak; [S]."""
    angle = 2 * np.pi * frequency / SAMPLE_RATE
    alpha = np.sin(angle) / (2 * quality)
    return lfilter([alpha, 0, -alpha], [1 + alpha, -2 * np.cos(angle), 1 - alpha], sound)


def _band(sound: np.ndarray, low: float, high: float) -> np.ndarray:
    """Second-order band-pass between two frequencies in Hz, [S]."""
    return sosfilt(butter(2, (low, high), "bandpass", fs=SAMPLE_RATE, output="sos"), sound)


def _smooth(rng: np.random.Generator, size: int, rate: float) -> np.ndarray:
    """Random curve of unit variance that turns about `rate` times a second, [size]."""
    knots = rng.standard_normal(max(2, round(size / SAMPLE_RATE * rate) + 2))
    return np.interp(np.linspace(0, len(knots) - 1, size), np.arange(len(knots)), knots)


def _repeat(
    make: Callable[[], np.ndarray], count: int, period: float, jitter: float, rng: np.random.Generator
) -> np.ndarray:
    """`count` sounds, `period` seconds apart ± `jitter` of it, mixed and cut to the longest length; [S]."""
    mixed = np.zeros(round(LONGEST * SAMPLE_RATE))
    onset, end = 0.0, 0
    for _ in range(count):
        sound, start = make(), round(onset * SAMPLE_RATE)
        room = len(mixed) - start
        if room <= 0:
            break
        mixed[start : start + len(sound)] += sound[:room]
        end = max(end, min(start + len(sound), len(mixed)))
        onset += period * (1 + rng.uniform(-jitter, jitter))
    return mixed[:end]
