"""Holds: pauses of automatic switching, and incidents of a provider. Each has an end."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from modelctl.database.sql import text
from modelctl.health import Hold, scope_of
from modelctl.models.events import NewEvent, differences, log
from modelctl.tables.columns import UtcTime
from modelctl.times import FOREVER, written

if TYPE_CHECKING:
    from modelctl.database.database import Database


class Holds:
    """Reads the holds, and begins and ends pauses."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.sql
        self._now = self._sql.now
        self._table = f"{database.own}modelctl_holds"

    def current(self) -> tuple[Hold, ...]:
        """Return the pauses and incidents that are not over yet."""
        sql = (
            f"SELECT provider, failure_type, since, until, reason, actor, {self._now} AS now"
            f" FROM {self._table} WHERE until > {self._now}"
            f" ORDER BY scope{self._sql.collation}"
        )
        query = sa.text(sql).columns(since=UtcTime, until=UtcTime, now=UtcTime)
        with self._database.reading() as connection:
            found = connection.execute(query).all()
        return tuple(
            Hold(
                provider=row.provider,
                failure_type=row.failure_type,
                since=row.since or row.now,
                until=row.until or FOREVER,  # PostgreSQL's 'infinity', for example
                seconds_left=max(0.0, ((row.until or FOREVER) - row.now).total_seconds()),
                reason=row.reason,
                actor=row.actor,
            )
            for row in found
        )

    def pause_of_the_fleet(self) -> Hold | None:
        """Return the pause that stops the whole fleet, if there is one."""
        return next((hold for hold in self.current() if hold.provider is None), None)

    def pause(
        self, provider: str | None, seconds: float, *, reason: str | None, actor: str
    ) -> datetime:
        """Stop automatic switching for *seconds* from now; return when that ends (UTC).

        *provider*: only its models; None: the whole fleet. A pause of the same scope is replaced.
        """
        upsert = sa.text(
            f"INSERT INTO {self._table} (scope, provider, since, until, reason, actor)"
            f" VALUES (:scope, :provider, {self._now}, {self._sql.seconds_from_now(':seconds')},"
            " :reason, :actor) ON CONFLICT (scope) DO UPDATE SET since = excluded.since,"
            " until = excluded.until, reason = excluded.reason, actor = excluded.actor"
            " RETURNING until"
        ).columns(until=UtcTime)
        earlier = sa.text(f"SELECT until, reason FROM {self._table} WHERE scope = :scope").columns(
            until=UtcTime
        )
        parameters = {"scope": scope_of(provider, None), "provider": provider, "seconds": seconds}
        parameters |= {"reason": reason, "actor": actor}

        def work(connection: sa.Connection) -> datetime:
            connection.execute(text(f"DELETE FROM {self._table} WHERE until <= {self._now}"))
            old = connection.execute(earlier, parameters).first()
            until: datetime = connection.execute(upsert, parameters).scalar_one()
            details: dict[str, Any] = {"until": written(until)}
            if old:
                old_values = (old.until and written(old.until), old.reason)
                new_values = (details["until"], reason)
                details |= differences(("until", "reason"), old_values, new_values) or {}
            paused = NewEvent("", "paused", reason=reason, provider=provider, details=details)
            log(self._database, connection, [paused], actor)
            return until

        return self._database.write(work)

    def resume(self, provider: str | None, *, reason: str | None, actor: str) -> bool:
        """End a pause before its time; return whether there was one."""
        delete = sa.text(
            f"DELETE FROM {self._table} WHERE scope = :scope AND until > {self._now}"
            " RETURNING until, reason"
        ).columns(until=UtcTime)

        def work(connection: sa.Connection) -> bool:
            found = connection.execute(delete, {"scope": scope_of(provider, None)}).first()
            if found:
                old = {"until": found.until and written(found.until), "reason": found.reason}
                resumed = NewEvent(
                    "", "resumed", reason=reason, provider=provider, details={"old": old}
                )
                log(self._database, connection, [resumed], actor)
            return bool(found)

        return self._database.write(work)
