"""A smaller encoder for tests that train or teach: they take a second, not ten."""

import pytest

from m2d_bench.encoders.vit import SIZES

SMALLER = (64, 2)
"""Width and depth that stand for size tiny."""


@pytest.fixture(scope="module")
def tiny_is_smaller():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", SMALLER)
        yield
