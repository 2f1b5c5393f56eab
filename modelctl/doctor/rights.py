"""What this process may do in the database, tried in transactions that are rolled back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc as sa_exc

from modelctl.database.sql import text
from modelctl.errors import InvalidConfigError
from modelctl.tables.columns import MODELS, events_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database

# What docs/postgresql.md grants. Each right is tried with a statement that touches no row.
NEEDED = {
    "models": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "modelctl_events": ("SELECT", "INSERT", "UPDATE (model_id)"),
    "modelctl_outbox": ("SELECT", "UPDATE", "DELETE"),
    "modelctl_state": ("SELECT", "INSERT", "UPDATE"),
    "modelctl_holds": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "modelctl_tags": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "modelctl_sources": ("SELECT", "INSERT", "UPDATE"),
    "modelctl_origins": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "modelctl_ignored": ("SELECT", "INSERT", "DELETE"),
    "modelctl_version": ("SELECT",),
}
# What deleting old events needs beyond that; docs/operations.md grants it.
NEEDED_TO_PRUNE = {"modelctl_events": ("DELETE",)}
# The columns that modelctl reads and writes: a right may be granted on some columns only.
_COLUMNS: dict[str, Sequence[str]] = {
    "models": [column.name for column in MODELS.c],
    "modelctl_events": [column.name for column in events_table(None).c],
    "modelctl_outbox": ["id", "due", "settle"],
    "modelctl_state": ["name", "at", "value"],
    "modelctl_holds": ["scope", "provider", "failure_type", "since", "until", "reason", "actor"],
    "modelctl_tags": ["model_id", "tags"],
    "modelctl_sources": ["name", "synced_at"],
    "modelctl_origins": [
        *("model_id", "source", "first_seen_at", "last_seen_at", "gone_since", "switched_off_at"),
    ],
    "modelctl_ignored": ["pattern", "at", "actor", "reason"],
    "modelctl_version": ["version_num"],
}
_INSERTED = {"models": ["id", "display_name", "provider"]}
_LOCK_MILLISECONDS = 500
# How many bytes SQLite must be able to write. A bulk change needs more.
ROOM = 1 << 20


@dataclass(frozen=True, slots=True)
class Table:
    """A table in PostgreSQL.

    *name*: with its schema, as SQL. *kind*: "table", "view" and so on. *hides_rows*: whether row level
    security applies to this role.
    """

    name: str
    kind: str
    hides_rows: bool
    owner: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What the role lacks.

    *role*: its name as SQL. *missing*: pairs of a right and a table or schema. *locked*: tables that
    another session has locked.
    """

    role: str
    missing: tuple[tuple[str, str], ...]
    locked: tuple[str, ...]


class Rights:
    """Tries what this process may do on PostgreSQL; `write_much` is for SQLite."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def why_read_only(self) -> str | None:
        """Return why transactions of this connection cannot write; None: they can."""
        sql = (
            "SELECT pg_is_in_recovery(), current_setting('transaction_read_only'), source"
            " FROM pg_settings WHERE name = 'default_transaction_read_only'"
        )
        with self._database.reading() as connection:
            standby, read_only, source = connection.execute(text(sql)).one()
        if standby:
            return "the server is a standby; name the primary, or several hosts, in database.url"
        if read_only == "off":
            return None
        where = {
            "user": "for this role: ALTER ROLE ... RESET default_transaction_read_only",
            "database": "for this database: ALTER DATABASE ... RESET default_transaction_read_only",
            "database user": "for this role in this database:"
            " ALTER ROLE ... IN DATABASE ... RESET default_transaction_read_only",
            "client": "by this client: check options in database.url and PGOPTIONS",
        }.get(source, f"by the server ({source}); a managed server does that when its disk is full")
        return f"default_transaction_read_only is on, set {where}"

    def tables(self) -> dict[str, Table]:
        """Return those of ``models`` and modelctl's own tables that exist, by name."""
        sql = (
            "SELECT c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname),"
            " CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view'"
            " WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'no table' END,"
            " c.relkind IN ('r', 'p') AND row_security_active(c.oid), pg_get_userbyid(c.relowner)"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.oid = to_regclass('models')"
            " OR (n.nspname = :schema AND c.relname = ANY(CAST(:names AS text[])))"
        )
        names = [name for name in NEEDED if name != "models"]
        values = {"schema": self._database.schema, "names": names}
        with self._database.reading() as connection:
            return {row[0]: Table(*row[1:]) for row in connection.execute(text(sql), values)}

    def tables_with_triggers(self) -> list[str]:
        """Return the tables that have modelctl's triggers, as SQL."""
        sql = (
            "SELECT DISTINCT quote_ident(n.nspname) || '.' || quote_ident(c.relname)"
            " FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_proc p ON p.oid = t.tgfoid"
            " JOIN pg_namespace f ON f.oid = p.pronamespace"
            " WHERE f.nspname = :schema AND p.proname = 'modelctl_enqueue' AND t.tgparentid = 0"
            " ORDER BY 1"
        )
        with self._database.reading() as connection:
            found = connection.execute(text(sql), {"schema": self._database.schema})
            return [*found.scalars()]

    def search_path(self) -> str:
        """Return the schemas in which this connection looks for ``models``, in order."""
        sql = "SELECT array_to_string(current_schemas(false), ', ')"
        with self._database.reading() as connection:
            return str(connection.scalar(text(sql)))

    def try_all(self, tables: dict[str, Table], *, prunes: bool) -> Findings:
        """Try every right that docs/postgresql.md grants on *tables*; *prunes*: also to delete old events.

        No row is touched, and a lock is waited for only briefly. Triggers that fire for each
        statement fire in a transaction that is rolled back.

        Raises:
            InvalidConfigError: the database accepts no changes at all.
        """
        allowed = (
            "SELECT quote_ident(current_user), quote_ident(current_database()),"
            " has_schema_privilege(CAST(:schema AS name), 'USAGE'),"
            " has_database_privilege(current_database(), 'TEMPORARY')"
        )

        def work(connection: sa.Connection) -> Findings:
            connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}"))
            schema = self._database.schema
            found = connection.execute(text(allowed), {"schema": schema}).one()
            role, database, usage, temporary = found
            missing: list[tuple[str, str]] = [] if usage else [("USAGE", f"SCHEMA {schema}")]
            if not temporary:  # import and sync need it; by default every role has it
                missing.append(("TEMPORARY", f"DATABASE {database}"))
            locked: list[str] = []
            for name, table in tables.items():
                # Row level security has a check of its own, and fails with the same SQLSTATE.
                if table.kind == "view" or table.hides_rows:
                    continue
                if not usage and name != "models":
                    # No statement can be tried without the right on the schema.
                    missing += self._not_granted(connection, name, table, prunes=prunes)
                    continue
                for right, sql in self._statements(name, prunes=prunes):
                    state = _attempt(connection, sql)
                    if state == "42501":
                        missing.append((right, table.name))
                    elif state == "55P03":
                        locked.append(table.name)
                        break  # every further try would wait, too
            return Findings(role, tuple(missing), tuple(locked))

        return self._database.write(work, dry_run=True)

    def _not_granted(
        self, connection: sa.Connection, name: str, table: Table, *, prunes: bool
    ) -> Iterator[tuple[str, str]]:
        """Give each right that is needed on a table and that the system catalog does not have."""
        sql = (
            "SELECT CASE :right WHEN 'DELETE' THEN has_table_privilege(c.oid, 'DELETE')"
            " WHEN 'UPDATE (model_id)' THEN has_column_privilege(c.oid, 'model_id', 'UPDATE')"
            " ELSE has_any_column_privilege(c.oid, :right) END FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = :schema AND c.relname = :name"
        )
        for right in _rights_on(name, prunes=prunes):
            values = {"right": right, "schema": self._database.schema, "name": name}
            if not connection.scalar(text(sql), values):
                yield right, table.name

    def _statements(self, name: str, *, prunes: bool) -> Iterator[tuple[str, str]]:
        """Give each right that is needed on a table, and a statement that needs it."""
        table = name if name == "models" else f"{self._database.own}{name}"
        columns = _COLUMNS[name]
        written = [column for column in columns if column != "id"]
        inserted = _INSERTED.get(name, written)
        for right in _rights_on(name, prunes=prunes):
            match right:
                case "SELECT":
                    sql = f"SELECT {', '.join(columns)} FROM {table} WHERE FALSE"
                case "INSERT":
                    nothing = ", ".join(["NULL"] * len(inserted))
                    sql = (
                        f"INSERT INTO {table} ({', '.join(inserted)}) SELECT {nothing} WHERE FALSE"
                    )
                case "UPDATE (model_id)":
                    sql = f"UPDATE {table} SET model_id = NULL WHERE FALSE"
                case "UPDATE":
                    sets = ", ".join(f"{column} = NULL" for column in written)
                    sql = f"UPDATE {table} SET {sets} WHERE FALSE"
                case _:
                    sql = f"DELETE FROM {table} WHERE FALSE"
            yield right, sql

    def sessions_that_lock(self, tables: Sequence[str]) -> list[str]:
        """Describe the sessions that hold, or wait for, a lock that blocks other users of *tables*."""
        sql = (
            "SELECT l.pid, coalesce(a.application_name, ''),"
            " CAST(extract(epoch FROM clock_timestamp() - a.xact_start) AS double precision)"
            " FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
            " WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database"
            " WHERE datname = current_database()) AND l.relation = ANY("
            "SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name)"
            " AND l.pid <> pg_backend_pid()"
            " AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock',"
            " 'ShareUpdateExclusiveLock') ORDER BY l.granted DESC, l.pid LIMIT 3"
        )
        with self._database.reading() as connection:
            found = connection.execute(text(sql), {"tables": list(tables)}).all()
        return [
            f"process {pid}{f' ({name})' if name else ''}"
            + (f" for {seconds:.0f} s" if seconds is not None else "")
            for pid, name, seconds in found
        ]

    def write_much(self) -> None:
        """Write `ROOM` bytes to a SQLite file, and roll back.

        Raises:
            InvalidConfigError: the file or its folder cannot be written.
            DatabaseUnavailableError: there is no room, or another program writes for too long.
        """

        def work(connection: sa.Connection) -> None:
            # With a cache of one page, SQLite writes to the disk before the end of the transaction.
            connection.exec_driver_sql("PRAGMA cache_size = 1")
            connection.execute(
                text(
                    "INSERT INTO modelctl_state (name, at, value)"
                    f" VALUES ('doctor', 'never', zeroblob({ROOM}))"
                    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
                )
            )

        self._database.write(work, dry_run=True)


def _rights_on(name: str, *, prunes: bool) -> tuple[str, ...]:
    """Return the rights that are needed on a table; *prunes*: also to delete old events."""
    return NEEDED[name] + (NEEDED_TO_PRUNE.get(name, ()) if prunes else ())


def _attempt(connection: sa.Connection, sql: str) -> str | None:
    """Run a statement and undo it; return the SQLSTATE of its error, None if it succeeded."""
    connection.exec_driver_sql("SAVEPOINT attempt")
    try:
        connection.exec_driver_sql(sql)
        state = None
    except sa_exc.DBAPIError as exc:
        cause: Any = exc.orig
        state = getattr(cause, "sqlstate", None)
        if exc.connection_invalidated:
            raise
    connection.exec_driver_sql("ROLLBACK TO SAVEPOINT attempt")
    if state == "25006":
        raise InvalidConfigError("the transaction is read-only")
    return state
