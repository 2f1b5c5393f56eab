"""What `prune` did. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many events from before a time (UTC) were deleted, or would be."""

    deleted: int
    before: datetime
    dry_run: bool
