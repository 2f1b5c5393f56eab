"""Fixtures of the tests of sources."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelctl.sources import fetch
from tests.sources.server import Lists, listing


@pytest.fixture
def server() -> Iterator[Lists]:
    """Run a server without TLS."""
    with listing() as server:
        yield server


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the second try come soon; what a server asks for is waited for as always."""
    monkeypatch.setattr(fetch, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(fetch, "_LONGEST_WAIT", 0.002)
