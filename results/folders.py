"""Folders of run records: exported, merged, cleared of what killed runs left."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from m2d_bench import runs
from m2d_bench.errors import RunError, UsageError, describe
from m2d_bench.results.filter import ALL, Filter, chosen
from m2d_bench.results.render import as_csv
from m2d_bench.runs import Predictions, Run, Score
from m2d_bench.settings import make_folder, replacing

logger = logging.getLogger(__name__)


def read_all(folders: Sequence[Path], shown: Filter = ALL) -> tuple[dict[Path, Run], list[str]]:
    """The records under several folders, or files, that a filter lets through; copies of a record count once.

    Returns:
        The records by path, and a message for each file that is none.

    Raises:
        UsageError: No such folder, no record, or a model, task or protocol that nothing fits.
    """
    records: dict[str, tuple[Path, Run]] = {}
    failures: list[str] = []
    for folder in folders:
        in_folder, unread = runs.read(folder.expanduser())
        failures += [message for message in unread if message not in failures]
        for path, run in in_folder.items():
            first, _ = records.setdefault(run.key, (path, run))
            if first.resolve() != path.resolve():
                logger.warning("%s: the same record as %s; it is left out.", path, first)
    if not records:
        names = ", ".join(map(str, folders))
        message = f"{names}: no run records. m2d-bench linear writes runs/; name such a folder."
        raise UsageError("\n".join([message, *failures]))
    wanted = shown.runs([run for _, run in records.values()])
    keys = {run.key for run in chosen("model", shown.models, wanted, lambda run: run.names)}
    return {path: run for key, (path, run) in records.items() if key in keys}, failures


def read_predictions(records: Mapping[Path, Run]) -> tuple[list[tuple[Run, list[Predictions]]], list[str]]:
    """Each record with the predictions beside it, and a message for each whose predictions cannot be read.

    Raises:
        RunError: None can be read.
    """
    predicted, failures = [], []
    for path, run in records.items():
        try:
            predicted.append((run, runs.load_predictions(path)))
        except RunError as error:
            failures.append(str(error))
    if failures and not predicted:
        raise RunError("\n".join(failures))
    return predicted, failures


def check_export(output: Path) -> None:
    """Raises a UsageError, before anything is read, unless the file can be written."""
    if output.suffix not in (".csv", ".parquet"):
        raise UsageError(f"{output}: unknown kind {output.suffix!r}. Allowed: .csv, .parquet.")
    if output.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise UsageError(f"{output}: Parquet needs pip install 'm2d-bench[parquet]'; or write .csv.") from None
    make_folder(output.expanduser().parent)


def export(records: Iterable[Run], output: Path) -> int:
    """Writes every raw score as a line, with what identifies its run.

    Args:
        records: The runs.
        output: .csv or .parquet.

    Returns:
        Number of scores.
    """
    rows = [
        {
            "key": run.key,
            "model": run.encoder["name"],
            "digest": run.encoder["digest"],
            "task": run.task["name"],
            "task_version": run.task["version"],
            "synthetic": run.task["synthetic"],
            "protocol": run.protocol,
            "metric": metric,
            "seed": score.seed,
            "fold": score.fold,
            "score": value,
            "n_test": score.n_test,
            "valid_score": score.valid_score,
            "seconds": score.seconds,
            "created": run.created,
            "settings": json.dumps(run.settings, sort_keys=True),
            "command": run.command,
        }
        for run in records
        for score in run.scores
        for metric, value in {run.task["metric"]: score.score, **score.others}.items()
    ]
    with replacing(output) as file:
        if output.suffix == ".csv":
            file.write(f"{as_csv(rows)}\n".encode())
        else:
            import pandas  # slow to import, and all else does without

            pandas.DataFrame(rows).to_parquet(file, index=False)
    return len(rows)


def merge(sources: Sequence[Path], target: Path) -> tuple[int, list[str]]:
    """Adds the scores of other folders' records to those of one, with the predictions beside them.

    Args:
        sources: Folders of run records; they are only read.
        target: The folder that takes them.

    Returns:
        Number of scores added, and a message for each file that is no record, and for each record whose scores of a
        seed and fold are others there: of those the target's stay.
    """
    added, failures = 0, []
    for source in sources:
        records, unread = runs.read(source)
        failures += unread
        for path, run in records.items():
            try:
                own_path = run.path(target)
                if own_path.resolve() == path.resolve():
                    continue
                before = runs.find(run, target)
                after = {(s.seed, s.fold): s for s in runs.add(run, target, replacing_scores=False).scores}
            except (RunError, OSError) as error:
                failures.append(f"{path}: not merged ({describe(error)}).")
                continue
            added += len(after) - (len(before.scores) if before else 0)
            same = [s for s in run.scores if (s.score, s.others) == _result(after[s.seed, s.fold])]
            if differing := [f"{s.seed}/{s.fold}" for s in run.scores if s not in same]:
                seeds = ", ".join(differing)
                failures.append(f"{path}: other scores than {own_path} for seed/fold {seeds}; those of {target} stay.")
            for old_path in runs.paths(path):
                runs.copy_predictions(old_path, own_path, same)
    return added, failures


def _result(score: Score) -> tuple[float, Mapping[str, float]]:
    return score.score, score.others


_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_PREDICTIONS = re.compile(r"\w+-[0-9a-f]{10}")


def leftovers(folder: Path, hours: float) -> list[Path]:
    """What killed runs left in a folder of records: half-written files, and predictions whose record is gone.

    Args:
        folder: Of the records.
        hours: Age from which that counts as left.

    Returns:
        Files alone; whatever has another name than this package gives is left alone, and so are locks, which a
        process may hold however old they are.

    Raises:
        UsageError: No such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of run records. Name it with --runs.")
    before = time.time() - 3600 * hours
    left = [path for path in sorted(folder.rglob(".*.tmp")) if _TEMPORARY.fullmatch(path.name)]
    for inside in sorted(path for path in folder.rglob("*-*") if path.is_dir() and _PREDICTIONS.fullmatch(path.name)):
        files = sorted(inside.iterdir())
        orphaned = not inside.with_name(f"{inside.name}.json").exists()
        if orphaned and all(file.suffix == ".npz" and file.is_file() for file in files):
            left += files
    return [path for path in left if path.stat().st_mtime <= before]


def remove(paths: Iterable[Path]) -> None:
    """Removes files, and the folders of predictions that are empty then."""
    for path in paths:
        path.unlink(missing_ok=True)
        if path.suffix == ".npz" and not any(path.parent.iterdir()):
            path.parent.rmdir()
