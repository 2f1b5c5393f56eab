"""Write a chunk of the stage into the fleet: update the models that differ, insert those that are new.

The check reads the rows again: a trigger or a rule of the application may have dropped or undone a
change, and then nothing is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl import operation
from modelctl.errors import RefusedError
from modelctl.model import ModelStatus
from modelctl.models.add import TEXTS, TRIES, Entry, Stored, fit, looks_cut, new_rows_are_on
from modelctl.models.events import NewEvent, differences, log
from modelctl.sync.results import PlannedChange
from modelctl.sync.stage import CHUNK
from modelctl.tables.application import (
    KeptError,
    NewColumnsError,
    defaults_to_insert,
    look_at_columns,
)
from modelctl.tables.columns import ON, STATUS
from modelctl.tables.ids import quoted
from modelctl.tables.odd_values import readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database
    from modelctl.sync.stage import Stage

_ENTRY = dict.fromkeys(Entry._fields, "text")
# Of a model that was there before. What an entry does not say does not differ.
_DIFFERS = (
    "(entry.state IS NULL AND ((entry.display_name <> '' AND entry.display_name <> coalesce(models.display_name, ''))"
    " OR (entry.provider <> '' AND entry.provider <> coalesce(models.provider, ''))))"
)


class Differing(NamedTuple):
    """A model that differs from its entry."""

    entry: Entry
    stored: Stored
    source: str | None

    def differences(self) -> dict[str, Any]:
        """Return the old and new values that differ, as the details of an event."""
        old = self.stored[1:]
        new = [word or was for word, was in zip(self.entry[1:], old, strict=True)]
        return differences(TEXTS, old, new) or {"old": {}, "new": {}}


class Written(NamedTuple):
    """What became of a chunk: how many are new, which models differed, and of how many the catalogue
    says another status than the model has."""

    added: int
    differing: Sequence[Differing]
    other_status: int


def write_chunk(
    database: Database,
    connection: sa.Connection,
    stage: Stage,
    chunk: Mapping[str, int],
    on_conflict: str,
    actor: str,
) -> Written:
    """Insert the models that are new, update those that differ, and check that both has happened.

    *on_conflict*: ``update``, ``skip`` or ``fail`` for a model that differs.

    Raises:
        KeptError: a trigger or a rule of the application left rows as they were.
        RefusedError: ``fail``, and a model differs.
    """
    numbers = _insert(database, stage, chunk)
    if numbers.off and new_rows_are_on(database, connection):
        raise KeptError(_ids(stage, chunk, f"entry.state <> '{ModelStatus.ACTIVE}'"))
    differing = _lock_differing(database, stage, chunk) if numbers.differing else []
    if not database.columns and any(looks_cut(each.entry, each.stored) for each in differing):
        look_at_columns(database, connection)
        if any(fit(database, each.entry) != each.entry for each in differing):
            raise NewColumnsError
    if differing and on_conflict == "fail":
        raise RefusedError(
            f"{quoted([each.entry.id for each in differing])} differ from the catalogue",
            hint="nothing was written; see --on-conflict",
        )
    if differing and on_conflict == "update":
        _update(database, stage, differing)
        log(database, connection, [_updated(each) for each in differing], actor)
    if numbers.added:
        _log_added(database, stage, chunk, actor)
    return Written(numbers.added, differing, numbers.other_status)


def _lock_differing(database: Database, stage: Stage, chunk: Mapping[str, int]) -> list[Differing]:
    """Lock the models that differ from their entry, in the order of their ids."""
    sql = (
        f"SELECT models.id, {STATUS}, coalesce(models.display_name, ''),"
        " coalesce(models.provider, ''), entry.display_name, entry.provider, entry.source"
        f" FROM models, {stage.entries} WHERE models.id = entry.id AND {CHUNK} AND {_DIFFERS}"
        f" ORDER BY models.id{database.sql.lock}"
    )
    found = [
        Differing(Entry(row[0], *row[4:6]), Stored(row[1], *map(readable, row[2:4])), source=row[6])
        for row in stage.rows(sql, chunk)
    ]
    return sorted(found, key=lambda each: each.entry.id)


def _update(database: Database, stage: Stage, differing: Sequence[Differing]) -> None:
    """Write the texts that the entries say, and check that no row was kept as it was."""
    sql = database.sql
    # Only rows that are locked: other programs may have written to the table since they were read.
    update = (
        "UPDATE models SET"
        " display_name = coalesce(nullif(entry.display_name, ''), models.display_name),"
        " provider = coalesce(nullif(entry.provider, ''), models.provider),"
        f" updated_at = {sql.now} FROM {sql.rows('entry', _ENTRY)} WHERE models.id = entry.id"
    )
    read = (
        f"SELECT id, {STATUS}, coalesce(display_name, ''), coalesce(provider, '')"
        f" FROM models WHERE {sql.ids}"
    )
    ids = {"ids": sql.list_of_texts(each.entry.id for each in differing)}
    stage.run(update, sql.values(_ENTRY, [each.entry for each in differing]))
    now = {row[0]: Stored(row[1], *map(readable, row[2:])) for row in stage.rows(read, ids)}
    kept = [e.entry.id for e in differing if _is_kept(e.stored, now.get(e.entry.id))]
    if kept:
        raise KeptError(kept)


def _is_kept(before: Stored, now: Stored | None) -> bool:
    """Whether an update has left a row as it was, or changed its status.

    A name that the application stores in another form is its own matter.
    """
    return now is not None and (now.status != before.status or now[1:] == before[1:])


def _updated(differing: Differing) -> NewEvent:
    model_id, status = differing.entry.id, differing.stored.status
    return NewEvent(model_id, "updated", status, status, details=differing.differences())


class _Numbers(NamedTuple):
    """Of a chunk: how many models are new, how many of these are off, of how many the catalogue says
    another status, how many are missing, how many have another status than when inserted, and how many
    that were there differ."""

    added: int
    off: int
    other_status: int
    missing: int
    changed: int
    differing: int


_MISSING = "models.id IS NULL"
_CHANGED = f"entry.state <> {STATUS}"


def _insert(database: Database, stage: Stage, chunk: Mapping[str, int]) -> _Numbers:
    """Insert the models that are missing, and note their status in the stage.

    Raises:
        KeptError: rows are missing afterwards, or have another status than they were inserted with.
    """
    defaults = defaults_to_insert(database)
    columns = ", ".join((*Entry._fields, *defaults))
    values = ", ".join((*(f"entry.{name}" for name in Entry._fields), *defaults.values()))
    # NOT EXISTS, because a NOT NULL column of an application is checked before ON CONFLICT, also for
    # models that exist.
    new = f"{CHUNK} AND NOT EXISTS (SELECT 1 FROM models WHERE models.id = entry.id)"
    insert = f"INSERT INTO models ({columns}) SELECT {values} FROM {stage.entries} WHERE"
    nothing = "ORDER BY entry.n ON CONFLICT (id) DO NOTHING"
    if database.on_sqlite:
        statements = [
            f"UPDATE {stage.entries} SET state = '' WHERE {new}",
            f"{insert} {CHUNK} AND entry.state = '' {nothing}",
            f"UPDATE {stage.entries} SET state = (SELECT {STATUS} FROM models WHERE models.id = entry.id)"
            f" WHERE {CHUNK} AND entry.state = ''",
        ]
    else:
        # Another program may insert a model at the same time: then it is not ours.
        statements = [
            f"WITH new AS ({insert} {new} {nothing} RETURNING id, {STATUS} AS status)"
            f" UPDATE {stage.entries} SET state = new.status FROM new"
            f" WHERE entry.id{database.sql.collation} = new.id{database.sql.collation} AND {CHUNK}"
        ]
    # Another program may remove a model between the statements. A trigger that removes it does so
    # at each try.
    for _ in range(TRIES):
        for statement in statements:
            stage.run(statement, chunk)
        numbers = _numbers(stage, chunk)
        if not numbers.missing:
            break
    if numbers.missing or numbers.changed:
        raise KeptError(_ids(stage, chunk, f"({_MISSING} OR {_CHANGED})"))
    return numbers


def _numbers(stage: Stage, chunk: Mapping[str, int]) -> _Numbers:
    conditions = (
        "entry.state IS NOT NULL",
        f"entry.state <> '{ModelStatus.ACTIVE}'",
        f"entry.is_on IS NOT NULL AND (entry.is_on IS TRUE) <> ({ON})",
        _MISSING,
        _CHANGED,
        _DIFFERS,
    )
    counts = ", ".join(f"count(CASE WHEN {condition} THEN 1 END)" for condition in conditions)
    sql = f"SELECT {counts} FROM {stage.entries} LEFT JOIN models ON models.id = entry.id WHERE {CHUNK}"
    return _Numbers(*stage.rows(sql, chunk)[0])


def _ids(stage: Stage, chunk: Mapping[str, int], condition: str) -> list[str]:
    sql = (
        f"SELECT entry.id FROM {stage.entries} LEFT JOIN models ON models.id = entry.id"
        f" WHERE {CHUNK} AND {condition} ORDER BY entry.n"
    )
    return [row[0] for row in stage.rows(sql, chunk)]


def _log_added(database: Database, stage: Stage, chunk: Mapping[str, int], actor: str) -> None:
    """Write the events of new models, as `models.events` writes those of other changes."""
    sql = database.sql
    cases = []
    for names in (TEXTS, TEXTS[:1], TEXTS[1:]):
        old = sql.json_object(dict.fromkeys(names, "NULL"))
        new = sql.json_object({name: f"entry.{name}" for name in names})
        said = " AND ".join(f"entry.{name} <> ''" for name in names)
        cases.append(f"WHEN {said} THEN {sql.json_object({'old': old, 'new': new})}")
    insert = (
        f"INSERT INTO {database.own}modelctl_events (model_id, event, after, details, actor, operation)"
        f" SELECT entry.id, 'added', entry.state, CASE {' '.join(cases)} END,"
        " CAST(:actor AS text), CAST(:operation AS text)"
        f" FROM {stage.entries} WHERE {CHUNK} AND entry.state IS NOT NULL ORDER BY entry.n"
    )
    stage.run(insert, {**chunk, "actor": actor, "operation": operation.current()})


def planned(
    stage: Stage, chunk: Mapping[str, int], written: Written, on_conflict: str
) -> Iterator[PlannedChange]:
    """Give what became of the models of a chunk, in the order of their ids."""
    sql = (
        "SELECT entry.id, entry.display_name, entry.provider, entry.source"
        f" FROM {stage.entries} WHERE {CHUNK} AND entry.state IS NOT NULL ORDER BY entry.n"
    )
    changes = []
    for model_id, *texts, source in stage.rows(sql, chunk) if written.added else ():
        new = {name: word for name, word in zip(TEXTS, texts, strict=True) if word}
        changes.append(PlannedChange("added", model_id, {}, new, source))
    kind, note = (
        ("changed", None) if on_conflict == "update" else ("kept", "the fleet keeps its values")
    )
    for each in written.differing:
        differs = each.differences()
        changes.append(
            PlannedChange(kind, each.entry.id, differs["old"], differs["new"], each.source, note)
        )
    return iter(sorted(changes, key=lambda change: change.id))
