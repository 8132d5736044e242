"""What is written to a terminal: every text reaches it, whatever its encoding, and none steers it."""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import re
import sys
from contextlib import suppress
from typing import TextIO

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ASCII = {
    **{"↑": "^", "↓": "v", "±": "+-", "≈": "~", "×": "x", "…": "...", "·": "|", "¹": "#1", "²": "#2", "α": "alpha"},
    **{"–": "-", "−": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"'},
}


def printable(text: str) -> str:
    """A text without what steers a terminal: control characters but for tabs and line ends are shown as \\u001b."""
    return _CONTROL.sub(lambda found: _escaped(found[0]), text)


def open_streams() -> None:
    """Makes stdout and stderr take every text: closed ones take it nowhere; what their encoding lacks is written as
    ASCII marks or as \\u00e9. Log messages are one of the texts `printable` makes."""
    codecs.register_error("m2d_bench.ascii", _in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="m2d_bench.ascii")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def close_streams() -> bool:
    """Flushes stdout and stderr; returns False where that cannot be done, as on a full disk."""
    flushed = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # what is left goes nowhere, else the interpreter tries again and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            flushed = False
    return flushed


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a text at once, on stderr by default; a stderr that takes none is no error."""
    if stream:
        print(printable(text), file=stream, flush=True)
        return
    with suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a stream's encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(
        _ASCII.get(letter) or _escaped(letter) for letter in error.object[error.start : error.end]
    ), error.end


def _escaped(letter: str) -> str:
    return json.dumps(letter)[1:-1] if letter != "\x7f" else "\\u007f"
