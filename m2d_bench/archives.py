"""Zip and tar archives: checked before anything of them is written, and unpacked into one folder."""

from __future__ import annotations

import io
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path, PureWindowsPath
from typing import IO, Any, NamedTuple

from m2d_bench.errors import ArchiveError, brief
from m2d_bench.progress import bar
from m2d_bench.settings import check_room, writing

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tar.bz2")
"""Ends of archives' names."""

_RATIO = 20
"""An archive unpacks to at most this many times its size, from a gigabyte on."""
_LEAST = 4096
"""Bytes that a file takes on disk, however little is in it."""
_BLOCK = 1 << 20


class Entry(NamedTuple):
    """A file in an archive.

    Args:
        name: Its name there.
        size: Its bytes.
        plain: Whether it is a file, no link or device.
        open: Opens it; of use until the next entry is asked for.
    """

    name: str
    size: int
    plain: bool
    open: Callable[[], IO[bytes] | None]


def unpack(parts: Sequence[Path], target: Path, place: Callable[[str], str | None], option: str) -> None:
    """Unpacks the files of an archive.

    Args:
        parts: The archive; where it comes in several files, these in their order.
        target: Folder that is made for them.
        place: File's name in the archive → its path in the target, or None where it is left out.
        option: What names another folder.

    Raises:
        ArchiveError: As of `check`.
        StorageError: There is no room for them.
    """
    path, size = parts[-1], sum(size for _, size in check(parts, place))
    with (
        _explained(path),
        writing(target.parent, size, option),
        bar(f"Unpacking {path.name}", size, "bytes") as advance,
    ):
        check_room(target.parent, size)
        for entry in _entries(parts):
            inside = place(entry.name)
            if inside is not None:
                file = target / inside
                file.parent.mkdir(parents=True, exist_ok=True)
                with entry.open() as source, file.open("wb") as copy:  # type: ignore[union-attr]
                    shutil.copyfileobj(source, copy, _BLOCK)
                advance(entry.size)


def check(parts: Sequence[Path], place: Callable[[str], str | None]) -> list[tuple[str, int]]:
    """Lists the files that `unpack` writes, once all proved harmless.

    Args:
        parts, place: As of `unpack`.

    Returns:
        Their names in the archive and sizes in bytes.

    Raises:
        ArchiveError: No whole archive; or one with links, devices or paths that lead out of the target; or one that
            unpacks to far more than sounds or weights are compressed by.
    """
    path, packed, unpacked, found = parts[-1], sum(part.stat().st_size for part in parts), 0, []
    with _explained(path), bar(f"Checking {path.name}", None, "files") as advance:
        for entry in _entries(parts):
            advance(1)
            unpacked += max(entry.size, _LEAST)
            check_size(path, unpacked, packed)
            inside = place(entry.name)
            if inside is not None:
                if not entry.plain:
                    raise ArchiveError(f"{path}: {entry.name} is a link or a device; allowed are files and folders.")
                if PureWindowsPath(inside).anchor or ".." in PureWindowsPath(inside).parts:
                    raise ArchiveError(f"{path}: {entry.name} leads out of the folder it is unpacked into.")
                found.append((entry.name, entry.size))
    return found


def check_size(path: Path, unpacked: int, packed: int) -> None:
    """Raises an ArchiveError where an archive of so many bytes unpacks to far more than it should."""
    if unpacked > max(_RATIO * packed, 1 << 30):
        raise ArchiveError(
            f"{path}: unpacks to {unpacked} bytes or more, which is more than sounds or weights would. Get it anew."
        )


@contextmanager
def open_zip(*parts: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive, in one file or split; whatever is wrong with it while it is read is an ArchiveError."""
    with _explained(parts[-1]), ExitStack() as files:
        if len(parts) == 1:
            yield files.enter_context(zipfile.ZipFile(parts[0]))
            return
        joined = _Joined([files.enter_context(part.open("rb")) for part in parts])
        archive = files.enter_context(zipfile.ZipFile(io.BufferedReader(joined, _BLOCK)))
        _join(archive, joined.starts)
        yield archive


def _entries(parts: Sequence[Path]) -> Iterator[Entry]:
    """The files of an archive in its order."""
    if parts[-1].suffix == ".zip":
        with open_zip(*parts) as archive:
            for record in archive.infolist():
                if not record.is_dir():
                    plain = stat.S_IFMT(record.external_attr >> 16) in (0, stat.S_IFREG)
                    yield Entry(record.filename, record.file_size, plain, partial(archive.open, record))
    else:
        with tarfile.open(parts[-1]) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # they are hundreds of thousands
                if not member.isdir():
                    yield Entry(member.name, member.size, member.isreg(), partial(tar.extractfile, member))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Says what is wrong with an archive that is read."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
        *(struct.error, EOFError, ValueError, IndexError, OSError),
        RuntimeError,  # encrypted, or of a method that is not known
    ) as error:
        kind = "tar" if ".tar" in path.name else "zip"
        raise ArchiveError(f"{path}: not a whole {kind} file, or it cannot be unpacked: {brief(error)}.") from error


class _Joined(io.RawIOBase):
    """Files that are read as one.

    Args:
        files: Them, open.
    """

    def __init__(self, files: Sequence[IO[bytes]]) -> None:
        self._files, self._at = files, 0
        self.starts = [0, *accumulate(file.seek(0, io.SEEK_END) for file in files)]

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        self._at = max(0, offset + (0, self._at, self.starts[-1])[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As of any file; at most to the end of one of them."""
        number = min(bisect(self.starts, self._at), len(self._files)) - 1
        self._files[number].seek(self._at - self.starts[number])
        count: int = self._files[number].readinto(buffer)  # type: ignore[attr-defined]
        self._at += count
        return count


def _join(archive: zipfile.ZipFile, starts: Sequence[int]) -> None:
    """Corrects where the records of a split archive lie, which it tells from the starts of its files on.

    Source: APPNOTE.TXT of PKWARE, section 8.
    """
    supposed = starts[bisect(starts, archive.start_dir) - 1]  # of the file with the directory, as if all lay in that
    for record in archive.infolist():
        record.header_offset += starts[record.volume] - supposed
        if hasattr(record, "_end_offset"):  # of newer Pythons, computed from the wrong places
            record._end_offset = None
