"""s3prl's experiment folders → run records."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from m2d_bench.errors import DataError
from m2d_bench.runs import Run, Score, environment
from m2d_bench.superb_upstream.data import SECTIONS, is_place, is_superb
from m2d_bench.superb_upstream.norm_stats import TASKS
from m2d_bench.superb_upstream.runner import LOG, MARK

METRICS = {"pr": "per", "asv": "eer", "ss": "si_sdri"}
"""Metrics of SUPERB's tasks; the others count accuracy. For PER and EER lower is better; SI-SDRi is in dB."""

VERSIONS = {"pr": 2}
"""Versions of tasks that are not the first: since 2, PR's list of phonemes is s3prl's, with SIL and SPN."""

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
    if task is None or not is_superb(arguments["downstream"], config):
        raise DataError(
            f"{folder}: downstream {arguments['downstream']!r}; known are {', '.join(tasks)}, ctc with the corpus "
            "libriphone."
        )
    if arguments.get("init_ckpt") and not arguments.get("past_exp"):
        raise DataError(
            f"{folder}: run with -i {arguments['init_ckpt']}, whose own settings, such as the learning rate, are noted "
            "nowhere here. Run m2d-bench superb with -e instead."
        )
    log = _log(task, folder)
    earlier = (folder / LOG).is_file() and not log.data  # our launcher's of before it noted what was read
    if log.test is None:
        best = {"asv": "states-*.ckpt", "ss": "best-states-dev.ckpt"}.get(task, "dev-best.ckpt")
        raise DataError(f"{folder}: no test score yet. Run m2d-bench superb -m evaluate -e {folder}/{best}")
    score = Score(
        seed=int(arguments["seed"]),
        fold=_fold(task, arguments, config),
        score=log.test,
        n_test=_tested(folder),
        seconds=log.seconds,
        valid_score=log.valid,
    )
    return Run(
        encoder=_encoder(arguments, log.encoder),
        task={
            "name": f"superb:{task}",
            "version": 1 if earlier else VERSIONS.get(task, 1),
            "metric": METRICS.get(task, "accuracy"),
            "other_metrics": (),
            "domain": "speech",
            "synthetic": False,
            "n_folds": 5 if task == "er" else 1,
            "fingerprint": "-".join(log.data) or f"places-{_digest(_places(config))}",
        },
        protocol="superb",
        settings=_settings(arguments, config),
        repeated=("initialisation", "shuffling"),
        environment=log.environment or environment(str(arguments["device"])),
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


def _log(task: str, folder: Path) -> _Log:
    """What an experiment's log says since training last began anew; without ours, the scores in s3prl's own."""
    path = folder / LOG
    if path.is_file():
        return _printed(task, path.read_text(encoding="utf-8"))
    path = folder / "log.log"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    best = re.findall(rf"^New best on dev at step (\d+): {_NUMBER}", text, re.MULTILINE)
    tests = dict(re.findall(rf"^test at step (\d+): {_NUMBER}", text, re.MULTILINE))  # the last of each step
    step, valid = best[-1] if best else ("", "nan")
    test = tests.get("0", tests.get(step))  # an evaluation calls its step 0
    return _Log(pairs=[[float(valid)]] if best else [], evaluated=None if test is None else float(test))


def _printed(task: str, text: str) -> _Log:
    pattern = re.compile(_PRINTED.get(task, rf"(dev|test) acc: {_NUMBER}"))
    log = _Log()
    for line in re.split(r"[\r\n]+", text):
        if line.startswith(MARK):
            word, _, said = line.removeprefix(MARK).strip().partition(" ")
            log = _Log() if word == "train" else log
            with suppress(ValueError):  # a line that a killed run broke off
                log.take(word, said)
        elif match := pattern.match(line):
            log.count(match[1], float(match[2]))
    log.better = min if task in ("pr", "asv") else max
    return log


@dataclass
class _Log:
    """What a training and what followed it printed.

    Args:
        pairs: Validation score, and test score where there is one, of each time both were measured in training.
        evaluated: Test score of the last evaluation after it.
        better: Which of two scores is the better one.
        encoder: Its digest and name, as training began.
        environment: What it ran on.
        seconds: Time of the training, parts added.
        trained_on: Fingerprints of the data.
        tested_on: That of the last evaluation.
        mode: What runs: train, resume, or evaluate with a split.
    """

    pairs: list[list[float]] = field(default_factory=list)
    evaluated: float | None = None
    better: Callable[..., list[float]] = max
    encoder: list[str] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    trained_on: list[str] = field(default_factory=list)
    tested_on: str = ""
    mode: str = "train"

    def take(self, word: str, said: str) -> None:
        """Takes a line of the launcher's."""
        if word == "encoder":
            self.encoder = self.encoder or said.split(maxsplit=1)
        elif word == "environment":
            self.environment = self.environment or json.loads(said)
        elif word == "seconds":
            self.seconds += float(said)
        elif word == "evaluated":
            self.mode = "train"
        elif word == "data" and self.mode == "evaluate test":
            self.tested_on = said
        elif word == "data" and self.mode in ("train", "resume"):
            self.trained_on.append(said)
        elif word != "data":
            self.mode = f"{word} {said}".strip()
            if word == "resume":
                self.evaluated = None

    def count(self, split: str, score: float) -> None:
        """Takes a score."""
        if self.mode.startswith("evaluate"):
            self.evaluated = score if self.mode == "evaluate test" and split != "dev" else self.evaluated
        elif split == "test" and self.pairs:
            self.pairs[-1].append(score)
        else:
            self.pairs.append([score])

    @property
    def best(self) -> list[float]:
        """The validation score that was best, and the test score beside it if there is one."""
        return self.better(self.pairs, key=lambda pair: pair[0]) if self.pairs else []

    @property
    def valid(self) -> float | None:
        """Best validation score."""
        return self.best[0] if self.best else None

    @property
    def test(self) -> float | None:
        """Score of the last evaluation, else the one measured where validation was best."""
        return self.evaluated if self.evaluated is not None else self.best[1] if len(self.best) > 1 else None

    @property
    def data(self) -> list[str]:
        """Fingerprints of what it was trained and tested on, each once."""
        tested = [self.tested_on] if self.evaluated is not None else []
        return list(dict.fromkeys(filter(None, [*self.trained_on, *tested])))


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
    digest, name = noted or (_digest(sorted(named.items())), str(named["upstream_ckpt"] or named["upstream"]))
    return {"name": name, "digest": digest, **named}


def _settings(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that can change a score, without places and the fold."""
    kept = copy.deepcopy(dict(config))
    for values in _sections(kept):
        for key in [key for key, value in values.items() if key in ("test_fold", "num_workers") or is_place(value)]:
            del values[key]
    selected = ("trainable", "feature_selection", "layer_selection", "feature_normalize")
    return {**kept, **{f"upstream_{key}": arguments.get(f"upstream_{key}") for key in selected}}


def _places(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the settings say of where the data lies."""
    return [(key, value) for values in _sections(config) for key, value in sorted(values.items()) if is_place(value)]


def _sections(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [config["downstream_expert"].get(section, {}) for section in SECTIONS]


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
