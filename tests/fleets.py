"""Open fleets on test databases, and read and write their tables as another program does."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
from hypothesis import strategies as st

from modelctl import Config, Fleet, ModelStatus
from modelctl.config.sections import RedisConfig

ACTOR = "tester"
# How long most tests wait for Redis: on a busy machine the default passes without an answer. A test
# whose Redis is silent on purpose takes the default.
PATIENCE = "5s"
DEFAULT_PATIENCE = f"{RedisConfig().timeout}s"
HOUR = 3600.0
ACTIVE, DISABLED, AUTO = ModelStatus
_COLUMNS = (
    "id, display_name, provider, active, auto_disabled, consecutive_failures, ejections,"
    " success_count, failure_count, failure_type, failure_reason, disabled_by, disabled_reason,"
    " would_disable"
)
_TIMES = ("last_success_at", "last_failure_at", "disabled_at", "disabled_until", "recovered_at")


def environ(url: str, **settings: object) -> dict[str, Any]:
    """Return the environment of a program on this database; *settings* as ``health_threshold=3``."""
    names = {f"MODELCTL_{name}".upper(): str(value) for name, value in settings.items()}
    patient = {"MODELCTL_REDIS_TIMEOUT": PATIENCE}
    return {"MODELCTL_DATABASE_URL": url, "MODELCTL_ACTOR": ACTOR, **patient, **names}


def configured(url: str, **settings: object) -> Config:
    """Return a configuration of this database; *settings* like ``health_threshold=3``."""
    return Config.load(environ={"HOME": "/nowhere", **environ(url, **settings)})


def opened(url: str, **settings: object) -> Fleet:
    """Return a fleet on this database that acts as `ACTOR`."""
    return Fleet.open(configured(url, **settings), actor=ACTOR)


def is_sqlite(url: str) -> bool:
    """Tell the two kinds of database apart."""
    return url.startswith("sqlite")


def sql(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement as another program would, with ``?`` for each value; return its rows."""
    if is_sqlite(url):
        path = url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as file:
            return file.execute(statement, values).fetchall()
    with psycopg.connect(url, autocommit=True) as connection:
        return execute(connection, statement, *values)


def execute(
    connection: psycopg.Connection, statement: str, *values: object
) -> list[tuple[Any, ...]]:
    """Run a statement on a connection to PostgreSQL, as `sql` does."""
    text = statement.replace("?", "%s") if values else statement
    cursor = connection.execute(text.encode(), values or None)
    return cursor.fetchall() if cursor.description else []


def sql_without_events(url: str, statement: str, *values: object) -> None:
    """Run a statement as `sql` does; the trigger of PostgreSQL writes nothing into the history."""
    if is_sqlite(url):
        sql(url, statement, *values)
        return
    with psycopg.connect(url) as connection:
        mark = "SELECT set_config('modelctl.transaction', pg_current_xact_id()::text, true)"
        connection.execute(mark.encode())
        execute(connection, statement, *values)


@dataclass(frozen=True)
class Ago:
    """A time for `put` and `alter`: seconds before the database's clock; negative: to come."""

    seconds: float


def ago(url: str, seconds: float) -> str:
    """Return the database's clock *seconds* ago, as an expression; negative: to come."""
    if is_sqlite(url):
        return f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{-seconds:+f} seconds')"
    return f"clock_timestamp() - interval '{seconds:f} seconds'"


def put(url: str, *ids: str, **columns: object) -> None:
    """Add models as another program would, without events; active ones, unless *columns* say otherwise."""
    _insert(url, "models", [{"id": model_id, **columns} for model_id in ids])


def put_off(url: str, *ids: str, failed: float = 0, **columns: object) -> None:
    """Add models that the health rule disabled after they *failed*, that many seconds ago."""
    state: dict[str, object] = {
        "active": False,
        "auto_disabled": True,
        "consecutive_failures": 5,
        "ejections": 1,
        "disabled_by": "health rule",
        "last_failure_at": Ago(failed),
        "disabled_at": Ago(failed),
    }
    put(url, *ids, **state | columns)


def put_hold(url: str, scope: str, **columns: object) -> None:
    """Add a pause or an incident as modelctl would."""
    _insert(url, "modelctl_holds", [{"scope": scope, **columns}])


def _insert(url: str, table: str, lines: Sequence[Mapping[str, object]]) -> None:
    """Insert rows with the same columns, in one statement."""
    places, values = [], []
    for line in lines:
        cells = [_cell(url, value) for value in line.values()]
        places.append(f"({', '.join(place for place, _ in cells)})")
        values += [value for _, bound in cells for value in bound]
    names = ", ".join(lines[0])
    insert = f"INSERT INTO {table} ({names}) VALUES {', '.join(places)}"
    sql_without_events(url, insert, *values)


def alter(url: str, *ids: str, **columns: object) -> None:
    """Set columns of models as another program would, without events; without *ids* of all models."""
    cells = {name: _cell(url, value) for name, value in columns.items()}
    values = [value for _, bound in cells.values() for value in bound]
    changes = ", ".join(f"{name} = {place}" for name, (place, _) in cells.items())
    where = f" WHERE id IN ({', '.join('?' * len(ids))})" if ids else ""
    sql_without_events(url, f"UPDATE models SET {changes}{where}", *values, *ids)


def _cell(url: str, value: object) -> tuple[str, tuple[object, ...]]:
    """Return a value as SQL and what is bound to it."""
    return (f"({ago(url, value.seconds)})", ()) if isinstance(value, Ago) else ("?", (value,))


def let_pass(url: str, seconds: float) -> None:
    """Make all times in the tables older, as if *seconds* had passed."""
    times = {
        "models": (
            "last_failure_at",
            "disabled_at",
            "disabled_until",
            "recovered_at",
            "updated_at",
        ),
        "modelctl_holds": ("since", "until"),
        "modelctl_events": ("at",),
    }
    for table, columns in times.items():
        if is_sqlite(url):
            older = f"strftime('%Y-%m-%dT%H:%M:%fZ', {{0}}, '{-seconds:+f} seconds')"
        else:
            older = f"{{0}} - interval '{seconds:f} seconds'"
        changes = ", ".join(f"{column} = {older.format(column)}" for column in columns)
        sql(url, f"UPDATE {table} SET {changes}")


def rows(url: str) -> list[tuple[Any, ...]]:
    """Return all models; of their times whether they are there."""
    there = ", ".join(f"{time} IS NOT NULL" for time in _TIMES)
    found = sql(url, f"SELECT {_COLUMNS}, {there} FROM models ORDER BY id")
    return [(*row[:3], *map(bool, row[3:5]), *row[5:14], *map(bool, row[14:])) for row in found]


def events(url: str) -> list[tuple[Any, ...]]:
    """Return the history in its order, without ids and times; the details, last, as objects."""
    found = sql(
        url,
        "SELECT model_id, event, before, after, actor, reason, failure_type, provider, details"
        " FROM modelctl_events ORDER BY id",
    )
    return [
        (*row[:-1], json.loads(row[-1]) if is_sqlite(url) and row[-1] else row[-1]) for row in found
    ]


def history(fleet: Fleet, id: str | None = None) -> list[tuple[Any, ...]]:  # noqa: A002
    """Return the newest events first, without their numbers and times."""
    return [
        (e.model_id, e.event, e.before, e.after, e.actor, e.reason, e.failure_type)
        for e in fleet.events(id)
    ]


def holds(url: str) -> list[tuple[Any, ...]]:
    """Return the pauses and incidents, without their times."""
    return sql(
        url,
        "SELECT scope, provider, failure_type, reason, actor FROM modelctl_holds ORDER BY scope",
    )


def everything(url: str) -> Any:
    """Return all that a dry run must leave as it is, to the last timestamp."""
    return {table: sorted(sql(url, f"SELECT * FROM {table}"), key=repr) for table in _tables(url)}


def clear(url: str) -> None:
    """Empty all tables."""
    for table in _tables(url):
        sql(url, f"DELETE FROM {table}")


def _tables(url: str) -> list[str]:
    # The triggers of models fill the outbox, so that comes last.
    own = "modelctl_cache" if is_sqlite(url) else "modelctl_outbox"
    return [
        *("models", "modelctl_events", "modelctl_state", "modelctl_holds", "modelctl_tags"),
        *("modelctl_sources", "modelctl_origins", "modelctl_ignored"),
        own,
    ]


@dataclass(frozen=True)
class Start:
    """A model as an example finds it.

    *failed*, *back*: how many hours ago it last failed and came back, None: nobody knows.
    *until*: the end of a timed disable, or what is left over of one.
    """

    provider: str
    status: ModelStatus = ModelStatus.ACTIVE
    in_a_row: int = 0
    ejections: int = 0
    failed: float | None = 0.5
    back: float | None = None
    noted: str | None = None
    until: str | None = None


ENDS = ("2100-01-01T00:00:00.000Z", "2200-01-01T00:00:00.000Z")
# Cooldowns in tests are of one hour and two.
STARTS = st.builds(
    Start,
    provider=st.just(""),
    status=st.sampled_from([ModelStatus.ACTIVE, ModelStatus.ACTIVE, *ModelStatus]),
    in_a_row=st.integers(0, 3),
    ejections=st.sampled_from([0, 0, 1, 2]),
    failed=st.sampled_from([None, 0.5, 3.0]),
    back=st.sampled_from([None, 0.5, 1.5, 3.0]),
    noted=st.sampled_from([None, None, "paused", "incident", "floor"]),
    until=st.sampled_from([None, None, ENDS[0]]),
)


def put_starts(url: str, models: Mapping[str, Start]) -> None:
    """Fill the empty table with models that have a past, which is not in the history."""

    def past(hours: float | None) -> Ago | None:
        return None if hours is None else Ago(hours * 3600)

    lines: list[dict[str, object]] = [
        {
            "id": model_id,
            "provider": model.provider,
            "active": model.status is ModelStatus.ACTIVE,
            "auto_disabled": model.status is ModelStatus.AUTO_DISABLED,
            "consecutive_failures": model.in_a_row,
            "ejections": model.ejections,
            "would_disable": model.noted,
            "disabled_until": model.until,
            "last_failure_at": past(model.failed),
            "recovered_at": past(model.back),
        }
        for model_id, model in models.items()
    ]
    _insert(url, "models", lines)


def status(fleet: Fleet, *ids: str) -> list[ModelStatus]:
    """Return the status of each model."""
    return [fleet.show(model_id).status for model_id in ids]


def seed(fleet: Fleet, ids: Iterable[str]) -> None:
    """Add active models in one go."""
    lines = "\n".join(json.dumps({"id": model_id}) for model_id in ids)
    fleet.import_models(lines.encode())


def trip(fleet: Fleet, *ids: str) -> None:
    """Let the health rule switch models off."""
    failure = {"outcome": "failure", "type": "parse-error", "reason": "no JSON"}
    threshold = fleet.config.health.threshold
    fleet.record_batch({"id": i, **failure} for i in ids for _ in range(threshold))
