"""Our classes and settings in a clone of EVAR: for one run, or installed and removed again without a trace."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from m2d_bench.encoders import variants, zoo
from m2d_bench.errors import DataError, UsageError
from m2d_bench.evar_adapters import MODULE
from m2d_bench.registry import listing, unknown
from m2d_bench.tasks import evar as metadata

SCRIPTS = ("lineareval", "finetune", "2pass_lineareval")
WITH_TEXT = ("zeroshot", "retr_a2t_t2a")
"""Scripts that compare audio with text."""
CONFIGS = Path(__file__).parent / "configs"

_SOURCES = "https://raw.githubusercontent.com/daisukelab"
_OTHERS_FILES = {
    "evar.utils.torch_mlp_clf2": f"{_SOURCES}/general-learning/master/MLP/torch_mlp_clf2.py",
    "evar.sampler": f"{_SOURCES}/sound-clf-pytorch/master/for_evar/sampler.py",
    "evar.cnn14_decoupled": f"{_SOURCES}/sound-clf-pytorch/master/for_evar/cnn14_decoupled.py",
}
"""Modules of EVAR that lie in other repositories, and where."""
_PATH = re.compile(r"\b(weight_file=|data_path=)([^,]+)")

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
        arguments: Of the script: CONFIG, which may be the bare name of one of our settings or of the clone's, TASK and
            options. Paths in them are those of the current folder.

    Raises:
        UsageError: Unknown script, settings or task, or a package that EVAR needs is not installed.
        DataError: Not a clone of EVAR, the task's data are not there, or a script that this one started failed.
    """
    clone = _checked(clone)
    script = script.removesuffix(".py")
    if script in WITH_TEXT:
        raise UsageError(
            f"{script} compares audio with text, and m2d-bench has no text encoder: it is out of scope. The clone runs "
            f"it with its own settings: python {script}.py config/m2d_clap.yaml TASK."
        )
    if script not in SCRIPTS:
        raise unknown("script", script, SCRIPTS, f"these: {', '.join(SCRIPTS)}")
    if len(arguments) < 2:
        raise UsageError(
            f"{script} which settings and task? Name them after it, settings first: {script} m2d_bench esc50."
        )
    name, task, *options = arguments
    config = _config(clone, name)
    options = [_PATH.sub(lambda match: match[1] + _absolute(match[2]), word) for word in options]
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    _check_task(clone, task, _sample_rate(settings, options))
    with _environment_of_scripts():
        run_script(Path.cwd(), clone / f"{script}.py", [str(config), task, *_with_weights(settings, options)])


def run_script(own: Path, script: Path, arguments: Sequence[str]) -> None:
    """Runs a script of a clone as `python script arguments` in its folder would, our classes being there.

    Args:
        own: The user's folder, searched last for modules: encoders of one's own may lie there.
        script: The script.
        arguments: Its arguments.

    Raises:
        DataError, UsageError: It imports what is not there; says what to do.
    """
    folder = script.resolve().parent
    before = sys.argv, sys.path[:], Path.cwd(), sys.dont_write_bytecode
    sys.argv, sys.dont_write_bytecode = [script.name, *arguments], True
    sys.path[:] = [str(folder), *sys.path, str(own)]
    os.chdir(folder)
    try:
        evar = import_module("evar")
        module = import_module("m2d_bench.evar_adapters.representation")
        sys.modules[f"evar.{MODULE}"] = module
        setattr(evar, MODULE, module)
        runpy.run_path(str(folder / script.name), run_name="__main__")
    except ModuleNotFoundError as error:
        if not error.name:  # in its own words
            raise
        raise _lacking(script, error.name) from error
    finally:
        sys.argv, sys.path[:], _, sys.dont_write_bytecode = before
        os.chdir(before[2])


def _lacking(script: Path, module: str) -> DataError | UsageError:
    """The error for a module that a script imports and that is not there."""
    if not module.startswith("evar."):
        return UsageError(
            f"{script.name} imports {module}, which is not installed. Run pip install 'm2d-bench[evar]', or "
            f"pip install {module}."
        )
    file = f"{module.replace('.', '/')}.py"
    if module not in _OTHERS_FILES:
        return DataError(f"{script}: imports {file}, which this clone lacks. Get it anew.")
    return DataError(
        f"{script}: imports {file}, which lies in another repository. Run in the clone: curl -L "
        f"{_OTHERS_FILES[module]} -o {file}"
    )


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


def _absolute(name: str) -> str:
    """A model's name, or a path, whose paths of the current folder are absolute: the script runs in another."""
    if name in (zoo.DEFAULT, *zoo.RELEASED):
        return name
    if (path := Path(name).expanduser()).exists():
        return str(path.absolute())
    paths = [(part, Path(part).expanduser()) for part in re.split("([:@])", name)]
    return "".join(
        str(path.absolute()) if path.is_file() or ("/" in part and path.is_dir()) else part for part, path in paths
    )


def _with_weights(settings: Mapping[str, Any], options: Sequence[str]) -> list[str]:
    """Options with the weights of settings of ours that name none: EVAR needs their name before our classes look."""
    module, _, kind = settings.get("audio_repr", "").partition(".AR_")
    if module != MODULE or settings.get("weight_file") or any("weight_file=" in word for word in options):
        return list(options)
    weights = zoo.DEFAULT if kind == "ENCODER" else _absolute(variants.find(kind.lower()))
    chosen = f"weight_file={weights}"
    for place, word in enumerate(options):
        if "=" in word and (word.startswith("--options=") or not word.startswith("-")):
            return [*options[:place], f"{word},{chosen}", *options[place + 1 :]]
    return [f"--options={chosen}", *options]


def _sample_rate(settings: Mapping[str, Any], options: Sequence[str]) -> int:
    """The sample rate of the settings, as the options change it."""
    given = re.search(r"\bsample_rate=(\d+)", " ".join(options))
    return int(given[1]) if given else settings.get("sample_rate", 16000)


def _check_task(clone: Path, task: str, sample_rate: int) -> None:
    """Whether a clone has a task and its data.

    Raises:
        UsageError: It does not list it.
        DataError: Metadata or sound files are missing.
    """
    names = metadata.names(clone)
    if names and task not in names:
        raise unknown(
            "task",
            task,
            names,
            f"those of {clone}/evar/ds_tasks.py: {listing(names)}. A task of yours needs a line there",
        )
    file = clone / "evar" / "metadata" / f"{task}.csv"
    folder = metadata.sound_folder(file, metadata.read_definition(file).folder, sample_rate)
    missing = [path for path in (file, folder) if not path.exists()]
    if missing and task != "as":  # whose spectrograms EVAR reads instead
        raise DataError(
            f"{' and '.join(map(str, missing))}: not there. m2d-bench evar export {task} --data DIR -o {clone} "
            f"--sample-rate {sample_rate} writes both; or follow {clone}/Preparing-datasets.md: metadata are made by "
            "evar/utils/make_metadata.py, sound files by prepare_wav.py."
        )


@contextmanager
def _environment_of_scripts() -> Iterator[None]:
    """Puts a `python` first on the PATH that gives scripts our classes: 2pass_lineareval starts lineareval with it. The
    cache stays where the current folder has it.

    Raises:
        DataError: A script that was started with it failed, which EVAR passes over.
    """
    with tempfile.TemporaryDirectory() as folder:
        wrapper, failed = Path(folder) / "python", Path(folder) / "failed"
        command = shlex.join([sys.executable, "-m", "m2d_bench.evar_adapters", os.getcwd()])
        wrapper.write_text(f'#!/bin/sh\n{command} "$@" || {{ touch {shlex.quote(str(failed))}; exit 1; }}\n')
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
        before = dict(os.environ)
        os.environ["PATH"] = f"{folder}{os.pathsep}{before['PATH']}"
        if cache := before.get("M2D_BENCH_CACHE"):
            os.environ["M2D_BENCH_CACHE"] = str(Path(cache).expanduser().absolute())
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
        if failed.exists():
            raise DataError("A script that this one started failed; what it printed above says why.")
