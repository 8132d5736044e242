"""The synthetic tasks: the same bytes everywhere, balanced classes, unseen instruments and voices, right pitch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from m2d_bench import tasks
from m2d_bench.errors import DataError
from m2d_bench.registry import resolve
from m2d_bench.tasks.synthetic import espeak, events, gm, soundfont
from m2d_bench.tasks.synthetic.scene import SAMPLE_RATE, Clip, Scene, record
from m2d_bench.tasks.synthetic.texts import ENGLISH, SENTENCES

HASH = """
import hashlib, itertools, sys
import numpy as np
from m2d_bench import tasks
from m2d_bench.registry import resolve
names = sys.argv[1:]
np.random.seed(len(names[0]))
for name in names:
    digest = hashlib.sha256()
    for clip in itertools.islice(resolve(tasks.get(name).generator)(), 40):
        digest.update(clip.waveform.tobytes() + clip.label.encode() + bytes([clip.fold]))
    print(name, digest.hexdigest())
"""


def hashes(names: tuple[str, ...], seed: str) -> set[str]:
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HASH, *names]
    return set(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines())


@pytest.mark.slow
def test_clips_are_the_same_to_the_byte_in_fresh_processes_and_in_any_order() -> None:
    first = hashes(tasks.BUILT_IN, "1")
    assert len(first) == len(tasks.BUILT_IN)
    assert first == hashes(tasks.BUILT_IN[::-1], "2")


@pytest.fixture
def without_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and folds without the work of rendering."""
    silence = np.zeros(1, np.float32)
    for module in (gm, espeak, events):
        monkeypatch.setattr(module, "record", lambda *_: silence)
    monkeypatch.setattr(gm, "_note", lambda *_: silence)
    monkeypatch.setattr(espeak, "speak", lambda utterances: [np.ones(1, np.float32) for _ in utterances])
    monkeypatch.setattr(events, "MAKERS", dict.fromkeys(events.MAKERS, lambda rng: silence))


@pytest.mark.usefixtures("without_sound")
@pytest.mark.parametrize("name", tasks.BUILT_IN)
def test_every_class_has_as_many_clips_in_every_fold(name: str) -> None:
    task = tasks.get(name)
    clips = list(resolve(str(task.generator))())
    counts = Counter((clip.label, clip.fold) for clip in clips)
    assert task.folds is not None
    assert len(clips) == task.n_clips
    assert len({clip.label for clip in clips}) == task.n_classes
    assert {clip.fold for clip in clips} == set(range(task.folds.count))
    assert len(counts) == task.n_classes * task.folds.count
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("name", tasks.BUILT_IN)
def test_clips_are_finite_audible_and_as_long_as_the_task_says(name: str) -> None:
    task = tasks.get(name)
    for clip in islice(resolve(str(task.generator))(), 40):
        assert clip.waveform.dtype == np.float32
        assert clip.waveform.shape == (round(task.clip_seconds * SAMPLE_RATE),)
        assert 0.09 < np.abs(clip.waveform).max() < 0.91
        assert clip.waveform.std() > 0.002
        assert abs(clip.waveform.mean()) < 0.01


@pytest.mark.parametrize("label", events.MAKERS)
def test_event_is_finite_and_not_silent(label: str) -> None:
    for seed in range(5):
        sound = events.MAKERS[label](np.random.default_rng(seed))
        assert np.isfinite(sound).all()
        assert 0.1 * SAMPLE_RATE < len(sound) <= events.LONGEST * SAMPLE_RATE
        assert np.abs(sound).max() > 0


def test_no_recording_of_an_instrument_is_heard_in_two_folds() -> None:
    font = soundfont.general_midi()
    families: list[set[int]] = [set() for _ in range(5)]
    for label, folds in gm.FAMILIES.items():
        for fold, programs in enumerate(folds):
            for program in programs:
                families[fold] |= font.sample_ids(program, gm.FAMILY_KEYS[label])
    pitches = [set[int]().union(*(font.sample_ids(each, gm.PITCH_KEYS) for each in fold)) for fold in gm.MELODIC]
    for folds_ids in (families, pitches):
        assert all(folds_ids)
        assert sum(map(len, folds_ids)) == len(set[int]().union(*folds_ids))


def test_speakers_of_the_words_are_in_one_fold_each() -> None:
    variants = [speaker.partition("+")[2] for fold in espeak.SPEAKERS for speaker in fold]
    assert len(variants) == len(set(variants))


def test_sentences_are_distinct_and_as_many_in_every_language() -> None:
    assert {len(sentences) for sentences in SENTENCES.values()} == {10}
    assert all(len(set(sentences)) == 10 for sentences in SENTENCES.values())
    assert set(SENTENCES) == set(espeak.LANGUAGES)
    assert len(set(ENGLISH)) == 20


def fundamental(waveform: np.ndarray, expected: float) -> float:
    """Frequency in Hz of the autocorrelation's peak within a semitone and a half of the expected one."""
    spectrum = np.abs(np.fft.rfft(waveform, 4 * len(waveform))) ** 2
    periodicity = np.fft.irfft(spectrum)[: len(waveform)] / (len(waveform) - np.arange(len(waveform)))
    lags = np.arange(int(SAMPLE_RATE / expected / 1.09), int(SAMPLE_RATE / expected * 1.09) + 2)
    best = lags[np.argmax(periodicity[lags])]
    left, peak, right = periodicity[best - 1 : best + 2]
    return float(SAMPLE_RATE / (best + 0.5 * (left - right) / (left - 2 * peak + right)))


@pytest.mark.parametrize("program", [0, 24, 40, 56, 65, 71, 73, 80])
@pytest.mark.parametrize("key", [57, 69])
def test_soundfont_plays_in_tune(program: int, key: int) -> None:
    expected = 440 * 2 ** ((key - 69) / 12)
    note = soundfont.general_midi().render(program, key, 100, 1.0, SAMPLE_RATE)
    assert fundamental(note[8000:24000].astype(float), expected) == pytest.approx(expected, rel=0.01)


def test_soundfont_note_is_louder_with_velocity_and_dies_when_released() -> None:
    font = soundfont.general_midi()
    note = font.render(16, 60, 100, 1.0, SAMPLE_RATE, note_off=0.5)
    assert note.shape == (SAMPLE_RATE,)
    assert np.abs(note[-3200:]).max() < 0.001 * np.abs(note).max()
    assert np.abs(font.render(16, 60, 50, 1.0, SAMPLE_RATE)).max() < 0.5 * np.abs(note).max()


def test_a_file_that_is_not_a_soundfont_is_refused(tmp_path) -> None:
    path = tmp_path / "x.sf2"
    path.write_bytes(b"RIFF\0\0\0\0WAVEdata")
    with pytest.raises(DataError, match="not a SoundFont 2"):
        soundfont.SoundFont(path)


def test_background_noise_is_at_the_asked_ratio() -> None:
    tone = np.sin(2 * np.pi * 1000 / SAMPLE_RATE * np.arange(SAMPLE_RATE))
    scene = Scene(seconds=1.0, snr=(0, 0), wet=(0, 0), channel=0)
    clip = record(tone, scene, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(clip)) ** 2
    assert power[990:1011].sum() / power.sum() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("package", "generator"), [("pretty_midi", gm.family), ("espeakng_loader", espeak.words)], ids=["midi", "espeak"]
)
def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str, generator) -> None:
    soundfont.general_midi.cache_clear()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    clips: Iterator[Clip] = generator()
    with pytest.raises(DataError, match=rf"{package}.*pip install 'm2d-bench\[demo\]'"):
        next(clips)


def test_unknown_voice_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"gmw/en-US\+nobody"):
        list(espeak.speak([espeak.Utterance("x", 0, "gmw/en-US+nobody", 160, 50, "hello")]))
