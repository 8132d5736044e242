"""Mean and standard deviation of a task's log-mel spectrograms: published ones, and those users name with -k or -g."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

from m2d_bench.errors import UsageError
from m2d_bench.registry import unknown


class Task(NamedTuple):
    """A task of SUPERB.

    Args:
        downstream: s3prl's name of it (`-d`).
        learning_rate: Published for M2D-S.
        mean: Of the log-mel spectrograms of its training data.
        std: Of the same.
    """

    downstream: str
    learning_rate: float
    mean: float
    std: float


TASKS = {
    "pr": Task("ctc", 1e-3, -10.43253, 4.24137),
    "ks": Task("speech_commands", 1e-4, -11.50626, 4.31486),
    "ic": Task("fluent_commands", 1e-3, -13.01744, 4.41776),
    "sid": Task("voxceleb1", 1e-3, -10.57127, 4.36811),
    "asv": Task("sv_voxceleb1", 5e-5, -11.07093, 4.18080),
    "er": Task("emotion", 1e-5, -13.03740, 3.61974),
    "ss": Task("separation_stft2", 1e-3, -9.58744, 4.16841),
}
"""Source: M2D-S (arXiv 2305.14079) and its repository's SUPERB settings."""


def parse(ckpt: str) -> tuple[str, tuple[float, float] | None]:
    """Splits what -k says: `NAME_OR_PATH`, `NAME_OR_PATH,mean,std` or `NAME_OR_PATH,TASK` (the published ones).

    Raises:
        UsageError: Another number of parts, something that is no number, or no task.
    """
    name, *rest = (part.strip() for part in ckpt.split(","))
    if not rest:
        return name, None
    if len(rest) == 1 and rest[0].isalpha():
        if rest[0] not in TASKS:
            raise unknown("task", rest[0], TASKS, f"these: {', '.join(TASKS)}")
        return name, (TASKS[rest[0]].mean, TASKS[rest[0]].std)
    try:
        mean, std = map(float, rest)
    except ValueError:
        raise UsageError(
            f"-k {ckpt}: after the name come nothing, mean and standard deviation, or a task, as in "
            f"{name},-11.506,4.315 or {name},ks."
        ) from None
    return name, _checked(mean, std, f"-k {ckpt}")


def task_of(ckpt: str | None, model_config: str | None) -> str | None:
    """The task whose statistics -k or the file of -g names, if they name one."""
    _, comma, word = (ckpt or "").rpartition(",")
    if comma and word.strip() in TASKS:
        return word.strip()
    if not model_config:
        return None
    values = yaml.safe_load(Path(model_config).expanduser().read_text(encoding="utf-8"))
    return str(values["task"]) if isinstance(values, dict) and values.get("task") in TASKS else None


def read(path: str | Path) -> tuple[float, float]:
    """Mean and standard deviation from a YAML file with the keys `mean` and `std`, as `superb calcnorm` writes it.

    Raises:
        UsageError: Not such a file.
    """
    try:
        values = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        extra = set(values) - {"mean", "std", "task", "clips", "frames"}
        mean, std = float(values["mean"]), float(values["std"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not a YAML file with the numbers mean and std: {error}") from error
    if extra:
        raise UsageError(f"{path}: unknown keys {', '.join(sorted(extra))}; allowed are mean and std.")
    return _checked(mean, std, str(path))


def _checked(mean: float, std: float, where: str) -> tuple[float, float]:
    if not (abs(mean) < 100 and 0 < std < 100):
        raise UsageError(f"{where}: mean {mean} and standard deviation {std} are none of log-mel spectrograms.")
    return mean, std
