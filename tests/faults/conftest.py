"""Fixtures of the tests of faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.relays import RelayedWorld
from tests.servers import Postgres, Redis


@pytest.fixture(scope="module")
def one_world(postgres: Postgres, pg_template: str) -> Iterator[RelayedWorld]:
    """Make one database and one Redis for the module, with the ways to them."""
    with Redis("--maxmemory-policy", "noeviction") as server:
        world = RelayedWorld(postgres, postgres.create_database(pg_template), server)
        try:
            yield world
        finally:
            world.close()


@pytest.fixture
def world(one_world: RelayedWorld, monkeypatch: pytest.MonkeyPatch) -> RelayedWorld:
    """Give five models in PostgreSQL with their count in Redis; every warning is told."""
    monkeypatch.setattr("modelctl.count.protocol.WARN_SECONDS", 0)
    one_world.renew()
    return one_world
