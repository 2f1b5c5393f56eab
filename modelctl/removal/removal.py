"""Take modelctl out of a database: its triggers alone, or all that it has made.

Nothing of an application is touched: neither its table and rows nor the columns that it had before.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from sqlalchemy import exc as sa_exc

from modelctl.errors import InvalidConfigError, RefusedError
from modelctl.migrations.migrate import SCHEMA, alone, reading
from modelctl.migrations.plan import execute
from modelctl.removal import postgresql, sqlite
from modelctl.removal.results import Uninstalled
from modelctl.schema.declared import CACHE

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from modelctl.removal.parts import Parts

_IN_USE = "something else in the database uses a part of modelctl"


def detach(connection: Connection, schema: str = SCHEMA) -> list[str]:
    """Drop the triggers and functions, not the tables and columns; return what was dropped."""
    with alone(connection, schema):
        if connection.dialect.name == "postgresql":
            if problems := postgresql.why_not_detach(connection, schema):
                raise InvalidConfigError("; ".join(problems), hint="nothing was changed")
            parts = postgresql.watching(connection, schema)
        else:
            parts = sqlite.watching(connection)
            if parts and sqlite.has_cache(connection):
                connection.exec_driver_sql(f"DELETE FROM {CACHE}")
        execute(connection, [part.sql for part in parts])
        return [part.words for part in parts]


def uninstall(
    connection: Connection,
    schema: str = SCHEMA,
    *,
    delivers: bool,
    forget: Callable[[], None],
    dry_run: bool = False,
) -> Uninstalled:
    """Drop all that modelctl has made, in one transaction.

    *delivers*: whether this process delivers invalidations, so that those in the queue must not be
    lost. *forget*: removes the cached count. *dry_run*: only return what would be dropped, and what
    prevents it.

    Raises:
        RefusedError: something prevents it: invalidations that wait, a view that uses a column.
    """
    if dry_run:
        with reading(connection):
            parts = _everything(connection, schema)
            _check_queue(parts, connection, schema, delivers)
            _say_what_stays(parts, connection, schema, delivers)
            if connection.dialect.name == "sqlite" and (why := sqlite.tried(connection, parts)):
                parts.refused.append(f"{_IN_USE}: {why}")
            statements = [part.sql for part in parts.dropped] if not parts.refused else []
            return Uninstalled(
                tuple(part.words for part in parts.dropped),
                tuple(parts.kept),
                True,
                tuple(parts.refused),
                tuple([parts.lock, *statements] if parts.lock and statements else statements),
            )
    with alone(connection, schema):
        parts = _everything(connection, schema)
        if not parts.refused:
            execute(connection, [parts.lock] if parts.lock else [])
            # From here on no change can queue anything.
            _check_queue(parts, connection, schema, delivers)
            _say_what_stays(parts, connection, schema, delivers)
        if parts.refused:
            raise RefusedError(
                f"{'; '.join(parts.refused)}; nothing was removed", hint=_hint(parts)
            )
        # While the table is locked: a reader that took its lease before loses it, and no other can count
        # before the tables are gone. So a cached number does not outlive them, even if this process is
        # killed after COMMIT.
        forget()
        try:
            execute(connection, [part.sql for part in parts.dropped])
        except sa_exc.DBAPIError as exc:
            if not _is_in_use(exc):
                raise
            diag = getattr(exc.orig, "diag", None)  # without the advice to use CASCADE
            words = [diag.message_primary, diag.message_detail] if diag else [str(exc.orig)]
            why = " ".join("; ".join(filter(None, words)).split())
            raise RefusedError(
                f"{_IN_USE}: {why}; nothing was removed",
                hint="drop or change that first",
            ) from exc
        return _result(parts, connection, schema)


def _everything(connection: Connection, schema: str) -> Parts:
    if connection.dialect.name == "postgresql":
        return postgresql.everything(connection, schema)
    return sqlite.everything(connection)


def _check_queue(parts: Parts, connection: Connection, schema: str, delivers: bool) -> None:
    """Refuse while invalidations wait: without them other programs may read an old count."""
    if connection.dialect.name == "postgresql":
        queued = postgresql.waiting(connection, schema, delivers=delivers)
        if queued:
            are = "invalidation is" if queued == 1 else "invalidations are"
            parts.refused.append(f"{queued} {are} queued: run modelctl cache drain first")


def _say_what_stays(parts: Parts, connection: Connection, schema: str, delivers: bool) -> None:
    """Add what stays: models that nothing brings back, and counts in a Redis that is not configured."""
    on_postgresql = connection.dialect.name == "postgresql"
    if parts.dropped:
        off = (
            postgresql.stays_off(connection, schema)
            if on_postgresql
            else sqlite.stays_off(connection)
        )
        if off:
            parts.kept.append(
                f"{off} model{'s' * (off > 1)} off, until modelctl recover brings them back: enable"
                " them before, or nothing will"
            )
    if on_postgresql and not delivers:
        parts.kept += [
            f"the count that is cached at {place}, for up to a minute: no Redis is configured here"
            for place in postgresql.places(connection, schema)
        ]


def _hint(parts: Parts) -> str | None:
    if any(" uses the " in reason for reason in parts.refused):
        return "drop or change what uses them, or remove only the triggers: modelctl db detach"
    return None


def _result(parts: Parts, connection: Connection, schema: str) -> Uninstalled:
    removed, kept = [part.words for part in parts.dropped], parts.kept
    last = f"schema {schema}"
    if (
        connection.dialect.name == "postgresql"
        and removed[-1:] == [last]
        and postgresql.is_there(connection, schema)
    ):
        removed.pop()
        kept = [*kept, f"the {last}: other programs have something in it"]
    return Uninstalled(tuple(removed), tuple(kept))


def _is_in_use(exc: sa_exc.DBAPIError) -> bool:
    """Whether something else uses what was to be dropped."""
    code = getattr(exc.orig, "sqlite_errorcode", None)
    if code is not None:  # neither full nor read-only: a view or a trigger that would be broken
        return bool(code == sqlite3.SQLITE_ERROR)
    return getattr(exc.orig, "sqlstate", None) == "2BP01"
