"""Add models: one, or a catalogue of many, which also updates the models that differ from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from modelctl import deadline
from modelctl.database.bulk import chunks
from modelctl.database.sql import text
from modelctl.errors import RefusedError
from modelctl.model import ModelStatus
from modelctl.models.events import NewEvent, differences, log
from modelctl.models.results import KeptChange, StatusChange
from modelctl.tables.application import (
    KeptError,
    NewColumnsError,
    defaults_to_insert,
    explain_refused_insert,
    look_at_columns,
    write,
)
from modelctl.tables.columns import STATUS
from modelctl.tables.ids import quoted
from modelctl.tables.odd_values import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database

T = TypeVar("T")

_TRIES = 3
_TEXTS = ("display_name", "provider")


class Entry(NamedTuple):
    """A model of a catalogue; '' where the catalogue does not say it."""

    id: str
    display_name: str
    provider: str


_ENTRY = dict.fromkeys(Entry._fields, "text")


class Stored(NamedTuple):
    """A model as it is in the table."""

    status: str
    display_name: str
    provider: str


class Imported(NamedTuple):
    """What became of a chunk: the status of each new model, the models that differed, all models now."""

    new: dict[str, str]
    differing: dict[str, Stored]
    now: dict[str, Stored]


def import_models(
    database: Database,
    entries: Callable[[], Iterable[tuple[str, str, str, bool | None]]],
    *,
    on_conflict: str,
    actor: str,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[int, int, int]:
    """Add or update models from (id, display name, provider, active), in one transaction.

    The ids are unique. *active* is whether the catalogue says that the model is on, or None.

    *entries* starts again from the first on every call, in the order of the ids, so that two
    imports of the same models lock them in the same order.
    *on_conflict*: ``update``, ``skip`` or ``fail`` for a model that differs.
    Return how many were added, how many differ, and of how many the status differs, which stays.

    Raises:
        RefusedError: ``fail``, and a model differs; nothing is written.
    """

    def work(connection: sa.Connection) -> tuple[int, int, int]:
        added = differ = ignored = done = 0
        for chunk in chunks(entries()):
            models = [Entry(*entry[:3]) for entry in chunk]
            result = _import_chunk(database, connection, models, on_conflict, actor)
            added += len(result.new)
            differ += len(result.differing)
            for model_id, _, _, active in chunk:
                is_active = result.now[model_id].status == ModelStatus.ACTIVE
                ignored += active is not None and active != is_active
            done += len(chunk)
            deadline.renew()
            progress(done)
        return added, differ, ignored

    return inserting(database, lambda: write(database, work, dry_run=dry_run))


def add(database: Database, entry: tuple[str, str, str], *, actor: str) -> StatusChange:
    """Add one model as (id, display name, provider), or leave the model that has this id.

    Raises:
        RefusedError: the database did not keep it.
    """
    model = Entry(*entry)

    def work(connection: sa.Connection) -> StatusChange:
        result = _import_chunk(database, connection, [model], "skip", actor)
        after = ModelStatus(result.now[model.id].status)
        if old := result.differing.get(model.id):
            pairs = zip(("name", "provider"), old[1:], model[1:], strict=True)
            kept = [
                f"its {what} is '{is_now}', not '{asked}'"
                for what, is_now, asked in pairs
                if asked and asked != is_now
            ]
            note = f"{' and '.join(kept)}; modelctl import changes that"
            return KeptChange(model.id, after, after, False, note)
        is_new = bool(result.new)
        return StatusChange(model.id, None if is_new else after, after, is_new)

    return inserting(database, lambda: write(database, work))


def inserting(database: Database, transaction: Callable[[], T]) -> T:
    """Run a transaction that inserts models; explain an error of a column that modelctl does not know."""
    try:
        return transaction()
    except RefusedError as exc:
        raise explain_refused_insert(database, exc) from exc


def _import_chunk(
    database: Database,
    connection: sa.Connection,
    chunk: Sequence[Entry],
    on_conflict: str,
    actor: str,
) -> Imported:
    """Update the models that differ, insert the others, and check that both has happened."""
    models = _fitted(database, chunk)
    differing = _lock_differing(database, connection, models)
    if not database.columns and any(_looks_cut(model, differing) for model in models):
        look_at_columns(database, connection)
        if _fitted(database, models) != models:
            raise NewColumnsError
    if differing and on_conflict == "fail":
        raise RefusedError(
            f"{quoted(list(differing))} differ from the catalogue",
            hint="nothing was written; see --on-conflict",
        )
    # Only rows that are locked: other programs may have written to the table since they were read.
    to_update = [m for m in models if m.id in differing] if on_conflict == "update" else []
    if to_update:
        _update(database, connection, to_update)
    new, now = _insert(database, connection, models)
    kept = [model.id for model in models if model.id not in now]
    kept += _not_active(database, connection, new)
    # The status counts. A name that the application stores in another form is its own matter.
    kept += [i for i, status in new.items() if i in now and now[i].status != status]
    kept += [model.id for model in to_update if _is_kept(differing[model.id], now.get(model.id))]
    if kept:
        raise KeptError(sorted(kept))
    log(database, connection, [*_updated(to_update, differing), *_added(models, new)], actor)
    return Imported(new, differing, now)


def _fitted(database: Database, models: Sequence[Entry]) -> Sequence[Entry]:
    """Cut the texts to what the columns of an application take."""
    name, provider = (database.columns.get(column) for column in _TEXTS)
    if not (name and provider):
        return models
    return [Entry(m.id, name.fit(m.display_name), provider.fit(m.provider)) for m in models]


def _looks_cut(model: Entry, differing: Mapping[str, Stored]) -> bool:
    """Whether all that differs of a model looks as if a column had cut it."""
    stored = differing.get(model.id)
    if stored is None:
        return False
    pairs = [*zip(model[1:], stored[1:], strict=True)]
    return all(new.startswith(old) for new, old in pairs if new) and any(old for _, old in pairs)


def _stored(rows: Iterable[Sequence[Any]]) -> dict[str, Stored]:
    return {row[0]: Stored(row[1], *map(readable, row[2:])) for row in rows}


def _lock_differing(
    database: Database, connection: sa.Connection, models: Sequence[Entry]
) -> dict[str, Stored]:
    """Lock the models that differ from their entry, and return them in the order of their ids.

    What an entry does not say does not differ.
    """
    sql = (
        f"SELECT models.id, {STATUS}, coalesce(models.display_name, ''), coalesce(models.provider, '')"
        f" FROM models, {database.sql.rows('entry', _ENTRY)} WHERE models.id = entry.id AND ("
        " (entry.display_name <> '' AND entry.display_name <> coalesce(models.display_name, ''))"
        " OR (entry.provider <> '' AND entry.provider <> coalesce(models.provider, '')))"
        f" ORDER BY models.id{database.sql.lock}"
    )
    found = connection.execute(text(sql), database.sql.values(_ENTRY, models))
    return dict(sorted(_stored(found).items()))


def _update(database: Database, connection: sa.Connection, models: Sequence[Entry]) -> None:
    sql = (
        "UPDATE models SET"
        " display_name = coalesce(nullif(entry.display_name, ''), models.display_name),"
        " provider = coalesce(nullif(entry.provider, ''), models.provider),"
        f" updated_at = {database.sql.now} FROM {database.sql.rows('entry', _ENTRY)}"
        " WHERE models.id = entry.id"
    )
    connection.execute(text(sql), database.sql.values(_ENTRY, models))


def _insert(
    database: Database, connection: sa.Connection, models: Sequence[Entry]
) -> tuple[dict[str, str], dict[str, Stored]]:
    """Insert the models that are missing; return their status, and all models as they are then."""
    defaults = defaults_to_insert(database)
    columns, values = ", ".join((*_ENTRY, *defaults)), ", ".join((*_ENTRY, *defaults.values()))
    # NOT EXISTS, because a NOT NULL column of an application is checked before ON CONFLICT, also for
    # models that exist.
    insert = (
        f"INSERT INTO models ({columns}) SELECT {values} FROM {database.sql.rows('entry', _ENTRY)}"
        " WHERE NOT EXISTS (SELECT 1 FROM models WHERE id = entry.id)"
        f" ORDER BY {database.sql.by_id} ON CONFLICT (id) DO NOTHING RETURNING id, {STATUS} AS status"
    )
    standing = (
        f"SELECT id, {STATUS}, coalesce(models.display_name, ''), coalesce(models.provider, '')"
        f" FROM models WHERE {database.sql.ids}"
    )
    entries = database.sql.values(_ENTRY, models)
    ids = {"ids": database.sql.list_of_texts(model.id for model in models)}
    new: dict[str, str] = {}
    now: dict[str, Stored] = {}
    # Another program may remove a model between the statements. A trigger that removes it does so
    # at each try.
    for _ in range(_TRIES):
        new |= {row[0]: row[1] for row in connection.execute(text(insert), entries)}
        now = _stored(connection.execute(text(standing), ids))
        if all(model.id in now for model in models):
            break
    return new, now


def _not_active(database: Database, connection: sa.Connection, new: Mapping[str, str]) -> list[str]:
    """Return the *new* models that are off although new rows are active in this table."""
    off = [model_id for model_id, status in new.items() if status != ModelStatus.ACTIVE]
    if off and not database.columns:
        look_at_columns(database, connection)
        if defaults_to_insert(database):
            raise NewColumnsError
    active = database.columns.get("active")
    default = (active and active.default) or "true"
    return off if default.lower() in ("true", "1") else []


def _is_kept(before: Stored, now: Stored | None) -> bool:
    """Whether an update has left a row as it was, or changed its status."""
    return now is not None and (now.status != before.status or now[1:] == before[1:])


def _updated(models: Iterable[Entry], differing: Mapping[str, Stored]) -> list[NewEvent]:
    events = []
    for model_id, name, provider in models:
        status, *old = differing[model_id]
        details = differences(_TEXTS, old, (name or old[0], provider or old[1]))
        events.append(NewEvent(model_id, "updated", status, status, details=details))
    return events


def _added(models: Iterable[Entry], new: Mapping[str, str]) -> list[NewEvent]:
    texts = {model.id: [word or None for word in model[1:]] for model in models if model.id in new}
    return [
        NewEvent(i, "added", None, new[i], details=differences(_TEXTS, (None, None), texts[i]))
        for i in sorted(new)
    ]
