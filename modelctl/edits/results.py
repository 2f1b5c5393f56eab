"""What `edit` and `rename` did to each model. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl.models.results import StatusChange

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


@dataclass(frozen=True, slots=True)
class EditedModel(StatusChange):
    """What `edit` did: the old and new values that differ, of display_name, provider and tags."""

    old: Mapping[str, Any]
    new: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RenamedModel(StatusChange):
    """What `rename` did: *id* is the new id.

    *offered_by*: the source that offers the old id, so that the next `sync` adds it again; None: none.
    """

    old_id: str
    offered_by: str | None = None
