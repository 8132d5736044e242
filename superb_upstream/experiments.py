"""s3prl's experiment folders → run records."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from m2d_bench.errors import DataError
from m2d_bench.runs import Run, Score, environment
from m2d_bench.superb_upstream.launcher import LOG, MARK
from m2d_bench.superb_upstream.norm_stats import TASKS

METRICS = {"pr": "per", "asv": "eer", "ss": "si_sdri"}
"""Metrics of SUPERB's tasks; the others count accuracy. For PER and EER lower is better; SI-SDRi is in dB."""

_NUMBER = r"(-?[\d.]+(?:e[+-]?\d+)?|nan)"
_PRINTED = {
    "pr": rf"(dev|test) per: {_NUMBER}",
    "asv": rf"sv-voxceleb1/(dev|test)-EER: {_NUMBER}",
    "ss": rf"Average (si_sdr) of \d+ utts: {_NUMBER}",
}
"""How the runner prints scores; else as `dev acc: 0.9`."""


def read(folder: Path) -> Run:
    """The record of an experiment: configuration, seed, best validation and test score since training last began.

    The test score is that of the last evaluation since then, else the one measured in training where validation was
    best.

    Args:
        folder: What s3prl was given as -p, or result/downstream/NAME for -n NAME.

    Raises:
        DataError: Not such a folder, another downstream than SUPERB's seven, or no test score yet.
    """
    arguments, config = _newest(folder, "args"), _newest(folder, "config")
    tasks = {value.downstream: key for key, value in TASKS.items()}
    task = tasks.get(arguments["downstream"])
    if task is None:
        raise DataError(f"{folder}: downstream {arguments['downstream']!r}; known are {', '.join(tasks)}.")
    log = folder / LOG
    if log.is_file():
        valid, test, encoder = _printed(task, log.read_text(encoding="utf-8"))
    else:  # not run by our launcher
        (valid, test), encoder = _logged(folder), None
    if test is None:
        raise DataError(
            f"{folder}: no test score yet. Run m2d-bench superb -m evaluate -e {folder}/dev-best.ckpt "
            "(a states-*.ckpt for asv, which keeps no best; best-states-dev.ckpt for ss)."
        )
    score = Score(
        seed=int(arguments["seed"]),
        fold=_fold(task, arguments, config),
        score=test,
        n_test=_tested(folder),
        valid_score=valid,
    )
    return Run(
        encoder=_encoder(arguments, encoder),
        task={
            "name": f"superb:{task}",
            "version": 1,
            "metric": METRICS.get(task, "accuracy"),
            "other_metrics": (),
            "domain": "speech",
            "synthetic": False,
            "n_folds": 5 if task == "er" else 1,
            "fingerprint": "",
        },
        protocol="superb",
        settings=_settings(arguments, config),
        repeated=("initialisation", "shuffling"),
        environment=environment(str(arguments["device"])),
        scores=(score,),
    )


def _newest(folder: Path, kind: str) -> dict[str, Any]:
    """What s3prl noted of its newest call; an evaluation notes what it was trained with."""
    files = sorted(folder.glob(f"{kind}_*.yaml"))
    if not files:
        raise DataError(f"{folder}: no {kind}_*.yaml; s3prl writes one into every experiment's folder.")
    try:
        values: dict[str, Any] = yaml.safe_load(files[-1].read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{files[-1]}: cannot be read: {error}") from error
    return values


def _logged(folder: Path) -> tuple[float | None, float | None]:
    """Best validation score and test score of a log.log."""
    path = folder / "log.log"
    if not path.is_file():
        return None, None
    text = path.read_text(encoding="utf-8")
    best = re.findall(rf"^New best on dev at step (\d+): {_NUMBER}", text, re.MULTILINE)
    tests = dict(re.findall(rf"^test at step (\d+): {_NUMBER}", text, re.MULTILINE))  # the last of each step
    step, valid = best[-1] if best else (None, None)
    test = tests.get("0", tests.get(step))  # an evaluation calls its step 0
    return _number(valid), _number(test)


def _printed(task: str, text: str) -> tuple[float | None, float | None, list[str] | None]:
    """Best validation score, test score, and digest and name of the encoder, since training last began anew.

    The test score is that of an evaluation after the last training, else the one beside the best validation score.
    """
    pattern = re.compile(_PRINTED.get(task, rf"(dev|test) acc: {_NUMBER}"))
    better = min if task in ("pr", "asv") else max
    pairs: list[list[float]] = []
    evaluated, encoder, mode = None, None, ["train"]
    for line in re.split(r"[\r\n]+", text):
        if line.startswith(f"{MARK} encoder"):
            encoder = line.split(maxsplit=3)[2:]
        elif line.startswith(MARK):
            mode = line.split()[1:]
            if mode[0] == "train":
                pairs, encoder = [], None
            if mode[0] != "evaluate":
                evaluated = None
        elif match := pattern.match(line):
            split, score = match[1], float(match[2])
            if mode[0] == "evaluate":
                evaluated = score if mode[1] == "test" else evaluated
            elif split == "test" and pairs:
                pairs[-1].append(score)
            else:
                pairs.append([score])
    best = better(pairs, key=lambda pair: pair[0]) if pairs else [None]
    return best[0], evaluated if evaluated is not None else (best[1] if len(best) > 1 else None), encoder


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _fold(task: str, arguments: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    if task != "er":
        return "test"
    return str(config["downstream_expert"]["datarc"].get("test_fold") or arguments["downstream_variant"] or "fold1")


def _tested(folder: Path) -> int:
    """Number of test items, as listed by s3prl; 0 if it lists none."""
    for pattern in ("test*_predict.*", "test-hyp.ark"):
        for path in folder.glob(pattern):
            return len(path.read_text(encoding="utf-8").splitlines())
    return 0


def _encoder(arguments: Mapping[str, Any], noted: list[str] | None) -> dict[str, Any]:
    """Name and digest: of the weights where the launcher noted them, else of the names."""
    named = {key: arguments.get(key) for key in ("upstream", "upstream_ckpt", "upstream_model_config")}
    of_names = hashlib.sha256(repr(sorted(named.items())).encode()).hexdigest()[:16]
    digest, name = noted or (of_names, str(named["upstream_ckpt"] or named["upstream"]))
    return {"name": name, "digest": digest, **named}


def _settings(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that can change a score, without places and the fold."""
    kept = copy.deepcopy(dict(config))
    for part in ("datarc", "corpus", "loaderrc", "text"):
        values = kept["downstream_expert"].get(part, {})
        for key in [key for key, value in values.items() if key in ("test_fold", "num_workers") or _is_place(value)]:
            del values[key]
    selected = ("trainable", "feature_selection", "layer_selection", "feature_normalize")
    return {**kept, **{f"upstream_{key}": arguments.get(f"upstream_{key}") for key in selected}}


def _is_place(value: Any) -> bool:
    return (isinstance(value, str) and "/" in value) or (isinstance(value, list) and any(map(_is_place, value)))
