"""Fixtures of the tests of edits."""

from __future__ import annotations

import pytest

from tests.commands import make_fleet


@pytest.fixture
def fleet_of_five() -> None:
    """Make a database with five models where the program looks for one."""
    make_fleet()
