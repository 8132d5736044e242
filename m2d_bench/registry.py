"""Names → values: one lazy lookup that suggests what a misspelt name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from typing import Any

from m2d_bench.errors import UsageError


def unknown(kind: str, name: str, names: Collection[str], see: str | None = None) -> UsageError:
    """The error for a name that is not among `names`, with the nearest ones.

    Args:
        kind: What the name names: task, model, …
        name: What was received.
        names: What is allowed.
        see: Command that lists them; by default the message does.
    """
    lower = {allowed.lower(): allowed for allowed in names}
    close = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return UsageError(f"Unknown {kind} {name!r}.{hint} See {see or 'these: ' + listing(list(names))}.")


def listing(keys: Sequence[str], limit: int = 20) -> str:
    """Keys as part of a message: not too many, not too long, and nothing that a terminal would obey."""
    shown = [key[:100] if key.isprintable() else ascii(key[:100]) for key in keys[:limit]]
    return ", ".join(shown) + (f" … and {len(keys) - limit} more" if len(keys) > limit else "")


def check_names(kind: str, names: Iterable[str], allowed: Collection[str], see: str | None = None) -> None:
    """Raises the error of `unknown` for the first name that is not allowed."""
    for name in names:
        if name not in allowed:
            raise unknown(kind, name, allowed, see)


def resolve(reference: str) -> Any:
    """The object that `module:attribute`, or the module that `module` refers to, imported now."""
    name, _, attribute = reference.partition(":")
    module = import_module(name)
    return getattr(module, attribute) if attribute else module
