"""MP3 files: what their headers count, and those whose frames no header counts."""

from __future__ import annotations

import io
import os
import re

FRAME = 1152
"""Samples of a frame at 32 kHz and above; below, half as many."""

ENDLESS = 2**44
"""Bytes of a file that is said to be larger than any, and yet whose length in samples can be counted."""


class EndlessFile(io.FileIO):
    """An MP3 that says to be larger than any: libsndfile stops where, by the file's size, it expects the last frame.

    It begins behind its ID3 tag, which libsndfile skips only in files that it opens itself.

    Args:
        path: The file.
        guess: Frames that libsndfile expects of it.
    """

    def __init__(self, path: str | os.PathLike[str], guess: int) -> None:
        super().__init__(os.fsencode(path))
        self.path, self.guess = path, guess
        self._start, self._size = _tag_size(self.read(10)), os.fstat(self.fileno()).st_size
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        super().seek(offset + self._start if whence == os.SEEK_SET else offset, whence)
        return self.tell()

    def tell(self) -> int:
        position = super().tell()
        return position - self._start if position < self._size else ENDLESS


def is_counted(path: str | os.PathLike[str], frames: int, sample_rate: int) -> bool:
    """Whether a length is what the file's Xing header counts, less the silence that encoders add, not a guess."""
    count = int.from_bytes(_xing(path)[8:12], "big")
    return count > 0 and frames > (count - 1) * (FRAME if sample_rate >= 32000 else FRAME // 2) - 2 * 2**12


def missing_frames(path: str | os.PathLike[str]) -> int:
    """Frames by which a whole file may be shorter than announced: its count may include the header's own."""
    return 0 if re.search(b"LAME|Lav[cf]", _xing(path)) else FRAME


def _xing(path: str | os.PathLike[str]) -> bytes:
    """A file's Xing header with a frame count, from its tag on; empty where there is none and the length is a guess."""
    with open(path, "rb") as file:
        file.seek(_tag_size(file.read(10)))
        frame = file.read(256)
    found = re.search(rb"(?:Xing|Info)...[\x01\x03\x05\x07\x09\x0b\x0d\x0f]", frame, re.DOTALL)
    return frame[found.start() :] if found else b""


def _tag_size(head: bytes) -> int:
    """Bytes of the ID3 tag that a file begins with, by its first ten; 0 where there is none."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
