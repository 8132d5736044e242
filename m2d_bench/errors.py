"""The package's errors: one small tree, each message written for the person who meets it."""

from __future__ import annotations


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


class StorageError(M2DBenchError):
    """A folder is full or cannot be written to."""


class RunError(M2DBenchError):
    """A run record cannot be read or written."""


class TrainingError(M2DBenchError):
    """A training cannot go on."""
