"""Our classes and settings in a clone of EVAR: for one run, or installed and removed again without a trace."""

from __future__ import annotations

import os
import runpy
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from m2d_bench.errors import DataError, UsageError
from m2d_bench.registry import unknown

SCRIPTS = ("lineareval", "finetune", "2pass_lineareval")
CONFIGS = Path(__file__).parent / "configs"
MODULE = "ar_m2d_bench"

_LINE = b"from . import ar_m2d_bench  # added by m2d-bench evar install\n"
_LINE_AFTER_NO_NEWLINE = (
    b"\nfrom . import ar_m2d_bench  # added by m2d-bench evar install after a last line without newline\n"
)
_SOURCE = b'''"""Written by m2d-bench evar install; m2d-bench evar uninstall removes it."""

from m2d_bench.evar_adapters.representation import AR_ENCODER, AR_M2D, AR_M2D_AS, AR_M2D_S, AR_MSM_MAE
'''


def run(clone: Path, script: str, arguments: Sequence[str]) -> None:
    """Runs a script of the clone in its folder, with our classes as `evar.ar_m2d_bench`; writes nothing of ours there.

    Args:
        clone: The clone.
        script: One of SCRIPTS, with or without .py.
        arguments: Of the script; its first, CONFIG, may be the bare name of one of our settings or of the clone's.

    Raises:
        UsageError: Unknown script or settings.
        DataError: Not a clone of EVAR.
    """
    clone = _checked(clone)
    script = script.removesuffix(".py")
    if script not in SCRIPTS:
        raise unknown("script", script, SCRIPTS, f"these: {', '.join(SCRIPTS)}")
    if not arguments:
        raise UsageError(f"{script} which settings? Name them after it, then the task: {script} m2d_bench esc50.")
    config, *rest = arguments
    with _python_that_runs_scripts():
        run_script(clone / f"{script}.py", [str(_config(clone, config)), *rest])


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Runs a script of a clone as `python script arguments` in its folder would, our classes being there."""
    folder = script.resolve().parent
    before = sys.argv, sys.path[:], Path.cwd(), sys.dont_write_bytecode
    sys.argv, sys.dont_write_bytecode = [script.name, *arguments], True
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        evar = import_module("evar")
        module = import_module("m2d_bench.evar_adapters.representation")
        sys.modules[f"evar.{MODULE}"] = module
        setattr(evar, MODULE, module)
        runpy.run_path(str(folder / script.name), run_name="__main__")
    finally:
        sys.argv, sys.path[:], _, sys.dont_write_bytecode = before
        os.chdir(before[2])


def install(clone: Path) -> list[Path]:
    """Adds our settings, one module and one line to a clone; what is already there stays.

    Args:
        clone: The clone.

    Returns:
        The files that belong to it.

    Raises:
        DataError: Not a clone of EVAR, or it has files of these names that are not ours.
    """
    clone = _checked(clone)
    ours = _ours(clone)
    foreign = [path for path, content in ours.items() if path.exists() and path.read_bytes() != content]
    if foreign:
        raise DataError(f"{', '.join(map(str, foreign))}: there already, and not as we write it. Move it away first.")
    for path, content in ours.items():
        path.write_bytes(content)
    init = clone / "evar" / "__init__.py"
    content = init.read_bytes()
    if _without_line(content) == content:
        init.write_bytes(content + (_LINE if not content or content.endswith(b"\n") else _LINE_AFTER_NO_NEWLINE))
    return [*ours, init]


def uninstall(clone: Path) -> list[Path]:
    """Removes what `install` added; the clone is then byte for byte as before.

    Raises:
        DataError: Not a clone of EVAR, or a file of ours was changed.
    """
    clone = _checked(clone)
    ours = {path: content for path, content in _ours(clone).items() if path.exists()}
    changed = [path for path, content in ours.items() if path.read_bytes() != content]
    if changed:
        raise DataError(f"{', '.join(map(str, changed))}: changed since it was installed. Keep a copy and remove it.")
    for path in ours:
        path.unlink()
    init = clone / "evar" / "__init__.py"
    content = init.read_bytes()
    if (without := _without_line(content)) != content:
        init.write_bytes(without)
        return [*ours, init]
    return list(ours)


def _ours(clone: Path) -> dict[Path, bytes]:
    """Our files in a clone, and what they hold."""
    files = {clone / "config" / path.name: path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml"))}
    return {**files, clone / "evar" / f"{MODULE}.py": _SOURCE}


def _without_line(content: bytes) -> bytes:
    return content.replace(_LINE_AFTER_NO_NEWLINE, b"").replace(_LINE, b"")


def _checked(clone: Path) -> Path:
    clone = clone.expanduser().resolve()
    missing = [
        name
        for name in ("evar/__init__.py", "evar/ar_base.py", "config", "lineareval.py")
        if not (clone / name).exists()
    ]
    if missing:
        raise DataError(
            f"{clone}: no clone of EVAR, it lacks {', '.join(missing)}. Name the folder that "
            "git clone https://github.com/nttcslab/eval-audio-repr makes."
        )
    return clone


def _config(clone: Path, config: str) -> Path:
    """The settings of a name: ours, else the clone's; or a path, from here or from the clone."""
    stem = config.removesuffix(".yaml")
    for path in (CONFIGS / f"{stem}.yaml", clone / "config" / f"{stem}.yaml", Path(config), clone / config):
        if path.is_file():
            return path.resolve()
    names = [path.stem for folder in (CONFIGS, clone / "config") for path in sorted(folder.glob("*.yaml"))]
    raise unknown(
        "settings",
        stem,
        names,
        f"the YAML files of {clone / 'config'} and ours: "
        f"{', '.join(path.stem for path in sorted(CONFIGS.glob('*.yaml')))}",
    )


@contextmanager
def _python_that_runs_scripts() -> Iterator[None]:
    """Puts a `python` first on the PATH that gives scripts our classes: 2pass_lineareval starts lineareval with it."""
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder) / "python"
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m m2d_bench.evar_adapters "$@"\n')
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
        before = os.environ["PATH"]
        os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
        try:
            yield
        finally:
            os.environ["PATH"] = before
