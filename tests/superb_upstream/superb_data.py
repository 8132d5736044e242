"""Miniatures of SUPERB's data sets in the layouts their authors publish: tones that say what the label is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")


def tone(number: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A tone of its own for every number, in noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.2 * np.sin(2 * np.pi * 250 * 1.28**number * time) + 0.01 * rng.standard_normal(len(time))


def write(path: Path, wave: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, RATE)
    return path


def speech_commands(root: Path, clips: int = 12) -> Path:
    """Speech Commands v1: ten keywords, other words, background noise; the test set in twelve folders."""
    rng = np.random.default_rng(0)
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    write(train / "_background_noise_" / "hum.wav", 0.003 * rng.standard_normal(3 * RATE))
    for number, word in enumerate((*KEYWORDS, "bird")):
        for clip in range(clips):
            wave = tone(number, rng.uniform(0.6, 1.0), rng)
            write(train / word / f"{rng.integers(16**8):08x}_nohash_{clip}.wav", wave)
            folder = word if word in KEYWORDS else "_unknown_"
            write(test / folder / f"{word}{clip}.wav", tone(number, rng.uniform(0.6, 1.0), rng))
    for clip in range(clips):
        write(test / "_silence_" / f"{clip}.wav", 0.003 * rng.standard_normal(RATE))
    return root


def fluent_commands(root: Path) -> Path:
    """Fluent Speech Commands: three CSV files under data, two slots heard in two tones."""
    rng = np.random.default_rng(0)
    folder = root / "fluent_speech_commands_dataset"
    for split, clips in (("train", 24), ("valid", 8), ("test", 8)):
        rows = []
        for clip in range(clips):
            action, thing = clip % 2, clip // 2 % 2
            path = f"wavs/speakers/s{clip % 3}/{split}{clip}.wav"
            write(folder / path, np.concatenate([tone(action, 0.4, rng), tone(4 + thing, rng.uniform(0.3, 0.6), rng)]))
            spoken = {"action": ["on", "off"][action], "object": ["lamp", "music"][thing], "location": "none"}
            rows.append({"path": path, "speakerId": f"s{clip % 3}", "transcription": "", **spoken})
        (folder / "data").mkdir(exist_ok=True)
        with (folder / "data" / f"{split}_data.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return root


def voxceleb1(root: Path, speakers: int = 4) -> Path:
    """VoxCeleb1: dev/wav and test/wav by speaker and video, iden_split.txt and veri_test2.txt."""
    rng = np.random.default_rng(0)
    folder = root / "VoxCeleb1"
    split, trials = [], []
    for speaker in range(speakers):
        for clip in range(6):
            name = f"id{10001 + speaker}/video{clip // 2}/{clip:05d}.wav"
            write(folder / "dev" / "wav" / name, tone(speaker, rng.uniform(2.1, 2.6), rng))
            split.append(f"{1 if clip < 4 else 2 if clip == 4 else 3} {name}")
    for speaker in (0, 1):
        for clip in range(3):
            write(
                folder / "test" / "wav" / f"id{10301 + speaker}/video0/{clip:05d}.wav",
                tone(speaker + 0.5, rng.uniform(2.1, 2.6), rng),
            )
    for label, first, second in ((1, "0/0", "0/1"), (1, "1/0", "1/2"), (0, "0/0", "1/1"), (0, "0/2", "1/0")):
        names = [f"id{10301 + int(side[0])}/video0/{int(side[2]):05d}.wav" for side in (first, second)]
        trials.append(f"{label} {names[0]} {names[1]}")
    (folder / "iden_split.txt").write_text("\n".join(split) + "\n")
    (folder / "veri_test2.txt").write_text("\n".join(trials) + "\n")
    return root


def emotion(root: Path) -> Path:
    """IEMOCAP with the lists that s3prl's preprocessing writes: five sessions, four emotions."""
    rng = np.random.default_rng(0)
    folder = root / "IEMOCAP_full_release"
    emotions = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    sessions = {}
    for session in range(1, 6):
        sessions[session] = [
            {
                "path": f"Session{session}/sentences/wav/d{clip}/{name}{clip}.wav",
                "label": name,
                "speaker": f"Ses0{session}F",
            }
            for clip in range(2)
            for name in emotions
        ]
        for entry in sessions[session]:
            write(folder / entry["path"], tone(2 * emotions[entry["label"]], rng.uniform(0.8, 1.6), rng))
    for test in sessions:
        lists = {
            "train": [entry for session, entries in sessions.items() if session != test for entry in entries],
            "test": sessions[test],
        }
        for name, entries in lists.items():
            path = folder / "meta_data" / f"Session{test}" / f"{name}_meta_data.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"labels": emotions, "num": {}, "meta_data": entries}))
    return root


def libriphone(root: Path) -> Path:
    """LibriSpeech's folders and transcripts, with a lexicon of four words in two files; a phoneme is a tone."""
    rng = np.random.default_rng(0)
    lexicon = {"BEE": ["B", "IY1"], "TEA": ["T", "IY1"], "SEE": ["S", "IY1"], "ALL": ["AO1", "L"]}
    phonemes = sorted({phoneme for spoken in lexicon.values() for phoneme in spoken})
    words = list(lexicon)
    for number, names in enumerate((words[:2], words[2:])):
        file = root / f"librispeech-lexicon-{('200k', 'allothers')[number]}-g2p.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{word}\t{' '.join(lexicon[word])}\n" for word in names))
    for split, clips in (("train-clean-100", 20), ("dev-clean", 4), ("test-clean", 4)):
        chapter = root / "LibriSpeech" / split / "19" / "198"
        lines = []
        for clip in range(clips):
            spoken = rng.choice(words, size=rng.integers(2, 6))
            sounds = [tone(2 * phonemes.index(p), 0.15, rng) for word in spoken for p in lexicon[word]]
            write(chapter / f"19-198-{clip:04d}.flac", np.concatenate(sounds))
            lines.append(f"19-198-{clip:04d} {' '.join(spoken)}")
        (chapter / "19-198.trans.txt").write_text("\n".join(lines) + "\n")
    return root


def libri2mix(root: Path) -> Path:
    """Libri2Mix with the wav.scp lists that s3prl's preparation writes: two tones and their sum."""
    rng = np.random.default_rng(0)
    for split, clips in (("train-100", 8), ("dev", 2), ("test", 2)):
        folder = root / "Libri2Mix" / "wav16k" / "min" / split
        lines: dict[str, list[str]] = {"mix_clean": [], "s1": [], "s2": []}
        for clip in range(clips):
            seconds = rng.uniform(0.8, 1.2)
            sources = [tone(number, seconds, rng) for number in rng.choice(10, size=2, replace=False)]
            for name, wave in zip(lines, (sum(sources), *sources), strict=True):
                lines[name].append(f"utt{clip} {write(folder / name / f'{clip}.wav', wave)}")
        for name, listed in lines.items():
            (folder / name / "wav.scp").write_text("\n".join(listed) + "\n")
    return root


WRITERS = {
    "ks": speech_commands,
    "ic": fluent_commands,
    "sid": voxceleb1,
    "asv": voxceleb1,
    "er": emotion,
    "pr": libriphone,
    "ss": libri2mix,
}
"""What writes the miniature of each task."""
