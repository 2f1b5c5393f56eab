"""ModelStore: every statement on models, events, outbox and state.

Reads are Core expressions. Changes are SQL text made of shared fragments, because the order of
locking, logging and writing is the point of them: on PostgreSQL one statement (a CTE that locks,
logs and writes), on SQLite the same fragments as three statements inside BEGIN IMMEDIATE.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from modelctl import health
from modelctl.database import Database
from modelctl.errors import (
    InvalidConfigError,
    ModelNotFoundError,
    RefusedError,
    clean,
)
from modelctl.model import (
    Event,
    LeaderboardEntry,
    Model,
    ModelStatus,
    ProviderStats,
    Stats,
    StatusChange,
    Waiting,
    storable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from modelctl.config import Config
    from modelctl.health import Outcome

T = TypeVar("T")

# Rows or outcomes that one statement takes: bounds memory and how long locks are held.
CHUNK = 5000
SETTLE_SECONDS = 15
_RECOVER_LOCK = 7091_2026_0001  # any constant that nobody else uses

# ── The table, and the SQL that both databases share ────────────────────────────────────────────


class UtcTime(sa.TypeDecorator[datetime]):
    """A UTC time: timestamptz on PostgreSQL, ISO 8601 text on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        """Text on SQLite, where the driver knows no times."""
        kind = sa.Text() if dialect.name == "sqlite" else sa.DateTime(timezone=True)
        return dialect.type_descriptor(kind)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        """Return an aware time; what another program left unreadable is no time."""
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                return None
        if not isinstance(value, datetime):
            return None
        try:
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        except OverflowError:
            return None


_metadata = sa.MetaData()
_models = sa.Table(
    "models",
    _metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text),
    sa.Column("provider", sa.Text),
    sa.Column("active", sa.Boolean),
    sa.Column("auto_disabled", sa.Boolean),
    sa.Column("consecutive_failures", sa.Integer),
    sa.Column("ejections", sa.Integer),
    sa.Column("success_count", sa.BigInteger),
    sa.Column("failure_count", sa.BigInteger),
    sa.Column("last_success_at", UtcTime),
    sa.Column("last_failure_at", UtcTime),
    sa.Column("failure_type", sa.Text),
    sa.Column("failure_reason", sa.Text),
    sa.Column("disabled_at", UtcTime),
    sa.Column("disabled_by", sa.Text),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("created_at", UtcTime),
    sa.Column("updated_at", UtcTime),
)
_events = sa.Table(
    "modelctl_events",
    _metadata,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("at", UtcTime),
    sa.Column("model_id", sa.Text),
    sa.Column("event", sa.Text),
    sa.Column("before", sa.Text),
    sa.Column("after", sa.Text),
    sa.Column("actor", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("failure_type", sa.Text),
)

# An adopted table may hold NULLs where ours would not: IS TRUE and coalesce see to them.
_ON = "active IS TRUE"
_AUTO_OFF = "active IS NOT TRUE AND auto_disabled IS TRUE"
_STATUS = f"CASE WHEN {_ON} THEN 'active' WHEN auto_disabled IS TRUE THEN 'auto-disabled' ELSE 'disabled' END"
_COOLDOWN_FROM = ("last_failure_at", "disabled_at", "updated_at")  # the first that is there
_TRIPS = (
    f"{_ON} AND CAST(:counted AS boolean) AND coalesce(consecutive_failures, 0) + 1 >= :threshold"
)
_NEVER_MIND = "disabled_at = NULL, disabled_by = NULL, disabled_reason = NULL"


@dataclass(frozen=True, slots=True)
class _Change:
    """What one command does to the rows it finds, in SQL over the row as it was."""

    event: str  # NULL where the status stays
    after: str
    assign: str | None  # None: delete the row
    every_row: bool = False  # write also where the status stays


_ENABLE = _Change(
    event="CASE WHEN active IS NOT TRUE THEN 'enabled' END",
    after="'active'",
    assign="active = TRUE, auto_disabled = FALSE, consecutive_failures = 0, ejections = 0,"
    f" failure_reason = NULL, {_NEVER_MIND}, updated_at = {{now}}",
)
_DISABLE = _Change(
    event=f"CASE WHEN {_ON} OR auto_disabled IS TRUE THEN 'disabled' END",
    after="'disabled'",
    assign="active = FALSE, auto_disabled = FALSE, disabled_at = {now},"
    " disabled_by = :actor, disabled_reason = :reason, updated_at = {now}",
)
_REMOVE = _Change(event="'removed'", after="CAST(NULL AS text)", assign=None)
_RECOVER = _Change(
    event="'recovered'",
    after="'active'",
    assign="active = TRUE, auto_disabled = FALSE, consecutive_failures = :restart,"
    f" {_NEVER_MIND}, updated_at = {{now}}",
)
_SUCCESS = _Change(
    event=f"CASE WHEN {_AUTO_OFF} THEN 'recovered' END",
    after=f"CASE WHEN {_AUTO_OFF} THEN 'active' ELSE {_STATUS} END",
    assign="success_count = coalesce(success_count, 0) + 1, last_success_at = {now},"
    " consecutive_failures = 0, failure_reason = NULL,"
    f" active = CASE WHEN {_AUTO_OFF} THEN TRUE ELSE active END,"
    f" auto_disabled = CASE WHEN {_AUTO_OFF} THEN FALSE ELSE auto_disabled END,"
    f" disabled_at = CASE WHEN {_AUTO_OFF} THEN NULL ELSE disabled_at END,"
    f" disabled_by = CASE WHEN {_AUTO_OFF} THEN NULL ELSE disabled_by END,"
    f" disabled_reason = CASE WHEN {_AUTO_OFF} THEN NULL ELSE disabled_reason END,"
    " updated_at = {now}",
    every_row=True,
)
_FAILURE = _Change(
    event=f"CASE WHEN {_TRIPS} THEN 'auto-disabled' END",
    after=f"CASE WHEN {_TRIPS} THEN 'auto-disabled' ELSE {_STATUS} END",
    assign="failure_count = coalesce(failure_count, 0) + 1, last_failure_at = {now},"
    " consecutive_failures = coalesce(consecutive_failures, 0)"
    " + CASE WHEN CAST(:counted AS boolean) THEN 1 ELSE 0 END,"
    " failure_type = :failure_type, failure_reason = :reason,"
    f" ejections = coalesce(ejections, 0) + CASE WHEN {_TRIPS} THEN 1 ELSE 0 END,"
    f" disabled_at = CASE WHEN {_TRIPS} THEN {{now}} ELSE disabled_at END,"
    f" disabled_by = CASE WHEN {_TRIPS} THEN '{health.HEALTH_RULE}' ELSE disabled_by END,"
    f" disabled_reason = CASE WHEN {_TRIPS} THEN coalesce(CAST(:reason AS text),"
    " CAST(:failure_type AS text)) ELSE disabled_reason END,"
    f" auto_disabled = CASE WHEN {_TRIPS} THEN TRUE ELSE auto_disabled END,"
    f" active = CASE WHEN {_TRIPS} THEN FALSE ELSE active END,"
    " updated_at = {now}",
    every_row=True,
)

_SORTS: dict[str, tuple[Any, ...]] = {
    "id": (),
    "name": (sa.func.coalesce(sa.func.nullif(_models.c.display_name, ""), _models.c.id),),
    "provider": (sa.func.coalesce(_models.c.provider, ""),),
    "status": (
        _models.c.active.desc().nulls_last(),
        _models.c.auto_disabled.desc().nulls_last(),
    ),
    "failures": (
        sa.func.coalesce(_models.c.consecutive_failures, 0).desc(),
        sa.func.coalesce(_models.c.failure_count, 0).desc(),
    ),
    "updated": (_models.c.updated_at.desc().nulls_last(),),
}
SORT_KEYS = tuple(_SORTS)


@dataclass(frozen=True, slots=True)
class _Dialect:
    """Where the SQL of the two databases differs."""

    now: str
    time: str  # of another program's column, so that it compares
    ids: str  # the models named by :ids
    lock: str  # until the transaction ends, in the order of the rows
    skip_locked: str
    relation: str  # made of the JSON in :rows
    field: str

    def rows(self, name: str, columns: dict[str, str]) -> str:
        """The parameter :rows as a relation called *name*."""
        fields = (self.field.format(column=c, kind=kind) for c, kind in columns.items())
        return self.relation.format(name=name, fields=", ".join(fields))


_POSTGRES = _Dialect(
    now="clock_timestamp()",
    time="{column}",
    ids="id = ANY(CAST(:ids AS text[]))",
    lock=" FOR UPDATE OF models",
    skip_locked=" FOR UPDATE SKIP LOCKED",
    relation="json_to_recordset(CAST(:rows AS json)) AS {name}({fields})",
    field="{column} {kind}",
)
# Times are text, and BEGIN IMMEDIATE has locked everything.
_SQLITE = _Dialect(
    now="strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    time="strftime('%Y-%m-%dT%H:%M:%fZ', {column})",
    ids="id IN (SELECT value FROM json_each(:ids))",
    lock="",
    skip_locked="",
    relation="(SELECT {fields} FROM json_each(:rows)) AS {name}",
    field="json_extract(value, '$.{column}') AS {column}",
)

_EVENT = {
    "model_id": "text",
    "event": "text",
    "before": "text",
    "after": "text",
    "reason": "text",
    "failure_type": "text",
}
_FOLDED = {
    "id": "text",
    "active": "boolean",
    "auto_disabled": "boolean",
    "consecutive_failures": "integer",
    "ejections": "integer",
    "successes": "bigint",
    "failures": "bigint",
    "failure_type": "text",
    "failure_reason": "text",
    "switched": "text",
    "why": "text",
}
_ENTRY = {"id": "text", "display_name": "text", "provider": "text"}
# What a catalogue leaves empty it does not know: it is no reason to forget what the row says.
_DIFFERS = (
    "(incoming.display_name <> '' AND incoming.display_name <> coalesce(models.display_name, ''))"
    " OR (incoming.provider <> '' AND incoming.provider <> coalesce(models.provider, ''))"
)


# ── The store ───────────────────────────────────────────────────────────────────────────────────


class ModelStore:
    """The rows of the fleet in one database, PostgreSQL or SQLite.

    Every method is one transaction and raises `DatabaseUnavailableError`, `InvalidConfigError`
    or `MissingSchemaError` where the database says so.
    """

    def __init__(self, config: Config, *, pool_size: int) -> None:
        self._config = config
        self._on_sqlite = config.sqlite_path is not None
        self._sql = _SQLITE if self._on_sqlite else _POSTGRES
        self._database = Database(config, pool_size)

    def close(self) -> None:
        """Close the pooled connections."""
        self._database.close()

    def schema(self, work: Callable[[sa.Connection], T]) -> T:
        """Hand a connection to the migrations."""
        with self._database.connect() as connection:
            return work(connection)

    # ── Reads ──

    def count(self) -> tuple[int, bool]:
        """Return COUNT(*) of the active models and whether a queued invalidation is due.

        One statement with its own snapshot, on the primary.

        Raises:
            InvalidConfigError: the server is a standby, whose count may be old.
        """
        if self._on_sqlite:
            sql = "SELECT count(*), FALSE, FALSE FROM models WHERE active = TRUE"
        else:
            sql = (
                "SELECT (SELECT count(*) FROM models WHERE active = TRUE),"
                " EXISTS (SELECT FROM modelctl_outbox WHERE due <= clock_timestamp()),"
                " pg_is_in_recovery()"
            )
        with self._database.reading() as connection:
            active, owed, standby = connection.execute(_text(sql)).one()
        _refuse_standby(standby)
        return active, owed

    def unsettled(self) -> bool:
        """Whether a change is committed whose first invalidation is not delivered yet."""
        if self._on_sqlite:
            return False
        sql = "SELECT EXISTS (SELECT FROM modelctl_outbox WHERE NOT settle), pg_is_in_recovery()"
        with self._database.reading() as connection:
            unsettled, standby = connection.execute(_text(sql)).one()
        _refuse_standby(standby)
        return bool(unsettled)

    def iter_models(
        self,
        *,
        status: ModelStatus | None = None,
        provider: str | None = None,
        sort: str = "id",
        limit: int | None = None,
    ) -> Iterator[Model]:
        """Stream the models that match; *sort* is one of `SORT_KEYS`."""
        c = _models.c
        query = self._rows().order_by(*_SORTS[sort], c.id).limit(limit)
        if status is ModelStatus.ACTIVE:
            query = query.where(c.active.is_(True))
        elif status is not None:
            automatic = c.auto_disabled.is_(True)
            wanted = automatic if status is ModelStatus.AUTO_DISABLED else automatic.is_not(True)
            query = query.where(c.active.is_not(True), wanted)
        if provider is not None:
            query = query.where(sa.func.coalesce(c.provider, "") == storable(provider))
        with self._database.connect() as connection:
            if self._on_sqlite:
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            else:  # a person may page through it slowly
                connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            with connection.execution_options(yield_per=1000).execute(query) as rows:
                for row in rows:
                    yield self._model(row)

    def get(self, model_id: str) -> Model:
        """Return one model; `ModelNotFoundError` where there is none."""
        _findable([model_id])
        with self._database.reading() as connection:
            found = connection.execute(self._rows().where(_models.c.id == model_id)).all()
        _all_found([model_id], [row.id for row in found])
        return self._model(found[0])

    def _rows(self) -> sa.Select[Any]:
        """All columns of the models, and the clock that their cooldowns run by."""
        now = sa.literal_column(self._sql.now, UtcTime).label("now")
        return sa.select(_models, now)

    def _model(self, row: Any) -> Model:
        status = health.status_of(bool(row.active), bool(row.auto_disabled))
        retry_at = left = None
        if status is ModelStatus.AUTO_DISABLED:
            retry_at = health.retry_at(
                self._config, row.last_failure_at, row.disabled_at, row.updated_at
            )
            left = max(0.0, (retry_at - row.now).total_seconds()) if retry_at else 0.0
        return Model(
            id=row.id,
            display_name=row.display_name or "",
            provider=row.provider or "",
            active=bool(row.active),
            auto_disabled=bool(row.auto_disabled),
            consecutive_failures=row.consecutive_failures or 0,
            ejections=row.ejections or 0,
            success_count=row.success_count or 0,
            failure_count=row.failure_count or 0,
            last_success_at=row.last_success_at,
            last_failure_at=row.last_failure_at,
            failure_type=row.failure_type,
            failure_reason=row.failure_reason,
            disabled_at=row.disabled_at,
            disabled_by=row.disabled_by,
            disabled_reason=row.disabled_reason,
            created_at=row.created_at,
            updated_at=row.updated_at,
            status=status,
            retry_at=retry_at,
            seconds_left=left,
        )

    def stats(self) -> Stats:
        """Return the totals, in one statement over the rows."""
        c = _models.c
        provider = sa.func.coalesce(c.provider, "").label("provider")
        on, automatic = c.active.is_(True), c.auto_disabled.is_(True)
        query = (
            sa.select(
                provider,
                sa.func.count(),
                sa.func.count().filter(on),
                sa.func.count().filter(on.is_not(True), automatic),
                sa.func.coalesce(sa.func.sum(c.success_count), 0),
                sa.func.coalesce(sa.func.sum(c.failure_count), 0),
            )
            .group_by(provider)
            .order_by(provider)
        )
        with self._database.reading() as connection:
            rows = [tuple(row) for row in connection.execute(query)]
        models, active, automatic_off, successes, failures = (
            sum(int(row[i]) for row in rows) for i in range(1, 6)
        )
        return Stats(
            models=models,
            active=active,
            disabled=models - active - automatic_off,
            auto_disabled=automatic_off,
            providers=tuple(ProviderStats(row[0], row[1], row[2]) for row in rows),
            success_count=successes,
            failure_count=failures,
        )

    def leaderboard(self, *, top: int, provider: str | None) -> tuple[LeaderboardEntry, ...]:
        """Return the *top* active models by success rate, then by calls; the uncalled ones last."""
        c = _models.c
        successes, failures = (sa.func.coalesce(n, 0) for n in (c.success_count, c.failure_count))
        calls = successes + failures
        rate = sa.cast(successes, sa.Double) / sa.func.nullif(calls, 0)
        query = (
            sa.select(c.id, c.display_name, c.provider, rate, successes, failures)
            .where(c.active.is_(True))
            .order_by(rate.desc().nulls_last(), calls.desc(), c.id)
            .limit(top)
        )
        if provider is not None:
            query = query.where(sa.func.coalesce(c.provider, "") == storable(provider))
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return tuple(
            LeaderboardEntry(rank, row[0], row[1] or "", row[2] or "", row[3], row[4], row[5])
            for rank, row in enumerate(rows, 1)
        )

    def events(self, model_id: str | None, *, since: float | None, limit: int) -> tuple[Event, ...]:
        """Return the newest *limit* events, newest first; *since*: not older (seconds)."""
        c = _events.c
        query = _events.select().order_by(c.id.desc()).limit(limit)
        if model_id is not None:
            query = query.where(c.model_id == storable(model_id))
        if since is not None:
            query = query.where(c.at >= self._ago(since))
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return tuple(
            Event(
                id=row.id,
                at=row.at,
                model_id=row.model_id,
                event=row.event,
                before=row.before and ModelStatus(row.before),
                after=row.after and ModelStatus(row.after),
                actor=row.actor,
                reason=row.reason,
                failure_type=row.failure_type,
            )
            for row in rows
        )

    def _ago(self, seconds: float) -> Any:
        """The database's clock *seconds* ago, as an expression."""
        if self._on_sqlite:
            return sa.func.strftime("%Y-%m-%dT%H:%M:%fZ", "now", f"-{seconds} seconds")
        return sa.func.clock_timestamp() - timedelta(seconds=seconds)

    # ── Changes of status ──

    def enable(self, ids: Sequence[str], **how: Any) -> tuple[StatusChange, ...]:
        """Switch models on, as healthy ones. All or none."""
        return self._change(_ENABLE, ids, **how)

    def disable(self, ids: Sequence[str], **how: Any) -> tuple[StatusChange, ...]:
        """Switch models off by hand. All or none."""
        return self._change(_DISABLE, ids, **how)

    def remove(self, ids: Sequence[str], **how: Any) -> tuple[StatusChange, ...]:
        """Delete models. All or none; the history stays."""
        return self._change(_REMOVE, ids, **how)

    def record(self, outcome: Outcome, *, actor: str) -> StatusChange:
        """Record one outcome by the health rule: increment and test in one statement."""
        if outcome.type is None:
            return self._change(_SUCCESS, [outcome.id], actor=actor)[0]
        rule = self._config.health
        return self._change(
            _FAILURE,
            [outcome.id],
            actor=actor,
            reason=outcome.reason,
            failure_type=outcome.type.value,
            counted=outcome.type in rule.counted,
            threshold=rule.threshold,
        )[0]

    def _change(
        self,
        change: _Change,
        ids: Sequence[str],
        *,
        actor: str,
        reason: str | None = None,
        failure_type: str | None = None,
        dry_run: bool = False,
        **parameters: Any,
    ) -> tuple[StatusChange, ...]:
        wanted = list(dict.fromkeys(ids))
        _findable(wanted)
        parameters |= {"actor": actor, "reason": reason, "failure_type": failure_type}
        parameters["ids"] = self._ids(wanted)
        # In the order of the ids: that keeps two changes from a deadlock.
        which = f"{self._sql.ids} ORDER BY id{self._sql.lock}"

        def work(connection: sa.Connection) -> tuple[StatusChange, ...]:
            found = {c.id: c for c in self._apply(connection, change, which, parameters)}
            _all_found(wanted, found)
            return tuple(found[model_id] for model_id in wanted)

        return self._database.write(work, one_statement=len(wanted) == 1, dry_run=dry_run)

    def _apply(
        self, connection: sa.Connection, change: _Change, which: str, parameters: dict[str, Any]
    ) -> list[StatusChange]:
        """Lock the rows, write their events, then the rows; return what became of each.

        *which*: what follows WHERE in the SELECT that finds and locks them.
        """
        touched = (
            f"SELECT id, {_STATUS} AS before, {change.after} AS after, {change.event} AS event"
            " FROM models WHERE "
        )
        log = (
            "INSERT INTO modelctl_events"
            " (model_id, event, before, after, actor, reason, failure_type)"
            " SELECT id, event, before, after, CAST(:actor AS text), CAST(:reason AS text),"
            " CAST(:failure_type AS text) FROM touched WHERE event IS NOT NULL ORDER BY id"
        )
        if change.assign is None:
            write = "DELETE FROM models WHERE id IN (SELECT id FROM touched)"
        else:
            assign = change.assign.format(now=self._sql.now)
            write = f"UPDATE models SET {assign} FROM touched WHERE models.id = touched.id"
            if not change.every_row:
                write += " AND touched.event IS NOT NULL"

        if not self._on_sqlite:
            sql = (
                f"WITH touched AS ({touched} {which}), logged AS ({log}), written AS ({write})"
                " SELECT id, before, after, event FROM touched"
            )
            found = connection.execute(_text(sql), parameters).all()
        else:
            # No writing CTE here, but nobody else writes meanwhile: find the rows again by id.
            found = connection.execute(_text(f"{touched} {which}"), parameters).all()
            these = parameters | {"ids": self._ids(row[0] for row in found)}
            for step in (log, write):
                sql = f"WITH touched AS ({touched} {self._sql.ids}) {step}"
                connection.execute(_text(sql), these)
        # By position: SQLite gives the columns of another program's table as they are spelled.
        return [
            StatusChange(
                model_id, before and ModelStatus(before), after and ModelStatus(after), bool(event)
            )
            for model_id, before, after, event in found
        ]

    def _ids(self, ids: Iterable[str]) -> Any:
        """The parameter :ids."""
        return json.dumps(list(ids)) if self._on_sqlite else list(ids)

    # ── Recovery ──

    def recover(
        self,
        *,
        cooldown: float,
        limit: int | None,
        actor: str,
        progress: Callable[[int], None],
    ) -> list[str] | None:
        """Bring back the auto-disabled models whose cooldown (seconds) is over, longest waiting first.

        Works in chunks with short locks; each takes the run's lock again, and a run that finds
        it taken ends with what it did. Return the ids, or None when another run was at work.
        """
        recovered: list[str] = []
        parameters: dict[str, Any] = {
            "actor": actor,
            "reason": None,
            "failure_type": None,
            "restart": self._config.recovery.restart_failures,
            # What fails again after this run began waits for the next one.
            "cutoff": self._clock(cooldown),
        }
        since = self._off_since()
        due = (
            f"{_AUTO_OFF} AND ({since} IS NULL OR {since} <= :cutoff)"
            f" ORDER BY {since} NULLS FIRST, id LIMIT :size{self._sql.skip_locked}"
        )
        alone = _text(f"SELECT pg_try_advisory_xact_lock({_RECOVER_LOCK})")

        def chunk(connection: sa.Connection) -> list[str] | None:
            if not self._on_sqlite and not connection.scalar(alone):
                return None
            return [c.id for c in self._apply(connection, _RECOVER, due, parameters)]

        while size := CHUNK if limit is None else min(CHUNK, limit - len(recovered)):
            parameters["size"] = size
            done = self._database.write(chunk)
            if done is None:
                if not recovered:
                    return None
                break
            recovered += done
            progress(len(recovered))
            if len(done) < size:
                break
        self._finished("recover")
        return recovered

    def waiting(self, *, cooldown: float) -> tuple[Waiting, ...]:
        """Return every auto-disabled model and when its cooldown (seconds) is over, soonest first."""
        since = self._off_since()
        sql = (
            f"SELECT id, {since} AS since, {self._sql.now} AS now FROM models WHERE {_AUTO_OFF}"
            f" ORDER BY {since} NULLS FIRST, id"
        )
        query = sa.text(sql).columns(id=sa.Text, since=UtcTime, now=UtcTime)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        found = []
        for model_id, start, now in rows:
            retry_at = now if start is None else health.after(start, cooldown)
            found.append(Waiting(model_id, retry_at, max(0.0, (retry_at - now).total_seconds())))
        return tuple(found)

    def _off_since(self) -> str:
        """When the cooldown of an auto-disabled model began, as an expression."""
        times = (self._sql.time.format(column=column) for column in _COOLDOWN_FROM)
        return f"coalesce({', '.join(times)})"

    def _clock(self, seconds_ago: float) -> Any:
        with self._database.reading() as connection:
            return connection.scalar(sa.select(self._ago(seconds_ago)))

    def _finished(self, name: str) -> None:
        sql = (
            f"INSERT INTO modelctl_state (name, at) VALUES (:name, {self._sql.now})"
            " ON CONFLICT (name) DO UPDATE SET at = excluded.at"
        )
        self._database.write(lambda connection: connection.execute(_text(sql), {"name": name}))

    # ── Batches and catalogues ──

    def record_batch(
        self,
        outcomes: Callable[[], Iterator[Outcome]],
        *,
        actor: str,
        progress: Callable[[int], None],
    ) -> tuple[int, tuple[StatusChange, ...]]:
        """Record outcomes in their order, all in one transaction, a chunk at a time.

        *outcomes* starts again from the first on every call: a deadlock runs the batch again.
        Return how many, and the models whose status differs in the end.
        """

        def work(connection: sa.Connection) -> tuple[int, tuple[StatusChange, ...]]:
            recorded = 0
            first: dict[str, ModelStatus] = {}
            last: dict[str, ModelStatus] = {}
            source = outcomes()
            while chunk := list(islice(source, CHUNK)):
                before = self._lock_health(connection, chunk)
                after = self._record_chunk(connection, before, chunk, actor)
                for model_id, now in after.items():
                    first.setdefault(model_id, before[model_id].status)
                    last[model_id] = now.status
                recorded += len(chunk)
                progress(recorded)
            return recorded, tuple(
                StatusChange(model_id, first[model_id], last[model_id], True)
                for model_id in sorted(first)
                if first[model_id] is not last[model_id]
            )

        return self._database.write(work)

    def _lock_health(
        self, connection: sa.Connection, chunk: Sequence[Outcome]
    ) -> dict[str, health.Health]:
        """Lock the models of *chunk*, in the order of their ids, and return their health."""
        wanted = list({outcome.id for outcome in chunk})
        _findable(wanted)
        sql = (
            "SELECT id, active, auto_disabled, consecutive_failures, ejections"
            f" FROM models WHERE {self._sql.ids} ORDER BY id{self._sql.lock}"
        )
        found = {
            model_id: health.Health(bool(active), bool(automatic), failures or 0, ejections or 0)
            for model_id, active, automatic, failures, ejections in connection.execute(
                _text(sql), {"ids": self._ids(wanted)}
            )
        }
        _all_found(wanted, found)
        return found

    def _record_chunk(
        self,
        connection: sa.Connection,
        before: dict[str, health.Health],
        chunk: Sequence[Outcome],
        actor: str,
    ) -> dict[str, health.Health]:
        """Apply the rule to each outcome, then write each row and all events once."""
        after = dict(before)
        switched: dict[str, tuple[str, str | None]] = {}
        events: list[tuple[str | None, ...]] = []
        for outcome in chunk:
            was = after[outcome.id]
            now, event = health.record(was, outcome, self._config.health)
            after[outcome.id] = now
            if event:
                reason = outcome.reason if outcome.type else None
                switched[outcome.id] = (event, reason if reason is not None else outcome.type)
                events.append((outcome.id, event, was.status, now.status, reason, outcome.type))
        folded = [
            (
                model_id,
                now.active,
                now.auto_disabled,
                now.consecutive_failures,
                now.ejections,
                now.successes,
                now.failures,
                now.failure_type,
                now.failure_reason,
                *switched.get(model_id, (None, None)),
            )
            for model_id, now in after.items()
        ]
        connection.execute(_text(self._batch_update()), _rows(_FOLDED, folded))
        self._log(connection, events, actor)
        return after

    def _batch_update(self) -> str:
        at = self._sql.now

        def switched(column: str, value: str) -> str:
            """*value* where the status changed."""
            return f"{column} = CASE WHEN switched IS NULL THEN models.{column} ELSE {value} END"

        def off(column: str, value: str) -> str:
            """*value* where the model was switched off, nothing where it was switched on."""
            return switched(column, f"CASE switched WHEN 'auto-disabled' THEN {value} END")

        return (
            f"UPDATE models SET {switched('active', 'folded.active')},"
            f" {switched('auto_disabled', 'folded.auto_disabled')},"
            " consecutive_failures = folded.consecutive_failures, ejections = folded.ejections,"
            " success_count = coalesce(success_count, 0) + successes,"
            " failure_count = coalesce(failure_count, 0) + failures,"
            f" last_success_at = CASE WHEN successes > 0 THEN {at} ELSE last_success_at END,"
            f" last_failure_at = CASE WHEN failures > 0 THEN {at} ELSE last_failure_at END,"
            " failure_type = coalesce(folded.failure_type, models.failure_type),"
            " failure_reason = folded.failure_reason,"
            f" {off('disabled_at', at)}, {off('disabled_by', repr(health.HEALTH_RULE))},"
            f" {off('disabled_reason', 'why')}, updated_at = {at}"
            f" FROM {self._sql.rows('folded', _FOLDED)} WHERE models.id = folded.id"
        )

    def _log(
        self, connection: sa.Connection, events: Sequence[tuple[str | None, ...]], actor: str
    ) -> None:
        if events:
            names = ", ".join(_EVENT)
            sql = (
                f"INSERT INTO modelctl_events ({names}, actor)"
                f" SELECT {names}, CAST(:actor AS text) FROM {self._sql.rows('happened', _EVENT)}"
            )
            connection.execute(_text(sql), _rows(_EVENT, events) | {"actor": actor})

    def import_models(
        self,
        entries: Iterable[tuple[str, str, str]],
        *,
        on_conflict: str,
        actor: str,
        dry_run: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> tuple[int, int]:
        """Add or update models from (id, display name, provider), ids unique, in one transaction.

        *on_conflict*: ``update``, ``skip`` or ``fail`` for a model that differs.
        Return how many were added and how many differ.

        Raises:
            RefusedError: ``fail``, and a model differs; nothing is written.
        """
        ordered = sorted(entries)  # two imports of the same models lock them in the same order
        return self._database.write(
            lambda connection: self._import(connection, ordered, on_conflict, actor, progress),
            dry_run=dry_run,
        )

    def add(self, entry: tuple[str, str, str], *, actor: str) -> StatusChange:
        """Add one model as (id, display name, provider), or leave the one that is there."""
        sql = f"SELECT {_STATUS} FROM models WHERE id = :id"

        def work(connection: sa.Connection) -> StatusChange:
            added, _ = self._import(connection, [entry], "skip", actor, lambda _: None)
            status = connection.scalar(_text(sql), {"id": entry[0]})
            if status is None:  # removed in between, so it can be added now
                return work(connection)
            after = ModelStatus(status)
            return StatusChange(entry[0], None if added else after, after, bool(added))

        return self._database.write(work)

    def _import(
        self,
        connection: sa.Connection,
        entries: Sequence[tuple[str, str, str]],
        on_conflict: str,
        actor: str,
        progress: Callable[[int], None],
    ) -> tuple[int, int]:
        incoming = self._sql.rows("incoming", _ENTRY)
        differing = (
            f"SELECT models.id, {_STATUS} AS status FROM models, {incoming}"
            f" WHERE models.id = incoming.id AND ({_DIFFERS}) ORDER BY models.id{self._sql.lock}"
        )
        update = (
            "UPDATE models SET"
            " display_name = coalesce(nullif(incoming.display_name, ''), models.display_name),"
            " provider = coalesce(nullif(incoming.provider, ''), models.provider),"
            f" updated_at = {self._sql.now} FROM {incoming} WHERE models.id = incoming.id"
        )
        # Not ON CONFLICT alone: an application's NOT NULL column would refuse even what is there.
        insert = (
            "INSERT INTO models (id, display_name, provider) SELECT id, display_name, provider"
            f" FROM {incoming} WHERE NOT EXISTS (SELECT 1 FROM models WHERE id = incoming.id)"
            f" ORDER BY id ON CONFLICT (id) DO NOTHING RETURNING id, {_STATUS} AS status"
        )

        added = differs = 0
        for start in range(0, len(entries), CHUNK):
            chunk = entries[start : start + CHUNK]
            values = _rows(_ENTRY, chunk)
            changed = {row[0]: row[1] for row in connection.execute(_text(differing), values)}
            if changed and on_conflict == "fail":
                raise RefusedError(
                    f"{_named(list(changed))} differ from the catalogue",
                    hint="nothing was written; see --on-conflict",
                )
            events: list[tuple[str | None, ...]] = []
            if changed and on_conflict == "update":
                # Only what is locked: others may have written since the SELECT.
                ours = [entry for entry in chunk if entry[0] in changed]
                connection.execute(_text(update), _rows(_ENTRY, ours))
                events += [(i, "updated", s, s, None, None) for i, s in changed.items()]
            new = connection.execute(_text(insert), values).all()
            events += [(i, "added", None, s, None, None) for i, s in new]
            self._log(connection, events, actor)
            added += len(new)
            differs += len(changed)
            progress(start + len(chunk))
        return added, differs

    # ── The outbox ──

    def due_invalidations(self) -> list[tuple[int, bool]]:
        """Return the outbox rows due now as (id, settle), the oldest first, at most 10,000."""
        sql = (
            "SELECT id, settle FROM modelctl_outbox WHERE due <= clock_timestamp()"
            " ORDER BY due LIMIT 10000"
        )
        with self._database.reading() as connection:
            return [(row[0], row[1]) for row in connection.execute(_text(sql))]

    def settle(self, due: Sequence[tuple[int, bool]]) -> None:
        """Mark *due* as delivered: the settled ones go, the others are due once more in 15 s.

        What a row was when it was seen decides, not what it is now: another drain may have
        delivered it first, and its second delivery must still come.
        """
        sql = (
            "WITH gone AS (DELETE FROM modelctl_outbox WHERE id = ANY(CAST(:settled AS bigint[])))"
            " UPDATE modelctl_outbox SET settle = TRUE,"
            f" due = clock_timestamp() + interval '{SETTLE_SECONDS} seconds'"
            " WHERE id = ANY(CAST(:new AS bigint[])) AND NOT settle"
        )
        rows = {
            "settled": [row for row, settled in due if settled],
            "new": [row for row, settled in due if not settled],
        }
        self._database.write(
            lambda connection: connection.execute(_text(sql), rows), one_statement=True
        )

    def queue(self) -> tuple[int, int, float | None]:
        """Return how many invalidations are queued, how many settle, the age of the oldest queued (s)."""
        if self._on_sqlite:
            return 0, 0, None
        sql = (
            "SELECT count(*) FILTER (WHERE NOT settle), count(*) FILTER (WHERE settle),"
            " CAST(extract(epoch FROM clock_timestamp() - min(due) FILTER (WHERE NOT settle))"
            " AS double precision) FROM modelctl_outbox"
        )
        with self._database.reading() as connection:
            queued, settling, age = connection.execute(_text(sql)).one()
        return queued, settling, age

    # ── For doctor ──

    def version(self) -> str:
        """Return the database's name and version."""
        if self._on_sqlite:
            import sqlite3

            return f"SQLite {sqlite3.sqlite_version}"
        with self._database.reading() as connection:
            return f"PostgreSQL {connection.scalar(sa.text('SHOW server_version'))}"

    def contradictory(self) -> int:
        """How many rows say both active and auto-disabled."""
        sql = f"SELECT count(*) FROM models WHERE {_ON} AND auto_disabled IS TRUE"
        with self._database.reading() as connection:
            return int(connection.scalar(_text(sql)) or 0)

    def last(self, name: str) -> tuple[datetime, float] | None:
        """When the run called *name* last finished (UTC), and how long ago (seconds)."""
        sql = f"SELECT at, {self._sql.now} AS now FROM modelctl_state WHERE name = :name"
        query = sa.text(sql).columns(at=UtcTime, now=UtcTime)
        with self._database.reading() as connection:
            row = connection.execute(query, {"name": name}).first()
        return None if row is None else (row.at, (row.now - row.at).total_seconds())


# ── Small things ────────────────────────────────────────────────────────────────────────────────

# One object per statement, so that SQLAlchemy looks at its text once.
_text = functools.cache(sa.text)


def _refuse_standby(standby: bool) -> None:
    if standby:
        raise InvalidConfigError(
            "the database server is a standby, whose count may be old",
            hint="name the primary in database.url, or several hosts",
        )


def _findable(ids: Sequence[str]) -> None:
    """An id that PostgreSQL cannot hold names no model."""
    odd = {i for i in ids if "\0" in i or any("\ud800" <= c <= "\udfff" for c in i)}
    if odd:
        _all_found(ids, set(ids) - odd)


def _all_found(wanted: Sequence[str], found: Container[str]) -> None:
    missing = [model_id for model_id in wanted if model_id not in found]
    if missing:
        raise ModelNotFoundError(
            f"no model {_named(missing)}" + ("; nothing was changed" if len(wanted) > 1 else ""),
            hint="see: modelctl list",
        )


def _named(ids: Sequence[str]) -> str:
    shown = ", ".join(f"'{clean(model_id, longest=200)}'" for model_id in ids[:3])
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3} more"


def _rows(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """The parameter :rows."""
    return {"rows": json.dumps([dict(zip(columns, row, strict=True)) for row in rows])}
