"""Plan: what differs from what must be, how each difference is repaired, what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection


NOTHING_INSTALLED = "nothing else of modelctl is there yet"


@dataclass(frozen=True, slots=True)
class Step:
    """One difference in words, and the statements that repair it."""

    finding: str
    statements: tuple[str, ...]


@dataclass(slots=True)
class Plan:
    """What a database lacks. Nothing differs where there are neither steps nor obstacles.

    *table*: the application's, with its schema; None: there is none yet. *installed*: whether
    something of modelctl is there already, so that a cached count may be wrong after a repair.
    """

    current: str | None = None
    table: str | None = None
    installed: bool = False
    steps: list[Step] = field(default_factory=list)
    # How many of them, the first ones, make ``models`` or add columns to it.
    on_models: int = 0
    obstacles: list[str] = field(default_factory=list)
    # What the role of this connection lacks for the steps.
    rights: list[str] = field(default_factory=list)
    # Whether each trigger is there, as it must be, and enabled.
    triggers: dict[str, bool] = field(default_factory=dict)
    lock: str | None = None

    def add(self, finding: str, *statements: str) -> None:
        """Note a difference and its repair."""
        self.steps.append(Step(finding, statements))

    def obstruct(self, *problems: str) -> None:
        """Note what only a person can change."""
        self.obstacles.extend(problems)

    @property
    def findings(self) -> tuple[str, ...]:
        """What the steps repair, in words."""
        words = tuple(step.finding for step in self.steps)
        if self.installed or not words:
            return words
        return (*words[: self.on_models], NOTHING_INSTALLED)

    def execute(self, connection: Connection) -> None:
        """Repair everything."""
        # A % in a name is a %.
        options = {"no_parameters": True}
        statements = [sql for step in self.steps for sql in step.statements]
        for sql in [self.lock, *statements] if self.lock else statements:
            connection.exec_driver_sql(sql, execution_options=options)


def numbered(what: str, names: list[str]) -> str:
    """Name a few things of a kind: "columns a, b"."""
    return f"{what if len(names) == 1 else what + 's'} {', '.join(names)}"


def are(names: list[str]) -> str:
    """The verb for them."""
    return "is" if len(names) == 1 else "are"
