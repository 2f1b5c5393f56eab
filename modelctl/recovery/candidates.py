"""Which models may come back by themselves, when, and why each of them still waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl.database import bulk
from modelctl.database.sql import text
from modelctl.models.returning import (
    FOR_A_PERSON,
    cooldown_parameters,
    due_at,
    is_paused,
    may_return,
    retry_at,
)
from modelctl.recovery.results import Candidate, Waiting
from modelctl.tables import selection
from modelctl.tables.columns import AUTO_OFF, ON, TIMED_OFF
from modelctl.tables.ids import is_storable
from modelctl.tables.odd_values import readable
from modelctl.times import time_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelctl.config.config import Config
    from modelctl.database.database import Database
    from modelctl.tables.selection import Selection


class Candidates:
    """Reads the models that are off and may come back without a person.

    With a *selection* only its models are candidates.
    """

    def __init__(
        self, config: Config, database: Database, selection: Selection | None = None
    ) -> None:
        self._rule = config.recovery
        self._selection = selection
        self._database = database
        self._sql = database.sql

    # ── Conditions in SQL, which other statements of this wing use too ──

    @property
    def may_return(self) -> str:
        """The condition of a candidate: it may come back by itself at some time."""
        condition = may_return(self._sql)
        if self._selection is not None:
            condition += f" AND {selection.condition(self._database, self._selection)}"
        if not self._database.on_sqlite:
            return condition
        # SQLite's planner does not combine two indexes for an OR.
        off = "SELECT id FROM models WHERE"
        return f"{condition} AND id IN ({off} {AUTO_OFF} UNION ALL {off} {TIMED_OFF})"

    @property
    def why_waiting(self) -> str:
        """Why a candidate does not come back at :now; NULL if it is due. No other SQL decides this."""
        return (
            f"CASE WHEN auto_disabled IS TRUE AND {FOR_A_PERSON} THEN 'person'"
            f" WHEN {is_paused(self._database)} THEN 'paused'"
            f" WHEN {due_at(self._sql)} > :now"
            " THEN CASE WHEN auto_disabled IS TRUE THEN 'cooldown' ELSE 'timed' END END"
        )

    def parameters(self, cooldowns: Sequence[float] | None, now: float) -> dict[str, Any]:
        """Return the parameters of these conditions.

        *cooldowns*: seconds, instead of the configured ones. *now*: seconds since 1970.
        """
        of_selection = (
            {} if self._selection is None else selection.parameters(self._sql, self._selection)
        )
        return of_selection | {
            "max_ejections": self._rule.max_ejections,
            "now": now,
            **cooldown_parameters(self._sql, self._rule, cooldowns),
        }

    # ── Reads ──

    def clock(self) -> float:
        """Return the database's clock (seconds since 1970)."""
        with self._database.reading() as connection:
            sql = f"SELECT {self._sql.epoch(self._sql.now)}"
            return float(connection.scalar(text(sql)) or 0)

    def plan(
        self, *, cooldowns: Sequence[float] | None = None, ids: Sequence[str] | None = None
    ) -> Iterator[Candidate]:
        """Give each candidate and why it waits, the first to come back first.

        *cooldowns*: seconds, instead of the configured ones. *ids*: only these models.
        All rows are read before the first candidate is given, so that a slow caller holds no
        connection.
        """
        now = self.clock()
        only = f" AND {self._sql.ids}" if ids is not None else ""
        sql = (
            "SELECT id, provider, timed, retry, why FROM (SELECT id, coalesce(provider, '') AS provider,"
            f" auto_disabled IS NOT TRUE AS timed, {retry_at(self._database)} AS retry,"
            f" {self.why_waiting} AS why FROM models WHERE {self.may_return}{only}) AS candidates"
            f" ORDER BY retry NULLS LAST, {self._sql.by_id}"
        )
        parameters = self.parameters(cooldowns, now)
        if ids is not None:
            parameters["ids"] = self._sql.list_of_texts(ids)
        for model_id, provider, timed, retry, why in bulk.spooled(
            self._database, text(sql), parameters
        ):
            if not isinstance(model_id, str) or not is_storable(model_id):
                why = "unreadable"
            at = None if retry is None else time_at(retry, now, self._sql.digits_of_a_second)
            waiting = None
            if why is not None:
                left = None if at is None else max(0.0, at.timestamp() - now)
                waiting = Waiting(readable(model_id), at, left, why)
            yield Candidate(readable(model_id), readable(provider), bool(timed), at, waiting)

    def due_ids(self, parameters: dict[str, Any], limit: int | None) -> Iterator[str]:
        """Give the ids of the models that are due, at most *limit* of them, all read at once.

        The longest waiting come first. Only without a limit, and if they are more than a chunk,
        they come as they lie on disk: chunks of neighbours cost half.
        """
        due = (
            f"SELECT id, {due_at(self._sql)} AS due FROM models"
            f" WHERE {self.may_return} AND ({self.why_waiting}) IS NULL"
        )
        if limit is not None:
            sql = f"{due} ORDER BY due, {self._sql.by_id} LIMIT :size"
            parameters = parameters | {"size": limit}
            return iter(bulk.spooled(self._database, text(sql), parameters, lambda row: row[0]))
        sql = due if self._database.on_sqlite else f"{due} ORDER BY ctid"
        found: Sequence[Any] = bulk.spooled(self._database, text(sql), parameters)
        if len(found) <= bulk.CHUNK:
            found = sorted(found, key=lambda row: (row[1], readable(row[0])))
        return (row[0] for row in found)

    def ahead(self, model_id: str) -> int:
        """Return how many models are due and come back before this one."""
        sql = (
            f"WITH due AS (SELECT id, {due_at(self._sql)} AS due FROM models"
            f" WHERE {self.may_return} AND ({self.why_waiting}) IS NULL)"
            " SELECT count(*) FROM due, (SELECT * FROM due WHERE id = :id) AS this"
            " WHERE due.due < this.due"
            f" OR (due.due = this.due AND due.id < this.id{self._sql.collation})"
        )
        parameters = self.parameters(None, self.clock()) | {"id": model_id}
        with self._database.reading() as connection:
            return connection.scalar(text(sql), parameters) or 0

    def for_a_person(self) -> list[str]:
        """Return models that were ejected too often to come back by themselves, at most 4."""
        sql = (
            f"SELECT id FROM models WHERE {AUTO_OFF} AND {FOR_A_PERSON}"
            f" ORDER BY {self._sql.by_id} LIMIT 4"
        )
        parameters = {"max_ejections": self._rule.max_ejections}
        with self._database.reading() as connection:
            return [*map(readable, connection.execute(text(sql), parameters).scalars())]

    def spared(self) -> list[tuple[str, str]]:
        """Return models that a guard kept on, and which guard (at most 4)."""
        sql = (
            f"SELECT id, would_disable FROM models WHERE {ON} AND would_disable <> ''"
            f" ORDER BY {self._sql.by_id} LIMIT 4"
        )
        with self._database.reading() as connection:
            return [(readable(row[0]), readable(row[1])) for row in connection.execute(text(sql))]
