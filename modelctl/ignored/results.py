"""What the methods of `Fleet` return of ignored ids. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class IgnoredPattern:
    """An id, or a glob for ids, that import and sync leave out; since when, by whom and why."""

    pattern: str
    at: datetime | None
    actor: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class PatternChange:
    """A pattern that is ignored now, or no longer; *changed*: False if it was so before."""

    pattern: str
    changed: bool


@dataclass(frozen=True, slots=True)
class IgnoreResult:
    """What `ignore` or `unignore` did to each pattern.

    *undone*: it was `unignore`. *matching*: how many models of the fleet match these patterns; they
    stay.
    """

    patterns: tuple[PatternChange, ...]
    matching: int
    undone: bool = False
