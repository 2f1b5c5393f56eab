"""Fleets on test databases, and what is in their tables."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
from hypothesis import strategies as st

from modelctl import Config, Fleet, ModelStatus

ACTOR = "tester"
_COLUMNS = (
    "id, display_name, provider, active, auto_disabled, consecutive_failures, ejections,"
    " success_count, failure_count, failure_type, failure_reason, disabled_by, disabled_reason,"
    " would_disable"
)
_TIMES = ("last_success_at", "last_failure_at", "disabled_at", "disabled_until", "recovered_at")


def configured(url: str, **settings: object) -> Config:
    """Return a configuration of this database; *settings* like ``health_threshold=3``."""
    environ = {f"MODELCTL_{name}".upper(): str(value) for name, value in settings.items()}
    return Config.load(environ={"MODELCTL_DATABASE_URL": url, "HOME": "/nowhere", **environ})


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
        cursor = connection.execute(statement.replace("?", "%s").encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def ago(url: str, seconds: float) -> str:
    """Return the database's clock so many seconds ago, as an expression."""
    if is_sqlite(url):
        return f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '{-seconds} seconds')"
    return f"clock_timestamp() - interval '{seconds} seconds'"


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
    return ["models", "modelctl_events", "modelctl_state", "modelctl_holds", own]


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


def put(url: str, models: Mapping[str, Start]) -> None:
    """Fill the empty table with models that have a past, which is not in the history."""

    def past(hours: float | None) -> str:
        return "NULL" if hours is None else f"({ago(url, hours * 3600)})"

    places = ", ".join(
        f"(?, ?, ?, ?, ?, ?, ?, ?, {past(model.failed)}, {past(model.back)})"
        for model in models.values()
    )
    values = (
        (
            model_id,
            model.provider,
            model.status is ModelStatus.ACTIVE,
            model.status is ModelStatus.AUTO_DISABLED,
            model.in_a_row,
            model.ejections,
            model.noted,
            model.until,
        )
        for model_id, model in models.items()
    )
    sql(
        url,
        "INSERT INTO models (id, provider, active, auto_disabled, consecutive_failures, ejections,"
        f" would_disable, disabled_until, last_failure_at, recovered_at) VALUES {places}",
        *(value for row in values for value in row),
    )


def seed(fleet: Fleet, ids: Iterable[str]) -> None:
    """Add active models in one go."""
    import json

    lines = "\n".join(json.dumps({"id": model_id}) for model_id in ids)
    fleet.import_models(lines.encode())


def trip(fleet: Fleet, *ids: str) -> None:
    """Let the health rule switch models off."""
    failure = {"outcome": "failure", "type": "parse-error", "reason": "no JSON"}
    threshold = fleet.config.health.threshold
    fleet.record_batch({"id": i, **failure} for i in ids for _ in range(threshold))
