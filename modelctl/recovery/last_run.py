"""When `recover` last finished, so that a cron job that no longer runs is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from modelctl.database.sql import text
from modelctl.recovery.results import LastRecover
from modelctl.tables.columns import UtcTime

if TYPE_CHECKING:
    from modelctl.config.config import Config
    from modelctl.database.database import Database

# How much the clocks of two servers of one database may differ.
CLOCK_SKEW_SECONDS = 5.0


class LastRun:
    """Stores and reads the time of the last finished run."""

    def __init__(self, config: Config, database: Database) -> None:
        self._expect_every = config.recovery.expect_every
        self._database = database
        self._now = database.sql.now
        self._state = f"{database.own}modelctl_state"

    def finished(self) -> None:
        """Store that a run finished now."""
        sql = (
            f"INSERT INTO {self._state} (name, at) VALUES ('recover', {self._now})"
            " ON CONFLICT (name) DO UPDATE SET at = excluded.at"
        )
        self._database.write(lambda connection: connection.execute(text(sql)))

    def read(self) -> LastRecover:
        """Return when a run last finished, and whether that is too long ago."""
        sql = f"SELECT at, {self._now} AS now FROM {self._state} WHERE name = 'recover'"
        query = sa.text(sql).columns(at=UtcTime, now=UtcTime)
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        every = self._expect_every
        if row is None or row.at is None:  # it never ran, or its time cannot be read
            return LastRecover(None, None, every or None, bool(every))
        ago = (row.now - row.at).total_seconds()
        # A time in the future: the clock was set back, so the age is unknown.
        overdue = bool(every) and not -CLOCK_SKEW_SECONDS <= ago <= every
        return LastRecover(row.at, ago, every or None, overdue)
