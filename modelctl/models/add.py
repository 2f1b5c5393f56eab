"""Add one model, or leave the model that has its id."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from modelctl.database.sql import text
from modelctl.model import ModelStatus
from modelctl.models.events import NewEvent, differences, log
from modelctl.models.results import KeptChange, StatusChange
from modelctl.tables.application import (
    KeptError,
    NewColumnsError,
    defaults_to_insert,
    inserting,
    look_at_columns,
    write,
)
from modelctl.tables.columns import STATUS
from modelctl.tables.odd_values import readable

if TYPE_CHECKING:
    import sqlalchemy as sa

    from modelctl.database.database import Database

TRIES = 3
TEXTS = ("display_name", "provider")


class Entry(NamedTuple):
    """A model of a catalogue; '' where the catalogue does not say it."""

    id: str
    display_name: str
    provider: str


class Stored(NamedTuple):
    """A model as it is in the table."""

    status: str
    display_name: str
    provider: str


def add(database: Database, entry: tuple[str, str, str], *, actor: str) -> StatusChange:
    """Add one model as (id, display name, provider), or leave the model that has this id.

    Raises:
        RefusedError: the database did not keep it.
    """
    model = Entry(*entry)

    def work(connection: sa.Connection) -> StatusChange:
        fitted = fit(database, model)
        status, stored = _insert(database, connection, fitted)
        if status is None:
            return _left(database, connection, model, fitted, stored)
        if stored.status != status or (
            status != ModelStatus.ACTIVE and new_rows_are_on(database, connection)
        ):
            raise KeptError([model.id])
        texts = [word or None for word in fitted[1:]]
        event = NewEvent(
            model.id, "added", None, status, details=differences(TEXTS, (None, None), texts)
        )
        log(database, connection, [event], actor)
        return StatusChange(model.id, None, ModelStatus(status), True)

    return inserting(database, lambda: write(database, work))


def _insert(
    database: Database, connection: sa.Connection, model: Entry
) -> tuple[str | None, Stored]:
    """Insert a model unless it is there; return the status of the new row, None if there was one, and
    the row as it is then.

    Raises:
        KeptError: a trigger keeps the row out, or takes it out again.
    """
    defaults = defaults_to_insert(database)
    columns = ", ".join((*Entry._fields, *defaults))
    values = ", ".join((*(f"CAST(:{name} AS text)" for name in Entry._fields), *defaults.values()))
    # NOT EXISTS, because a NOT NULL column of an application is checked before ON CONFLICT, also for
    # a model that exists.
    insert = (
        f"INSERT INTO models ({columns}) SELECT {values}"
        " WHERE NOT EXISTS (SELECT 1 FROM models WHERE id = CAST(:id AS text))"
        f" ON CONFLICT (id) DO NOTHING RETURNING {STATUS} AS status"
    )
    read = (
        f"SELECT {STATUS}, coalesce(display_name, ''), coalesce(provider, '')"
        " FROM models WHERE id = CAST(:id AS text)"
    )
    status: str | None = None
    # Another program may remove the model between the statements. A trigger that removes it does so
    # at each try.
    for _ in range(TRIES):
        status = connection.execute(text(insert), model._asdict()).scalar() or status
        if found := connection.execute(text(read), {"id": model.id}).first():
            return status, Stored(found[0], *map(readable, found[1:]))
    raise KeptError([model.id])


def _left(
    database: Database, connection: sa.Connection, model: Entry, fitted: Entry, stored: Stored
) -> StatusChange:
    """Say what stays of a model that was there already."""
    if not database.columns and looks_cut(model, stored):
        look_at_columns(database, connection)
        fitted = fit(database, model)
    status = ModelStatus(stored.status)
    pairs = zip(("name", "provider"), stored[1:], fitted[1:], strict=True)
    kept = [
        f"its {what} is '{is_now}', not '{asked}'"
        for what, is_now, asked in pairs
        if asked and asked != is_now
    ]
    if not kept:
        return StatusChange(model.id, status, status, False)
    note = f"{' and '.join(kept)}; modelctl import changes that"
    return KeptChange(model.id, status, status, False, note)


def fit(database: Database, model: Entry) -> Entry:
    """Cut the texts of a model to what the columns of an application take, if that is known."""
    name, provider = (database.columns.get(column) for column in TEXTS)
    if not (name and provider):
        return model
    return Entry(model.id, name.fit(model.display_name), provider.fit(model.provider))


def looks_cut(model: Entry, stored: Stored) -> bool:
    """Whether all that differs of a model looks as if a column had cut it."""
    pairs = [*zip(model[1:], stored[1:], strict=True)]
    return all(new.startswith(old) for new, old in pairs if new) and any(old for _, old in pairs)


def new_rows_are_on(database: Database, connection: sa.Connection) -> bool:
    """Whether new rows of this table are active, so that one that is off was switched off.

    Raises:
        NewColumnsError: the columns were not known, and the INSERT has to name some of them.
    """
    if not database.columns:
        look_at_columns(database, connection)
        if defaults_to_insert(database):
            raise NewColumnsError
    active = database.columns.get("active")
    default = (active and active.default) or "true"
    return default.lower() in ("true", "1")
