"""What `undo` and `prune` did. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl.models.results import Changes, KeptChange

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many events from before a time (UTC) were deleted, or would be."""

    deleted: int
    before: datetime
    dry_run: bool


@dataclass(frozen=True, slots=True)
class LeftChange(KeptChange):
    """A model that `undo` left as it is. *note* says why: for example that it changed since."""


@dataclass(frozen=True, slots=True)
class Undone(Changes):
    """What `undo` did to each model of the operation *undone*."""

    undone: str | None = None
