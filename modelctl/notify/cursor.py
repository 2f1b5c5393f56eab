"""How far the receiver was told: the cursor and what belongs to it, in the table modelctl_state."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from modelctl.database.sql import text
from modelctl.errors import InvalidConfigError
from modelctl.tables.columns import UtcTime

if TYPE_CHECKING:
    from modelctl.database.database import Database

_NAME = "notify"


@dataclass(frozen=True, slots=True)
class Progress:
    """What the receiver was told. Times are seconds since 1970, by the database's clock.

    *cursor*: the id of the last event that needs no more attention. *below*: it was told that fewer
    models than ``notify.min_active`` are active. *failing_since*: when it first failed since it last
    accepted something; *problem*: how. *retry_at*: it wants no request before this time.
    *dropped*: how many events were given up ever, the last of them at *dropped_at*; *told*: how many
    of these the receiver was told of.
    """

    cursor: int
    below: bool = False
    failing_since: float | None = None
    problem: str | None = None
    retry_at: float | None = None
    dropped: int = 0
    dropped_at: float | None = None
    told: int = 0


class Stored(NamedTuple):
    """The stored progress (None: `notify` never ran), the seconds since the last run, and the clock."""

    progress: Progress | None
    seconds_ago: float
    now: float


class Cursor:
    """Stores and reads the progress."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._state = f"{database.own}modelctl_state"

    def read(self) -> Stored:
        """Return the progress.

        Raises:
            InvalidConfigError: another program has changed it.
        """
        sql = self._database.sql
        query = sa.text(
            f"SELECT state.at, state.value, clock.now, {sql.epoch('clock.now')} AS epoch"
            f" FROM (SELECT {sql.now} AS now) AS clock"
            f" LEFT JOIN {self._state} AS state ON state.name = '{_NAME}'"
        ).columns(at=UtcTime, now=UtcTime)
        with self._database.reading() as connection:
            row = connection.execute(query).one()
        if row.value is None:
            return Stored(None, 0.0, row.epoch)
        try:
            progress = Progress(**json.loads(row.value))
            seconds_ago = (row.now - row.at).total_seconds()
        except (ValueError, TypeError):
            raise InvalidConfigError(
                "how far notify came cannot be read from modelctl_state",
                hint=f"delete its row '{_NAME}': the next run then begins with the present",
            ) from None
        return Stored(progress, seconds_ago, row.epoch)

    def save(self, progress: Progress) -> None:
        """Store the progress, and that `notify` ran now."""
        sql = (
            f"INSERT INTO {self._state} (name, at, value)"
            f" VALUES ('{_NAME}', {self._database.sql.now}, :value)"
            " ON CONFLICT (name) DO UPDATE SET at = excluded.at, value = excluded.value"
        )
        values = {"value": json.dumps(asdict(progress))}
        self._database.write(lambda connection: connection.execute(text(sql), values))
