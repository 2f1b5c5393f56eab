"""The changes of status in SQL, and how one is applied.

The order of locking, logging and writing is the point of them: on PostgreSQL one statement (a CTE
that locks, logs and writes), on SQLite the same fragments as three statements inside BEGIN
IMMEDIATE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelctl.database.sql import Sql, text
from modelctl.model import ModelStatus
from modelctl.models.results import KeptChange, StatusChange
from modelctl.tables.application import KeptError
from modelctl.tables.columns import AUTO_OFF, STATUS, TIMED_OFF
from modelctl.tables.statements import Statements

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class Change:
    """What one command does to the rows it finds, in SQL.

    *flags*: what it needs to know of the row as it was, by name. *after*, *event* (NULL: there
    is none) and *note* (for people) are over ``before`` and the flags; *details*, of the event,
    over all of these; *assign* over the row and, as ``touched.``, all of these; *standing* over the
    row afterwards.
    """

    event: str
    after: str
    assign: str | None  # None: delete the row
    flags: tuple[tuple[str, str], ...] = ()
    reason: str = "CAST(:reason AS text)"
    details: str = "NULL"
    note: str = "CAST(NULL AS text)"
    write: str = "touched.event IS NOT NULL"  # which rows
    standing: str = STATUS  # of the row after that: equal to `after`, unless something undid it


def _during(kind: str) -> str:
    """The holds of a model that last, as what follows FROM."""
    return (
        f"{{own}}modelctl_holds h WHERE h.until > {{now}}"
        f" AND {kind} AND (h.provider IS NULL OR h.provider = coalesce(models.provider, ''))"
    )


# Seconds since 1970 that are before and after every time.
LONG_AGO, NEVER = "-1e18", "1e18"
_PAUSE = "h.failure_type IS NULL"
PAUSED = f"EXISTS (SELECT 1 FROM {_during(_PAUSE)})"
# What stays off until a person comes, however long ago it failed.
FOR_A_PERSON = "(:max_ejections > 0 AND coalesce(ejections, 0) >= :max_ejections)"
# Off until a person comes: without an end, or with one that never comes.
_ENDLESS = "active IS NOT TRUE AND auto_disabled IS NOT TRUE AND ({until_comes}) IS NOT TRUE"
_TIMED = "CAST(:until AS double precision) IS NOT NULL"
_OLD_DISABLED = (
    # '' where the column of an application is NOT NULL.
    ("old_by", "nullif(CAST(disabled_by AS text), '')"),
    ("old_reason", "nullif(CAST(disabled_reason AS text), '')"),
    ("old_until", "{old_until}"),
)
_OLD_COUNTS = (
    ("old_failures", "coalesce(consecutive_failures, 0)"),
    ("old_ejections", "coalesce(ejections, 0)"),
)


def _differences(*fields: tuple[str, str, str], also: str = "") -> str:
    """JSON of those fields (name, old and new value) that differ; NULL where none does."""
    rows = " UNION ALL ".join(
        f"SELECT '{name}' AS field, {{json}}({old}) AS was, {{json}}({new}) AS is_now"
        for name, old, new in fields
    )
    return (
        f"(SELECT CASE WHEN count(*) > 0 THEN {{object}}({also}'old', {{collect}}(field, was),"
        f" 'new', {{collect}}(field, is_now)) END FROM ({rows}) AS f WHERE was {{is_not}} is_now)"
    )


_NO_TEXT = "CAST(NULL AS text)"
_ON_AGAIN = (
    ("disabled_by", "old_by", _NO_TEXT),
    ("disabled_reason", "old_reason", _NO_TEXT),
    ("disabled_until", "old_until", _NO_TEXT),
)
_NEVER_MIND = (
    "disabled_at = NULL, disabled_by = NULL, disabled_reason = NULL, disabled_until = NULL,"
    " would_disable = NULL"
)

ENABLE = Change(
    # A model that is on already starts afresh, too.
    flags=(
        ("off", "active IS NOT TRUE"),
        (
            "failing",
            "coalesce(consecutive_failures, 0) <> 0 OR coalesce(ejections, 0) <> 0"
            " OR coalesce(would_disable, '') <> ''",
        ),
        *_OLD_DISABLED,
        *_OLD_COUNTS,
    ),
    write="touched.off OR touched.failing",
    event="CASE WHEN off THEN 'enabled' END",
    after="'active'",
    details=_differences(
        *_ON_AGAIN,
        ("consecutive_failures", "old_failures", "0"),
        ("ejections", "old_ejections", "0"),
    ),
    assign="active = TRUE, auto_disabled = FALSE, consecutive_failures = 0, ejections = 0,"
    " recovered_at = CASE WHEN touched.off THEN {now} ELSE recovered_at END,"
    f" {_NEVER_MIND}, updated_at = {{now}}",
)
_NEW_BY = "CASE WHEN before = 'disabled' THEN old_by ELSE CAST(:actor AS text) END"
_NEW_REASON = "coalesce({stored_reason}, old_reason)"
DISABLE = Change(
    flags=(
        # A person switched it off for good: an end would bring it back.
        ("kept", f"{_TIMED} AND NOT CAST(:force AS boolean) AND {_ENDLESS}"),
        ("other_until", "disabled_until {is_not} {until}"),
        *_OLD_DISABLED,
    ),
    event="CASE WHEN kept THEN NULL WHEN before <> 'disabled' OR other_until THEN 'disabled'"
    f" WHEN old_reason {{is_not}} {_NEW_REASON} THEN 'updated' END",
    after="'disabled'",
    note="CASE WHEN kept THEN 'without an end; kept' END",
    details="CASE WHEN before <> 'active' THEN "
    + _differences(
        ("disabled_by", "old_by", _NEW_BY),
        ("disabled_reason", "old_reason", _NEW_REASON),
        ("disabled_until", "old_until", "{new_until}"),
        also="'until', {new_until}, ",
    )
    + f" WHEN {_TIMED} THEN {{object}}('until', {{new_until}}) END",
    # Of a model that is off already: since when, and why unless there is a new reason, stay.
    assign="active = FALSE, auto_disabled = FALSE,"
    " disabled_at = CASE touched.before WHEN 'disabled' THEN disabled_at"
    " WHEN 'auto-disabled' THEN coalesce(disabled_at, {now}) ELSE {now} END,"
    " disabled_by = CASE WHEN touched.before = 'disabled' THEN disabled_by ELSE :actor END,"
    " disabled_reason = CASE WHEN touched.before <> 'active' AND CAST(:reason AS text) IS NULL"
    " THEN disabled_reason ELSE :reason END,"
    " disabled_until = {until}, would_disable = NULL, updated_at = {now}",
    # The application's column may round it to seconds.
    standing="CASE WHEN abs(coalesce({end}, 0) - coalesce(CAST(:until AS double precision), 0)) > 1"
    f" THEN 'with another end' ELSE {STATUS} END",
)
REMOVE = Change(
    flags=(
        ("old_name", "nullif(CAST(display_name AS text), '')"),
        ("old_provider", "nullif(CAST(provider AS text), '')"),
    ),
    event="'removed'",
    after="CAST(NULL AS text)",
    details=_differences(
        ("display_name", "old_name", _NO_TEXT), ("provider", "old_provider", _NO_TEXT)
    ),
    assign=None,
    write="TRUE",
)
RECOVER = Change(
    flags=(("timed", "auto_disabled IS NOT TRUE"), *_OLD_DISABLED, *_OLD_COUNTS),
    event="'recovered'",
    after="'active'",
    reason="CASE WHEN timed THEN 'its time was over' END",
    details=_differences(
        *_ON_AGAIN,
        (
            "consecutive_failures",
            "old_failures",
            "CASE WHEN timed THEN 0 ELSE CAST(:restart AS integer) END",
        ),
        ("ejections", "old_ejections", "CASE WHEN timed THEN 0 ELSE old_ejections END"),
    ),
    # A model that was off for a time is as healthy as before.
    assign="active = TRUE, auto_disabled = FALSE,"
    " consecutive_failures = CASE WHEN touched.timed THEN 0 ELSE :restart END,"
    " ejections = CASE WHEN touched.timed THEN 0 ELSE ejections END,"
    f" recovered_at = {{now}}, {_NEVER_MIND}, updated_at = {{now}}",
)


def off_since(sql: Sql) -> str:
    """When the cooldown of an auto-disabled model began, in seconds; NULL: no time is stored."""
    times = map(sql.epoch, ("last_failure_at", "disabled_at", "updated_at"))
    return f"coalesce({', '.join(times)})"


class Changes(Statements):
    """Applies changes, inside of a transaction or as one; says when a model comes back."""

    @property
    def may_return(self) -> str:
        """Whether a model may come back by itself, ever."""
        ends = self.sql.is_finite("disabled_until")
        return f"(({AUTO_OFF}) OR ({TIMED_OFF} AND {ends}))"

    @property
    def due(self) -> str:
        """When its cooldown or its timed disable ends (seconds since 1970); long ago: nobody knows."""
        until = self.sql.epoch("disabled_until")
        cooldown = f"coalesce({off_since(self.sql)} + {self.sql.cooldown}, {LONG_AGO})"
        return f"CASE WHEN auto_disabled IS TRUE THEN {cooldown} ELSE {until} END"

    @property
    def retry(self) -> str:
        """When it comes back at the earliest, a pause included; NULL: when a person enables it."""
        end = self.sql.epoch("h.until")
        paused = (
            f"coalesce((SELECT max(coalesce({end}, {NEVER})) FROM {_during(_PAUSE)}), {LONG_AGO})"
        )
        retry = self.sql.greater(self.due, self.filled(paused))
        waits = f"auto_disabled IS TRUE AND {FOR_A_PERSON}"
        return f"CASE WHEN {self.may_return} AND NOT ({waits}) THEN {retry} END"

    def filled(self, fragment: str) -> str:
        """Write a fragment in this database's SQL."""
        epoch = self.sql.epoch
        until = self.sql.time("CAST(:until AS double precision)")
        return (
            fragment.replace("{own}", self.own)
            .replace("{stored_reason}", self.stored_reason)
            .replace("{until}", until)
            .replace("{end}", epoch("disabled_until"))
            .replace("{until_comes}", self.sql.is_finite("disabled_until"))
            .replace("{old_until}", self.sql.time_as_text("disabled_until"))
            .replace("{new_until}", self.sql.time_as_text(until))
            .replace("{json}", "" if self.on_sqlite else "to_jsonb")
            .replace("{object}", "json_object" if self.on_sqlite else "jsonb_build_object")
            .replace("{collect}", "json_group_object" if self.on_sqlite else "jsonb_object_agg")
            .replace("{is_not}", "IS NOT" if self.on_sqlite else "IS DISTINCT FROM")
            .replace("{now}", self.sql.now)
        )

    @property
    def stored_reason(self) -> str:
        """The reason as a narrow column of the application keeps it, NULL where there is none."""
        column = self.database.columns.get("disabled_reason")
        length = column.length if column else None
        return f"left(CAST(:reason AS text), {length})" if length else "CAST(:reason AS text)"

    def _steps(self, change: Change) -> tuple[str, str, str]:
        """Return how to find the rows (what follows WHERE is to come), log them and write them."""
        flags = "".join(f", {flag} AS {name}" for name, flag in change.flags)
        found = f"SELECT id, {STATUS} AS before{flags} FROM models WHERE "
        log = (
            f"INSERT INTO {self.own}modelctl_events"
            " (model_id, event, before, after, actor, reason, failure_type, details)"
            f" SELECT id, event, before, after, CAST(:actor AS text), {change.reason},"
            f" CAST(:failure_type AS text), {change.details}"
            f" FROM touched WHERE event IS NOT NULL ORDER BY {self.sql.by_id}"
        )
        if change.assign is None:
            write = "DELETE FROM models WHERE id IN (SELECT id FROM touched) RETURNING id"
        else:
            write = (
                f"UPDATE models SET {self.fitting(change.assign)} FROM touched"
                f" WHERE models.id = touched.id AND ({change.write})"
                " RETURNING models.id"
            )
        return self.filled(found), self.filled(log), self.filled(write)

    def _decided(self, change: Change) -> str:
        """What becomes of a row: what follows SELECT, over what was found."""
        return self.filled(
            f"*, {change.after} AS after, {change.event} AS event, {change.note} AS note"
        )

    def one_statement(self, change: Change, which: str) -> str:
        """The three steps in one, for PostgreSQL; *which* as in `apply`."""
        found, log, write = self._steps(change)
        return (
            f"WITH found AS ({found} {which}),"
            f" touched AS (SELECT {self._decided(change)} FROM found),"
            f" logged AS ({log}), written AS ({write})"
            " SELECT id, before, after, event, note, ("
            f"{change.write}) AND NOT EXISTS"
            " (SELECT 1 FROM written WHERE written.id = touched.id) FROM touched"
        )

    def statuses(self, standing: str = STATUS) -> str:
        """How the models named by :ids are now, for `as_it_was_to_be`."""
        return f"SELECT id, {self.filled(standing)} FROM models WHERE {self.sql.ids}"

    def apply(
        self, connection: sa.Connection, change: Change, which: str, parameters: dict[str, Any]
    ) -> list[StatusChange]:
        """Lock the rows, write their events, then the rows; return what became of each.

        *which*: what follows WHERE in the SELECT that finds and locks them.

        Raises:
            KeptError: a trigger or rule of somebody else's left rows as they were.
        """
        if self.on_sqlite:
            rows: Sequence[Any] = self._apply_in_steps(connection, change, which, parameters)
        else:
            rows = connection.execute(text(self.one_statement(change, which)), parameters).all()
        now = connection.execute(text(self.statuses(change.standing)), parameters).all()
        return as_it_was_to_be(rows, now)

    def _apply_in_steps(
        self, connection: sa.Connection, change: Change, which: str, parameters: dict[str, Any]
    ) -> list[Sequence[Any]]:
        # No writing CTE here, but nobody else writes meanwhile: the steps work on what was found.
        find, *steps = self._steps(change)
        flags = (name for name, _ in change.flags)
        names = ("id", "before", *flags, "after", "event", "note")
        sql = (
            f"SELECT *, ({change.write}) FROM"
            f" (SELECT {self._decided(change)} FROM ({find} {which})) AS touched"
        )
        found = connection.execute(text(sql), parameters).all()
        relation = self.sql.rows("found", dict.fromkeys(names, ""))
        these = parameters | self.sql.values(names, [row[:-1] for row in found])
        log, write = (f"WITH touched AS (SELECT * FROM {relation}) {step}" for step in steps)
        connection.execute(text(log), these)
        written = {*connection.execute(text(write), these).scalars()}
        return [(*row[:2], *row[-4:-1], row[-1] and row[0] not in written) for row in found]


def as_it_was_to_be(
    rows: Sequence[Sequence[Any]], standing: Sequence[Sequence[Any]]
) -> list[StatusChange]:
    """Return what became of each row (see `status_change`; last: whether it was not written).

    *standing*: id and `Change.standing` of each row after that.

    Raises:
        KeptError: rows are not as they were to be.
    """
    now = {row[0]: row[1] for row in standing}
    # What was left as it was, with a note, has an end of its own.
    kept = [row[0] for row in rows if row[-1] or (row[4] is None and now.get(row[0]) != row[2])]
    if kept:
        raise KeptError(kept)
    return [*map(status_change, rows)]


def status_change(row: Sequence[Any]) -> StatusChange:
    """Read (id, before, after, event, note, ...) by position: SQLite spells columns as they were
    made.
    """
    model_id, before, after, event, note, _ = row
    before, after = before and ModelStatus(before), after and ModelStatus(after)
    if note is not None:
        return KeptChange(model_id, before, after, False, note)
    return StatusChange(model_id, before, after, event is not None)
