"""Outbox: the invalidations that changes still have to deliver, and the count in the database.

Triggers write a row of ``modelctl_outbox`` in the transaction of each change of status. A row is
delivered twice. It is *queued* (``settle`` false) until the first delivery, which sets ``settle`` and
makes the row due again in 15 s. The second delivery deletes the row; it removes the numbers that other
programs read before the change and stored after the first delivery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.database.sql import text
from modelctl.errors import InvalidConfigError, clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from modelctl.config.config import Config
    from modelctl.database.database import Database

SETTLE_SECONDS = 15
# So many undelivered rows may stand in the outbox of a fleet that has no Redis.
COLLAPSED_ABOVE = 1000
_DELIVERY = "delivery "
# The triggers that together see every change of the count.
_WATCHING = ("modelctl_insert", "modelctl_update", "modelctl_delete", "modelctl_truncate")
# The seal: a hash, as a negative number, of the OIDs of the table ``models`` and of modelctl's triggers
# on it. `db upgrade` and deliveries store the seal in modelctl_state. If the table is restored from a
# dump or replaced by another table, no trigger fires, but the OIDs change. So a seal that differs from
# the stored seal means that an invalidation is due.
SEAL = """(-1 - (9223372036854775807 & hashtextextended(concat_ws(' ',
    CAST(to_regclass('models') AS oid), (
        SELECT string_agg(concat(t.oid, t.tgenabled), ' ' ORDER BY t.tgname) FROM pg_trigger t
        WHERE t.tgrelid = to_regclass('models') AND t.tgname LIKE 'modelctl%'
    )), 0)))"""


def recent_places(connection: Connection, state: str) -> dict[str, str]:
    """Return the places where invalidations were delivered in the last day, the newest first.

    Each comes with the identity of its server. *state*: the table modelctl_state, as SQL.
    """
    sql = (
        f"SELECT substr(name, {len(_DELIVERY) + 1}), coalesce(value, '') FROM {state}"
        f" WHERE name LIKE '{_DELIVERY}%'"
        " AND at > statement_timestamp() - interval '1 day' ORDER BY at DESC"
    )
    return {row[0]: row[1] for row in connection.execute(text(sql))}


class Outbox:
    """The statements of the protocol of the count.

    Every method is one autocommit statement and raises `DatabaseUnavailableError`,
    `InvalidConfigError` or `MissingSchemaError` where the database says so.
    """

    def __init__(self, config: Config, database: Database) -> None:
        self._database = database
        self._on_sqlite = config.sqlite_path is not None
        self._table = f"{database.own}modelctl_outbox"
        self._schema = config.database.schema
        self._enqueue = f"{database.own}modelctl_enqueue"
        self._state = f"{database.own}modelctl_state"
        noted = f"SELECT FROM {self._state} WHERE name = 'seal' AND value"
        self._broken = f"EXISTS ({noted} <> CAST({SEAL} AS text))"

    def count(self) -> tuple[int, bool, bool]:
        """Return COUNT(*) of the active models, whether an invalidation is due, and *watched*.

        *watched*: the triggers see every change, so the number may be cached. All three come from one
        autocommit statement, so from one snapshot, on the primary.

        Raises:
            InvalidConfigError: the server is a standby, whose count may be old; or ``models`` is
                another table than modelctl's, or a view, which may show fewer models than there are.
        """
        if self._on_sqlite:  # `SqliteCache` itself checks that the triggers are there
            sql = "SELECT count(*), FALSE, TRUE, FALSE, 'r' FROM models WHERE active = TRUE"
        else:
            sql = (
                "SELECT (SELECT count(*) FROM models WHERE active = TRUE),"
                f" EXISTS (SELECT FROM {self._table} WHERE due <= statement_timestamp()),"
                f" {len(_WATCHING)} = (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid"
                f" AND tgname IN {_WATCHING} AND tgenabled = 'A' AND tgfoid ="
                f" to_regproc('{self._enqueue}')), pg_is_in_recovery(), c.relkind"
                " FROM pg_class c WHERE c.oid = to_regclass('models')"
            )
        with self._database.reading() as connection:
            active, owed, watched, standby, kind = connection.execute(text(sql)).one()
        _refuse_standby(standby)
        if kind not in ("r", "p"):
            raise InvalidConfigError(
                "models is not a table, so it may show fewer models than there are",
                hint="see: modelctl doctor",
            )
        if not watched and (elsewhere := self._watched()):
            raise InvalidConfigError(
                f"the search path finds another table models than {clean(elsewhere)}, which"
                " modelctl's triggers are on",
                hint="see: modelctl doctor",
            )
        return active, owed, watched

    def _watched(self) -> str | None:
        """Return the table ``models`` of another schema, if modelctl's triggers are on that one."""
        sql = (
            "SELECT CAST(t.tgrelid AS regclass)::text"
            " FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid AND c.relname = 'models'"
            f" WHERE t.tgfoid = to_regproc('{self._enqueue}') AND t.tgparentid = 0"
            " AND t.tgrelid <> to_regclass('models') AND NOT EXISTS (SELECT FROM pg_trigger o"
            " WHERE o.tgfoid = t.tgfoid AND o.tgrelid = to_regclass('models')) LIMIT 1"
        )
        with self._database.reading() as connection:
            found: str | None = connection.scalar(text(sql))
        return found

    def unsettled(self) -> bool:
        """Whether there is a committed change whose first invalidation is not delivered yet."""
        if self._on_sqlite:
            return False
        sql = (
            f"SELECT EXISTS (SELECT FROM {self._table} WHERE settle IS NOT TRUE) OR {self._broken},"
            " pg_is_in_recovery()"
        )
        with self._database.reading() as connection:
            unsettled, standby = connection.execute(text(sql)).one()
        _refuse_standby(standby)
        return bool(unsettled)

    def due(self) -> list[tuple[int, bool]]:
        """Return the rows that are due now as (id, settle), the oldest first, at most 10,000.

        *settle*: the row was delivered once already. If the seal differs from the stored seal, the
        list also has the seal, as a row with a negative id and *settle*.
        """
        sql = (
            f"(SELECT id, settle FROM {self._table} WHERE due <= statement_timestamp()"
            f" ORDER BY due LIMIT 10000) UNION ALL SELECT {SEAL}, TRUE WHERE {self._broken}"
        )
        with self._database.reading() as connection:
            return [(row[0], row[1]) for row in connection.execute(text(sql))]

    def settle(self, due: Sequence[tuple[int, bool]], place: str, server: str) -> None:
        """Mark the rows *due* as delivered.

        A row that `due` returned with *settle* is deleted; this was its second delivery. Any other row
        gets its second delivery in 15 s. The column ``settle`` is not read again: if another process
        has made the first delivery meanwhile, this process must not take its own for the second.

        *place*: `Cache.identity` of the cache that was invalidated; *server*: the identity of its
        server. Both are stored, at most once a minute, for `places`.
        """
        sql = (
            f"WITH gone AS (DELETE FROM {self._table} WHERE id = ANY(CAST(:settled AS bigint[]))),"
            f" noted AS (INSERT INTO {self._state} AS state (name, at, value)"
            " SELECT CAST(:name AS text), statement_timestamp(), CAST(:server AS text)"
            f" WHERE NOT EXISTS (SELECT FROM {self._state} WHERE name = CAST(:name AS text)"
            " AND at > statement_timestamp() - interval '1 minute')"
            " ON CONFLICT (name) DO UPDATE SET at = excluded.at, value = excluded.value),"
            f" sealed AS (UPDATE {self._state} SET at = statement_timestamp(), value = seal"
            " FROM unnest(CAST(:settled AS bigint[])) AS seal WHERE name = 'seal' AND seal < 0)"
            f" UPDATE {self._table} SET settle = TRUE,"
            f" due = statement_timestamp() + interval '{SETTLE_SECONDS} seconds'"
            " WHERE id = ANY(CAST(:new AS bigint[])) AND settle IS NOT TRUE"
        )
        values = {
            "settled": [row for row, settled in due if settled],
            "new": [row for row, settled in due if not settled],
            "name": _DELIVERY + place,
            "server": server,
        }
        # One statement in autocommit: doing it twice does no harm.
        with self._database.reading() as connection:
            connection.execute(text(sql), values)

    def collapse(self) -> bool:
        """Put one row in the place of many undelivered ones; return whether there may be more.

        One row says as much as all, if it is new: its id is in no list of due rows that another
        process has read, so only an invalidation that begins after this statement settles it, and
        that is after the commits of all rows that it replaces. A row that stood here before would be
        wrong, even the last one: another process may have read its id before one of the others was
        committed, and would settle it for both. See docs/decisions.md.

        Rows that another process is settling are locked, and left out. `due` stays that of the
        oldest, for its age. `id = DEFAULT` gives the row the next id, without the right to INSERT.
        """
        if self._on_sqlite:
            return False
        undelivered = f"FROM {self._table} WHERE settle IS NOT TRUE"
        first = f"SELECT {undelivered} LIMIT {COLLAPSED_ABOVE + 1}"
        sql = (
            f"WITH many AS (SELECT count(*) > {COLLAPSED_ABOVE} AS yes FROM ({first}) AS first),"
            f" seen AS (SELECT id, due {undelivered} AND (SELECT yes FROM many)"
            " ORDER BY id LIMIT 10000 FOR UPDATE SKIP LOCKED),"
            f" kept AS (UPDATE {self._table} SET id = DEFAULT, due = (SELECT min(due) FROM seen)"
            " WHERE id = (SELECT max(id) FROM seen) AND settle IS NOT TRUE RETURNING id),"
            f" gone AS (DELETE FROM {self._table} WHERE id IN (SELECT id FROM seen)"
            " AND id < (SELECT max(id) FROM seen) AND EXISTS (SELECT FROM kept) RETURNING id)"
            f" SELECT count(*) > {COLLAPSED_ABOVE} FROM gone"
        )
        with self._database.reading() as connection:
            return bool(connection.scalar(text(sql)))

    def places(self, schema: str | None = None) -> dict[str, str]:
        """Return the places where invalidations were delivered in the last day, the newest first.

        Each comes with the identity of its server. If there are several, processes of this database use
        different Redis addresses or count keys, and the changes of one do not reach the cached count
        of the other. *schema*: that of another fleet in this database.
        """
        if self._on_sqlite:
            return {}
        state = self._state if schema is None else f'"{schema}".modelctl_state'
        with self._database.reading() as connection:
            return recent_places(connection, state)

    def other_fleets(self) -> list[str]:
        """Return the schemas of the other fleets in this database whose state we may read."""
        sql = (
            "SELECT n.nspname"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relname = 'modelctl_state' AND c.relkind IN ('r', 'p')"
            # A table with that name and other columns belongs to another program.
            " AND (SELECT count(*) FROM pg_attribute WHERE attrelid = c.oid"
            " AND attname IN ('name', 'at', 'value') AND NOT attisdropped) = 3"
            " AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')"
            " AND n.nspname ~ '^[a-z_][a-z0-9_]*$' AND n.nspname <> :own"
            " ORDER BY 1"
        )
        with self._database.reading() as connection:
            found = connection.execute(text(sql), {"own": self._schema})
            return [*found.scalars()]

    def queue(self) -> tuple[int, int, float | None]:
        """Return the number of queued rows, of rows that were delivered once, and an age.

        The age (seconds) is that of the oldest queued row; None: no row is queued.
        """
        if self._on_sqlite:
            return 0, 0, None
        sql = (
            "SELECT count(*) FILTER (WHERE NOT settle), count(*) FILTER (WHERE settle),"
            " CAST(extract(epoch FROM clock_timestamp() - min(due) FILTER (WHERE NOT settle))"
            f" AS double precision) FROM {self._table}"
        )
        with self._database.reading() as connection:
            queued, settling, age = connection.execute(text(sql)).one()
        return queued, settling, age


def _refuse_standby(standby: bool) -> None:
    if standby:
        raise InvalidConfigError(
            "the database server is a standby, whose count may be old",
            hint="name the primary in database.url, or several hosts",
        )
