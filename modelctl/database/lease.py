"""A right that one process has for a time, stored in the table modelctl_state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.database.sql import text

if TYPE_CHECKING:
    from modelctl.database.database import Database


def claim(database: Database, name: str, seconds: float, owner: str) -> bool:
    """Claim the right called *name* for *seconds*; return whether *owner* has it now.

    The same *owner* may prolong its claim, or end it with 0 seconds. A lease needs no open connection,
    so it also works behind a pooler, and while the owner waits for a slow server.
    """
    sql = (
        f"INSERT INTO {database.own}modelctl_state (name, at, value)"
        f" VALUES (:name, {database.sql.seconds_from_now(':seconds')}, :owner)"
        " ON CONFLICT (name) DO UPDATE SET at = excluded.at, value = excluded.value"
        f" WHERE modelctl_state.at <= {database.sql.now} OR modelctl_state.value = excluded.value"
        " RETURNING name"
    )
    parameters = {"name": name, "seconds": seconds, "owner": owner}
    return database.write(
        lambda connection: connection.execute(text(sql), parameters).first() is not None
    )
