"""Encoders in other people's code: `file.py:CLASS_OR_FUNCTION`, and what `hear:` and `s3prl:` share with it."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from m2d_bench.encoders.digest import digest_of
from m2d_bench.encoders.protocol import Encoder, SceneEncoder
from m2d_bench.errors import M2DBenchError, UsageError
from m2d_bench.files import sha256
from m2d_bench.registry import listing, unknown

_SUFFIX = ".py"


class ForeignEncoder(Encoder):
    """Somebody's encoder under the whole contract, frozen and in evaluation mode, as its code computes.

    Its digest also tells name and code apart, for they may choose what weights do not show, and an error that it raises
    says where.

    Args:
        encoder: As for `Encoder`.
        name: Its name in records and messages.
        code: What its code is: the text that holds it, or a version; and weights that it reads.
        file: Where its code lies.
    """

    def __init__(self, encoder: SceneEncoder, name: str, code: bytes, file: str | None) -> None:
        if isinstance(encoder, nn.Module):
            encoder.eval().requires_grad_(False)
        super().__init__(encoder)
        self.name = name
        self._code, self._file = hashlib.sha256(code).hexdigest(), file

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the digest of `Encoder`, name and code, 16 hexadecimal digits."""
        return digest_of([super().digest, self.name, self._code], {})

    def _call(self, method: str, batch: Tensor, **lengths: list[int]) -> Any:
        with explained(f"{method} of {self.name}", self._file):
            return super()._call(method, batch, **lengths)


def load(name: str) -> ForeignEncoder:
    """The encoder that a class or function of a Python file or of a module gives.

    Args:
        name: `path/to/file.py:NAME` or `package.module:NAME`. A class or a function is called without arguments.

    Raises:
        UsageError: No such file or name, an error of its code, or no encoder; says what to do.
    """
    encoder, module = look_up(name, "encoder", "class or function")
    if isinstance(encoder, type) or inspect.isroutine(encoder):
        _check_arguments(name, encoder)
        with explained(f"{name}, called without arguments", module.__file__):
            encoder = encoder()
    if encoder is None:
        raise UsageError(f"{name} gives None, no encoder; end the function with return and the encoder.")
    try:
        return ForeignEncoder(encoder, Path(name).name, code_of(module), module.__file__)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _check_arguments(name: str, function: Callable[..., Any]) -> None:
    """Refuses a class or function that cannot be called without arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled code has no signature
        return
    try:
        signature.bind()
    except TypeError as error:
        reference, _, attribute = name.rpartition(":")
        raise UsageError(
            f"{name} is called without arguments: {error}. Give its arguments in a function, "
            f"def make(): return {attribute}(…), and name {reference}:make."
        ) from None


def look_up(name: str, what: str, kind: str) -> tuple[Any, ModuleType]:
    """What a reference names, and the module that holds it.

    Args:
        name: `path/to/file.py:NAME` or `package.module:NAME`.
        what: What it is to be, for messages.
        kind: The kind of object that NAME names, likewise.

    Raises:
        UsageError: No such file or name, or an error of its code.
    """
    reference, _, attribute = name.rpartition(":")
    if not reference:
        raise UsageError(f"{name}: which {what} in it? Write {name}:{kind.upper().replace(' ', '_')}.")
    module = load_module(reference)
    if (found := getattr(module, attribute, None)) is None:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise unknown(kind, attribute, own, f"{reference}, which defines {listing(own) or 'none'}")
    return found, module


def is_reference(name: str) -> bool:
    """Whether a name is a path to a Python file, or a class or function in one or in a module that can be found."""
    reference, colon, attribute = name.rpartition(":")
    if f"{reference or attribute}".endswith(_SUFFIX):
        return True
    words = [*reference.split("."), attribute]
    return bool(colon) and all(map(str.isidentifier, words)) and _found(words[0])


def load_module(reference: str) -> ModuleType:
    """The module of a path to a .py file, run anew, or of a dotted name.

    The file's folder, or the current one, is searched last for modules that are imported: where `python file.py` and
    `python -m module` would find them first.

    Raises:
        UsageError: No such module, or an error of its code.
    """
    path = Path(reference).expanduser()
    is_file = path.suffix == _SUFFIX
    if not (path.is_file() if is_file else _found(reference.partition(".")[0])):
        what = "no such file" if is_file else "no such module, neither installed nor in the current folder"
        raise UsageError(f"{reference}: {what}.")
    folder = str((path.parent if is_file else Path.cwd()).resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    with explained(reference, str(path)):
        if not is_file:
            return import_module(reference)
        spec = spec_from_file_location(f"m2d_bench_foreign_{path.stem}", path.resolve())
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = module_from_spec(spec)  # where dataclasses look for it
        spec.loader.exec_module(module)
        return module


def code_of(module: ModuleType) -> bytes:
    """Text of a module's file, and of loaded modules beside it that it imports, directly or not; else its name.

    An installed module stands alone, and what is imported by a name that the text does not show is not found.
    """
    if not module.__file__:
        return module.__name__.encode()
    file = Path(module.__file__).resolve()
    folder, texts, waiting = file.parents[module.__name__.count(".")], {file: file.read_bytes()}, [module]
    while waiting and "site-packages" not in file.parts and file.suffix == _SUFFIX:
        for imported in _imported(waiting.pop()):
            path = Path(getattr(imported, "__file__", None) or "").resolve()
            inside = folder in path.parents and "site-packages" not in path.parts
            if inside and path.suffix == _SUFFIX and path not in texts:
                texts[path] = path.read_bytes()
                waiting.append(imported)
    return b"".join(texts[path] for path in [file, *sorted(texts.keys() - {file})])


def _imported(module: ModuleType) -> list[ModuleType]:
    """Loaded modules that a module's text imports."""
    assert module.__file__ is not None
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = (module.__package__ or "").rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (package, node.module)))
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    parents = {name[:at] for name in names for at, letter in enumerate(name) if letter == "."}
    return [sys.modules[name] for name in names | parents if name in sys.modules]


def content_of(path: str) -> bytes:
    """SHA-256 over a file, or over the files of a folder and their names; nothing where there is none."""
    files = [Path(path)] if Path(path).is_file() else sorted(file for file in Path(path).rglob("*") if file.is_file())
    return "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files).encode()


@contextmanager
def explained(what: str, file: str | None) -> Iterator[None]:
    """An error of other people's code as one of ours, which says where it was raised; --verbose shows the rest.

    Args:
        what: Whose code runs.
        file: Its file; of the calls that led to the error, the last one in it is named.
    """
    try:
        yield
    except (M2DBenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        calls = [(call.filename, call.lineno) for call in traceback.extract_tb(error.__traceback__)]
        inside = [call for call in calls if file and os.path.realpath(call[0]) == os.path.realpath(file)]
        where = "" if isinstance(error, SyntaxError) else "{}, line {}: ".format(*(inside or calls)[-1])
        text = " ".join(str(error).split())
        raise UsageError(f"{what}: {where}{type(error).__name__}: {text}") from error


def _found(name: str) -> bool:
    """Whether a top-level module is installed or lies in the current folder."""
    return name in sys.modules or PathFinder.find_spec(name, [*sys.path, os.getcwd()]) is not None
