"""`m2d-bench superb …`: s3prl's own runner with our upstreams, settings and data folder, on current packages."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import joblib
import torch
import yaml

from m2d_bench.encoders.protocol import Encoder
from m2d_bench.errors import DataError, UsageError
from m2d_bench.registry import unknown
from m2d_bench.settings import Storage
from m2d_bench.superb_upstream.norm_stats import TASKS
from m2d_bench.superb_upstream.upstream import SAMPLE_RATE, Upstream

CONFIGS = Path(__file__).parent / "configs"
LOG = "stdout.log"
"""File in the experiment's folder that keeps what the runner prints; s3prl writes some scores nowhere else."""

MARK = "[m2d-bench]"
"""Begins the lines of ours in it: `train` (anew), `resume` or `evaluate SPLIT`; and `encoder DIGEST NAME`."""

USAGE = """usage: m2d-bench superb -u UPSTREAM -d TASK -m train|evaluate [--data DIR] [s3prl's arguments]
       m2d-bench superb calcnorm --task TASK [--data DIR] [-o FILE]

  -u  m2d_bench, m2d, m2d_s, m2d_as, msm_mae, m2d_calcnorm, or any upstream of s3prl
  -k  a model of m2d-bench models, alone or, of the M2D family, NAME,mean,std or NAME,TASK (the published statistics)
  -g  a YAML file with mean and std, as m2d-bench superb calcnorm writes it
  -d  pr, ks, ic, sid, asv, er, ss, or s3prl's name of any downstream
  -c  a YAML file of settings, {data} in it standing for the data folder; by default the published ones
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
        UsageError, DataError: s3prl is not installed, or something named is unknown or missing.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    ours, rest = _parse(arguments)
    if find_spec("s3prl") is None:
        raise UsageError("s3prl is not installed. Run pip install 'm2d-bench[superb]'.")
    from m2d_bench import compat
    from m2d_bench.superb_upstream import register, upstream

    storage = Storage(data=ours.data, cache=ours.cache)
    register(storage)
    if ours.upstream and not ours.past_exp:
        import s3prl.hub

        if not hasattr(s3prl.hub, ours.upstream):
            raise unknown("upstream", ours.upstream, [*upstream.ENTRIES, *s3prl.hub.options()], "m2d-bench superb -h")
    device = ours.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(device).type == "cpu":
        compat.stay_on_cpu()
    experiment = _experiment(ours).resolve()  # wherever s3prl is called from later, the folder is one
    words = [*rest, "--device", device, "--expdir", str(experiment)]
    for option in ("upstream", "upstream_ckpt", "upstream_model_config", "downstream", "past_exp"):
        if getattr(ours, option):
            words += [f"--{option}", getattr(ours, option)]
    overrides = [ours.override] if ours.override else []
    if ours.past_exp and "=" not in str(experiment):  # which s3prl could not read
        overrides.append(f"args.expdir={str(experiment)!r}")
    if overrides:
        words += ["--override", ",,".join(overrides)]
    with tempfile.TemporaryDirectory() as folder:
        if not ours.past_exp:
            path = Path(folder) / f"{ours.downstream}.yaml"
            path.write_text(yaml.safe_dump(config_of(ours.downstream, ours.data, ours.config)), encoding="utf-8")
            words += ["--config", str(path)]
            if (variant := upstream.VARIANTS.get(ours.upstream)) is not None:  # before anything is written
                upstream.weights(variant, ours.upstream_ckpt, ours.upstream_model_config, storage)
        with _argv(words), _logged(experiment):
            return _run(storage)


def config_of(downstream: str, data: str | Path | None, file: str | None = None) -> dict[str, Any]:
    """Settings of a task, with the data folder filled in.

    Args:
        downstream: s3prl's name of the task.
        data: The data folder, or None for the environment's.
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
    root = Storage(data=data).data_root
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
        config: dict[str, Any] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {error}") from error
    return config


def prepare(downstream: str, config: dict[str, Any], storage: Storage) -> ModuleType:
    """The module of an s3prl downstream, its caches moved out of s3prl's folder and what PyPI leaves out added."""
    from importlib import import_module

    if downstream == "ctc" and find_spec("s3prl.downstream.ctc.corpus") is None:
        corpus = ModuleType("s3prl.downstream.ctc.corpus")
        corpus.__path__ = []
        sys.modules.setdefault(corpus.__name__, corpus)
        sys.modules.setdefault(f"{corpus.__name__}.libriphone", import_module("m2d_bench.superb_upstream.libriphone"))
    if downstream in ("voxceleb1", "sv_voxceleb1"):
        key = hashlib.sha256(repr(config.get("downstream_expert", {}).get("datarc")).encode()).hexdigest()[:12]
        cache = storage.cache_root / "superb" / f"{downstream}-{key}"
        cache.mkdir(parents=True, exist_ok=True)
        dataset: Any = import_module(f"s3prl.downstream.{downstream}.dataset")
        if downstream == "voxceleb1":
            dataset.CACHE_PATH = str(cache)
        else:
            dataset.__file__ = str(cache / "dataset.py")
    return import_module(f"s3prl.downstream.{downstream}.expert")


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data")
    parser.add_argument("--cache")
    parser.add_argument("--device")
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
    for option in ("data", "config"):
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


def _run(storage: Storage) -> int:
    """s3prl's main, with its downstreams prepared before they are imported by its runner."""
    from s3prl import run_downstream

    class Runner(run_downstream.Runner):  # type: ignore[misc]  # s3prl has no types
        """s3prl's runner over prepared downstreams, which notes what is run."""

        def __init__(self, args: argparse.Namespace, config: dict[str, Any]) -> None:
            train = "resume" if args.past_exp else "train"
            print(MARK, train if args.mode == "train" else f"{args.mode} {args.evaluate_split}")
            super().__init__(args, config)
            model = getattr(self.upstream.model, "module", self.upstream.model)  # of DDP
            if isinstance(model, Upstream):
                print(MARK, "encoder", model.encoder.digest, model.name)

        def _get_downstream(self) -> Any:
            _check_trainable(self.upstream)
            _check_frames(self.args.downstream, self.featurizer.model.downsample_rate)
            prepare(self.args.downstream, self.config, storage)
            return super()._get_downstream()

    original, run_downstream.Runner = run_downstream.Runner, Runner
    try:
        with in_threads():
            if "fork" in multiprocessing.get_all_start_methods():
                multiprocessing.set_start_method("fork", force=True)  # for the same reason
            run_downstream.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    finally:
        run_downstream.Runner = original
    return 0


def _check_frames(downstream: str, rate: int) -> None:
    """Refuses what would fail after hours: speaker verification's x-vectors take 14 frames off clips of 2 s."""
    if downstream == "sv_voxceleb1" and rate * 15 > 2 * SAMPLE_RATE:
        raise UsageError(
            f"sv_voxceleb1 needs 15 frames in 2 s, and this upstream's last {1000 * rate / SAMPLE_RATE:g} ms. "
            "Choose a model with shorter frames, such as patches of 80×2 or 16×4."
        )


def _check_trainable(entry: Any) -> None:
    """Refuses to train what stays frozen, which s3prl would do in vain."""
    if entry.trainable and isinstance(entry.model, Upstream) and isinstance(entry.model.encoder, Encoder):
        raise UsageError(
            f"-f trains the upstream, and {entry.model.name} stays frozen: -f takes models of the M2D family, and "
            "upstreams of s3prl. Leave it out."
        )


def in_threads() -> joblib.parallel_config:
    """s3prl's parallel loops in threads: worker processes would start without what was restored."""
    return joblib.parallel_config(backend="threading")


@contextlib.contextmanager
def _argv(words: Sequence[str]) -> Iterator[None]:
    """sys.argv for s3prl, which parses it."""
    before = sys.argv
    sys.argv = ["run_downstream.py", *words]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Whatever is printed also goes to the experiment's log."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8") as file, contextlib.redirect_stdout(_Tee(sys.stdout, file)):
        yield


class _Tee:
    """A text stream that writes to two."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        return False
