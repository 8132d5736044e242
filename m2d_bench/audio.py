"""Sound files → waveforms: the only file that finds and opens them."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from m2d_bench import mp3
from m2d_bench.errors import AudioError
from m2d_bench.files import find, kinds

logger = logging.getLogger(__name__)

RATES = (1_000, 1_000_000)
"""Lowest and highest sample rate in Hz that a header is believed."""

MOST_CHANNELS = 256
"""The most channels that a header is believed."""

LOUDEST = 1e15
"""Peak up to which a power spectrum cannot overflow float32: 1024 bins × 800 samples × its square stay below 3·10³⁸."""

_LOUD = 10.0
"""Peak from which samples are surely in another unit than full scale: decoders overshoot 1 by little."""

_BLOCK = 2**20
"""Samples of all channels that are decoded at once: few calls, for threads wait for each other between them."""

SAMPLE_BYTES = 3 * 4
"""Memory of a mono sample, of which there is room for up to two while they are decoded, and which is resampled."""

_HEADERLESS = {"RAW", "MAT4", "MAT5"}
"""Formats whose files do not say that they are sound: bare samples, matrices of any kind."""

_PLAIN = ("AIFF", "FLAC", "WAV", "WAVEX")
"""Formats whose samples of 16 bits are taken as integers, for libsndfile is slow to make floats of them."""

_OTHER_SUFFIXES = {
    "AIFF": ("aif", "aifc"),
    "AU": ("snd",),
    "IRCAM": ("sf",),
    "NIST": ("sph",),
    "OGG": ("oga", "opus"),
    "SVX": ("8svx", "iff"),
    "WAV": ("wave", "bwf"),
}
"""Further suffixes of formats, beside libsndfile's name of each."""

_DECODER_ERRORS = (OSError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)
"""What libsndfile, soundfile and soxr raise on damaged files, and the system on those that it does not open."""

_UNKNOWN_LENGTH = 2**62
"""libsndfile gives the largest number it has for a length the header leaves open."""

_OPEN_SIZE = 0x7FFF0000
"""A chunk of this size or more is what programs write that do not know the size beforehand."""

_SHORT_CHUNK = re.compile(
    r"^ *(?:data|SSND|BODY|Data Size|Data length|riff|Riff size) *:? (\d+) \(?should be (\d+)\b", re.MULTILINE
)
_COUNTING = ("AIFF", "AVR", "MPC2K", "RF64")
_NIST_COUNT = re.compile(rb"sample_count -i (\d{1,12})\s")
_FRAMES = re.compile(r"^ *Frames *: (\d+)$", re.MULTILINE)
_DAMAGE = re.compile(
    r"^[ *]*(?:Ogg ?: |Warning ?: )?(?:Skipped [0-9]+ bytes looking for the next page"
    "|libogg reports a hole at [0-9]+ bytes|Last page lacks an end-of-stream bit|Junk after the last page"
    "|short read|data chunk seems to be truncated|Seems to be a truncated file)",
    re.MULTILINE,
)
"""libsndfile's log tells what its numbers hide: it cuts lengths to the size of the file and leaves out broken pages."""


_POINTER = b"version https://git-lfs."
_GET_WHOLE = "get a whole copy of it, or leave it out."
_REPAIR = "Repair the header, or leave the file out."


def read(
    path: str | os.PathLike[str], sample_rate: int, *, offset: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """Reads a sound file (or a stretch of it) as mono at the given rate.

    Args:
        path: Any file libsndfile opens: WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, CAF, …
        sample_rate: Wanted rate in Hz; other rates are resampled (soxr, high quality).
        offset: Start in seconds.
        seconds: Longest duration in seconds, or None for all that follows.

    Returns:
        [S] float32 in [-1, 1], the mean of the file's channels. Samples far outside are returned as they are, and said.

    Raises:
        AudioError: The file is missing, empty, damaged, cut short, too long for the memory or cannot be decoded; its
            samples are not finite or too large for a spectrogram; or the stretch lies beyond its end.
    """
    with _opened(path) as file:
        rate, announced = file.samplerate, _announced(path, file)
        wanted = math.inf if seconds is None or math.isinf(seconds) else round(seconds * rate)
        _check_memory(path, 0 if announced is None else min(wanted, file.frames - round(offset * rate)))
        waveform, decoded = np.empty(0 if announced is None else int(min(wanted, file.frames)), np.float32), 0
        for block in _decoded(path, file, announced, offset, wanted):
            start, decoded = decoded, decoded + len(block)
            _check_memory(path, decoded)
            if decoded > len(waveform):
                waveform.resize(2 * decoded, refcheck=False)
            np.add(block, 0, out=waveform[start:decoded])  # without -0.0
        _check_resampled(path, decoded, rate, sample_rate)
        waveform = waveform[:decoded]
        resampled: np.ndarray = soxr.resample(waveform, rate, sample_rate) if rate != sample_rate else waveform
    return resampled


def inspect(path: str | os.PathLike[str]) -> tuple[str, float, int, int]:
    """Decodes a sound file to its end in little memory, however long it is.

    Args:
        path: As of `read`.

    Returns:
        SHA-256 of its rate and of the mean of its channels, rounded to 16 bits: the same in every lossless format and
        with any tags. Its duration in seconds, see `duration`; its sample rate in Hz; and its number of channels.

    Raises:
        AudioError: As of `read` at 16 kHz, but for the memory.
    """
    with _opened(path) as file:
        rate, channels, announced = file.samplerate, file.channels, _announced(path, file)
        sha, decoded = hashlib.sha256(f"{rate} ".encode()), 0
        for block in _decoded(path, file, announced):
            sha.update((np.rint(block.astype(np.float64) * 2**15) + 0.0).tobytes())  # without -0.0
            decoded += len(block)
        _check_resampled(path, decoded, rate, 16000)
    return sha.hexdigest(), (decoded if announced is None else announced) / rate, rate, channels


def duration(path: str | os.PathLike[str]) -> float:
    """Duration of a sound file in seconds: what its header announces, or, where that is unknown, what is decoded.

    Raises:
        AudioError: The file is missing or not a sound file.
    """
    with _opened(path) as file:
        frames = _announced(path, file)
        if frames is None:
            frames = sum(len(block) for block in _blocks(file, math.inf))
        return frames / int(file.samplerate)


def memory_to_read(path: str | os.PathLike[str], seconds: float | None = None) -> float:
    """Bytes that reading a file takes by its header: infinite where that is silent, 0 for what cannot be opened."""
    try:
        with _opened(path) as file:
            frames = math.inf if file.frames >= _UNKNOWN_LENGTH else file.endless.guess if file.endless else file.frames
            return SAMPLE_BYTES * min(frames, math.inf if seconds is None else seconds * file.samplerate)
    except AudioError:
        return 0


@cache
def suffixes() -> frozenset[str]:
    """Lower-case suffixes, with their dot, of the formats that the installed libsndfile reads."""
    formats = set(soundfile.available_formats()) - _HEADERLESS
    return frozenset(f".{name.lower()}" for each in formats for name in (each, *_OTHER_SUFFIXES.get(each, ())))


def find_sounds(folder: Path) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Finds the sound files of a tree by their suffix; its other files; and its folders that cannot be listed.

    See `m2d_bench.files.find`.
    """
    sounds: list[str] = []
    others: list[str] = []
    files, unlisted = find(folder)
    for file in files:
        (sounds if os.path.splitext(file)[1].lower() in suffixes() else others).append(file)
    return sounds, others, unlisted


def warn_of_others(folder: Path, others: Sequence[str]) -> None:
    """Warns how many files of a tree are left out because their suffix is not one of a sound file."""
    if others:
        logger.warning("%s: files left out, no sound by their suffix: %s.", folder, kinds(others))


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is decoded from front to back, whether or not its format can be searched."""

    endless: mp3.EndlessFile | None = None
    """What is decoded, where no header counts an MP3's frames."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[_Stream]:
    """A sound file whose header can be believed; what is raised while it is decoded becomes an AudioError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise AudioError(f"{path}: is not a file.")
        if os.path.splitext(path)[1].lower() in (".raw", ".vox"):
            raise AudioError(f"{path}: bare samples, whose rate and format no header says. Convert it to WAV.")
        with ExitStack() as opened:
            file = opened.enter_context(_Stream(os.fsencode(path)))  # pyright: ignore[reportArgumentType]  # it takes bytes
            if file.format == "MP3" and not mp3.is_counted(path, file.frames, file.samplerate):
                endless = opened.enter_context(mp3.EndlessFile(path, file.frames))
                file = opened.enter_context(_Stream(endless))
                file.endless = endless
            lowest, highest = RATES
            if not lowest <= file.samplerate <= highest:
                raise AudioError(
                    f"{path}: its header says {file.samplerate} Hz; allowed are {lowest} to {highest}. {_REPAIR}"
                )
            if file.channels > MOST_CHANNELS:
                raise AudioError(
                    f"{path}: its header says {file.channels} channels; at most {MOST_CHANNELS} are allowed. {_REPAIR}"
                )
            yield file
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file.") from None
    except _DECODER_ERRORS as error:
        known = os.path.splitext(path)[1].lower() in suffixes()
        formats = "" if known else f" Formats that can be read: {', '.join(sorted(s[1:] for s in suffixes()))}."
        reason = getattr(error, "error_string", "") or str(error) or type(error).__name__
        if _is_pointer(path):
            reason = "a pointer of Git LFS; git lfs pull puts the sound in its place"
        raise AudioError(f"{path}: cannot be decoded ({reason}).{formats}") from error


def _is_pointer(path: str | os.PathLike[str]) -> bool:
    """Whether a file is what a clone holds instead of a large file that was not fetched."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except (OSError, ValueError):
        return False


def _blocks(file: _Stream, frames: float) -> Iterator[np.ndarray]:
    """Decodes up to so many frames in blocks, [n, channels] float32."""
    # a file that ends within a frame loses its last block
    size = mp3.FRAME if file.endless else _BLOCK // file.channels
    integers = file.subtype == "PCM_16" and file.format in _PLAIN
    while frames > 0:
        try:
            block = file.read(int(min(frames, size)), dtype="int16" if integers else "float32", always_2d=True)
        except soundfile.SoundFileError:
            if file.endless is None:
                raise
            if file.endless.tell() < mp3.ENDLESS:
                raise AudioError(
                    f"{file.endless.path}: more than 1 KiB between its frames or behind them is no sound, and no "
                    "header counts them. Remove such tags, or convert it."
                ) from None
            _warn_of_end(str(file.endless.path))
            return
        if not len(block):
            return
        yield block * np.float32(2**-15) if integers else block
        frames -= len(block)


def _decoded(
    path: str | os.PathLike[str], file: _Stream, announced: int | None, offset: float = 0.0, wanted: float = math.inf
) -> Iterator[np.ndarray]:
    """Decodes up to so many frames from a place in seconds, in blocks [n] float32 of the mean of the channels.

    Raises:
        AudioError: At the end, where they are none, fewer than announced, damaged, not finite or too large.
    """
    start = round(offset * file.samplerate)
    if start and announced is not None and soundfile.SoundFile.seekable(file):
        start = file.seek(min(start, file.frames))
    else:
        start = sum(len(block) for block in _blocks(file, start))
    expected = wanted if announced is None else min(wanted, announced - start)
    decoded, peak = 0, np.float32(0)  # NaN stays in it
    for block in _blocks(file, wanted if announced is None else expected):  # beyond the end NMS ADPCM has faults
        waveform = _mono(block)
        decoded, peak = decoded + len(waveform), np.maximum(np.maximum(peak, waveform.max()), -waveform.min())
        yield waveform
    if announced is not None and decoded < expected - (mp3.missing_frames(path) if file.format == "MP3" else 0):
        raise AudioError(f"{path}: ends after {start + decoded} of {announced} samples; {_GET_WHOLE}")
    if damage := _DAMAGE.search(file.extra_info):
        raise AudioError(f"{path}: is damaged or cut short ({damage[0]}); {_GET_WHOLE}")
    if not decoded:
        raise AudioError(f"{path}: no samples at {offset:g} s; the file is empty or shorter than that.")
    _check_peak(path, float(peak))


def _mono(block: np.ndarray) -> np.ndarray:
    """The mean of the channels of [n, channels], to the bit NumPy's but for -0.0, and faster over so short an axis."""
    channels = block.shape[1]
    if channels == 1:
        return block[:, 0]
    if channels > 7:  # which NumPy adds in another order
        return np.asarray(block.mean(axis=1))
    return np.asarray(sum(block.T) / channels)


def _announced(path: str | os.PathLike[str], file: _Stream) -> int | None:
    """Number of frames that the header promises; None where it promises none."""
    if not 0 <= file.frames < _UNKNOWN_LENGTH or file.endless:
        return None
    frames, log = int(file.frames), file.extra_info
    if file.format == "NIST":  # whose count libsndfile passes over
        with open(path, "rb") as header:
            counted = _NIST_COUNT.search(header.read(1024))
        return max(frames, int(counted[1])) if counted else frames
    if file.format in _COUNTING and (count := _FRAMES.search(log)):
        return max(frames, int(count[1]))
    if (size := _SHORT_CHUNK.search(log)) and 0 < int(size[2]) < int(size[1]) < _OPEN_SIZE:
        return frames * int(size[1]) // int(size[2])
    return frames


def _check_memory(path: str | os.PathLike[str], frames: float) -> None:
    """Raises an AudioError where so many mono samples would not fit this machine's memory."""
    if SAMPLE_BYTES * frames > _memory():
        raise AudioError(
            f"{path}: its {frames:.0f} samples need {SAMPLE_BYTES * frames / 2**30:.0f} GiB, more memory than this "
            "machine has. Cut the file into shorter ones."
        )


@cache
def _memory() -> float:
    """Bytes of this machine's memory; infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _check_resampled(path: str | os.PathLike[str], samples: int, rate: int, sample_rate: int) -> None:
    """Raises an AudioError where soxr, which rounds the length, leaves no sample."""
    if samples * sample_rate / rate < 0.5:
        raise AudioError(f"{path}: {samples} samples at {rate} Hz are less than one at {sample_rate} Hz.")


def _check_peak(path: str | os.PathLike[str], peak: float) -> None:
    """Raises an AudioError where samples are not finite or too large; warns of those in another unit."""
    if not math.isfinite(peak):
        raise AudioError(f"{path}: holds NaN or infinite samples.")
    if peak > LOUDEST:
        raise AudioError(
            f"{path}: its samples reach {peak:.3g}, too large for a spectrogram; they should be in [-1, 1]."
        )
    if peak > _LOUD:
        _warn_of_unit(str(path), f"{peak:.6g}")


@cache
def _warn_of_end(path: str) -> None:
    """Warns once a file."""
    logger.warning("%s: ends within a frame; it may be cut short, for no header tells its length.", path)


@cache
def _warn_of_unit(path: str, peak: str) -> None:
    """Warns once a file."""
    logger.warning(
        "%s: its samples reach %s; they should be in [-1, 1]. Divide integers by their full scale, for 16 bits 32768.",
        path,
        peak,
    )
