"""Downloads: with progress, resumed where they broke off, checked by size and checksum, removed where they are bad."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2d_bench import files
from m2d_bench.errors import ArchiveError, CheckpointError, DataError
from m2d_bench.progress import bar
from m2d_bench.settings import check_room, writing

_BLOCK = 1 << 20
_AGENT = {"User-Agent": "m2d-bench"}
_WEAK = "W/"
"""Begins the ETag of a file that may be another one of the same meaning: its parts do not fit together."""


def fetch(url: str, path: Path, *, manual: str, option: str) -> None:
    """Downloads a file unless it is there; a part left by an earlier try is continued if the file is still the same.

    Args:
        url: Address.
        path: Where the file appears, whole or not at all; the part lies beside it as `.part`, and as `.part.tag` its
            version (ETag).
        manual: What a person without network can do instead, ends the error message.
        option: What names another folder.

    Raises:
        ArchiveError: No connection, an HTTP error, or fewer bytes than announced.
        StorageError: The disk is full, or is too small for the file and as much again for what is unpacked from it;
            the part stays.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        total = _receive(url, part, path.name, option)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise ArchiveError(
            f"{url} cannot be downloaded into {path.parent}: {error}. Without a network, {manual}."
        ) from error
    size = part.stat().st_size
    if total is not None and size != total:
        raise ArchiveError(f"{url}: {size} of {total} bytes came; run again to go on from there. Or {manual}.")
    os.replace(part, path)
    _tag(part).unlink(missing_ok=True)


def verify(path: Path, checksum: str, origin: str = "") -> None:
    """Compares a file with its checksum.

    Args:
        path: The file.
        checksum: Algorithm and hexadecimal digits, such as `md5:9aa6…`; nothing where none is known.
        origin: Where the checksum comes from and what to do about it, ends the error message.

    Raises:
        ArchiveError: The file is another one.
    """
    algorithm, _, expected = checksum.partition(":")
    if not expected:
        return
    with bar(f"Checking {path.name}", path.stat().st_size, "bytes") as advance:
        digest = files.digest(path, algorithm, advance)
    if digest != expected:
        raise ArchiveError(f"{path}: its {algorithm.upper()} is {digest}, expected is {expected}{origin}.")


@contextmanager
def known(path: Path, checksum: str, record: Path) -> Iterator[None]:
    """Compares a file with its checksum, or with the one recorded when its first download proved good.

    Args:
        path: The file.
        checksum: As of `verify`.
        record: Text file of SHA-256 sums, as `sha256sum -c` reads it; if the sum is not there, it is added at the end
            of the context unless an error ends that.

    Raises:
        ArchiveError: The file is another one.
    """
    lines = record.read_text().splitlines() if record.exists() else []
    recorded = next((line.split()[0] for line in lines if line.endswith(f"  {path.name}")), None)
    if checksum or not recorded:
        verify(path, checksum)
    else:
        origin = f", as at its first download; to accept another, remove its line from {record}"
        verify(path, f"sha256:{recorded}", origin)
    yield
    if not checksum and not recorded:
        with record.open("a") as file_of_sums:
            file_of_sums.write(f"{files.sha256(path)}  {path.name}\n")


@contextmanager
def discarding(url: str, path: Path, manual: str) -> Iterator[None]:
    """Removes a download that proves bad while it is checked or unpacked, and says so.

    Args:
        url: Where it comes from.
        path: The file.
        manual: As of `fetch`.

    Raises:
        CheckpointError, DataError: What was wrong with it.
    """
    try:
        yield
    except (CheckpointError, DataError) as error:
        path.unlink()
        raise type(error)(f"{url}: {error} The download was removed, try again. Or {manual}.") from error


def _receive(url: str, part: Path, name: str, option: str) -> int | None:
    """Downloads into the part, going on with it if the server still has the same file; returns the announced size.

    Source: RFC 9110, section 13.1.5.
    """
    tag = _tag(part)
    had = tag.read_text() if part.exists() and tag.exists() else ""
    have = part.stat().st_size if part.exists() and not had.startswith(_WEAK) else 0
    request = urllib.request.Request(url, headers=_AGENT | ({"Range": f"bytes={have}-"} if have else {}))
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
            coming = int(announced or 0)
            total = coming + (have if resumed else 0)
            with writing(part.parent, coming + total, option):
                check_room(part.parent, coming + total)
                with (
                    part.open("ab" if resumed else "wb") as file,
                    bar(name, total or None, "bytes", done=file.tell()) as advance,
                ):
                    if not resumed:
                        tag.write_text(has)
                    while block := response.read(_BLOCK):
                        file.write(block)
                        advance(len(block))
            return total if announced else None
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # the part is already whole, or of another file
            part.unlink()
            return _receive(url, part, name, option)
        raise


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _from(start: int) -> str:
    return f"bytes {start}-"
