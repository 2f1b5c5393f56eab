"""Fixtures of the tests of recovery."""

from __future__ import annotations

import pytest

from tests.recovery.outcomes import (
    Fail,
    in_a_batch,
    one_by_one,
    succeed_in_a_batch,
    succeed_one_by_one,
)


@pytest.fixture(params=[one_by_one, in_a_batch], ids=["calls", "batch"])
def fail(request: pytest.FixtureRequest) -> Fail:
    """Give both ways to record failures."""
    how: Fail = request.param
    return how


@pytest.fixture(params=[succeed_one_by_one, succeed_in_a_batch], ids=["calls", "batch"])
def succeed(request: pytest.FixtureRequest) -> Fail:
    """Give both ways to record successes."""
    how: Fail = request.param
    return how
