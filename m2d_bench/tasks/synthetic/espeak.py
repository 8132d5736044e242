"""Speech by the formant synthesiser eSpeak NG: words, languages and voices, in rooms and noise.

The texts are spoken by a fresh process for each task, see `speak`, so that the clips are the same to the byte whatever
the caller did before.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from m2d_bench.errors import DataError
from m2d_bench.tasks.synthetic import speak as speaker
from m2d_bench.tasks.synthetic.scene import SAMPLE_RATE, Clip, Scene, missing_package, record
from m2d_bench.tasks.synthetic.texts import ENGLISH, SENTENCES, WORDS

# espeak_words: speakers (accent + variant of the voice) of each fold.
SPEAKERS = (
    ("en-US+m1", "en-US+f1", "en-GB-x-rp+Alex", "en-GB-scotland+linda", "en-029+Denis", "en-US+grandma"),
    ("en-US+m2", "en-US+f2", "en-GB-x-rp+Andy", "en-GB-scotland+belinda", "en-029+Diogo", "en-US+paul"),
    ("en-US+m3", "en-US+f3", "en-GB-x-rp+Gene", "en-GB-scotland+steph", "en-029+Hugo", "en-US+victor"),
    ("en-US+m4", "en-US+f4", "en-GB-x-rp+Mike", "en-GB-scotland+Annie", "en-029+Marco", "en-US+zac"),
    ("en-US+m7", "en-US+f5", "en-GB-x-rp+rob", "en-GB-scotland+shelby", "en-029+Lee", "en-US+grandpa"),
)
WORD_SCENE = Scene(seconds=1.0, snr=(5, 20))

LANGUAGES = {
    "dutch": "gmw/nl",
    "english": "gmw/en-US",
    "french": "roa/fr",
    "german": "gmw/de",
    "italian": "roa/it",
    "portuguese": "roa/pt",
    "russian": "zle/ru",
    "spanish": "roa/es",
}
# Variants that speak every language, and so tell nothing about it.
VARIANTS = ("m1", "m2", "m3", "m4", "m7", "f1", "f2", "f3", "f4", "f5", "Alex", "Andy", "Denis", "linda", "steph")
LANGUAGE_TAKES = 8
LANGUAGE_SCENE = Scene(seconds=2.0, snr=(10, 25), channel=2)

# espeak_voice: the speakers to tell apart, all with the accent en-US.
VOICES = (
    *("adam", "Alex", "anika", "Annie", "belinda", "boris", "Denis", "Diogo", "ed", "f2"),
    *("Hugo", "linda", "m3", "Marco", "max", "Mike", "paul", "Reed", "rob", "steph"),
)
VOICE_TAKES = 2
VOICE_SCENE = Scene(seconds=1.0, snr=(0, 15))
N_FOLDS = 5


class Utterance(NamedTuple):
    """What eSpeak is to say, and what the clip counts as.

    Args:
        label: Name of the class.
        fold: Test fold, from 0.
        voice: eSpeak voice, such as `gmw/en-US+f2`.
        rate: Words a minute.
        pitch: 0–100; 50 is the voice's own.
        text: What is said.
    """

    label: str
    fold: int
    voice: str
    rate: int
    pitch: int
    text: str


def words() -> Iterator[Clip]:
    """Clips of `espeak_words`: each word once by each speaker."""
    rng = np.random.default_rng(20_003)
    utterances = [
        Utterance(word, fold, f"gmw/{speaker}", *_prosody(rng, spread=20), text=word)
        for fold, speakers in enumerate(SPEAKERS)
        for speaker in speakers
        for word in WORDS
    ]
    yield from _record(utterances, WORD_SCENE, rng)


def language() -> Iterator[Clip]:
    """Clips of `espeak_language`: each sentence in each language by random speakers."""
    rng = np.random.default_rng(20_004)
    utterances = [
        Utterance(name, number % N_FOLDS, f"{voice}+{rng.choice(VARIANTS)}", *_prosody(rng, spread=20), text=sentence)
        for name, voice in LANGUAGES.items()
        for number, sentence in enumerate(SENTENCES[name])
        for _ in range(LANGUAGE_TAKES)
    ]
    yield from _record(utterances, LANGUAGE_SCENE, rng)


def voice() -> Iterator[Clip]:
    """Clips of `espeak_voice`: each sentence by each speaker, at different pitches and rates."""
    rng = np.random.default_rng(20_005)
    utterances = [
        Utterance(name.lower(), number % N_FOLDS, f"gmw/en-US+{name}", *_prosody(rng, spread=40), text=sentence)
        for name in VOICES
        for number, sentence in enumerate(ENGLISH)
        for _ in range(VOICE_TAKES)
    ]
    yield from _record(utterances, VOICE_SCENE, rng)


def speak(utterances: Iterable[Utterance]) -> Iterator[np.ndarray]:
    """Speak with eSpeak NG, in a process of its own.

    Args:
        utterances: What to say, in this order.

    Yields:
        Waveform of each utterance, float32 [N] in [-1, 1] at `SAMPLE_RATE`.

    Raises:
        DataError: If espeakng_loader is not installed, or eSpeak cannot speak.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise missing_package("espeakng_loader", "which holds the speech synthesiser eSpeak NG")
    loader = importlib.import_module("espeakng_loader")
    lines = [[each.voice, each.rate, each.pitch, each.text] for each in utterances]
    with subprocess.Popen(
        [sys.executable, "-I", speaker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(loader.get_data_path()).parent,
        env=os.environ | {"LC_ALL": "C"},
    ) as process:
        assert process.stdin is not None  # they are pipes: said for the type checker
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with process.stdin:
                process.stdin.write(json.dumps({"library": loader.get_library_path(), "utterances": lines}).encode())
            for _ in lines:
                head = process.stdout.read(4)
                if len(head) < 4:
                    raise DataError(f"eSpeak NG failed: {process.stderr.read().decode(errors='replace').strip()}")
                samples = np.frombuffer(process.stdout.read(2 * struct.unpack("=I", head)[0]), np.int16)
                yield soxr.resample(samples.astype(np.float32) / 32768, speaker.SAMPLE_RATE, SAMPLE_RATE)
        finally:
            process.kill()


def _prosody(rng: np.random.Generator, spread: int) -> tuple[int, int]:
    """Random rate in words a minute, and random pitch around the voice's own."""
    return int(rng.integers(140, 201)), int(rng.integers(50 - spread, 50 + spread + 1))


def _record(utterances: list[Utterance], scene: Scene, rng: np.random.Generator) -> Iterator[Clip]:
    """Utterances spoken, without the silence around them, and recorded in a scene each."""
    for utterance, spoken in zip(utterances, speak(utterances), strict=True):
        loud = np.flatnonzero(np.abs(spoken) > 0.01 * np.abs(spoken).max())
        yield Clip(record(spoken[loud[0] : loud[-1] + 1], scene, rng), utterance.label, utterance.fold)
