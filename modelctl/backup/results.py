"""What `restore` did, or would do. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl.models.results import StatusChange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from modelctl.model import CacheState


@dataclass(frozen=True, slots=True)
class RestoredModel(StatusChange):
    """A model that was added, updated or left off.

    *details*: ``old`` and ``new``, the values that differ; None if none does. *note*: why the model
    is left off; None if it is not.
    """

    details: Mapping[str, Any] | None = None
    note: str | None = None

    @property
    def kind(self) -> str:
        """The field of `Restored` in which this model is counted."""
        if self.note is not None:
            return "left_off"
        if self.before is None:
            return "added"
        return "updated" if self.details else "unchanged"


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of an export, in numbers of models.

    *left_off*: models that stay off as they are, because the export would bring them back sooner.
    *untouched*: models of the fleet that are not in the export. *holds*: how many pauses and
    incidents were restored.

    *changes*: the models that were added, updated or left off, on disk if they are many.
    *operation*: as in `Changes`.
    """

    added: int
    updated: int
    unchanged: int
    left_off: int
    untouched: int
    holds: int
    changes: Sequence[RestoredModel]
    cache: CacheState
    dry_run: bool = False
    operation: str | None = None
