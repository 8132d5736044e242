"""s3prl's -o, checked before it is applied: keys that exist, values of their type, one value for all of a training."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from m2d_bench.errors import UsageError
from m2d_bench.registry import unknown
from m2d_bench.superb_upstream.data import is_place
from m2d_bench.values import Checked


@dataclass(frozen=True, kw_only=True)
class RunnerSettings(Checked):
    """What s3prl's runner reads under `runner` in a settings file."""

    total_steps: PositiveInt = 1
    gradient_clipping: Annotated[float, Field(gt=0)] = 1.0
    gradient_accumulate_steps: PositiveInt = 1
    log_step: PositiveInt = 1
    eval_step: PositiveInt = 1
    save_step: PositiveInt = 1
    max_keep: PositiveInt = 1
    eval_dataloaders: tuple[str, ...] = ()
    train_dataloader: str = "train"
    fp16: bool = False
    evaluate_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0


_RUNNER = tuple(field.name for field in fields(RunnerSettings))

_OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(f"runner.{name}" for name in _RUNNER),
    "optimizer.lr": 0.0,
    "optimizer.weight_decay": 0.0,
    "scheduler": {},
    "scheduler.name": "",
    "scheduler.num_warmup_steps": 0,
}
"""Keys that s3prl reads and settings files may leave out, with a value of their type (not the runner's)."""

_BY_OPTION = ("mode", "override", "past_exp", "init_ckpt", "config", "downstream", "expname", "expdir", "auto_resume")
"""Arguments of s3prl that are read before -o, or that what is checked before a run goes by."""

_OF_THE_WHOLE = (
    *("seed", "hub", "upstream", "upstream_revision", "upstream_trainable", "upstream_feature_selection"),
    *("upstream_layer_selection", "upstream_feature_normalize", "downstream_variant"),
)
"""Arguments of s3prl that an experiment has one value of."""

_WITHOUT_EFFECT = ("num_workers", "eval_batch_size", "eval_batchsize")

_GOING_ON = {
    "train": ("total_steps", "log_step", "eval_step", "save_step", "max_keep", "eval_dataloaders"),
    "evaluate": ("evaluate_ratio",),
    "inference": (),
}
"""What may change of the runner when an experiment goes on, by mode."""


def split(text: str | None) -> list[str]:
    """The options in the text of -o, which separates them by two commas; `none` stands for no text."""
    text = "" if text is None or text.lower() == "none" else text
    return [option for option in map(str.strip, text.split(",,")) if option]


def applied(
    options: Sequence[str], config: dict[str, Any], arguments: argparse.Namespace, going_on: bool = False
) -> dict[str, Any]:
    """Settings as s3prl's -o makes them.

    Args:
        options: Of -o, `KEY=VALUE` each.
        config: The settings before.
        arguments: s3prl's, those of the checkpoint where an experiment goes on; its `mode` is the one it goes on in.
        going_on: Whether an experiment goes on: its record states one value of everything that makes a score.

    Raises:
        UsageError: An unknown key, a value of another type, or one that differs from what the experiment was trained
            with; of the settings' runner and learning rate, also those that the settings file has.
    """
    from s3prl.utility.helper import override

    known = {"config": _OPTIONAL | dict(_flat(config)), "args": vars(arguments)}
    after, of_option = copy.deepcopy(config), argparse.Namespace()
    for option in options:
        key, _, value = option.partition("=")
        part, _, name = key.strip().partition(".")
        if part not in known or not value or "=" in value:
            raise UsageError(
                f"-o {option}: expected config.KEY=VALUE or args.KEY=VALUE without another =, several separated by ,, "
                "as in config.optimizer.lr=1e-3,,config.runner.total_steps=1000."
            )
        if name not in known[part]:
            raise unknown("key of -o", key.strip(), [f"{part}.{each}" for each in known[part]], "the settings file -c")
        if part == "args" and name in _BY_OPTION:
            raise UsageError(f"-o {option}: comes too late there. Name it by its own option, --{name}.")
        with contextlib.redirect_stderr(io.StringIO()):  # where it says what s3prl says once more
            override(option, of_option, after)
        old, new = known[part][name], vars(of_option)[name] if part == "args" else dict(_flat(after))[name]
        if isinstance(new, Mapping):
            raise UsageError(
                f"-o {option}: {name} is a group of settings; name one inside it, {key.strip()}.KEY=VALUE."
            )
        example = _OPTIONAL.get(name, old)
        if not _fits(new, example):
            raise UsageError(f"-o {option}: {new!r} is no {type(example).__name__}, as {example!r} is.")
        if going_on and new != old and not _may_change(part, name, old, arguments.mode):
            raise UsageError(
                f"-o {option}: the experiment was trained with {old!r}, and its record states one value. Leave it out, "
                "or train under another -n."
            )
    _check(after)
    return after


def _check(config: Mapping[str, Any]) -> None:
    """Refuses settings of the runner and learning rates that would break off a training that has begun."""
    runner = config.get("runner") or {}
    try:
        RunnerSettings(**{name: runner[name] for name in _RUNNER if name in runner})
    except UsageError as error:
        raise UsageError(f"config.runner.{error}") from None
    rate = (config.get("optimizer") or {}).get("lr", 0.0)
    if not _fits(rate, 0.0):
        raise UsageError(f"config.optimizer.lr is {rate!r}, no number; YAML reads one with a point, as 1.0e-3.")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting and group of settings by its name with points."""
    for name, value in config.items():
        yield prefix + str(name), value
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")


def _fits(value: Any, example: Any) -> bool:
    """Whether a value has an example's type, a list those of its items; whole numbers fit others, and all fits none."""
    if example is None:
        return True
    if isinstance(example, list) and isinstance(value, list):
        return not example or all(any(_fits(item, each) for each in example) for item in value)
    if isinstance(example, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(example)


def _may_change(part: str, name: str, old: Any, mode: str) -> bool:
    group, _, key = name.rpartition(".")
    if part == "args":
        return name not in _OF_THE_WHOLE
    return key in _WITHOUT_EFFECT or is_place(old) or (group == "runner" and key in _GOING_ON[mode])
