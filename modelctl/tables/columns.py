"""The columns of ``models`` and of the history, their types, and the status that they add up to."""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from modelctl.times import in_utc


class UtcTime(sa.TypeDecorator[datetime]):
    """A UTC time: timestamptz on PostgreSQL, ISO 8601 text on SQLite; None where it is unreadable."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        """Return text for SQLite, whose driver has no type for times."""
        kind = sa.Text() if dialect.name == "sqlite" else sa.DateTime(timezone=True)
        return dialect.type_descriptor(kind)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return an aware time, or None for what is not a time."""
        time = _as_time(value)
        return time if isinstance(time, datetime) else None


class StoredTime(UtcTime):
    """A UTC time; a value that is unreadable stays as it is, for `as_declared`."""

    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:
        """Return nothing for PostgreSQL, where the loader of the connection reads times."""
        return None if dialect.name == "postgresql" else _as_time


class StoredFlag(sa.TypeDecorator[bool]):
    """True or false; any other value that SQLite stores there stays as it is, for `as_declared`."""

    impl = sa.Boolean
    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:
        """Return nothing: the value of the driver is the result."""
        return None


def _as_time(value: Any) -> Any:
    """Return the time that a text says, in UTC; any other value as it is."""
    try:
        return in_utc(datetime.fromisoformat(value)) if isinstance(value, str) else value
    except ValueError:
        return value


class JsonObject(sa.TypeDecorator[dict[str, Any]]):
    """A JSON object: jsonb on PostgreSQL, text on SQLite; None where it is unreadable."""

    impl = sa.Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> dict[str, Any] | None:
        """Return the object, or None for what is not one."""
        try:
            value = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


MODELS = sa.Table(
    "models",
    sa.MetaData(),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("display_name", sa.Text),
    sa.Column("provider", sa.Text),
    sa.Column("active", StoredFlag),
    sa.Column("auto_disabled", StoredFlag),
    sa.Column("consecutive_failures", sa.Integer),
    sa.Column("ejections", sa.Integer),
    sa.Column("success_count", sa.BigInteger),
    sa.Column("failure_count", sa.BigInteger),
    sa.Column("last_success_at", StoredTime),
    sa.Column("last_failure_at", StoredTime),
    sa.Column("failure_type", sa.Text),
    sa.Column("failure_reason", sa.Text),
    sa.Column("disabled_at", StoredTime),
    sa.Column("disabled_by", sa.Text),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("disabled_until", StoredTime),
    sa.Column("recovered_at", StoredTime),
    sa.Column("would_disable", sa.Text),
    sa.Column("created_at", StoredTime),
    sa.Column("updated_at", StoredTime),
)


@functools.cache
def tags_table(schema: str | None) -> sa.TableClause:
    """Return the table of the tags, which is in this *schema* (None on SQLite)."""
    name = schema and sa.quoted_name(schema, quote=True)
    return sa.table("modelctl_tags", sa.column("model_id"), sa.column("tags"), schema=name)


@functools.cache
def events_table(schema: str | None) -> sa.Table:
    """Return the table of the history, which is in this *schema* (None on SQLite)."""
    return sa.Table(
        "modelctl_events",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("at", StoredTime),
        sa.Column("model_id", sa.Text),
        sa.Column("event", sa.Text),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("actor", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("failure_type", sa.Text),
        sa.Column("provider", sa.Text),
        sa.Column("details", JsonObject),
        sa.Column("operation", sa.Text),
        schema=schema and sa.quoted_name(schema, quote=True),
    )


COUNTERS = ("success_count", "failure_count", "consecutive_failures", "ejections")
# The columns that an outcome changes although the status stays.
RECORDED = (
    *(
        "success_count",
        "failure_count",
        "consecutive_failures",
        "last_success_at",
        "last_failure_at",
    ),
    *("failure_type", "failure_reason", "updated_at"),
)

# The columns of an adopted table may be NULL where ours are NOT NULL: hence IS TRUE and coalesce.
ON = "active IS TRUE"
AUTO_OFF = "active IS NOT TRUE AND auto_disabled IS TRUE"
DISABLED = "active IS NOT TRUE AND auto_disabled IS NOT TRUE"
TIMED_OFF = f"{DISABLED} AND disabled_until IS NOT NULL"
STATUS = (
    f"CASE WHEN {ON} THEN 'active' WHEN auto_disabled IS TRUE THEN 'auto-disabled'"
    " ELSE 'disabled' END"
)
