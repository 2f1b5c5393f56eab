"""What `watch` shows. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from modelctl.count.results import Count
    from modelctl.health import Hold
    from modelctl.models.results import Model


@dataclass(frozen=True, slots=True)
class RecentEvent:
    """One of the last events; without a model it is of a provider or the fleet.

    *others*: how many more models the same operation did the same to; *others_cut*: at least so many.
    """

    at: datetime
    model_id: str | None
    provider: str | None
    event: str
    actor: str | None
    reason: str | None
    failure_type: str | None
    others: int = 0
    others_cut: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A fleet at one moment, with as many rows as were asked for.

    *now*: the database's clock (UTC). *count*: what `count` would show, except that a miss fills
    nothing; *cache_problem*: why Redis could not be asked. *active*, *disabled*, *auto_disabled*,
    *spared*: how many models there are of each kind in the database; those that are spared are
    active, too. *off*: the models that are off, newest first, then those that are spared.
    *holds*: pauses, then incidents; *hold_count*: how many there are. *events*: newest first.
    *queued*: the invalidations that are not delivered yet; None: the cache needs no delivery.
    *recovered_seconds_ago*: None: `recover` never ran.
    """

    now: datetime
    count: Count
    cache_problem: str | None
    active: int
    disabled: int
    auto_disabled: int
    spared: int
    off: tuple[Model, ...]
    holds: tuple[Hold, ...]
    hold_count: int
    events: tuple[RecentEvent, ...]
    queued: int | None
    oldest_queued_seconds: float | None
    recovered_seconds_ago: float | None
