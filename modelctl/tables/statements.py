"""The groups of statements that are still inherited. To be taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from modelctl import health
from modelctl.database import bulk
from modelctl.database.sql import Sql, lock_key
from modelctl.tables import application
from modelctl.tables.columns import events_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import sqlalchemy as sa

    from modelctl.config.config import Config
    from modelctl.database.database import Database
    from modelctl.spool import Spool

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Statements:
    """What a group of statements works with: the configuration and the database."""

    config: Config
    database: Database

    @property
    def on_sqlite(self) -> bool:
        """Whether the models are in a file."""
        return self.database.on_sqlite

    @property
    def sql(self) -> Sql:
        """The SQL of this database."""
        return self.database.sql

    @property
    def own(self) -> str:
        """What precedes the names of modelctl's own tables."""
        return self.database.own

    def lock_key(self, lock: int) -> int:
        """The key of an advisory lock of this fleet."""
        return lock_key(lock, self.database.schema)

    @property
    def events(self) -> sa.Table:
        """The history."""
        return events_table(None if self.on_sqlite else self.database.schema)

    def ids(self, ids: Iterable[str]) -> str:
        """The parameter :ids."""
        return self.sql.list_of_texts(ids)

    def ladder(self, cooldowns: Sequence[float] | None = None) -> dict[str, Any]:
        """The parameters of the cooldown; *cooldowns* (seconds) instead of the configured ones."""
        steps = cooldowns or health.cooldowns(self.config.recovery)
        return {"cooldowns": self.sql.list_of_numbers(steps), "steps": len(steps)}

    def spooled(
        self, query: Any, parameters: Any = None, make: Callable[[Any], Any] = tuple
    ) -> Spool[Any]:
        """See `bulk.spooled`."""
        return bulk.spooled(self.database, query, parameters, make)

    def write(self, work: Callable[[sa.Connection], T], *, dry_run: bool = False) -> T:
        """See `application.write`."""
        return application.write(self.database, work, dry_run=dry_run)

    def fitting(self, values: str) -> str:
        """See `application.assignments`."""
        if not self.database.columns:
            return values
        pairs = dict(pair.split(" = ", 1) for pair in _split(values))
        return application.assignments(self.database, **pairs)


def _split(assignments: str) -> list[str]:
    """Split what follows SET at the commas between the columns."""
    parts, depth, quoted = [""], 0, False
    for character in assignments:
        quoted ^= character == "'"
        depth += not quoted and (character == "(") - (character == ")")
        if character == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
