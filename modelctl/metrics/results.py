"""What `metrics` measures. Frozen data, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelctl.models.results import ProviderStats


@dataclass(frozen=True, slots=True)
class FleetMetrics:
    """Numbers of a fleet for monitoring, at one moment.

    *active*: the number that ``count`` shows now. *source*: ``cache`` or ``database``. *age_seconds*: of
    a cached count, else 0. *queued*: the invalidations that are not delivered yet;
    *oldest_queued_seconds*: the age of the oldest one, 0 if there is none. *settling*: those that
    are delivered once more after a while. *recovered_at*: when `recover` last finished, in seconds
    since 1970; None: never. *events*: how many events of each kind were written since the history
    began, also those that `prune` has deleted.
    """

    providers: tuple[ProviderStats, ...]
    active: int
    source: str
    age_seconds: float
    queued: int
    settling: int
    oldest_queued_seconds: float
    recovered_at: float | None
    recovered_seconds_ago: float | None
    pauses: int
    incidents: int
    events: Mapping[str, int]
