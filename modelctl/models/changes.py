"""The changes of status: enable, disable and remove, which a person does, and bring back, of recover.

Each is whole in one function: what it reads of a row, how it decides, and its SQL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.model import SYNC, ModelStatus
from modelctl.models.events import differences
from modelctl.tables.application import assignments
from modelctl.tables.columns import DISABLED, ON, STATUS
from modelctl.tables.odd_values import readable, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from modelctl.database.database import Database


class Decision(NamedTuple):
    """What becomes of a model; *note*: why it stays as it is, for a person.

    *source*: the one that offers a model that is removed. *holds*: a person switches off a model that
    sync has switched off, so sync may not enable it any more.
    """

    after: ModelStatus | None
    event: str | None
    details: dict[str, Any] | None = None
    reason: str | None = None
    writes: bool = True
    note: str | None = None
    source: str | None = None
    holds: bool = False


class Change(NamedTuple):
    """A change of status: what it reads of each row, how it decides, and its SQL."""

    # SQL: what `decide` reads of a row, after its id and its status. All rows that it changes, or finds
    # changed already, have the same status afterwards.
    reads: str
    decide: Callable[[Sequence[Any]], Decision]
    # SQL: writes the rows of :ids, and returns the ids of those that were written.
    write: str
    parameters: Mapping[str, Any]
    # SQL: of a row that is as it should be afterwards, the status that was decided.
    status: str = STATUS
    # SQL: for the rows of :ids whose decision `holds`.
    hold: str = ""


# The columns of a model that is off. Texts are NULL in our own table where they are '' in others.
_DISABLED_COLUMNS = ("disabled_by", "disabled_reason", "disabled_until")
_COUNTS = ("consecutive_failures", "ejections")
CLEAR_DISABLED_COLUMNS = dict.fromkeys(("disabled_at", *_DISABLED_COLUMNS, "would_disable"), "NULL")


def _disabled_columns(database: Database) -> str:
    """SQL: the values of `_DISABLED_COLUMNS`, None where they are empty."""
    return (
        "nullif(CAST(disabled_by AS text), ''), nullif(CAST(disabled_reason AS text), ''),"
        f" {database.sql.time_as_text('disabled_until')}"
    )


def _switched_on(
    old: Sequence[Any], old_counts: Sequence[int], counts: Sequence[int]
) -> dict[str, Any] | None:
    """Return the details of an event that switches a model on; *old*: of `_DISABLED_COLUMNS`."""
    names = (*_DISABLED_COLUMNS, *_COUNTS)
    return differences(names, (*old, *old_counts), (None, None, None, *counts))


def enable(database: Database, reason: str | None) -> Change:
    """Switch models on as healthy ones. One that is on already has its failures forgotten."""
    reads = (
        "consecutive_failures, ejections, coalesce(consecutive_failures, 0) <> 0"
        " OR coalesce(ejections, 0) <> 0 OR coalesce(would_disable, '') <> '',"
        f" {_disabled_columns(database)}"
    )

    def decide(row: Sequence[Any]) -> Decision:
        _, before, failures, ejections, is_failing, *old = row
        details = _switched_on(old, (whole(failures), whole(ejections)), (0, 0))
        if before == ModelStatus.ACTIVE:
            return Decision(ModelStatus.ACTIVE, None, writes=bool(is_failing))
        return Decision(ModelStatus.ACTIVE, "enabled", details, reason)

    now = database.sql.now
    values = assignments(
        database,
        active="TRUE",
        auto_disabled="FALSE",
        consecutive_failures="0",
        ejections="0",
        recovered_at=f"CASE WHEN {ON} THEN recovered_at ELSE {now} END",
        **CLEAR_DISABLED_COLUMNS,
        updated_at=now,
    )
    write = f"UPDATE models SET {values} WHERE {database.sql.ids} RETURNING id"
    return Change(reads, decide, write, {})


def disable(
    database: Database,
    actor: str,
    reason: str | None,
    until: float | None,
    force: bool,
    keeps_longer: bool = False,
    names_holder: bool = False,
) -> Change:
    """Switch models off by hand. Of a model that is disabled already, disabled_at and _by stay.

    *until*: seconds since 1970; a model that is disabled without an end keeps that, unless *force*.
    *keeps_longer*: unless *force*, each model that is disabled for at least as long stays as it is.
    *names_holder*: the events say who holds the models off, because it is not who did it.
    """
    sql = database.sql
    end = sql.time("CAST(:until AS double precision)")
    reads = (
        f"{_disabled_columns(database)}, {sql.is_finite('disabled_until')},"
        f" {sql.differs('disabled_until', end)}, {sql.time_as_text(end)},"
        f" {sql.epoch('disabled_until')} > CAST(:until AS double precision)"
    )
    column = database.columns.get("disabled_reason")
    stored_reason = reason and column.fit(reason) if column else reason

    def decide(row: Sequence[Any]) -> Decision:
        _, before, old_by, old_reason, old_end, ends, is_other_end, new_end, ends_later = row
        is_disabled = before == ModelStatus.DISABLED
        holds = is_disabled and old_by == SYNC != actor
        if is_disabled and not force:
            note = None
            if not ends and (keeps_longer or until is not None):
                note = "without an end; kept"
            elif keeps_longer and ends_later:
                note = f"until {old_end}; kept"
            if note:
                return Decision(ModelStatus.DISABLED, None, writes=False, note=note, holds=holds)
        new_reason = old_reason if stored_reason is None else stored_reason
        if not is_disabled or is_other_end:
            event = "disabled"
        elif new_reason != old_reason:
            event = "updated"
        else:
            return Decision(ModelStatus.DISABLED, None, writes=False, holds=holds)
        if before == ModelStatus.ACTIVE:
            details: dict[str, Any] | None = None if until is None else {"until": new_end}
            if names_holder:
                holder = differences(("disabled_by",), (None,), (actor,))
                details = {**(details or {}), **(holder or {})}
        else:
            new = (old_by if is_disabled else actor, new_reason, new_end)
            details = differences(_DISABLED_COLUMNS, (old_by, old_reason, old_end), new)
            details = details and {"until": new_end, **details}
        return Decision(ModelStatus.DISABLED, event, details, reason, holds=holds)

    values = assignments(
        database,
        active="FALSE",
        auto_disabled="FALSE",
        disabled_at=f"CASE WHEN {ON} THEN {sql.now}"
        f" WHEN auto_disabled IS TRUE THEN coalesce(disabled_at, {sql.now}) ELSE disabled_at END",
        disabled_by=f"CASE WHEN {DISABLED} THEN disabled_by ELSE :actor END",
        disabled_reason="CASE WHEN active IS NOT TRUE AND CAST(:reason AS text) IS NULL"
        " THEN disabled_reason ELSE :reason END",
        disabled_until=end,
        would_disable="NULL",
        updated_at=sql.now,
    )
    write = f"UPDATE models SET {values} WHERE {sql.ids} RETURNING id"
    # The end may differ by a second: the column of an application may round it.
    status = (
        f"CASE WHEN abs(coalesce({sql.epoch('disabled_until')}, 0)"
        " - coalesce(CAST(:until AS double precision), 0)) > 1"
        f" THEN 'with another end' ELSE {STATUS} END"
    )
    parameters = {"actor": actor, "reason": reason, "until": until}
    hold = f"UPDATE {database.own}modelctl_origins SET switched_off_at = NULL WHERE {sql.is_among('model_id')}"
    return Change(reads, decide, write, parameters, status, hold)


def remove(database: Database, reason: str | None) -> Change:
    """Delete models."""
    reads = (
        "nullif(CAST(display_name AS text), ''), nullif(CAST(provider AS text), ''),"
        f" (SELECT o.source FROM {database.own}modelctl_origins o"
        f" WHERE o.model_id = models.id{database.sql.our_collation} AND o.gone_since IS NULL)"
    )

    def decide(row: Sequence[Any]) -> Decision:
        details = differences(("display_name", "provider"), row[2:4], (None, None))
        source = None if row[4] is None else readable(row[4])
        return Decision(None, "removed", details, reason, source=source)

    return Change(reads, decide, f"DELETE FROM models WHERE {database.sql.ids} RETURNING id", {})


def bring_back(database: Database, restart: int) -> Change:
    """Switch models on whose cooldown or timed disable is over.

    After a cooldown a model begins with *restart* failures and keeps its ejections. One that was
    disabled for a time is as healthy as before.
    """
    reads = f"consecutive_failures, ejections, {_disabled_columns(database)}"

    def decide(row: Sequence[Any]) -> Decision:
        _, before, failures, ejections, *old = row
        counts = whole(failures), whole(ejections)
        if before == ModelStatus.DISABLED:
            details, reason = _switched_on(old, counts, (0, 0)), "its time was over"
        else:
            details, reason = _switched_on(old, counts, (restart, counts[1])), None
        return Decision(ModelStatus.ACTIVE, "recovered", details, reason)

    now = database.sql.now
    values = assignments(
        database,
        active="TRUE",
        auto_disabled="FALSE",
        consecutive_failures="CASE WHEN auto_disabled IS TRUE THEN :restart ELSE 0 END",
        ejections="CASE WHEN auto_disabled IS TRUE THEN ejections ELSE 0 END",
        recovered_at=now,
        **CLEAR_DISABLED_COLUMNS,
        updated_at=now,
    )
    write = f"UPDATE models SET {values} WHERE {database.sql.ids} RETURNING id"
    return Change(reads, decide, write, {"restart": restart})
