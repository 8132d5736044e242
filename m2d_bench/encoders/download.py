"""Downloads into the cache: with progress, resumed where they broke off, checked by size and SHA-256."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2d_bench import files
from m2d_bench.errors import CheckpointError
from m2d_bench.progress import bar
from m2d_bench.settings import writing

_BLOCK = 1 << 20
_WEAK = "W/"
"""Begins the ETag of a file that may be another one of the same meaning: its parts do not fit together."""


def fetch(url: str, path: Path, *, manual: str) -> None:
    """Downloads a file unless it is there; a part left by an earlier try is continued if the file is still the same.

    Args:
        url: Address.
        path: Where the file appears, whole or not at all; the part lies beside it as `.part`, and as `.part.tag` its
            version (ETag).
        manual: What a person without network can do instead, ends the error message.

    Raises:
        CheckpointError: No connection, an HTTP error, or fewer bytes than announced.
        StorageError: The disk is full; the part stays.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        total = _receive(url, part, path.name)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise CheckpointError(
            f"{url} cannot be downloaded into {path.parent}: {error}. Without a network, {manual}."
        ) from error
    size = part.stat().st_size
    if total is not None and size != total:
        raise CheckpointError(f"{url}: {size} of {total} bytes came; run again to go on from there. Or {manual}.")
    os.replace(part, path)
    _tag(part).unlink(missing_ok=True)


@contextmanager
def known(path: Path, sha256: str | None, record: Path) -> Iterator[None]:
    """Compares a file's SHA-256 with the one that is known, or was recorded when its first download proved good.

    Args:
        path: The file.
        sha256: What it has to be; None if it is not known.
        record: Text file of such sums, as `sha256sum -c` reads it; if the sum is not there, it is added at the end of
            the context unless an error ends that.

    Raises:
        CheckpointError: The file is another one.
    """
    digest = files.sha256(path)
    lines = record.read_text().splitlines() if record.exists() else []
    recorded = next((line.split()[0] for line in lines if line.endswith(f"  {path.name}")), None)
    expected = sha256 or recorded
    if expected not in (None, digest):
        origin = "" if sha256 else f", as at its first download; to accept another, remove its line from {record}"
        raise CheckpointError(f"{path}: its SHA-256 is {digest}, expected is {expected}{origin}.")
    yield
    if expected is None:
        with record.open("a") as file_of_sums:
            file_of_sums.write(f"{digest}  {path.name}\n")


def _receive(url: str, part: Path, name: str) -> int | None:
    """Downloads into the part, going on with it if the server still has the same file; returns the announced size.

    Source: RFC 9110, section 13.1.5.
    """
    tag = _tag(part)
    had = tag.read_text() if part.exists() and tag.exists() else ""
    have = part.stat().st_size if part.exists() and not had.startswith(_WEAK) else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    if have and had:
        request.add_header("If-Range", had)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            has = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            resumed = bool(have) and response.status == 206
            if resumed and (
                has != had or not response.headers.get("Content-Range", _from(have)).startswith(_from(have))
            ):
                raise urllib.error.HTTPError(url, 416, "another file", response.headers, None)
            announced = response.headers.get("Content-Length")
            total = int(announced) + (have if resumed else 0) if announced else None
            with (
                writing(part.parent, (total or 0) - (have if resumed else 0), "--cache"),
                part.open("ab" if resumed else "wb") as file,
                bar(name, total, "bytes", done=file.tell()) as advance,
            ):
                if not resumed:
                    tag.write_text(has)
                while block := response.read(_BLOCK):
                    file.write(block)
                    advance(len(block))
            return total
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # the part is already whole, or of another file
            part.unlink()
            return _receive(url, part, name)
        raise


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _from(start: int) -> str:
    return f"bytes {start}-"
