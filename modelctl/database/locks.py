"""Advisory locks of PostgreSQL: their keys, and the lock of changes that depend on other models."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from modelctl.database.database import LOCK_TIMEOUT
from modelctl.database.sql import text

if TYPE_CHECKING:
    import sqlalchemy as sa

    from modelctl.database.database import Database

# Any numbers that no other program uses.
RECOVER_LOCK = 7091_2026_0001  # held by the run of recover that is at work
GUARD_LOCK = 7091_2026_0002  # held by a change that depends on how many other models are active
SYNC_LOCK = 7091_2026_0003  # held by the sync that is at work


def lock_key(lock: int, schema: str) -> int:
    """Return the key of an advisory lock for the fleet in this schema: several share a database."""
    return lock if schema == "modelctl" else lock + (zlib.crc32(schema.encode()) << 24)


def take_guard_lock(connection: sa.Connection, database: Database) -> None:
    """Hold the guard lock until the transaction ends; for changes that may deactivate a model.

    Take the guard lock before any row lock: then two transactions never wait for each other.
    """
    take_lock(connection, database, GUARD_LOCK)


def take_lock(connection: sa.Connection, database: Database, lock: int) -> None:
    """Hold an advisory lock until the transaction ends; take it before any row lock."""
    if database.on_sqlite:  # BEGIN IMMEDIATE admits one writer at a time
        return
    # The wait may be long: this transaction holds no row lock yet, so no other transaction waits for it.
    sql = (
        "SELECT set_config('lock_timeout', '2s', true),"
        f" pg_advisory_xact_lock({lock_key(lock, database.schema)}),"
        f" set_config('lock_timeout', '{LOCK_TIMEOUT}', true)"
    )
    connection.execute(text(sql))
