"""Recipes: YAML files of plain values, found by name, each value overridable and checked by the type of its default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from m2d_bench.errors import UsageError
from m2d_bench.registry import unknown


def names(folder: Path) -> list[str]:
    """The recipes in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read(name: str | Path, folder: Path) -> dict[str, Any]:
    """The values of a recipe.

    Args:
        name: One of the folder's, or a YAML file.
        folder: Folder of the recipes that come with the package.

    Raises:
        UsageError: Unknown, or not a file of NAME: VALUE lines.
    """
    known = names(folder)
    path = folder / f"{name}.yaml" if str(name) in known else Path(name).expanduser()
    if not path.is_file():
        raise unknown("recipe", str(name), known, f"these: {', '.join(known)}; or name a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a recipe is NAME: VALUE lines, such as those of {folder / known[0]}.yaml.")
    return values


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs as YAML reads them.

    Raises:
        UsageError: Without an equals sign.
    """
    found = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: it takes NAME=VALUE, such as epochs=100.")
        try:
            found[name.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text}: {value!r} is no value YAML knows.") from error
    return found


def check(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values in the types of their defaults.

    Raises:
        UsageError: Unknown names, or values of another type than the default's.
    """
    for name in values:
        if name not in defaults:
            raise unknown("value of a recipe", name, defaults, f"these: {', '.join(defaults)}")
    return {name: _typed(name, value, defaults[name]) for name, value in values.items()}


def _typed(name: str, value: Any, default: Any) -> Any:
    """The value in the type of the default; 3e-4, which YAML takes for text, is a number."""
    try:
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise ValueError
            return value
        if isinstance(default, tuple):
            first, second = value
            return int(first), int(second)
        if isinstance(default, str):
            return str(value)
        if default is None:  # a number, or none
            return None if value is None else int(value)
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}={value!r}: it takes a value like {_shown(default)}.") from error
    if isinstance(default, int):
        if number != int(number):
            raise UsageError(f"{name}={value!r}: it takes a whole number.")
        return int(number)
    return number


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else repr(default)
