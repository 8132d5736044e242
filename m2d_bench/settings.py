"""Where things lie and what computes them: the settings every verb shares, with their defaults."""

# No postponed annotations here: the command line reads the types of these fields from other modules' subclasses.

import errno
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import platformdirs
from pydantic import NonNegativeInt, PositiveInt

from m2d_bench.errors import StorageError, UsageError
from m2d_bench.values import Checked

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]

OnBadFile = Literal["stop", "skip"]
"""What becomes of a task with sound files that cannot be read: it fails and names all, or is scored without them."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}

_CHECKSUM = 32
"""Bytes of a SHA-256 digest."""


@dataclass(frozen=True, kw_only=True)
class Storage(Checked):
    """Folders that are read and written.

    Args:
        data: Folder that holds each data set as its authors publish it; else the environment's M2D_BENCH_DATA.
        cache: Folder for weights, generated tasks and embeddings; else M2D_BENCH_CACHE, else the user's cache folder.
        runs: Folder for run records.
    """

    data: str | Path | None = None
    cache: str | Path | None = None
    runs: str | Path = "runs"

    @property
    def data_root(self) -> Path | None:
        """The data folder in force, or None if none was named."""
        named = self.data or os.environ.get("M2D_BENCH_DATA")
        return Path(named).expanduser() if named else None

    @property
    def runs_root(self) -> Path:
        """The folder of run records."""
        return Path(self.runs).expanduser()

    @property
    def cache_root(self) -> Path:
        """The cache folder in force."""
        named = self.cache or os.environ.get("M2D_BENCH_CACHE")
        return Path(named).expanduser() if named else platformdirs.user_cache_path("m2d-bench")


@dataclass(frozen=True, kw_only=True)
class Compute(Checked):
    """What the encoder runs on, and whose code.

    Args:
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, mps, …
        precision: fp32, bf16, or auto: bf16 where the processor multiplies it natively, else fp32.
        batch_size: Clips per forward pass; lower it to save memory.
        jobs: Threads that decode audio; 0 means one a core.
        trust_remote_code: Run the code that the repository of an hf: model holds. Read it first.
    """

    device: str = "auto"
    precision: Precision = "auto"
    batch_size: PositiveInt = 32
    jobs: NonNegativeInt = 0
    trust_remote_code: bool = False

    def torch_device(self) -> "torch.device":
        """The device in force; an unknown or missing one is a UsageError."""
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=self.device).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"Device {self.device!r} cannot be used: {reason}. Try --device cpu.") from None

    def resolved_precision(self) -> Literal["fp32", "bf16"]:
        """The precision in force on the device in force."""
        import torch

        if self.precision != "auto":
            return self.precision
        device = self.torch_device()
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "fp32"


def command_line(words: Sequence[str], settings: object, leaving_out: Sequence[str] = ()) -> str:
    """What repeats a run: the verb and its words, and every field of the settings that is not at its default."""
    words = ["m2d-bench", *words]
    for field in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if value != field.default and field.name not in leaving_out:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            words += [f"--{field.name.replace('_', '-')}", *([] if value is True else [text])]
    return shlex.join(words)


def file_name(text: str) -> str:
    """A name as part of a path on any system: letters, digits and `_.=-`."""
    return re.sub(r"[^\w.=-]+", "_", text).strip("_")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside the path that takes its place when it is written in full and flushed; nobody meets half of it.

    Args:
        path: The file to write; its folder is made.

    Raises:
        OSError: With the path; of a full disk, also with the room there was for the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            room = shutil.disk_usage(path.parent).free + (temporary.stat().st_size if temporary.exists() else 0)
            error.strerror = f"{error.strerror}: it needs more than the {room / 2**20:.1f} MiB that are free"
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_checked(path: Path, content: bytes) -> None:
    """Writes a file of the cache with a checksum of its content and name behind it, whole or not at all."""
    with replacing(path) as file:
        file.write(content)
        file.write(_checksum(path, content))


def read_checked(path: Path) -> bytes | None:
    """The content of a file of the cache; None where it is missing, or is not what `write_checked` wrote."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    content, checksum = stored[:-_CHECKSUM], stored[-_CHECKSUM:]
    return content if _checksum(path, content) == checksum else None


def _checksum(path: Path, content: bytes) -> bytes:
    """SHA-256 of a file's content and of its place in the cache: folder and name, where another file may be copied."""
    return hashlib.sha256(content + os.fsencode(f"{path.parent.name}/{path.name}")).digest()


@contextmanager
def writing(folder: Path, needed: int, option: str) -> Iterator[None]:
    """Explains why the system refuses to write into a folder.

    Args:
        folder: The folder that the user named.
        needed: Bytes that are going to be written.
        option: What names another folder.

    Raises:
        StorageError: It is full, or cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL | _REFUSED:
            raise
        reason, remedy = f"cannot be written to ({error.strerror})", "Name"
        if error.errno in _FULL:
            free = shutil.disk_usage(folder).free
            reason, remedy = f"the disk is full, {free / 2**20:.1f} MiB are free", "Make room, or name"
        raise StorageError(
            f"{folder}: {reason}; {needed / 2**20:.1f} MiB are to be written. {remedy} another folder with {option}."
        ) from error


def check_room(folder: Path, needed: int) -> None:
    """Raises the error of a full disk, which `writing` explains, where a folder has no room for so many bytes."""
    if needed > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the path in the error of a write into it that fails, which the system does not, as on a full disk.

    Args:
        path: The file that is written.

    Raises:
        OSError: With the path; also where torch.save raised another error on top of it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None or cause.errno is None or cause.filename is not None:
            raise
        raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error


def make_folder(folder: Path, option: str = "") -> None:
    """Makes a folder that is going to be written to, before any work is done.

    Raises:
        UsageError: Why it cannot be, and the option that names it, if there is one.
    """
    named = f"{option} {folder}".strip()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise UsageError(f"{named}: cannot be made ({error.strerror}). Name another folder.") from error
    if not writable:
        raise UsageError(f"{named}: cannot be written to. Name another folder.")


def make_cache(root: Path) -> None:
    """Makes the cache folder, before any work is done, where it is not there; one that is only read is left as it is.

    Raises:
        UsageError: It cannot be made.
    """
    if not os.path.isdir(root):  # Path.is_dir raises where a folder above may not be searched
        make_folder(root, "--cache")


def _cpu_multiplies_bf16() -> bool:
    """Whether this processor has bf16 dot products (AVX512_BF16 or AMX)."""
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch ≥ 2.10
    if capabilities is not None:
        found = capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
