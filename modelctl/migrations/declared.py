"""What must exist in the database: the one declaration of tables, columns and indexes.

Creating, adopting, comparing and repairing all work from it. The triggers are in `triggers`.
"""

from __future__ import annotations

from dataclasses import dataclass

MODELS = "models"
OUTBOX = "modelctl_outbox"
CACHE = "modelctl_cache"
VERSION = "modelctl_version"
# The record of what made the schema, in the shape that Alembic gives such a table. What is missing
# is found by comparing, so only a change that the catalogue does not show (of values) needs a number.
HEAD = "0001"
KNOWN = (HEAD,)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an own table, or one of ``models``: its definitions.

    *kind*: what it must be where an application has made it. *emptied*: modelctl sets it to NULL, or
    to '' where that is not allowed.
    *filler*: what rows that are there get where the column has to be added, and its definition
    neither has a default nor allows NULL.
    """

    postgresql: str
    sqlite: str
    kind: str = ""
    emptied: bool = False
    filler: str = "''"


@dataclass(frozen=True, slots=True)
class Index:
    """An index; each definition is what follows its table, empty where there is none."""

    table: str
    postgresql: str
    sqlite: str


_NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
_IDENTITY = "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"


def _text(*, emptied: bool = False) -> Column:
    return Column("text", "TEXT", "text", emptied)


def _time(*, emptied: bool = False) -> Column:
    return Column("timestamptz", "TEXT", "timestamp", emptied)


def _count(postgresql: str) -> Column:
    return Column(f"{postgresql} NOT NULL DEFAULT 0", "INTEGER NOT NULL DEFAULT 0", "counter")


def _word() -> Column:
    return Column("text NOT NULL DEFAULT ''", "TEXT NOT NULL DEFAULT ''", "text")


def _flag(default: bool) -> Column:
    return Column(
        f"boolean NOT NULL DEFAULT {str(default).lower()}",
        f"BOOLEAN NOT NULL DEFAULT {int(default)}",
        "boolean",
    )


def _stamp() -> Column:
    return Column(
        "timestamptz NOT NULL DEFAULT now()", f"TEXT NOT NULL DEFAULT ({_NOW})", "timestamp"
    )


# Every NOT NULL column but the id has a default: programs that know nothing of the column go on
# inserting. There is no CHECK: a plain UPDATE ... SET active by anybody must pass.
# No default is volatile, so that a column is added without a rewrite of the table.
MODELS_COLUMNS = {
    "id": Column("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL", "text"),
    "display_name": _word(),
    "provider": _word(),
    "active": _flag(True),
    "auto_disabled": _flag(False),
    "consecutive_failures": _count("integer"),
    "ejections": _count("integer"),
    "success_count": _count("bigint"),
    "failure_count": _count("bigint"),
    "last_success_at": _time(),
    "last_failure_at": _time(),
    "failure_type": _text(),
    "failure_reason": _text(emptied=True),
    "disabled_at": _time(emptied=True),
    "disabled_by": _text(emptied=True),
    "disabled_reason": _text(emptied=True),
    "disabled_until": _time(emptied=True),
    "recovered_at": _time(emptied=True),
    "would_disable": _text(emptied=True),
    "created_at": _stamp(),
    "updated_at": _stamp(),
}

# Of an application's table these may be NOT NULL: '' is as good as NULL there.
EMPTIED_TEXTS = tuple(n for n, c in MODELS_COLUMNS.items() if c.kind == "text" and c.emptied)

# On PostgreSQL these are in a schema of their own, not that of the application's table: tools that
# bring a schema into the shape that an application declares drop tables that they do not know.
_EVENTS = {
    "id": Column(_IDENTITY, "INTEGER PRIMARY KEY AUTOINCREMENT"),
    "at": Column(
        "timestamptz NOT NULL DEFAULT clock_timestamp()", f"TEXT NOT NULL DEFAULT ({_NOW})"
    ),
    # An event of a provider has the model_id '' and says in provider whose it is.
    "model_id": Column("text NOT NULL", "TEXT NOT NULL"),
    "event": Column("text NOT NULL", "TEXT NOT NULL"),
    "before": _text(),
    "after": _text(),
    "actor": _text(),
    "reason": _text(),
    "failure_type": _text(),
    "provider": _text(),
    "details": Column("jsonb", "TEXT"),
}
# A hold keeps the health rule from switching. provider NULL: the whole fleet. failure_type NULL: a
# pause by a person, which stops all automatic switching; else an incident of that provider, which
# stops switching off for that type of failure.
_HOLDS = {
    "scope": Column("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL"),
    "provider": _text(),
    "failure_type": _text(),
    "since": _stamp(),
    "until": Column("timestamptz NOT NULL", "TEXT NOT NULL", filler="now()"),
    "reason": _text(),
    "actor": _text(),
}
_STATE = {
    "name": Column("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL"),
    "at": Column("timestamptz NOT NULL", "TEXT NOT NULL", filler="now()"),
    "value": _text(),
}
_OUTBOX = {
    "id": Column(_IDENTITY, ""),
    "xid": Column("xid8 NOT NULL DEFAULT pg_current_xact_id()", ""),
    "due": Column("timestamptz NOT NULL DEFAULT clock_timestamp()", ""),
    "settle": Column("boolean NOT NULL DEFAULT false", ""),
}
_CACHE = {
    "key": Column("", "TEXT PRIMARY KEY NOT NULL"),
    "value": Column("", "INTEGER"),
    "nonce": Column("", "TEXT"),
    "expires_at": Column("", "REAL NOT NULL"),
}
_VERSION = {"version_num": Column("varchar(32) PRIMARY KEY", "VARCHAR(32) PRIMARY KEY NOT NULL")}

_COMMON = {
    "modelctl_events": _EVENTS,
    "modelctl_state": _STATE,
    "modelctl_holds": _HOLDS,
    VERSION: _VERSION,
}
# The own tables of each database, with their columns.
TABLES = {"postgresql": _COMMON | {OUTBOX: _OUTBOX}, "sqlite": _COMMON | {CACHE: _CACHE}}

INDEXES = {
    # What recover looks for, a few rows. Not by time: an adopted table may mix timestamp and
    # timestamptz, and what compares them depends on the session, which an index may not. Both
    # planners want the condition of the query word by word: NOT active does not serve active IS
    # NOT TRUE, even where the column cannot be NULL.
    "modelctl_models_auto_disabled": Index(
        MODELS,
        "(id) WHERE active IS NOT TRUE AND auto_disabled IS TRUE",
        "(id) WHERE active IS NOT 1 AND auto_disabled IS 1",
    ),
    "modelctl_models_disabled_until": Index(MODELS, *["(id) WHERE disabled_until IS NOT NULL"] * 2),
    "modelctl_events_model": Index("modelctl_events", *["(model_id, id)"] * 2),
    # Events come in the order of their times, so a block range index does, and costs a bulk change
    # nothing.
    "modelctl_events_at": Index(
        "modelctl_events", "USING brin (at) WITH (autosummarize = on)", "(at)"
    ),
    "modelctl_outbox_due": Index(OUTBOX, "(due)", ""),
}
