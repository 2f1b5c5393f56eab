"""The parts of modelctl in a database, each in words and as the statement that drops it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from modelctl.tables.columns import AUTO_OFF, TIMED_OFF

if TYPE_CHECKING:
    from collections.abc import Collection

    from modelctl.adoption.adoption import Note


# The models that `recover` brings back after their cooldown, or when a timed disable ends.
WILL_COME_BACK = f"({AUTO_OFF}) OR ({TIMED_OFF})"


class Part(NamedTuple):
    """Something that modelctl made: in words, and the statement that drops it."""

    words: str
    sql: str


@dataclass(slots=True)
class Parts:
    """What will be dropped, in this order; what stays although modelctl may have made it, and why.

    *refused*: what prevents it. *lock*: a statement to begin with.
    """

    dropped: list[Part] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lock: str | None = None

    @staticmethod
    def lost(note: Note) -> str:
        """Say that columns stay because the table that has them is not found."""
        columns = ", ".join(note.columns)
        return f"the columns of the table that was models, which is not found: {columns}"

    def columns(self, table: str, note: Note | None, columns: Collection[str]) -> list[str]:
        """Return those of *columns* that were added to *table*, and say why others stay."""
        if note is None:
            self.kept.append(
                f"the columns of {table}: it was adopted by a release that did not note which ones"
                " it added"
            )
            return []
        if note.created:
            self.kept.append(
                f"the table {table} with all its rows: modelctl created it; DROP TABLE {table}"
                " removes it"
            )
            return []
        return [name for name in note.columns if name in columns]
