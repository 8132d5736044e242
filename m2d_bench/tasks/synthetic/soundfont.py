"""A small SoundFont 2 sample player: one note of one General-MIDI program as a waveform, in NumPy alone.

It plays what shapes a single note: zones by key and velocity, tuning, loops, volume envelope and attenuation. Left out:
filters, modulators, LFOs, panning (mono mix-down) and the drum bank.

Source: SoundFont Technical Specification 2.04, sections 4 to 9; generator numbers from section 8.1.2.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from m2d_bench.errors import DataError, UsageError
from m2d_bench.tasks.synthetic.scene import missing_package

PRESET = np.dtype([("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("_", "<u4", 3)])
INSTRUMENT = np.dtype([("name", "S20"), ("bag", "<u2")])
BAG = np.dtype([("generator", "<u2"), ("modulator", "<u2")])
GENERATOR = np.dtype([("operator", "<u2"), ("amount", "<i2")])
POINTS = ("start", "end", "loop_start", "loop_end")
SAMPLE = np.dtype(
    [
        ("name", "S20"),
        *((point, "<u4") for point in POINTS),
        ("rate", "<u4"),
        ("key", "u1"),
        ("cents", "i1"),
        ("link", "<u2"),
        ("type", "<u2"),
    ]
)
TABLES = {"phdr": PRESET, "pbag": BAG, "pgen": GENERATOR, "inst": INSTRUMENT, "ibag": BAG, "igen": GENERATOR}

# Generators that are used, by number; OFFSETS of the POINTS count samples and 32 768 samples.
OFFSETS = ((0, 4), (1, 12), (2, 45), (3, 50))
DELAY, ATTACK, HOLD, DECAY, SUSTAIN, RELEASE, KEY_TO_HOLD, KEY_TO_DECAY = range(33, 41)
INSTRUMENT_ID, KEY_RANGE, VELOCITY_RANGE, ATTENUATION = 41, 43, 44, 48
COARSE_TUNE, FINE_TUNE, SAMPLE_ID, SAMPLE_MODES, SCALE_TUNING, ROOT_KEY = 51, 52, 53, 54, 56, 58
DEFAULTS = dict.fromkeys((DELAY, ATTACK, HOLD, DECAY, RELEASE), -12000) | {SCALE_TUNING: 100, ROOT_KEY: -1}
LOOP_ALWAYS, LOOP_UNTIL_RELEASE = 1, 3
FULL_RANGE = 127 << 8
SILENCE_DB = 100.0

Zone = dict[int, int]


class SoundFont:
    """An SF2 file, read once.

    Args:
        path: The .sf2 file.

    Raises:
        DataError: If the file is not a SoundFont 2.
    """

    def __init__(self, path: str | Path) -> None:
        data = Path(path).read_bytes()
        if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
            raise DataError(f"{path} is not a SoundFont 2 file: it starts with {data[:12]!r}, not with RIFF….sfbk.")
        chunks = dict(_chunks(data, 12, len(data)))
        missing = sorted({*TABLES, "smpl", "shdr"} - set(chunks))
        if missing:
            raise DataError(f"{path} is not a complete SoundFont 2 file: it lacks the chunks {', '.join(missing)}.")
        self.path = Path(path)
        self._samples = np.frombuffer(chunks["smpl"], "<i2")
        self._headers = np.frombuffer(chunks["shdr"], SAMPLE)
        self._tables = {name: np.frombuffer(chunks[name], dtype) for name, dtype in TABLES.items()}
        self._zones: dict[int, list[Zone]] = {}

    def render(
        self, program: int, key: int, velocity: int, seconds: float, sample_rate: int, note_off: float | None = None
    ) -> np.ndarray:
        """One note.

        Args:
            program: General-MIDI program, 0–127, of bank 0.
            key: MIDI key, 0–127; 69 is A4, 440 Hz.
            velocity: MIDI velocity, 1–127.
            seconds: Length of the result.
            sample_rate: Of the result, in Hz.
            note_off: When the key is released, in seconds; None holds it to the end.

        Returns:
            Mono waveform, float32 [S] with S = seconds × sample_rate, roughly in [-1, 1] and not normalised.

        Raises:
            UsageError: If key or velocity is outside its range.
            DataError: If the file has no such program, or no sample for this key and velocity.
        """
        if not (0 <= key <= 127 and 1 <= velocity <= 127):
            raise UsageError(f"A note has a key of 0–127 and a velocity of 1–127, not {key} and {velocity}.")
        zones = [
            zone
            for zone in self._program(program)
            if _within(zone.get(KEY_RANGE, FULL_RANGE), key) and _within(zone.get(VELOCITY_RANGE, FULL_RANGE), velocity)
        ]
        if not zones:
            raise DataError(f"{self.path.name} has no sample for program {program}, key {key}, velocity {velocity}.")
        time = np.arange(round(seconds * sample_rate)) / sample_rate
        released = seconds if note_off is None else note_off
        note = np.zeros(len(time), np.float32)
        for zone in zones:
            note += self._oscillator(zone, key, time, released) * _envelope(zone, key, time, released)
        # The default velocity curve of section 8.4.1 comes to a gain of (velocity / 127)².
        loud: np.ndarray = note * np.float32((velocity / 127) ** 2)
        return loud

    def sample_ids(self, program: int, keys: range) -> frozenset[int]:
        """Numbers of the recordings behind these keys of a program: programs that share one are not independent."""
        zones = self._program(program)
        return frozenset(
            zone[SAMPLE_ID] for zone in zones for key in keys if _within(zone.get(KEY_RANGE, FULL_RANGE), key)
        )

    def _program(self, program: int) -> list[Zone]:
        """Zones of a program: generators of instrument zones with those of their preset zones added."""
        if program not in self._zones:
            presets = self._tables["phdr"][:-1]
            matches = np.flatnonzero((presets["program"] == program) & (presets["bank"] == 0))
            if not matches.size:
                raise DataError(f"{self.path.name} has no program {program} in bank 0.")
            zones = []
            for preset in self._layer("phdr", "pbag", "pgen", int(matches[0]), INSTRUMENT_ID):
                for zone in self._layer("inst", "ibag", "igen", preset[INSTRUMENT_ID], SAMPLE_ID):
                    zones.append(_combine(preset, DEFAULTS | zone))
            self._zones[program] = zones
        return self._zones[program]

    def _layer(self, heads: str, bags: str, generators: str, index: int, target: int) -> list[Zone]:
        """Zones of one preset or instrument; a first zone without target is global and fills the others' gaps."""
        first, last = (int(bag) for bag in self._tables[heads]["bag"][index : index + 2])
        bounds = self._tables[bags]["generator"][first : last + 1].astype(int)
        amounts = [self._tables[generators][a:b].tolist() for a, b in pairwise(bounds)]
        zones: list[Zone] = [dict(zone) for zone in amounts]
        common = zones[0] if zones and target not in zones[0] else {}
        return [common | zone for zone in zones if target in zone]

    def _oscillator(self, zone: Zone, key: int, time: np.ndarray, released: float) -> np.ndarray:
        """The zone's sample at the note's pitch, looped, by linear interpolation; float32 [S]."""
        header = self._headers[zone[SAMPLE_ID]]
        start, end, loop_start, loop_end = (
            int(header[point]) + zone.get(fine, 0) + 32768 * zone.get(coarse, 0)
            for point, (fine, coarse) in zip(POINTS, OFFSETS, strict=True)
        )
        root = zone[ROOT_KEY] if zone[ROOT_KEY] >= 0 else int(header["key"])
        cents = zone[SCALE_TUNING] * (key - root) + 100 * zone.get(COARSE_TUNE, 0) + zone.get(FINE_TUNE, 0)
        position = time * (float(header["rate"]) * 2 ** ((cents + int(header["cents"])) / 1200))
        mode, length = zone.get(SAMPLE_MODES, 0) & 3, loop_end - loop_start
        if mode in (LOOP_ALWAYS, LOOP_UNTIL_RELEASE) and length > 0:
            past = position > loop_end - start
            if mode == LOOP_UNTIL_RELEASE:
                past &= time < released
            entry = loop_start - start
            position[past] = entry + (position[past] - entry) % length
        whole = position.astype(np.int64)
        inside = whole < end - start - 1
        whole = np.minimum(whole, end - start - 2) + start
        left, right = self._samples[whole].astype(np.float32), self._samples[whole + 1].astype(np.float32)
        between: np.ndarray = left + (right - left) * np.mod(position, 1.0).astype(np.float32)
        sample: np.ndarray = between * inside / np.float32(32768)
        return sample


@lru_cache(maxsize=1)
def general_midi() -> SoundFont:
    """The General-MIDI SoundFont (TimGM6mb) that lies in the wheel of pretty_midi, which is not imported.

    Raises:
        DataError: If pretty_midi is not installed or comes without the file.
    """
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or spec.origin is None:
        raise missing_package("pretty_midi", "whose wheel holds the General-MIDI SoundFont")
    path = Path(spec.origin).with_name("TimGM6mb.sf2")
    if not path.is_file():
        raise DataError(f"{path} is missing. Reinstall it: pip install --force-reinstall pretty_midi")
    return SoundFont(path)


def _chunks(data: bytes, offset: int, end: int) -> list[tuple[str, memoryview]]:
    """Every chunk between two offsets with its name, LISTs opened."""
    chunks: list[tuple[str, memoryview]] = []
    while offset + 8 <= end:
        name, body = data[offset : offset + 4].decode("latin-1"), offset + 8
        stop = body + int.from_bytes(data[offset + 4 : body], "little")
        chunks += _chunks(data, body + 4, stop) if name == "LIST" else [(name, memoryview(data)[body:stop])]
        offset = stop + stop % 2
    return chunks


def _within(bounds: int, value: int) -> bool:
    """Whether a value lies in a range generator, low byte to high byte."""
    return bounds & 0xFF <= value <= bounds >> 8 & 0xFF


def _combine(preset: Zone, zone: Zone) -> Zone:
    """An instrument zone with its preset zone's generators added; ranges intersect."""
    result = dict(zone)
    for operator, amount in preset.items():
        if operator in (KEY_RANGE, VELOCITY_RANGE):
            other = zone.get(operator, FULL_RANGE)
            low, high = max(amount & 0xFF, other & 0xFF), min(amount >> 8 & 0xFF, other >> 8 & 0xFF)
            result[operator] = high << 8 | low
        elif operator != INSTRUMENT_ID:
            result[operator] = zone.get(operator, 0) + amount
    return result


def _envelope(zone: Zone, key: int, time: np.ndarray, released: float) -> np.ndarray:
    """Volume envelope and attenuation as a gain, float32 [S]: linear attack, then decay and release linear in dB."""
    delay, attack, hold, decay, release = (
        2 ** ((zone[stage] + (zone.get(scaling, 0) if scaling else 0) * (60 - key)) / 1200)
        for stage, scaling in (
            (DELAY, None),
            (ATTACK, None),
            (HOLD, KEY_TO_HOLD),
            (DECAY, KEY_TO_DECAY),
            (RELEASE, None),
        )
    )
    held = np.minimum(time, released)
    rise = np.clip((held - delay) / attack, 0, 1)
    sustain = min(max(zone.get(SUSTAIN, 0) / 10, 0), SILENCE_DB)
    fall = np.clip(SILENCE_DB * (held - delay - attack - hold) / decay, 0, sustain)
    fall += SILENCE_DB * (time - held) / release + max(zone.get(ATTENUATION, 0), 0) / 10
    gain: np.ndarray = (rise * np.exp(fall * (-np.log(10) / 20))).astype(np.float32)
    return gain
