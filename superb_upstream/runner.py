"""s3prl's own runner over prepared downstreams, with a log that says what a record needs to know."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

import joblib

from m2d_bench.encoders.protocol import Encoder
from m2d_bench.errors import UsageError
from m2d_bench.runs import environment
from m2d_bench.settings import Storage, make_cache
from m2d_bench.superb_upstream import data, norm_stats
from m2d_bench.superb_upstream.upstream import SAMPLE_RATE, Upstream

logger = logging.getLogger(__name__)

LOG = "stdout.log"
"""File in the experiment's folder that keeps what the runner prints; s3prl writes some scores nowhere else."""

MARK = "[m2d-bench]"
"""Begins the lines of ours in it: `train` (anew), `resume` or `evaluate SPLIT`; `encoder DIGEST NAME`; `data
FINGERPRINT`; `environment JSON`; after a training `seconds NUMBER`; and after an evaluation `evaluated`."""


def run(storage: Storage, experiment: Path) -> int:
    """Runs s3prl's main with the arguments in sys.argv; what it wrote is removed if it does not get to begin.

    Returns:
        Exit code: 0, or what s3prl exits with.
    """
    from s3prl import run_downstream

    original, begun = run_downstream.Runner, False

    class Runner(original):  # type: ignore[misc, valid-type]  # s3prl has no types
        """s3prl's runner over prepared downstreams, which notes what is run."""

        def __init__(self, args: argparse.Namespace, config: dict[str, Any]) -> None:
            nonlocal begun
            limit_workers(config)
            self.fingerprint = data.fingerprint(args.downstream, config)
            super().__init__(args, config)
            _check_encoder(self, experiment / LOG)
            begun = True
            _note(self)

        def train(self) -> None:
            begin = time.monotonic()
            try:
                super().train()
            finally:
                print(MARK, "seconds", round(time.monotonic() - begin, 3))

        def evaluate(self, *where: Any, **how: Any) -> Any:
            names = super().evaluate(*where, **how)
            if self.args.mode == "evaluate":
                print(MARK, "evaluated")  # the training may go on meanwhile
            return names

        def _get_downstream(self) -> Any:
            if isinstance(self.upstream.model, Upstream):
                _warn_of_statistics(self.args)
            _check_trainable(self.upstream)
            featurizer: Any = self.featurizer.model
            _check_frames(self.args.downstream, featurizer.downsample_rate)
            prepare(self.args.downstream, self.config, storage, self.fingerprint)
            return super()._get_downstream()

    run_downstream.Runner = Runner
    undo = _undoing(experiment)
    try:
        with _logged(experiment), in_threads():
            if "fork" in multiprocessing.get_all_start_methods():
                multiprocessing.set_start_method("fork", force=True)  # for the same reason
            run_downstream.main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    finally:
        run_downstream.Runner = original
        if not begun:
            undo()
    return 0


def prepare(downstream: str, config: dict[str, Any], storage: Storage, fingerprint: str) -> ModuleType:
    """The module of an s3prl downstream, its caches moved out of s3prl's folder and what PyPI leaves out added.

    Args:
        downstream: s3prl's name of the task.
        config: The settings.
        storage: The cache, for lists of clips.
        fingerprint: Of the data.
    """
    if downstream == "ctc":
        _prepare_phonemes()
    if downstream in ("voxceleb1", "sv_voxceleb1"):
        identity = repr([config["downstream_expert"]["datarc"]["file_path"], fingerprint])
        cache = storage.cache_root / "superb" / f"{downstream}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        make_cache(storage.cache_root)
        cache.mkdir(parents=True, exist_ok=True)
        dataset: Any = import_module(f"s3prl.downstream.{downstream}.dataset")
        if downstream == "voxceleb1":
            dataset.CACHE_PATH = str(cache)
        else:
            dataset.__file__ = str(cache / "dataset.py")
    return import_module(f"s3prl.downstream.{downstream}.expert")


def _prepare_phonemes() -> None:
    """Our data set of phonemes in the place of s3prl's, with a copy of the settings, which s3prl changes."""
    name = "s3prl.downstream.ctc.corpus"
    if name not in sys.modules and find_spec(name) is None:
        sys.modules[name] = ModuleType(name)
    sys.modules[f"{name}.libriphone"] = import_module("m2d_bench.superb_upstream.libriphone")
    load = import_module("s3prl.downstream.ctc.data").load_dataset
    expert: Any = import_module("s3prl.downstream.ctc.expert")
    expert.load_dataset = lambda split, tokenizer, corpus: load(split, tokenizer, dict(corpus))


def limit_workers(settings: dict[str, Any]) -> None:
    """Lets every num_workers in settings, or inside groups of them, be at most the number of cores."""
    for name, value in settings.items():
        if isinstance(value, dict):
            limit_workers(value)
        elif name == "num_workers":
            settings[name] = min(value, os.cpu_count() or 1)


def in_threads() -> joblib.parallel_config:
    """s3prl's parallel loops in threads: worker processes would start without what was restored."""
    return joblib.parallel_config(backend="threading")


def _note(runner: Any) -> None:
    """Prints what a record has to know of this run."""
    args, model = runner.args, runner.upstream.model
    begun = "resume" if args.past_exp else "train"
    print(MARK, begun if args.mode == "train" else f"{args.mode} {args.evaluate_split}")
    model = getattr(model, "module", model)  # of DDP
    if isinstance(model, Upstream):
        print(MARK, "encoder", model.encoder.digest, model.name)
    print(MARK, "data", runner.fingerprint)
    facts = environment(str(args.device))
    for package in ("s3prl", "torchaudio"):
        facts["versions"][package] = sys.modules[package].__version__
    print(MARK, "environment", json.dumps(facts))


def _warn_of_statistics(args: argparse.Namespace) -> None:
    """Warns where an encoder is to normalise by another task's statistics."""
    task = norm_stats.task_of(args.upstream_ckpt, args.upstream_model_config)
    if task and norm_stats.TASKS[task].downstream != args.downstream:
        own = next((name for name, each in norm_stats.TASKS.items() if each.downstream == args.downstream), "mean,std")
        logger.warning(
            "%s is run with the mean and std of ANOTHER TASK, %s; its scores will not compare. Write -k NAME,%s, or "
            "measure your data with m2d-bench superb calcnorm.",
            args.downstream,
            task,
            own,
        )


def _check_encoder(runner: Any, log: Path) -> None:
    """Refuses to go on with other weights than an experiment was trained with."""
    model = runner.upstream.model
    known = re.findall(rf"^{re.escape(MARK)} encoder (\w+)", log.read_text(encoding="utf-8"), re.MULTILINE)
    going_on = runner.args.past_exp and not runner.upstream.trainable and isinstance(model, Upstream)
    if going_on and known and known[-1] != model.encoder.digest:
        raise UsageError(
            f"{log.parent} was trained with other weights than {model.name} now is: digest {known[-1]}, now "
            f"{model.encoder.digest}. Name those with -o args.upstream_ckpt=PATH."
        )


def _check_trainable(entry: Any) -> None:
    """Refuses to train what stays frozen, which s3prl would do in vain."""
    if entry.trainable and isinstance(entry.model, Upstream) and isinstance(entry.model.encoder, Encoder):
        raise UsageError(
            f"-f trains the upstream, and {entry.model.name} stays frozen: -f takes models of the M2D family, and "
            "upstreams of s3prl. Leave it out."
        )


def _check_frames(downstream: str, rate: int) -> None:
    """Refuses what would fail after hours: speaker verification's x-vectors take 14 frames off clips of 2 s."""
    if downstream == "sv_voxceleb1" and rate * 15 > 2 * SAMPLE_RATE:
        raise UsageError(
            f"sv_voxceleb1 needs 15 frames in 2 s, and this upstream's last {1000 * rate / SAMPLE_RATE:g} ms. "
            "Choose a model with shorter frames, such as patches of 80×2 or 16×4."
        )


def _undoing(folder: Path) -> Callable[[], None]:
    """What removes what s3prl writes into a folder before a run begins, and the folder if it is not there now.

    What another process wrote meanwhile, such as checkpoints, stays.
    """
    there = {path for path in (folder, *folder.parents) if path.exists()}
    before = set(folder.iterdir()) if folder in there else set()

    def undo() -> None:
        for path in set(folder.iterdir()) - before if folder.exists() else ():
            if path.name == LOG or path.suffix in (".yaml", ".yml"):
                path.unlink()
        for path in (folder, *folder.parents):
            if path in there or not path.exists() or any(path.iterdir()):
                break
            path.rmdir()

    return undo


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Whatever is printed also goes to the experiment's log, line by line, for a run may be killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / LOG).open("a", buffering=1, encoding="utf-8") as file,
        contextlib.redirect_stdout(_Tee(sys.stdout, file)),
    ):
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
