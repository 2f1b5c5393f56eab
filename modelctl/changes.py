"""The changes of status in SQL, and how one is applied.

The order of locking, logging and writing is the point of them: on PostgreSQL one statement (a CTE
that locks, logs and writes), on SQLite the same fragments as three statements inside BEGIN
IMMEDIATE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl import health
from modelctl.model import ModelStatus
from modelctl.record import record
from modelctl.results import StatusChange
from modelctl.tables import AUTO_OFF, ON, STATUS, Statements, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa


@record
class Change:
    """What one command does to the rows it finds, in SQL.

    *flags*: what it needs to know of the row as it was, by name. *after* and *event* (NULL: there
    is none) are over ``before`` and the flags; *assign* over the row and, as ``touched.``, all
    of these.
    """

    event: str
    after: str
    assign: str | None  # None: delete the row
    flags: tuple[tuple[str, str], ...] = ()
    reason: str = "CAST(:reason AS text)"
    details: str = "NULL"  # of the event; over what *after* is, and after itself
    write: str | None = "touched.event IS NOT NULL"  # which rows; None: every one


def _holds(kind: str, beyond: str = "{now}") -> str:
    return (
        f"EXISTS (SELECT 1 FROM {{own}}modelctl_holds h WHERE h.until > {beyond}"
        f" AND {kind} AND (h.provider IS NULL OR h.provider = coalesce(models.provider, '')))"
    )


PAUSED = _holds("h.failure_type IS NULL")
# What stays off until a person comes, however long ago it failed.
FOR_A_PERSON = "(:max_ejections > 0 AND coalesce(ejections, 0) >= :max_ejections)"
REACHED = (
    f"{ON} AND CAST(:counted AS boolean) AND coalesce(consecutive_failures, 0) + 1 >= :threshold"
)
TRUSTED = (
    f"{ON} AND coalesce(ejections, 0) > 0 AND coalesce({{back}} + {{cooldown}}, 0) <= {{epoch}}"
)
_NEVER_MIND = (
    "disabled_at = NULL, disabled_by = NULL, disabled_reason = NULL, disabled_until = NULL,"
    " would_disable = NULL"
)
_INCIDENT = "h.failure_type = CAST(:failure_type AS text)"
_OFF = "touched.event = 'auto-disabled'"

ENABLE = Change(
    # One that is on already is trusted by this, too.
    flags=(("off", "active IS NOT TRUE"), ("ejected", "coalesce(ejections, 0) > 0")),
    write="touched.off OR touched.ejected",
    event="CASE WHEN off THEN 'enabled' END",
    after="'active'",
    assign="active = TRUE, auto_disabled = FALSE, consecutive_failures = 0, ejections = 0,"
    f" failure_reason = NULL, recovered_at = {{now}}, {_NEVER_MIND}, updated_at = {{now}}",
)
DISABLE = Change(
    flags=(("news", f"{ON} OR auto_disabled IS TRUE OR {{until_differs}}"),),
    event="CASE WHEN news THEN 'disabled' END",
    after="'disabled'",
    details="CASE WHEN CAST(:until AS double precision) IS NOT NULL"
    " THEN {object}('until', {new_until}) END",
    assign="active = FALSE, auto_disabled = FALSE, disabled_at = {now}, disabled_by = :actor,"
    " disabled_reason = :reason, disabled_until = {until}, would_disable = NULL,"
    " updated_at = {now}",
)
REMOVE = Change(event="'removed'", after="CAST(NULL AS text)", assign=None)
RECOVER = Change(
    flags=(("timed", "auto_disabled IS NOT TRUE"),),
    event="'recovered'",
    after="'active'",
    reason="CASE WHEN timed THEN 'its time was over' END",
    # Who was off for a time is as healthy as before.
    assign="active = TRUE, auto_disabled = FALSE,"
    " consecutive_failures = CASE WHEN touched.timed THEN 0 ELSE :restart END,"
    " ejections = CASE WHEN touched.timed THEN 0 ELSE ejections END,"
    " failure_reason = CASE WHEN touched.timed THEN NULL ELSE failure_reason END,"
    f" recovered_at = {{now}}, {_NEVER_MIND}, updated_at = {{now}}",
)
SUCCESS = Change(
    flags=(
        ("back", f"{AUTO_OFF} AND NOT {FOR_A_PERSON} AND NOT {PAUSED}"),
        ("trusted", TRUSTED),
    ),
    event="CASE WHEN back THEN 'recovered' END",
    after="CASE WHEN back THEN 'active' ELSE before END",
    assign="success_count = coalesce(success_count, 0) + 1, last_success_at = {now},"
    " consecutive_failures = 0, failure_reason = NULL, would_disable = NULL,"
    " ejections = CASE WHEN touched.trusted THEN 0 ELSE ejections END,"
    " recovered_at = CASE WHEN touched.back THEN {now} ELSE recovered_at END,"
    " active = CASE WHEN touched.back THEN TRUE ELSE active END,"
    " auto_disabled = CASE WHEN touched.back THEN FALSE ELSE auto_disabled END,"
    " disabled_at = CASE WHEN touched.back THEN NULL ELSE disabled_at END,"
    " disabled_by = CASE WHEN touched.back THEN NULL ELSE disabled_by END,"
    " disabled_reason = CASE WHEN touched.back THEN NULL ELSE disabled_reason END,"
    " updated_at = {now}",
    write=None,
)
FAILURE = Change(
    flags=(
        ("reached", REACHED),
        ("noted", "would_disable IS NOT NULL"),
        (
            "held",
            f"CASE WHEN NOT ({REACHED}) THEN NULL WHEN {PAUSED} THEN 'paused'"
            f" WHEN {_holds(_INCIDENT)} THEN 'incident' END",
        ),
    ),
    event="CASE WHEN reached AND held IS NULL THEN 'auto-disabled'"
    " WHEN reached AND NOT noted THEN 'would-disable' END",
    after="CASE WHEN reached AND held IS NULL THEN 'auto-disabled' ELSE before END",
    details="CASE WHEN event = 'would-disable' THEN {object}('guard', held) END",
    assign="failure_count = coalesce(failure_count, 0) + 1, last_failure_at = {now},"
    " consecutive_failures = coalesce(consecutive_failures, 0)"
    " + CASE WHEN CAST(:counted AS boolean) THEN 1 ELSE 0 END,"
    " failure_type = :failure_type, failure_reason = :reason,"
    f" ejections = coalesce(ejections, 0) + CASE WHEN {_OFF} THEN 1 ELSE 0 END,"
    f" disabled_at = CASE WHEN {_OFF} THEN {{now}} ELSE disabled_at END,"
    f" disabled_by = CASE WHEN {_OFF} THEN '{health.HEALTH_RULE}' ELSE disabled_by END,"
    f" disabled_reason = CASE WHEN {_OFF} THEN coalesce(CAST(:reason AS text),"
    " CAST(:failure_type AS text)) ELSE disabled_reason END,"
    f" auto_disabled = CASE WHEN {_OFF} THEN TRUE ELSE auto_disabled END,"
    f" active = CASE WHEN {_OFF} THEN FALSE ELSE active END,"
    " would_disable = CASE WHEN touched.reached THEN touched.held ELSE would_disable END,"
    " updated_at = {now}",
    write=None,
)


# A failure in which the other models have no say: below the threshold, or of one that is spared by a
# hold, as was noted, which lasts a window more.
UNDISPUTED = (
    f"NOT ({REACHED}) OR (would_disable = 'paused' AND {PAUSED})"
    f" OR (would_disable = 'incident' AND {_holds(_INCIDENT, '{window}')})"
)


class Changes(Statements):
    """Applies changes, inside of a transaction or as one."""

    def filled(self, fragment: str) -> str:
        """Write a fragment in this database's SQL."""
        epoch = self.sql.epoch
        until = self.sql.time.format(epoch="CAST(:until AS double precision)")
        return (
            fragment.replace("{own}", self.own)
            .replace("{until_differs}", self.sql.differs)
            .replace("{one}", "disabled_until")
            .replace("{other}", until)
            .replace("{until}", until)
            .replace("{new_until}", self.sql.written.format(time=until))
            .replace("{object}", self.sql.object)
            .replace("{back}", epoch.format(time="recovered_at"))
            .replace("{cooldown}", self.sql.cooldown)
            .replace("{window}", self.sql.shifted.format(seconds=":window"))
            .replace("{epoch}", epoch.format(time=self.sql.now))
            .replace("{now}", self.sql.now)
        )

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
            write = "DELETE FROM models WHERE id IN (SELECT id FROM touched)"
        else:
            write = f"UPDATE models SET {change.assign} FROM touched WHERE models.id = touched.id"
            if change.write:
                write += f" AND ({change.write})"
        return self.filled(found), self.filled(log), self.filled(write)

    def one_statement(
        self, change: Change, which: str, answer: str = "id, before, after, event"
    ) -> str:
        """The three steps in one, for PostgreSQL; *which* as in `apply`, *answer* what comes back."""
        found, log, write = self._steps(change)
        return (
            f"WITH found AS ({found} {which}),"
            f" touched AS (SELECT *, {change.after} AS after, {change.event} AS event FROM found),"
            f" logged AS ({log}), written AS ({write})"
            f" SELECT {answer} FROM touched"
        )

    def apply(
        self, connection: sa.Connection, change: Change, which: str, parameters: dict[str, Any]
    ) -> list[StatusChange]:
        """Lock the rows, write their events, then the rows; return what became of each.

        *which*: what follows WHERE in the SELECT that finds and locks them.
        """
        if not self.on_sqlite:
            sql = self.one_statement(change, which)
            return [*map(status_change, connection.execute(text(sql), parameters))]
        # No writing CTE here, but nobody else writes meanwhile: the steps work on what was found.
        find, *steps = self._steps(change)
        names = ("id", "before", *(name for name, _ in change.flags), "after", "event")
        sql = f"SELECT *, {change.after} AS after, {change.event} AS event FROM ({find} {which})"
        found = connection.execute(text(sql), parameters).all()
        relation = self.sql.rows("found", dict.fromkeys(names, ""))
        these = parameters | self.sql.values(names, found)
        for step in steps:
            connection.execute(text(f"WITH touched AS (SELECT * FROM {relation}) {step}"), these)
        return [status_change((row[0], row[1], *row[-2:])) for row in found]


def status_change(row: Sequence[Any]) -> StatusChange:
    """Read (id, before, after, event); by position: SQLite spells the columns as they were made."""
    model_id, before, after, event = row
    return StatusChange(
        model_id,
        before and ModelStatus(before),
        after and ModelStatus(after),
        event not in (None, "would-disable"),
    )
