"""When a model that is off comes back by itself, in SQL: conditions and times over ``models``.

Their parameters are :max_ejections and those of `cooldown_parameters`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl import health
from modelctl.tables.columns import AUTO_OFF, TIMED_OFF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.config.sections import RecoveryConfig
    from modelctl.database.database import Database
    from modelctl.database.sql import Sql

# Seconds since 1970 that are before and after every time.
_LONG_AGO, _NEVER = "-1e18", "1e18"

# Ejected so often that only a person brings it back, however long ago that was.
FOR_A_PERSON = "(:max_ejections > 0 AND coalesce(ejections, 0) >= :max_ejections)"


def cooldown_parameters(
    sql: Sql, rule: RecoveryConfig, cooldowns: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return the parameters of `Sql.cooldown`; *cooldowns*: seconds, instead of the configured ones."""
    cooldowns = cooldowns or health.cooldowns(rule)
    return {"cooldowns": sql.list_of_numbers(cooldowns), "steps": len(cooldowns)}


def may_return(sql: Sql) -> str:
    """Whether a model may come back by itself at some time."""
    return f"(({AUTO_OFF}) OR ({TIMED_OFF} AND {sql.is_finite('disabled_until')}))"


def due_at(sql: Sql) -> str:
    """When the cooldown or the timed disable of a model ends, in seconds since 1970.

    Long ago if no time is stored from which its cooldown could run.
    """
    times = ", ".join(map(sql.epoch, ("last_failure_at", "disabled_at", "updated_at")))
    return (
        "CASE WHEN auto_disabled IS TRUE"
        f" THEN coalesce(coalesce({times}) + {sql.cooldown}, {_LONG_AGO})"
        f" ELSE {sql.epoch('disabled_until')} END"
    )


def is_paused(database: Database) -> str:
    """Whether a pause of its provider or of the fleet is not over."""
    return f"EXISTS (SELECT 1 FROM {_pauses(database)})"


def retry_at(database: Database) -> str:
    """When a model comes back at the earliest, in seconds since 1970; NULL if only a person enables it.

    A pause that lasts longer than the cooldown is included.
    """
    sql = database.sql
    end_of_pauses = (
        f"coalesce((SELECT max(coalesce({sql.epoch('h.until')}, {_NEVER}))"
        f" FROM {_pauses(database)}), {_LONG_AGO})"
    )
    return (
        f"CASE WHEN {may_return(sql)} AND NOT (auto_disabled IS TRUE AND {FOR_A_PERSON})"
        f" THEN {sql.greater(due_at(sql), end_of_pauses)} END"
    )


def _pauses(database: Database) -> str:
    """The pauses that hold a model, as what follows FROM."""
    return (
        f"{database.own}modelctl_holds h WHERE h.until > {database.sql.now}"
        " AND h.failure_type IS NULL"
        " AND (h.provider IS NULL OR h.provider = coalesce(models.provider, ''))"
    )
