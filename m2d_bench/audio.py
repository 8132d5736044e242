"""Sound files → waveforms: the only file that opens them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import soundfile
import soxr

from m2d_bench.errors import AudioError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".aifc", ".opus", ".au")


def read(
    path: str | os.PathLike[str], sample_rate: int, *, offset: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """Reads a sound file (or a stretch of it) as mono at the given rate.

    Args:
        path: Any file libsndfile opens: WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, …
        sample_rate: Wanted rate in Hz; other rates are resampled (soxr, high quality).
        offset: Start in seconds.
        seconds: Longest duration in seconds, or None for all that follows.

    Returns:
        [S] float32 in [-1, 1], the mean of the file's channels.

    Raises:
        AudioError: The file is missing, empty or cannot be decoded, or the stretch lies beyond its end.
    """
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            rate = file.samplerate
            if offset:
                file.seek(min(round(offset * rate), file.frames))
            frames = -1 if seconds is None else round(seconds * rate)
            waveform = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    if waveform.size == 0:
        raise AudioError(f"{path}: no samples at {offset:g} s; the file is empty or shorter than that.")
    if not np.isfinite(waveform).all():
        raise AudioError(f"{path}: holds NaN or infinite samples.")
    resampled: np.ndarray = soxr.resample(waveform, rate, sample_rate) if rate != sample_rate else waveform
    return resampled


def duration(path: str | os.PathLike[str]) -> float:
    """Duration of a sound file in seconds, from its header.

    Raises:
        AudioError: The file is missing or not a sound file.
    """
    try:
        return float(soundfile.info(os.fspath(path)).duration)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | os.PathLike[str], error: Exception) -> AudioError:
    what = "no such file" if not Path(path).exists() else f"cannot be decoded ({error})"
    return AudioError(f"{path}: {what}. Formats that can be read: {', '.join(s[1:] for s in SUFFIXES)}.")
