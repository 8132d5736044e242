"""EVAR's results/scores.csv and ft-scores.csv → run records."""

from __future__ import annotations

import ast
import csv
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from m2d_bench.errors import DataError
from m2d_bench.evar_adapters import MODULE
from m2d_bench.runs import Run, Score
from m2d_bench.tasks import evar

COLUMNS = ["representation", "task", "score", "run_id", "report"]

_LINEAR = re.compile(r"Linear evaluation: \S+ \S+ -> \S+\n(?P<config>\{.*\})\n", re.DOTALL)
_FINETUNE = re.compile(
    r"Finetuning .* -> mean score: \S+?(, scores: \[(?P<folds>[^\]]*)\])?, best weight: .*config: (?P<config>\{.*\})$",
    re.DOTALL,
)
_PLACES = ("id", "name", "weight_file", "task_metadata", "task_data", "task_name", "feature_d")


def read(path: Path) -> tuple[list[Run], list[str]]:
    """The records of a file of scores, one a line.

    Args:
        path: scores.csv (linear evaluation) or ft-scores.csv (fine-tuning).

    Returns:
        The records, and a message for each line that cannot be parsed.

    Raises:
        DataError: Not such a file.
    """
    protocol, pattern = ("finetune", _FINETUNE) if path.name.startswith("ft-") else ("linear", _LINEAR)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise DataError(f"{path}: columns {reader.fieldnames}; EVAR writes {COLUMNS}.")
            lines = list(enumerate(reader, 2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    records, failures = [], []
    for number, line in lines:
        try:
            records.append(_record(line, protocol, pattern))
        except (ValueError, KeyError, TypeError, SyntaxError) as error:
            failures.append(f"{path}, record {number - 1} ({line.get('run_id')}): {type(error).__name__}: {error}")
    return records, failures


def _record(line: Mapping[str, str], protocol: str, pattern: re.Pattern[str]) -> Run:
    match = pattern.search(line["report"])
    if match is None:
        zero_shot = line["report"].startswith("Zero-shot")
        raise ValueError("zero-shot scores are out of scope" if zero_shot else "its report is not in EVAR's form")
    config = ast.literal_eval(match["config"])
    settings = config.pop("runtime_cfg")
    seed = settings.pop("seed")
    if not isinstance(seed, int):
        raise ValueError(f"seed {seed!r} is no whole number")
    settings.pop("id", None)
    mean = float(line["score"])
    folds = (match.groupdict().get("folds") or "").split(", ") if match.groupdict().get("folds") else []
    scores = [float(fold) for fold in folds] or [mean]
    if not all(0 <= score <= 1 for score in (mean, *scores)) or abs(sum(scores) / len(scores) - mean) > 1e-4:
        raise ValueError(f"score {mean} and folds {scores} do not agree")
    if config["audio_repr"].startswith(f"{MODULE}.") and config.get("feature_d") == 0:
        settings["passes"] = 2  # our classes set it; where none was made, the embeddings came from the first pass
    weights = str(config["weight_file"])
    identity = hashlib.sha256(f"{config['audio_repr']}|{weights}".encode()).hexdigest()[:16]
    kept = {key: value for key, value in config.items() if key not in _PLACES}
    ours = evar.published(line["task"])
    name = Path(weights).parent.name if "/" in weights and ":" not in weights else weights  # a file, or another name
    return Run(
        encoder={"name": name or str(config["audio_repr"]), "digest": identity, "representation": config["audio_repr"]},
        task={
            "name": line["task"],
            "version": 1,
            "metric": "mAP" if ours and ours.multilabel else "accuracy",
            "other_metrics": (),
            "domain": "other",
            "synthetic": False,
            "n_folds": len(scores),
            "fingerprint": "evar",
        },
        protocol=protocol,
        settings={**kept, **settings, "harness": "EVAR"},
        repeated=("initialisation", "shuffling"),
        scores=tuple(
            Score(seed=seed, fold=str(fold) if len(scores) > 1 else "mean of folds", score=score, n_test=0)
            for fold, score in enumerate(scores, 1)
        ),
    )
