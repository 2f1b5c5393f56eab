"""What `Fleet.availability` returns. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from modelctl.model import ModelStatus


@dataclass(frozen=True, slots=True)
class ModelAvailability:
    """How long a model was on within a period. Times are UTC, durations are in seconds.

    *status*: the present one, None if the model was removed. *share*: of the time for which it
    existed within the period, from 0 to 1; None if it did not exist then.

    *outages*: the times without a break for which it was off. Only what lies within the period
    counts, for their lengths as well; *goes_on*: the last one had no end within the period.
    An outage is *by_person* or *by_rule* (the health rule) by what began it. *off_by_person_seconds*
    and *off_by_rule_seconds* are the times for which a person or the rule kept it off.

    *known_since*: its first event. The status before is concluded from that event; without any event
    (None) it is the present one, since the row was created. *concluded_seconds*: for how long within
    the period. *differs*: its status is not that of its last event, so that another program changed
    it without an event.

    *strip*: the share of each of the equal parts of the period, None where it did not exist.
    """

    id: str
    provider: str
    status: ModelStatus | None
    share: float | None
    on_seconds: float
    off_seconds: float
    outages: int
    mean_outage_seconds: float | None
    longest_outage_seconds: float | None
    outages_by_person: int
    outages_by_rule: int
    off_by_person_seconds: float
    off_by_rule_seconds: float
    goes_on: bool
    known_since: datetime | None
    concluded_seconds: float
    differs: bool
    strip: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class ProviderAvailability:
    """The sum over the models of a provider, or (*provider* None) of all; as `ModelAvailability`.

    *share*: of the time of all its models together. *goes_on*: how many outages had no end.
    """

    provider: str | None
    models: int
    share: float | None
    on_seconds: float
    off_seconds: float
    outages: int
    mean_outage_seconds: float | None
    longest_outage_seconds: float | None
    outages_by_person: int
    outages_by_rule: int
    off_by_person_seconds: float
    off_by_rule_seconds: float
    goes_on: int
    strip: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Availability:
    """The availability of models from *since* to *until* (UTC).

    *known_since*: the first event of the history, None if there is none. *models*: the lowest share
    first, those without a share last. *providers*: by name.
    """

    since: datetime
    until: datetime
    known_since: datetime | None
    total: ProviderAvailability
    providers: tuple[ProviderAvailability, ...]
    models: Sequence[ModelAvailability]
