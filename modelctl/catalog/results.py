"""What became of the entries of a catalogue. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelctl.model import CacheState
    from modelctl.sync.results import PlannedChange


@dataclass(frozen=True, slots=True)
class Rejection:
    """A catalogue entry that cannot be imported, and why."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of the entries of a catalogue, in numbers of models.

    *unchanged*: equal in the fleet. *skipped*: different in the fleet, and left as they were.
    *rejected*: the entries that cannot be imported.

    *ignored_status*: how many entries say that their model is off while it is on in the fleet, or the
    other way round; import never changes a status.
    *operation*: what the events of this import have in common; None if it wrote none.
    *notes*: what else a person should know about the catalogue, in sentences.
    *ignored*: how many models were left out because `Fleet.ignore` was told to.
    """

    added: int
    updated: int
    unchanged: int
    skipped: int
    rejected: Sequence[Rejection]
    cache: CacheState
    dry_run: bool = False
    ignored_status: int = 0
    notes: tuple[str, ...] = ()
    operation: str | None = None
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class ImportPlan(ImportResult):
    """What an import would do. *changes*: each model that it would add or that differs, in order."""

    changes: Sequence[PlannedChange] = ()
