"""`m2d-bench superb …`: s3prl's own runner with our upstreams, settings and data folder, on current packages."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml

from m2d_bench.errors import DataError, UsageError
from m2d_bench.registry import unknown
from m2d_bench.settings import Storage
from m2d_bench.superb_upstream import data, overrides
from m2d_bench.superb_upstream.norm_stats import TASKS
from m2d_bench.superb_upstream.runner import run
from m2d_bench.superb_upstream.upstream import FAMILIES, weights

CONFIGS = Path(__file__).parent / "configs"
_S3PRLS = "--s3prl_settings"

USAGE = """usage: m2d-bench superb -u UPSTREAM -d TASK -m train|evaluate [--data DIR] [s3prl's arguments]
       m2d-bench superb calcnorm --task TASK [--data DIR] [-o FILE]

  -u  m2d_bench, m2d, m2d_s, m2d_as, msm_mae, m2d_calcnorm, or any upstream of s3prl
  -k  a model of m2d-bench models, alone or, of the M2D family, NAME,mean,std or NAME,TASK (the published statistics)
  -g  a YAML file with mean and std, as m2d-bench superb calcnorm writes it
  -d  pr, ks, ic, sid, asv, er, ss, or s3prl's name of any downstream
  -c  a YAML file of settings, {data} in it standing for the data folder; by default the published ones
  --s3prl_settings  by default s3prl's own: downstream/TASK/config.yaml in the current folder, as in a clone of s3prl
  --data DIR    folder that holds the data sets as published (or M2D_BENCH_DATA); used by our settings
  --cache DIR   folder for weights and lists (or M2D_BENCH_CACHE)
  --device      cuda where there is a GPU, else cpu

All others (-m -n -p -o -s -l -f -e -a -v -t --seed …) are s3prl's; see docs/superb.md."""


def main(arguments: Sequence[str]) -> int:
    """Runs s3prl's run_downstream in this process.

    Args:
        arguments: Of the command line, ours (`USAGE`) and s3prl's.

    Returns:
        Exit code: 0, or what s3prl exits with.

    Raises:
        UsageError, DataError, CheckpointError: s3prl is not installed, or something named is unknown or missing; then
            nothing is written.
    """
    if set(arguments) <= {_S3PRLS} or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    ours, rest = _parse(arguments)
    if find_spec("s3prl") is None:
        raise UsageError("s3prl is not installed. Run pip install 'm2d-bench[superb]'.")
    from m2d_bench import compat
    from m2d_bench.superb_upstream.registration import register

    storage = Storage(data=ours.data, cache=ours.cache)
    register(storage)
    device = ours.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(device).type == "cpu":
        compat.stay_on_cpu()
    experiment = _experiment(ours).resolve()  # wherever s3prl is called from later, the folder is one
    words = [*rest, "--device", device, "--expdir", str(experiment)]
    for option in ("upstream", "upstream_ckpt", "upstream_model_config", "downstream", "past_exp"):
        if getattr(ours, option):
            words += [f"--{option}", getattr(ours, option)]
    past = _past(ours, experiment, resuming=bool({"-a", "--auto_resume"} & set(rest)))
    moved = [f"args.expdir={str(experiment)!r}"] if past and "=" not in str(experiment) else []  # s3prl reads one =
    if options := [*ours.override, *moved]:
        words += ["--override", ",,".join(options)]
    config = _settings_of(past, ours, words, storage)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        with _argv([*words, "--config", str(path)]):
            return run(storage, experiment)


def _past(ours: argparse.Namespace, experiment: Path, resuming: bool) -> Path | None:
    """The checkpoint with which an experiment goes on, as s3prl chooses it."""
    folder = Path(ours.past_exp) if ours.past_exp else experiment if resuming else None
    if folder is None or folder.is_file():
        return folder
    return max(folder.glob("states-*.ckpt"), key=lambda path: int(path.stem.split("-")[-1]), default=None)


def _settings_of(past: Path | None, ours: argparse.Namespace, words: Sequence[str], storage: Storage) -> dict[str, Any]:
    """The settings before -o, of the checkpoint or a file, once they, the data and the weights are known to be there.

    Raises:
        UsageError, DataError, CheckpointError: They are not, or -o or another argument is wrong.
    """
    with _argv(words):
        arguments = _parsed()
    config: dict[str, Any]
    if past:
        saved = torch.load(past, map_location="cpu", weights_only=True)
        saved["Args"].mode = arguments.mode
        config, arguments = saved["Config"], saved["Args"]
    else:
        clones = Path("downstream") / ours.downstream / "config.yaml"
        file = ours.config or (clones if ours.s3prl_settings and clones.is_file() else None)
        config = config_of(ours.downstream, ours.data, file)
        family = re.sub("_(local|url|custom)$", "", ours.upstream)
        if family in ("m2d_bench", *FAMILIES):
            weights("" if family == "m2d_bench" else family, ours.upstream_ckpt, ours.upstream_model_config, storage)
        else:
            _check_upstream(ours.upstream)
    data.check(arguments.downstream, overrides.applied(ours.override, config, arguments, bool(past)))
    return config


def _check_upstream(name: str) -> None:
    hub: Any = import_module("s3prl.hub")
    if not hasattr(hub, name):
        raise unknown("upstream", name, hub.options(), "m2d-bench superb -h")


def _parsed() -> argparse.Namespace:
    """s3prl's arguments as its own parser reads them; what it does with them then is left out.

    Raises:
        SystemExit: Of that parser, with its message.
    """
    from s3prl import run_downstream

    class Parsed(Exception):
        pass

    def parse(parser: argparse.ArgumentParser) -> NoReturn:
        raise Parsed(original(parser))

    original = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign, assignment]
    try:
        run_downstream.get_downstream_args()
    except Parsed as parsed:
        arguments: argparse.Namespace = parsed.args[0]
        return arguments
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
    raise AssertionError("s3prl parses its arguments")


def config_of(downstream: str, folder: str | Path | None, file: str | Path | None = None) -> dict[str, Any]:
    """Settings of a task, with the data folder filled in.

    Args:
        downstream: s3prl's name of the task.
        folder: The data folder, or None for the environment's.
        file: A YAML file instead of ours.

    Raises:
        UsageError: We have none for this downstream, or the file cannot be read.
        DataError: The settings ask for a data folder, and none is named or it does not exist.
    """
    path = Path(file).expanduser() if file else CONFIGS / f"{downstream}.yaml"
    if not file and not path.is_file():
        ours = [each.stem for each in CONFIGS.glob("*.yaml")]
        raise UsageError(
            f"No settings for {downstream!r} come with m2d-bench ({', '.join(sorted(ours))}); name a -c file."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). -c names a YAML file of settings.") from error
    root = Storage(data=folder).data_root
    if "{data}" in text and (root is None or not root.is_dir()):
        raise DataError(
            f"{downstream}: the data folder {root} does not exist. Name the folder that holds the data sets with "
            "--data DIR or the environment's M2D_BENCH_DATA."
        )
    workers = min(8, os.cpu_count() or 1)
    filled = {"{data}": str(root and root.resolve()), "{configs}": str(CONFIGS), "{workers}": str(workers)}
    for placeholder, value in filled.items():
        text = text.replace(placeholder, value)
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: holds no settings by name.")
    return data.located(config)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data")
    parser.add_argument("--cache")
    parser.add_argument("--device")
    parser.add_argument(_S3PRLS, action="store_true")
    parser.add_argument("-u", "--upstream")
    parser.add_argument("-k", "--upstream_ckpt")
    parser.add_argument("-g", "--upstream_model_config")
    parser.add_argument("-d", "--downstream")
    parser.add_argument("-c", "--config")
    parser.add_argument("-e", "--past_exp")
    parser.add_argument("-p", "--expdir")
    parser.add_argument("-n", "--expname")
    parser.add_argument("-o", "--override")
    ours, rest = parser.parse_known_args(list(arguments))
    ours.override = overrides.split(ours.override)
    if ours.downstream in TASKS:
        ours.downstream = TASKS[ours.downstream].downstream
    if ours.past_exp:
        _check_past(ours)
        return ours, rest
    if not ours.upstream:
        raise UsageError(
            "Which encoder? Name it with -u: m2d_bench, m2d, m2d_s, m2d_as, msm_mae, or an upstream of s3prl."
        )
    if not ours.downstream:
        raise UsageError(f"Which task? Name it with -d: {', '.join(TASKS)}, or a downstream of s3prl.")
    if not (ours.expdir or ours.expname):
        raise UsageError("Where shall the experiment lie? Name it with -n NAME or its folder with -p DIR.")
    return ours, rest


def _check_past(ours: argparse.Namespace) -> None:
    """Refuses an experiment that is not there, and what its checkpoint would override."""
    past = Path(ours.past_exp)
    if not past.is_file() and not any(past.glob("states-*.ckpt")):
        raise UsageError(f"-e {past}: no checkpoint, and no folder that holds states-*.ckpt.")
    for option in ("data",) if ours.s3prl_settings else ("data", "config"):
        if getattr(ours, option):
            raise UsageError(
                f"--{option} has no effect with -e: settings come from the checkpoint. Change them with -o, such as "
                "-o config.downstream_expert.datarc.file_path=/other/folder."
            )


def _experiment(ours: argparse.Namespace) -> Path:
    """The experiment's folder."""
    if ours.past_exp:
        past = Path(ours.past_exp)
        return past if past.is_dir() else past.parent
    return Path(ours.expdir or f"result/downstream/{ours.expname}")


@contextlib.contextmanager
def _argv(words: Sequence[str]) -> Iterator[None]:
    """sys.argv for s3prl, which parses it."""
    before = sys.argv
    sys.argv = ["run_downstream.py", *words]
    try:
        yield
    finally:
        sys.argv = before
