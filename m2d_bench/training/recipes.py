"""Recipes: YAML files of plain values, found by name, each value overridable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from m2d_bench.errors import UsageError
from m2d_bench.registry import unknown


class _Loader(yaml.SafeLoader):
    """Reads 3e-4 as a number, as YAML 1.2 does; PyYAML, of YAML 1.1, takes it for text."""


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


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
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a recipe is NAME: VALUE lines, such as those of {folder / known[0]}.yaml.")
    return values


def parse(assignments: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs as YAML reads them.

    Raises:
        UsageError: Without an equals sign, or not YAML.
    """
    values = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: it takes NAME=VALUE, such as epochs=100.")
        try:
            values[name.strip().replace("-", "_")] = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text}: {value!r} is no value YAML knows.") from error
    return values
