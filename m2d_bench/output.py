"""What a verb returns to the command line, CSV, and how settings become its options. No torch here."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cyclopts import Parameter, Token

Flat = Parameter(name="*")
"""Makes the fields of a settings value options of the verb."""


def _split(type_: object, tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(name for token in tokens for part in token.value.split(",") if (name := part.strip()))


Names = Parameter(consume_multiple=True, negative=(), converter=_split)
"""Makes an option take several names, separated by commas or spaces."""


@dataclass(frozen=True)
class Output:
    """What a verb prints: a text on stdout, and the failures that are named last and set the exit code."""

    text: str
    failures: tuple[str, ...] = ()


_FORMULA = re.compile("[=+@\t\r\uff1d\uff0b\uff0d\uff20-]")


def csv_text(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV, without the last line end; a text that a spreadsheet would compute gets an apostrophe in front.

    Source: OWASP, CSV injection.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_defused(cell) for cell in row] for row in rows)
    return file.getvalue().rstrip("\n")


def _defused(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) and not _is_number(cell) else cell


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False
