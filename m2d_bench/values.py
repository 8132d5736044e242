"""Frozen dataclasses that check themselves: types and bounds are the annotations of their fields."""

# No postponed annotations here: pydantic reads them.

import re
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from m2d_bench.errors import UsageError
from m2d_bench.registry import unknown

Share = Annotated[float, Field(ge=0, lt=1)]
"""A part of a whole: at least 0 and below 1."""


class Checked:
    """Base of frozen dataclasses whose values are checked on construction, without conversions that lose something.

    Whole numbers stand for floats and lists for tuples; else a value has the type of its field's annotation. Bounds are
    part of the annotation, such as `pydantic.PositiveInt`. Rules about several fields go into a subclass's
    `__post_init__`, after this one.

    Raises:
        UsageError: Names the field, what was received and what is allowed.
    """

    def __post_init__(self) -> None:
        received = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(self).items()}
        try:
            checked = self._model().model_validate(received)
        except ValidationError as error:
            raise _usage_error(error) from None
        for name, value in checked:
            object.__setattr__(self, name, value)

    @classmethod
    @cache
    def _model(cls) -> type[BaseModel]:
        """The check of the fields, made of their annotations."""
        fields: dict[str, Any] = {name: (hint, ...) for name, hint in get_type_hints(cls, include_extras=True).items()}
        return create_model(cls.__name__, __config__=ConfigDict(strict=True, allow_inf_nan=False), **fields)


def explain(error: ValidationError) -> str:
    """The first fault pydantic found: what is allowed, and of a field its name and what was received."""
    fault = error.errors()[0]
    if not fault["loc"]:
        return fault["msg"].replace("Input", "It", 1) + "."
    field = ".".join(map(str, fault["loc"]))
    received = repr(fault["input"])
    received = received if len(received) <= 200 else f"{received[:200]}…"
    allowed = fault["msg"].replace("Input", "it", 1).replace("a valid tuple", "a list, such as [A, B]")
    return f"{field} is {received}; {allowed}."


def _usage_error(error: ValidationError) -> UsageError:
    fault = error.errors()[0]
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        allowed = re.findall("'([^']+)'", fault.get("ctx", {})["expected"])
        return unknown(str(fault["loc"][0]), fault["input"], allowed)
    return UsageError(explain(error))
