"""SqliteCache: the count in the SQLite file itself, where triggers keep it true."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from modelctl.count.cache import LEASE_SECONDS, Hit
from modelctl.errors import MissingSchemaError, ModelctlError
from modelctl.model import CacheState

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from modelctl.config.config import Config
    from modelctl.count.reports import CacheKey


class SqliteCache:
    """The count in a table of the database; triggers delete it in the transaction of each change.

    So the cached count is always right, and an invalidation needs no delivery. A table ``models``
    that was restored or swapped may have no triggers: therefore the number is stored only while the
    triggers are there, and believed only while the schema is the one that it was counted with. In a
    file that cannot be written nothing is cached. Only the standard library is used, because a
    cached count must start fast.
    """

    name = "sqlite"
    needs_delivery = False  # the triggers delete it in the transaction of the change
    state_when_untouched = CacheState.UNCHANGED
    state_when_changed = CacheState.INVALIDATED
    address = "in the database's file"
    identity = ""
    server = ""
    polls = 0
    _KEY = "count:active"
    _NOW = "((julianday('now') - 2440587.5) * 86400.0)"
    # SQLite increments this number at every change of the schema. It is stored behind the nonce.
    _SCHEMA = "SELECT schema_version FROM pragma_schema_version"
    _OURS = "substr(nonce, 1, 32) = ?"
    _WATCHED = (
        "3 = (SELECT count(*) FROM sqlite_master WHERE type = 'trigger'"
        " AND lower(tbl_name) = 'models'"
        " AND name IN ('modelctl_insert', 'modelctl_update', 'modelctl_delete'))"
    )

    def __init__(self, config: Config) -> None:
        assert config.sqlite_path is not None  # noqa: S101 - for the type checker
        self._path = config.sqlite_path
        self._ttl = config.cache.ttl

    @contextmanager
    def _connection(self, busy: float | None = None) -> Iterator[sqlite3.Connection]:
        import sqlite3

        from modelctl.database import sqlite

        seconds = sqlite.BUSY_SECONDS if busy is None else busy
        try:
            with closing(sqlite.connect(self._path, busy=seconds)) as connection:
                yield connection
        except sqlite3.Error as exc:
            raise sqlite.translate(exc, self._path) from exc

    def peek(self) -> Hit | None:
        """Return the cached count until it expires."""
        sql = (
            f"SELECT value, expires_at - {self._NOW} FROM modelctl_cache"
            f" WHERE key = ? AND value IS NOT NULL AND nonce LIKE '% ' || ({self._SCHEMA})"
        )
        with self._connection() as connection:
            row = connection.execute(sql, (self._KEY,)).fetchone()
        if row is None or not 0 < row[1] <= self._ttl:
            return None
        return Hit(row[0], self._ttl - row[1], row[1])

    def lease(self) -> str | None:
        """Insert a row with a new nonce, unless a row is there that has not expired.

        The triggers delete the row when a model changes; `fill` then finds no row with its nonce.
        """
        nonce = os.urandom(16).hex()
        sql = (
            "INSERT INTO modelctl_cache (key, value, nonce, expires_at)"
            f" SELECT ?, NULL, ? || ' ' || ({self._SCHEMA}), {self._NOW} + ? WHERE {self._WATCHED}"
            " ON CONFLICT (key) DO UPDATE"
            " SET value = NULL, nonce = excluded.nonce, expires_at = excluded.expires_at"
            f" WHERE modelctl_cache.expires_at NOT BETWEEN {self._NOW} AND {self._NOW} + ?"
            " OR modelctl_cache.value IS NOT NULL"
        )
        longest = max(self._ttl, LEASE_SECONDS)
        changed = self._try(sql, (self._KEY, nonce, LEASE_SECONDS, longest))
        return nonce if changed else None

    def fill(self, token: str, active: int) -> None:
        """Store the number in the row that still carries the nonce."""
        sql = (
            f"UPDATE modelctl_cache SET value = ?, expires_at = {self._NOW} + ?"
            f" WHERE key = ? AND {self._OURS}"
        )
        self._try(sql, (active, self._ttl, self._KEY, token))

    def release(self, token: str) -> None:
        """Delete the row that still carries the nonce."""
        self._try(f"DELETE FROM modelctl_cache WHERE key = ? AND {self._OURS}", (self._KEY, token))

    def forget(self) -> None:
        """Delete the count. Only `cache clear` does this: the triggers do it for every change."""
        with self._connection() as connection:
            connection.execute("DELETE FROM modelctl_cache")

    def invalidate(self, budget: float | None = None) -> None:
        """`forget`: nothing else is cached."""
        self.forget()

    def _try(self, sql: str, values: tuple[Any, ...]) -> bool:
        """Write if that is possible now; return whether a row was written.

        A count is right without it, so only a missing schema is an error.
        """
        try:
            # Do not wait for a long write: the count is right even if it is not stored.
            with self._connection(busy=0.2) as connection:
                return connection.execute(sql, values).rowcount > 0
        except MissingSchemaError:
            raise
        except ModelctlError:
            return False

    def reading(self) -> AbstractContextManager[None]:
        """A locked file is waited for as in every statement."""
        return nullcontext()

    def patience(self, seconds: float) -> AbstractContextManager[None]:
        """A locked file is waited for as in every statement."""
        return nullcontext()

    def keys(self) -> tuple[CacheKey, ...]:
        """Return the rows of the cache's table that have not expired."""
        left = f"expires_at - {self._NOW}"
        sql = f"SELECT key, value, {left} FROM modelctl_cache WHERE {left} > 0 ORDER BY key"
        with self._connection() as connection:
            rows = connection.execute(sql).fetchall()
        from modelctl.count.reports import CacheKey

        return tuple(CacheKey(k, None if v is None else str(v), left) for k, v, left in rows)

    def close(self) -> None:
        """Nothing to do: every call opens and closes a connection of its own."""
