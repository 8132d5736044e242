"""The package's errors: one small tree, each message written for the person who meets it."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class M2DBenchError(Exception):
    """Root of every error this package raises on bad input or a broken environment."""


class UsageError(M2DBenchError):
    """A name, option or argument is not among the allowed ones."""


class AudioError(M2DBenchError):
    """A sound file or waveform cannot be used as it is."""


class CheckpointError(M2DBenchError):
    """A checkpoint cannot be read, or does not hold what it claims to hold."""


class DataError(M2DBenchError):
    """A data set is missing, incomplete or not laid out as its authors publish it."""


class ArchiveError(CheckpointError, DataError):
    """A download or an archive, of weights or of a data set, is not whole or not what it should be."""


class StorageError(M2DBenchError):
    """A folder is full or cannot be written to."""


class RunError(M2DBenchError):
    """A run record cannot be read or written."""


class TrainingError(M2DBenchError):
    """A training cannot go on."""


class OtherProcessError(M2DBenchError):
    """Another process of a training failed; it reports the error."""


@contextmanager
def naming_option(option: str, value: object) -> Iterator[None]:
    """Names the option whose value an error of this package is about, in front of its message."""
    try:
        yield
    except M2DBenchError as error:
        raise type(error)(f"{option} {value}: {str(error).removeprefix(f'{value}: ')}") from error


def describe(error: BaseException) -> str:
    """What an error says to the person who meets it: one of this package in its own words, others in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, M2DBenchError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return f"Out of memory: {text or 'nothing left to allocate'}. Lower --batch-size, or close other programs."
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {text}. This is a bug of m2d-bench; run it again with --verbose and report it."
    if error.strerror:
        text = f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror}."
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{text} Free some space there, or name another folder." if full else text


def note(error: Exception) -> str:
    """Describes an error that does not end the command; --verbose shows where it comes from."""
    message = describe(error)
    logger.debug("%s", message, exc_info=error)
    return message


def brief(message: object) -> str:
    """The first sentence of a library's message, in one line that can be printed; an empty error's type."""
    text = str(message).strip() or type(message).__name__
    sentence = re.split(r"\.\s|\n", text, maxsplit=1)[0].rstrip(".")[:200]
    return sentence if sentence.isprintable() else ascii(sentence)
