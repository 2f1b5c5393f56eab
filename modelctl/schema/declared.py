"""The declaration of the tables, columns and indexes that must exist, as data.

The schema is created, adopted, compared and repaired from it. The triggers are in `triggers`.
"""

from __future__ import annotations

from dataclasses import dataclass

MODELS = "models"
OUTBOX = "modelctl_outbox"
EVENTS = "modelctl_events"
TAGS = "modelctl_tags"
ORIGINS = "modelctl_origins"
CACHE = "modelctl_cache"
STATE = "modelctl_state"
VERSION = "modelctl_version"
# The revision that is recorded in the table VERSION, which has the columns of Alembic's. Differences
# are found by comparing, so only a change that the catalogue does not show (of values) needs a new one.
HEAD = "0001"
KNOWN = (HEAD,)


@dataclass(frozen=True, slots=True)
class DeclaredColumn:
    """A column of an own table or of ``models``: its definition in each database.

    *kind*: the kind of type that an application's column must have. *emptied*: whether modelctl sets
    it to NULL, or to '' if it is NOT NULL. *filler*: the value for existing rows when a column is
    added that is NOT NULL and has no default.
    """

    postgresql: str
    sqlite: str
    kind: str = ""
    emptied: bool = False
    filler: str = "''"


@dataclass(frozen=True, slots=True)
class Index:
    """An index: in each database the SQL that follows the table's name, "" if there is no index."""

    table: str
    postgresql: str
    sqlite: str


NOW = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
_IDENTITY = "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"


def _text(*, emptied: bool = False) -> DeclaredColumn:
    return DeclaredColumn("text", "TEXT", "text", emptied)


def _time(*, emptied: bool = False) -> DeclaredColumn:
    return DeclaredColumn("timestamptz", "TEXT", "timestamp", emptied)


def _count(postgresql: str) -> DeclaredColumn:
    return DeclaredColumn(
        f"{postgresql} NOT NULL DEFAULT 0", "INTEGER NOT NULL DEFAULT 0", "counter"
    )


def _word() -> DeclaredColumn:
    return DeclaredColumn("text NOT NULL DEFAULT ''", "TEXT NOT NULL DEFAULT ''", "text")


def _flag(default: bool) -> DeclaredColumn:
    return DeclaredColumn(
        f"boolean NOT NULL DEFAULT {str(default).lower()}",
        f"BOOLEAN NOT NULL DEFAULT {int(default)}",
        "boolean",
    )


def _stamp() -> DeclaredColumn:
    return DeclaredColumn(
        "timestamptz NOT NULL DEFAULT now()", f"TEXT NOT NULL DEFAULT ({NOW})", "timestamp"
    )


# Every NOT NULL column except the id has a default, so that programs that do not know the column can
# still insert rows. There is no CHECK, so that any program can UPDATE ... SET active.
# No default is volatile, so that PostgreSQL adds a column without rewriting the table.
MODELS_COLUMNS = {
    "id": DeclaredColumn("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL", "text"),
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

# Of each page of our own table ``models``, on PostgreSQL, so many percent are filled when rows are
# inserted. The rest is room for a second version of every row: a batch of outcomes may change them all,
# and only an update within the page (HOT) writes no index. With pages that are full, 50 batches of
# outcomes of 1,000 models made the table 40 times as large; with this it did not grow.
MODELS_FILLFACTOR = 45

# In an application's table these may be NOT NULL: modelctl then writes '' in place of NULL.
EMPTIED_TEXTS = tuple(n for n, c in MODELS_COLUMNS.items() if c.kind == "text" and c.emptied)

# On PostgreSQL the own tables are in a schema of their own, not in that of the application's table:
# tools that bring a schema to what an application declares drop tables that they do not know.
_EVENTS = {
    "id": DeclaredColumn(_IDENTITY, "INTEGER PRIMARY KEY AUTOINCREMENT"),
    "at": DeclaredColumn(
        "timestamptz NOT NULL DEFAULT clock_timestamp()", f"TEXT NOT NULL DEFAULT ({NOW})"
    ),
    # An event of a provider has the model_id '', and its name in provider.
    "model_id": DeclaredColumn("text NOT NULL", "TEXT NOT NULL"),
    "event": DeclaredColumn("text NOT NULL", "TEXT NOT NULL"),
    "before": _text(),
    "after": _text(),
    "actor": _text(),
    "reason": _text(),
    "failure_type": _text(),
    "provider": _text(),
    "details": DeclaredColumn("jsonb", "TEXT"),
    # The events that one call wrote have the same operation. NULL in events of earlier releases.
    "operation": _text(),
}
# A hold stops the health rule, for one provider or (provider NULL) for the whole fleet. failure_type
# NULL: a pause by a person, which stops all automatic changes of status. Otherwise an incident of the
# provider: failures of this type switch no model off.
_HOLDS = {
    "scope": DeclaredColumn("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL"),
    "provider": _text(),
    "failure_type": _text(),
    "since": _stamp(),
    "until": DeclaredColumn("timestamptz NOT NULL", "TEXT NOT NULL", filler="now()"),
    "reason": _text(),
    "actor": _text(),
}
_STATE = {
    "name": DeclaredColumn("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL"),
    "at": DeclaredColumn("timestamptz NOT NULL", "TEXT NOT NULL", filler="now()"),
    "value": _text(),
}
# Models without tags have no row. No foreign key: the application could no longer TRUNCATE its table.
_TAGS = {
    "model_id": DeclaredColumn("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL"),
    "tags": DeclaredColumn("text[] NOT NULL", "TEXT NOT NULL", filler="'{}'"),
}
# The catalogues that `sync` reads. synced_at: when the last sync of the source was written, so also when
# each of its models that is not gone was last seen: a sync that changes nothing writes one row.
_SOURCES = {
    "name": DeclaredColumn("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL"),
    "synced_at": DeclaredColumn("timestamptz NOT NULL", "TEXT NOT NULL", filler="now()"),
}
# The source of a model. Models that no sync has seen have no row. gone_since: the first sync that missed
# the model; last_seen_at: the sync before that. switched_off_at: the disabled_at that a sync wrote.
_ORIGINS = {
    "model_id": DeclaredColumn("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL"),
    "source": DeclaredColumn("text NOT NULL", "TEXT NOT NULL"),
    "first_seen_at": DeclaredColumn("timestamptz NOT NULL", "TEXT NOT NULL", filler="now()"),
    "last_seen_at": _time(),
    "gone_since": _time(),
    "switched_off_at": _time(),
}
# The ids, or globs, that import and sync leave out.
_IGNORED = {
    "pattern": DeclaredColumn("text PRIMARY KEY", "TEXT PRIMARY KEY NOT NULL"),
    "at": _stamp(),
    "actor": _text(),
    "reason": _text(),
}
# See `count.outbox`. Only doctor reads xid, to find the rows of its own transaction.
_OUTBOX = {
    "id": DeclaredColumn(_IDENTITY, ""),
    "xid": DeclaredColumn("xid8 NOT NULL DEFAULT pg_current_xact_id()", ""),
    "due": DeclaredColumn("timestamptz NOT NULL DEFAULT clock_timestamp()", ""),
    "settle": DeclaredColumn("boolean NOT NULL DEFAULT false", ""),
}
_CACHE = {
    "key": DeclaredColumn("", "TEXT PRIMARY KEY NOT NULL"),
    "value": DeclaredColumn("", "INTEGER"),
    "nonce": DeclaredColumn("", "TEXT"),
    "expires_at": DeclaredColumn("", "REAL NOT NULL"),
}
_VERSION = {
    "version_num": DeclaredColumn("varchar(32) PRIMARY KEY", "VARCHAR(32) PRIMARY KEY NOT NULL")
}

_COMMON = {
    EVENTS: _EVENTS,
    STATE: _STATE,
    "modelctl_holds": _HOLDS,
    TAGS: _TAGS,
    "modelctl_sources": _SOURCES,
    ORIGINS: _ORIGINS,
    "modelctl_ignored": _IGNORED,
    VERSION: _VERSION,
}
# The columns of the own tables of each database.
TABLES = {"postgresql": _COMMON | {OUTBOX: _OUTBOX}, "sqlite": _COMMON | {CACHE: _CACHE}}

INDEXES = {
    # The few rows that recover looks for. Not ordered by time: an adopted table may mix timestamp and
    # timestamptz, which are compared by the settings of the session, and an index may not depend on
    # them. Both planners need the condition in the words of the query: NOT active is not used for
    # active IS NOT TRUE, even if the column cannot be NULL.
    "modelctl_models_auto_disabled": Index(
        MODELS,
        "(id) WHERE active IS NOT TRUE AND auto_disabled IS TRUE",
        "(id) WHERE active IS NOT 1 AND auto_disabled IS 1",
    ),
    "modelctl_models_disabled_until": Index(MODELS, *["(id) WHERE disabled_until IS NOT NULL"] * 2),
    "modelctl_events_model": Index(EVENTS, *["(model_id, id)"] * 2),
    # Events are written in the order of their times, so a block range index is enough, and it adds no
    # cost to bulk changes.
    "modelctl_events_at": Index(EVENTS, "USING brin (at) WITH (autosummarize = on)", "(at)"),
    "modelctl_events_operation": Index(EVENTS, *["(operation)"] * 2),
    "modelctl_outbox_due": Index(OUTBOX, "(due)", ""),
}
