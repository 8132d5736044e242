"""X-ARES' own runner over an encoder of ours, and its scores as run records."""

# No postponed annotations here: the command line and pydantic read them.

import argparse
import multiprocessing
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt

from m2d_bench import runs
from m2d_bench.encoders.foreign import explained
from m2d_bench.encoders.protocol import facts_of
from m2d_bench.errors import M2DBenchError, UsageError, note
from m2d_bench.registry import check_names
from m2d_bench.runs import Run, Score, environment
from m2d_bench.values import Checked
from m2d_bench.xares_adapter.encoder import MODEL_VARIABLE, TRUST_VARIABLE, XaresEncoder

_TASKS = "tasks"  # the package it puts its tasks into
_SUFFIX = "_task.py"


@dataclass(frozen=True, kw_only=True)
class RunnerSettings(Checked):
    """Options of X-ARES' runner.

    Args:
        max_jobs: Tasks at a time, each in a process of its own, which needs a GPU; 0: one after another in this one.
        from_stage: First stage: 0 downloads, 1 encodes, 2 trains and scores.
        to_stage: Last stage.

    Raises:
        UsageError: Not one of those, or a first stage behind the last.
    """

    max_jobs: NonNegativeInt = 0
    from_stage: Literal[0, 1, 2] = 0
    to_stage: Literal[0, 1, 2] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_stage > self.to_stage:
            raise UsageError(f"--from-stage is {self.from_stage}, which comes after --to-stage, {self.to_stage}.")


def task_names() -> list[str]:
    """Names of the tasks that come with X-ARES: its files without `_task.py`.

    Raises:
        UsageError: X-ARES is not installed.
    """
    return sorted(file.name.removesuffix(_SUFFIX) for file in _task_files())


def _task_files() -> list[Path]:
    """Files of the tasks that come with X-ARES."""
    try:
        found = files("xares") or ()
    except PackageNotFoundError:
        raise UsageError("X-ARES is not installed. Run pip install 'm2d-bench[xares]'.") from None
    return [Path(str(file.locate())) for file in found if file.match(f"{_TASKS}/*{_SUFFIX}")]


def evaluate(
    model: str,
    names: Sequence[str],
    runs_folder: Path,
    settings: RunnerSettings = RunnerSettings(),
    *,
    cache: Path | None = None,
    trust_remote_code: bool = False,
) -> tuple[list[Run], list[str]]:
    """Runs X-ARES in the current folder, where it keeps data, embeddings and scores in `env/`.

    Args:
        model: A name of m2d-bench models.
        names: Of `task_names`.
        runs_folder: Folder for run records.
        settings: Options of X-ARES' runner.
        cache: Folder for weights; else the environment's M2D_BENCH_CACHE, else the user's cache folder.
        trust_remote_code: Run the code that the repository of an hf: model holds. Read it first.

    Returns:
        The records of all scores there are; and what failed: the error that stopped X-ARES if one did, and tasks whose
        last stage is not done.

    Raises:
        UsageError: X-ARES is not installed, an unknown name, jobs without a GPU, or stage 2 before 1.
    """
    check_names("task of X-ARES", names, allowed := task_names())
    if not names:
        raise UsageError(f"Which tasks? Name them with --tasks: {', '.join(allowed)}.")
    if settings.max_jobs and not torch.cuda.is_available():
        raise UsageError(f"--max-jobs is {settings.max_jobs}; without a GPU, X-ARES takes only 0.")
    names = list(dict.fromkeys(names))
    told = {MODEL_VARIABLE: model, TRUST_VARIABLE: str(int(trust_remote_code))}
    with _environment(told if cache is None else {**told, "M2D_BENCH_CACHE": str(cache)}):
        encoder = XaresEncoder()
        configs, failures = _run(names, encoder, settings)
    records = []
    for name, config in zip(names, configs, strict=True):
        found = [runs.add(record, runs_folder) for record in _records(name, config, encoder, model)]
        records += found
        if not _is_done(settings.to_stage, config, encoder, len(found)):
            failures.append(f"{name}: stage {settings.to_stage} is not done; X-ARES' messages say why.")
    return records, failures


def _run(names: Sequence[str], encoder: XaresEncoder, settings: RunnerSettings) -> tuple[list[Any], list[str]]:
    """Runs X-ARES; returns each task's settings, and the error that stopped it if one did."""
    from xares import run, utils

    paths = [f"{_TASKS}/{name}{_SUFFIX}" for name in names]
    with _state_put_back(), redirect_stdout(sys.stderr):
        with explained("X-ARES", None):
            configs = [utils.attr_from_py_path(path, endswith="_config")(encoder) for path in paths]
        for name, config in zip(names, configs, strict=True):
            _remove_unfinished(folder := _scores_folder(config, encoder))
            if (
                settings.from_stage == 2
                and not (folder / "mlp_score.txt").exists()
                and not _is_done(1, config, encoder, 0)
            ):
                raise UsageError(f"{name}: stage 1 has not been run for this encoder; leave out --from-stage.")
        try:
            with explained("X-ARES", None):
                run.main(argparse.Namespace(encoder_py=__package__, tasks_py=paths, **vars(settings)))
        except M2DBenchError as error:
            return configs, [note(error)]
        finally:
            for config in configs:
                _remove_nobodys(Path(config.env_root, config.name, config.embedding_dir_name, "Unknown"))
    return configs, []


def _is_done(stage: int, config: Any, encoder: XaresEncoder, n_scores: int) -> bool:
    """Whether a task's files say that a stage is done; X-ARES returns alike whether it is or not."""
    folder, marks = Path(config.env_root, config.name), config.xares_settings
    if stage == 0:
        return Path(folder, marks.audio_ready_filename).exists()
    if stage == 1:
        kind = type(encoder).__name__
        return Path(folder, config.embedding_dir_name, kind, marks.encoded_ready_filename).exists()
    return n_scores == (2 if config.do_knn else 1)


def _scores_folder(config: Any, encoder: XaresEncoder) -> Path:
    """Where X-ARES keeps the heads and scores of a task."""
    return Path(config.env_root, config.name, config.ckpt_dir_name, type(encoder).__name__)


def _remove_unfinished(folder: Path) -> None:
    """Removes heads without a score: X-ARES would take one whose training was interrupted for a finished one."""
    if not (folder / "mlp_score.txt").exists():
        for head in folder.glob("*.*"):
            head.unlink()


def _remove_nobodys(folder: Path) -> None:
    """Removes the empty folder that X-ARES makes for embeddings of a task without an encoder."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _records(name: str, config: Any, encoder: XaresEncoder, model: str) -> Iterator[Run]:
    """The records of a task's scores, as far as there are any."""
    for method, metric in (("mlp", config.metric), ("knn", "accuracy")):
        file = _scores_folder(config, encoder) / f"{method}_score.txt"
        if not file.exists():
            continue
        score = Score(
            seed=config.seed,
            fold="mean of folds" if config.k_fold_splits else "test",
            score=float(file.read_text().split()[0]),
            n_test=0,  # X-ARES writes a weight beside the score, not the number of clips
        )
        yield Run(
            encoder=facts_of(encoder.encoder),
            task={
                "name": f"xares:{name}",
                "version": 1,
                "metric": metric,
                "other_metrics": (),
                "domain": "other",
                "synthetic": False,
                "n_folds": 1,
                "fingerprint": config.zenodo_id or "",
            },
            protocol=f"xares-{method}",
            settings={"harness": "X-ARES", "version": version("xares"), "precision": "fp32"},
            environment=environment("cuda" if torch.cuda.is_available() else "cpu"),
            scores=(score,),
            command=shlex.join(["m2d-bench", "xares", "--model", model, "--tasks", name]),
        )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables, which X-ARES' processes get too, and puts the earlier ones back."""
    earlier = {name: os.environ.pop(name, None) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in earlier.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _state_put_back() -> Iterator[None]:
    """Lets X-ARES set multiprocessing's start method, which can be set once, and torch's threads.

    And lets it import its own `tasks`, whatever `tasks.py` lies beside an encoder of one's own.
    """
    method, threads = multiprocessing.get_start_method(allow_none=True), torch.get_num_threads()
    multiprocessing.set_start_method(None, force=True)
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == _TASKS}
    sys.modules[_TASKS] = package = ModuleType(_TASKS)
    package.__path__ = list({str(file.parent) for file in _task_files()})
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == _TASKS]:
            del sys.modules[name]
        sys.modules.update(others)
        multiprocessing.set_start_method(method, force=True)
        torch.set_num_threads(threads)
