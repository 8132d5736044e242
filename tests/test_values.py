"""Values are checked by the annotations of their fields."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

from m2d_bench.errors import UsageError
from m2d_bench.settings import Compute, Storage
from m2d_bench.values import Checked, Share


@dataclass(frozen=True, kw_only=True)
class Example(Checked):
    count: PositiveInt = 3
    share: Share = 0.5
    size: tuple[int, int] = (16, 16)
    names: tuple[str, ...] = ()
    choice: Literal["flat", "stacked"] = "flat"
    limit: Annotated[int, Field(ge=2)] | None = None
    flag: bool = False


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("count", True, "count is True; it should be a valid integer"),
        ("count", 16.0, "count is 16.0; it should be a valid integer"),
        ("count", "3", "count is '3'; it should be a valid integer"),
        ("count", None, "count is None; it should be a valid integer"),
        ("count", 0, "count is 0; it should be greater than 0"),
        ("share", 1, "share is 1; it should be less than 1"),
        ("share", True, "share is True; it should be a valid number"),
        ("share", "3e-4", "share is '3e-4'; it should be a valid number"),
        ("share", float("nan"), "share is nan; it should be a finite number"),
        ("share", float("inf"), "share is inf; it should be a finite number"),
        ("size", [16.9, 16.2], "size.0 is 16.9; it should be a valid integer"),
        ("size", [1, 2, 3], "size is .* at most 2 items"),
        ("size", [1], "size.1 "),
        ("size", [[16, 16], 16], "size.0 is .* it should be a valid integer"),
        ("size", 16, "size is 16; it should be a list, such as "),
        ("names", "abc", "names is 'abc'; it should be a list, such as "),
        ("choice", "stcked", "Unknown choice 'stcked'. Did you mean stacked. See these: flat, stacked"),
        ("choice", 3, "choice is 3; it should be 'flat' or 'stacked'"),
        ("limit", 1, "limit is 1; it should be greater than or equal to 2"),
        ("flag", 1, "flag is 1; it should be a valid boolean"),
    ],
)
def test_what_does_not_fit_its_annotation_is_refused(field, value, says):
    with pytest.raises(UsageError, match=says):
        Example(**{field: value})


def test_lists_stand_for_tuples_and_whole_numbers_for_floats():
    value = Example(size=[16, 4], names=["a", "b"], share=0, limit=None)
    assert value == Example(size=(16, 4), names=("a", "b"), share=0.0)
    assert isinstance(value.share, float)


def test_bases_are_checked_together():
    @dataclass(frozen=True, kw_only=True)
    class Both(Compute, Storage):
        seeds: PositiveInt = 1

    for wrong in ({"batch_size": 0}, {"jobs": -1}, {"precision": "fp64"}, {"seeds": 0}, {"data": 3}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Both(**wrong)
