"""Edit models: their names, providers and tags. The old and new values become an event `edited`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl import deadline
from modelctl.database import bulk
from modelctl.database.sql import text
from modelctl.edits.results import EditedModel
from modelctl.errors import RefusedError
from modelctl.model import MOST_TAGS, ModelStatus, numbered
from modelctl.models.events import NewEvent, differences, log
from modelctl.models.status_changes import Selected
from modelctl.spool import Spool
from modelctl.tables.application import KeptError, assignments, write
from modelctl.tables.columns import STATUS
from modelctl.tables.ids import check_found, check_storable, quoted
from modelctl.tables.odd_values import readable
from modelctl.tables.selection import condition, parameters, selected_ids
from modelctl.tables.tags import set_tags, tags_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database


class Fields(NamedTuple):
    """What an edit can change of a model."""

    display_name: str
    provider: str
    tags: tuple[str, ...]


class Edit(NamedTuple):
    """What to change of each model; None: leave it. *tag*, *untag*: to add and to remove."""

    display_name: str | None = None
    provider: str | None = None
    tag: tuple[str, ...] = ()
    untag: tuple[str, ...] = ()

    def applied(self, old: Fields) -> Fields:
        """Return the fields of a model after the edit."""
        tags = {*old.tags, *self.tag} - {*self.untag}
        return Fields(
            old.display_name if self.display_name is None else self.display_name,
            old.provider if self.provider is None else self.provider,
            # Another program may have stored them in another order.
            old.tags if tags == {*old.tags} else tuple(sorted(tags)),
        )


_ROW = {"id": "text", "display_name": "text", "provider": "text"}


def edit(
    database: Database,
    which: Sequence[str] | Selected,
    wanted: Edit,
    *,
    actor: str,
    reason: str | None = None,
    dry_run: bool = False,
) -> Sequence[EditedModel]:
    """Edit models in one transaction, all or none; in the order of *which*.

    The ids of a selection are read before the transaction; a model that no longer belongs to the
    selection when it is locked stays as it is.

    Raises:
        ModelNotFoundError: an id is unknown, or the selection has no model.
        RefusedError: more models would change than the limit of the selection, or a model would have
            too many tags; or the database kept rows as they were.
    """
    asked = _asked(database, which)

    def work(connection: sa.Connection) -> Sequence[EditedModel]:
        done: Spool[EditedModel] = Spool()
        touched = 0
        for chunk in bulk.chunks(asked.ids):
            values = {**asked.values, "ids": database.sql.list_of_texts(chunk)}
            edited = edit_rows(
                database,
                connection,
                asked.rows,
                values,
                lambda _, old: wanted.applied(old),
                actor,
                reason,
            )
            if asked.named:
                check_found(chunk, edited)
            for one in (edited[model_id] for model_id in chunk if model_id in edited):
                done.append(one)
                touched += one.changed
            if asked.limit_to is not None and touched > asked.limit_to:
                raise RefusedError(
                    f"more than {numbered(asked.limit_to)} would change; nothing was changed",
                    hint="narrow the selection, or raise the limit",
                )
            deadline.renew()
        return tuple(done) if asked.named else done

    return write(database, work, dry_run=dry_run)


class _Asked(NamedTuple):
    """The models of a call: their ids, the condition of their rows and its values.

    *named*: a caller named them, so each must be there.
    """

    ids: Sequence[str]
    rows: str
    values: Mapping[str, Any]
    named: bool
    limit_to: int | None = None


def _asked(database: Database, which: Sequence[str] | Selected) -> _Asked:
    sql = database.sql
    if not isinstance(which, Selected):
        check_storable(which)
        return _Asked(list(dict.fromkeys(which)), sql.ids, {}, named=True)
    selection = which.selection
    rows = f"{sql.ids} AND {condition(database, selection)}"
    values = parameters(sql, selection)
    return _Asked(selected_ids(database, selection), rows, values, False, which.limit_to)


def edit_rows(
    database: Database,
    connection: sa.Connection,
    which: str,
    values: Mapping[str, Any],
    decide: Callable[[str, Fields], Fields],
    actor: str,
    reason: str | None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, EditedModel]:
    """Edit the rows that meet a condition, in a transaction; return what became of each, by id.

    *decide* returns the fields that a model shall have. *details*: more of them for each event.

    Raises:
        KeptError: a trigger or a rule of the application left rows as they were.
    """
    # The tags are read in a statement of their own, after the lock: in the same statement they would
    # be from before a wait for the lock.
    lock = (
        f"SELECT id, {STATUS}, coalesce(display_name, ''), coalesce(provider, '')"
        f" FROM models WHERE {which} ORDER BY id{database.sql.lock}"
    )
    found = connection.execute(text(lock), dict(values)).all()
    tags = tags_of(database, connection, [row[0] for row in found])
    done: dict[str, EditedModel] = {}
    new_rows: list[tuple[str, str | None, str | None]] = []
    new_tags: dict[str, tuple[str, ...]] = {}
    events = []
    for model_id, status, *texts in found:
        name, provider = map(readable, texts)
        old = Fields(name, provider, tags.get(model_id, ()))
        new = _fitted(database, decide(model_id, old))
        _check_number(model_id, old, new)
        differing = differences(Fields._fields, old, new) or {"old": {}, "new": {}}
        was, is_now = differing["old"], differing["new"]
        if new[:2] != old[:2]:
            # What stays is not written: the application may have NULL or another type there.
            new_rows.append((model_id, is_now.get("display_name"), is_now.get("provider")))
        if new.tags != old.tags:
            new_tags[model_id] = new.tags
        if was:
            more = {**(details or {}), **differing}
            events.append(NewEvent(model_id, "edited", status, status, reason=reason, details=more))
        before = ModelStatus(status)
        done[model_id] = EditedModel(model_id, before, before, bool(was), was, is_now)
    _write(database, connection, new_rows, done)
    set_tags(database, connection, new_tags)
    log(database, connection, sorted(events, key=lambda event: event.model_id), actor)
    return done


def _fitted(database: Database, fields: Fields) -> Fields:
    """Cut the texts to what the columns of an application take, if that is known."""
    name, provider = (database.columns.get(column) for column in Fields._fields[:2])
    if not (name and provider):
        return fields
    return Fields(name.fit(fields.display_name), provider.fit(fields.provider), fields.tags)


def _check_number(model_id: str, old: Fields, new: Fields) -> None:
    if len(new.tags) > MOST_TAGS and len(new.tags) > len(old.tags):
        raise RefusedError(
            f"{quoted([model_id])} would have {len(new.tags)} tags, and a model has at most"
            f" {MOST_TAGS}; nothing was changed",
            hint="remove others with --untag",
        )


def _write(
    database: Database,
    connection: sa.Connection,
    rows: Sequence[tuple[str, str | None, str | None]],
    done: Mapping[str, EditedModel],
) -> None:
    """Write names and providers, and check that the database kept none of the rows as it was."""
    if not rows:
        return
    values = assignments(
        database,
        display_name="coalesce(given.display_name, models.display_name)",
        provider="coalesce(given.provider, models.provider)",
        updated_at=database.sql.now,
    )
    update = (
        f"UPDATE models SET {values} FROM {database.sql.rows('given', _ROW)}"
        " WHERE models.id = given.id"
    )
    connection.execute(text(update), database.sql.values(_ROW, rows))
    read = (
        f"SELECT id, {STATUS}, coalesce(display_name, ''), coalesce(provider, '')"
        f" FROM models WHERE {database.sql.ids}"
    )
    ids = {"ids": database.sql.list_of_texts(row[0] for row in rows)}
    now = {row[0]: row for row in connection.execute(text(read), ids)}
    kept = [row[0] for row in rows if _is_kept(done[row[0]], now.get(row[0]))]
    if kept:
        raise KeptError(kept)


def _is_kept(edited: EditedModel, now: Sequence[Any] | None) -> bool:
    """Whether a row is as it was, or has another status; a text in another form is the application's."""
    if now is None or now[1] != edited.before:
        return True
    texts = dict(zip(Fields._fields[:2], map(readable, now[2:]), strict=True))
    return all(texts[name] == value for name, value in edited.old.items() if name in texts)
