"""Plan: what differs from the declaration, how to repair it, and what prevents that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelctl.schema.declared import HEAD, MODELS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import Connection

NOTHING_INSTALLED = "nothing else of modelctl is there yet"
_ADDED = {
    "column": r"(?<=\bADD COLUMN )",  # several in one ALTER TABLE
    "table": r"^CREATE TABLE ",
    "index": r"^CREATE INDEX ",
    "trigger": r"^CREATE TRIGGER ",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One difference in words, and the statements that repair it."""

    finding: str
    statements: tuple[str, ...]


@dataclass(slots=True)
class Plan:
    """The repairs of a database; without steps and obstacles it is as declared.

    *versions*: the revisions that are recorded, the newest first. *table*: the application's table,
    with its schema, if it is there. *installed*: whether parts of modelctl are there, so that a cached
    count may be wrong after the repair. *on_models*: how many steps, the first ones, create ``models``
    or its columns. *rights*: what the role may not do, but the steps need. *triggers*: whether each of
    them is as declared and enabled. *lock*: a statement to begin with. *note*: what is to be noted
    about the table (`adoption.Note`). *owner*, *width*: of the table, and how many columns it has.
    *indexes*: the declared indexes on ``models``, each with the name that it has or will have.
    *table_sql*: the table as SQL, where it is or will be; *schema*: its schema, "" on SQLite.
    """

    versions: list[str] = field(default_factory=list)
    table: str | None = None
    installed: bool = False
    steps: list[Step] = field(default_factory=list)
    on_models: int = 0
    obstacles: list[str] = field(default_factory=list)
    rights: list[str] = field(default_factory=list)
    triggers: dict[str, bool] = field(default_factory=dict)
    touches_models: bool = False
    lock: str | None = None
    note: str | None = None
    owner: str | None = None
    width: int = 0
    indexes: dict[str, str] = field(default_factory=dict)
    table_sql: str = MODELS
    schema: str = ""

    def add(self, finding: str, *statements: str) -> None:
        """Add a difference and its repair."""
        self.steps.append(Step(finding, statements))

    def add_triggers(
        self, table: str, different: Mapping[str, list[str]], statements: Iterable[str]
    ) -> None:
        """Add the triggers of *table* that are different: their names by what is wrong with them."""
        words = [
            f"the {listed('trigger', names)} of {table} {'is' if len(names) == 1 else 'are'} {what}"
            for what, names in different.items()
        ]
        self.add("; ".join(words), *statements)

    def add_version(self, table: str) -> None:
        """Record the revision in *table*, unless it is the only one there."""
        if self.versions != [HEAD]:
            self.add(
                f"the record of the revision is {self.current or 'missing'}, not {HEAD}",
                f"DELETE FROM {table}",
                f"INSERT INTO {table} (version_num) VALUES ('{HEAD}')",
            )

    def obstruct(self, *problems: str) -> None:
        """Add what only a person can change."""
        self.obstacles.extend(problems)

    def is_table(self, name: str, kind: str) -> bool:
        """Whether *name* is a table; else that is an obstacle."""
        if kind != "table":
            self.obstruct(f"{name} is a {kind}, and modelctl needs a table of that name")
        return kind == "table"

    @property
    def current(self) -> str | None:
        """The revision that is recorded."""
        return self.versions[0] if self.versions else None

    @property
    def findings(self) -> tuple[str, ...]:
        """The differences, in words; shortened if nothing of modelctl is there."""
        words = tuple(step.finding for step in self.steps)
        if self.installed or not words:
            return words
        return (*words[: self.on_models], NOTHING_INSTALLED)

    def summary(self, rows: str | None, *, done: bool = False) -> str:
        """Return the table in words, with its *rows*, and how much the steps add, or have added."""
        if self.table:
            facts = [f"the table {self.table}" + (f" of owner {self.owner}" if self.owner else "")]
            facts += [rows] if rows else []
            facts.append(f"{self.width} column{'s' * (self.width != 1)}")
        else:
            facts = ["a table models"]
        words = ", ".join(facts)
        if not self.steps:
            return words
        verb = "create" if not self.table else "repair" if self.installed else "adopt"
        added = []
        for noun, pattern in _ADDED.items():
            number = sum(len(re.findall(pattern, sql)) for sql in self.statements)
            if number:
                added.append(f"{number} {noun}" + ("es" if noun == "index" else "s") * (number > 1))
        verbs = (f"{verb.removesuffix('e')}ed", "added") if done else (f"{verb}s", "adds")
        return f"{verbs[0]} {words}" + (f"; {verbs[1]} {', '.join(added)}" if added else "")

    @property
    def statements(self) -> list[str]:
        """The statements of all steps."""
        steps = [sql for step in self.steps for sql in step.statements]
        return [self.lock, *steps] if self.lock else steps


def execute(connection: Connection, statements: Iterable[str]) -> None:
    """Execute statements as they are: without parameters psycopg takes a % in a name literally."""
    for sql in statements:
        connection.exec_driver_sql(sql, execution_options={"no_parameters": True})


def listed(noun: str, names: Collection[str]) -> str:
    """Return "column a" or "columns a, b"."""
    return f"{noun if len(names) == 1 else noun + 's'} {', '.join(names)}"
