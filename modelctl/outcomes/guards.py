"""The guards in the database: reads what the health rule has to know of the fleet, writes incidents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl import health
from modelctl.database.sql import text
from modelctl.model import numbered
from modelctl.models.events import NewEvent, log
from modelctl.tables.columns import AUTO_OFF, ON

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import sqlalchemy as sa

    from modelctl.config.config import Config
    from modelctl.database.database import Database

_INCIDENT = dict.fromkeys(("scope", "provider", "failure_type", "reason"), "text")


class StoredGuards:
    """The statements of the guards; each method works on the connection that it is given."""

    def __init__(self, config: Config, database: Database) -> None:
        self._rule = config.recovery
        self._database = database
        self._sql, self._own = database.sql, database.own

    def select_holds(self) -> str:
        """SQL of the pauses and incidents that are not over, for `with_holds`."""
        one_window_more = self._sql.seconds_from_now(":window")
        return (
            f"SELECT provider, failure_type, until > {one_window_more} AS lasting"
            f" FROM {self._own}modelctl_holds WHERE until > {self._sql.now}"
        )

    @property
    def window(self) -> dict[str, float]:
        """The parameter of `select_holds`."""
        return {"window": self._rule.incident_window}

    def with_holds(self, rows: Iterable[Sequence[Any]]) -> health.Guards:
        """Return guards that know the holds, and nothing of other models."""
        guards = health.Guards(self._rule)
        for provider, kind, lasting in rows:
            if kind is None:
                guards.pauses.add(provider)
                continue
            guards.incidents.add((provider, kind))
            if lasting:
                guards.lasting.add((provider, kind))
        return guards

    def read(self, connection: sa.Connection, providers: Collection[str] = ()) -> health.Guards:
        """Return guards that know the holds, and what concerns the models of these *providers*."""
        guards = self.with_holds(connection.execute(text(self.select_holds()), self.window))
        if not providers:
            return guards
        if self._rule.min_active:
            sql = f"SELECT count(*) FROM models WHERE {ON}"
            guards.active = connection.scalar(text(sql)) or 0
        theirs = self._sql.is_among("coalesce(models.provider, '')")
        parameters = {"ids": self._sql.list_of_texts(sorted(providers))}
        sql = (
            f"SELECT coalesce(provider, ''), count(*), count(*) FILTER (WHERE {ON}),"
            f" count(*) FILTER (WHERE {AUTO_OFF}) FROM models WHERE {theirs} GROUP BY 1"
        )
        for provider, *numbers in connection.execute(text(sql), parameters):
            guards.shares[provider] = health.Share(*numbers)
        if self._rule.incident_models:
            self._read_failures(connection, guards, theirs, parameters | self.window)
            self._read_ejected(connection, guards, theirs, parameters | self.window)
        return guards

    def _read_failures(
        self,
        connection: sa.Connection,
        guards: health.Guards,
        theirs: str,
        parameters: dict[str, Any],
    ) -> None:
        """Read which models reached the threshold or are spared, within the last window."""
        window_ago = self._sql.seconds_from_now("-:window")
        # A model that is spared and fails again has no new event.
        sql = (
            "SELECT coalesce(provider, ''), failure_type, id FROM models"
            f" WHERE {ON} AND would_disable <> '' AND last_failure_at > {window_ago} AND {theirs}"
        )
        for provider, kind, model_id in connection.execute(text(sql), parameters):
            guards.spared.setdefault((provider, kind), set()).add(model_id)
        sql = (
            f"SELECT coalesce(models.provider, ''), e.failure_type, models.id, {ON}"
            f" FROM {self._own}modelctl_events e JOIN models ON models.id = e.model_id"
            " WHERE e.event IN ('auto-disabled', 'would-disable')"
            f" AND e.at > {window_ago} AND {theirs}"
        )
        for provider, kind, model_id, is_on in connection.execute(text(sql), parameters):
            guards.reachers.setdefault((provider, kind), set()).add(model_id)
            if not is_on:
                guards.off.add(model_id)

    def _read_ejected(
        self,
        connection: sa.Connection,
        guards: health.Guards,
        theirs: str,
        parameters: dict[str, Any],
    ) -> None:
        """Read which models the rule switched off since an incident began, or within a window before."""
        epoch = self._sql.epoch
        sql = (
            "SELECT coalesce(models.provider, ''), models.id FROM models LEFT JOIN"
            f" (SELECT provider, min({epoch('since')}) AS began"
            f" FROM {self._own}modelctl_holds"
            f" WHERE failure_type IS NOT NULL AND until > {self._sql.now} GROUP BY provider)"
            " AS incident ON incident.provider = coalesce(models.provider, '')"
            f" WHERE {AUTO_OFF} AND {theirs} AND {epoch('disabled_at')} >"
            f" coalesce(incident.began, {epoch(self._sql.now)}) - :window"
        )
        for provider, model_id in connection.execute(text(sql), parameters):
            guards.ejected.setdefault(provider, set()).add(model_id)

    def write_incidents(self, connection: sa.Connection, guards: health.Guards) -> None:
        """Write the incidents that began or went on.

        The end is written as one and a half windows from now. It is written again only if a failure
        comes when less than one window is left, so not for every failure. Therefore an incident ends
        between one window and one and a half windows after its last failure.
        """
        reasons = {incident: numbered(models) for incident, models in guards.began.items()}
        rows = [
            (health.scope_of(provider, kind), provider, kind, reasons.get((provider, kind)))
            for provider, kind in guards.went_on | guards.began.keys()
        ]
        if not rows:
            return
        now, seconds_from_now = self._sql.now, self._sql.seconds_from_now
        sql = f"DELETE FROM {self._own}modelctl_holds WHERE until <= {now}"
        connection.execute(text(sql))
        sql = (
            f"INSERT INTO {self._own}modelctl_holds"
            " (scope, provider, failure_type, since, until, reason, actor)"
            f" SELECT scope, provider, failure_type, {now}, {seconds_from_now('1.5 * :window')},"
            f" reason, '{health.HEALTH_RULE}' FROM {self._sql.rows('incident', _INCIDENT)} WHERE TRUE"
            " ON CONFLICT (scope) DO UPDATE SET until = excluded.until"
            f" WHERE modelctl_holds.until <= {seconds_from_now(':window')}"
        )
        connection.execute(text(sql), self._sql.values(_INCIDENT, rows) | self.window)
        events = [
            NewEvent("", "incident", reason=reason, failure_type=kind, provider=provider)
            for (provider, kind), reason in reasons.items()
        ]
        log(self._database, connection, events, health.HEALTH_RULE)
