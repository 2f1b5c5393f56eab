"""Fixtures of the tests of migrations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.migrations.schemas import migrated_fleet


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Give the URL of a SQLite database that is not there yet."""
    return f"sqlite:///{tmp_path / 'modelctl.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Give the URL of an empty database of each kind."""
    fixture = "empty_pg" if request.param == "postgresql" else "sqlite_url"
    return str(request.getfixturevalue(fixture))


@pytest.fixture
def fleet(empty_pg: str) -> str:
    """Give the URL of a migrated database with a few models and an empty outbox."""
    return migrated_fleet(empty_pg)
