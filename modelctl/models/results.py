"""What the methods of `Fleet` return of models and their changes. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from modelctl.health import Hold
    from modelctl.model import CacheState, ModelStatus


@dataclass(frozen=True, slots=True)
class Model:
    """One row of ``models``. Times are UTC.

    *would_disable*: why the health rule has not switched it off although it reached the threshold
    (``floor``, ``share``, ``incident`` or ``paused``).
    *retry_at* and *seconds_left* say when `recover` may bring it back: derived from the cooldown
    and the database's clock, or from *disabled_until*; at the end of a pause that lasts longer. None
    where it is on, or waits for a person.
    """

    id: str
    display_name: str
    provider: str
    active: bool
    auto_disabled: bool
    consecutive_failures: int
    ejections: int
    success_count: int
    failure_count: int
    last_success_at: datetime | None
    last_failure_at: datetime | None
    failure_type: str | None
    failure_reason: str | None
    disabled_at: datetime | None
    disabled_by: str | None
    disabled_reason: str | None
    disabled_until: datetime | None
    recovered_at: datetime | None
    would_disable: str | None
    created_at: datetime | None
    updated_at: datetime | None
    status: ModelStatus
    retry_at: datetime | None
    seconds_left: float | None
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourcedModel(Model):
    """A model, and where it comes from; None where no `sync` has found it.

    *source*: the source that offers it. *first_seen_at*: the first sync that found it there.
    *last_seen_at*: the last one. *gone_since*: the first sync that did not; None: it is still there.
    """

    source: str | None
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    gone_since: datetime | None


@dataclass(frozen=True, slots=True)
class ExplainedModel(SourcedModel):
    """A model, its source, and the sentences that answer why it is as it is and what comes next."""

    explanation: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StatusChange:
    """One model before and after a command; *before* is None when added, *after* when removed."""

    id: str
    before: ModelStatus | None
    after: ModelStatus | None
    changed: bool


@dataclass(frozen=True, slots=True)
class KeptChange(StatusChange):
    """No change, and *note* says what stayed: a disable without an end, or another name or provider."""

    note: str


@dataclass(frozen=True, slots=True)
class RemovedModel(StatusChange):
    """A model that was removed although *source* offers it, so that the next `sync` adds it again."""

    source: str


@dataclass(frozen=True, slots=True)
class OutcomeChange(StatusChange):
    """What recording one outcome did.

    *consecutive_failures*: how many count against the model now, of the *threshold* that switches it
    off. *counted*: whether this one does; *failure_type*: its type, None for a success.
    *would_disable*: what keeps the model on although the threshold is reached, as in `Model`.
    *recorded*: False where the failure said nothing about the model (the caller went away, for example), so
    that nothing was stored.
    """

    consecutive_failures: int
    counted: bool = False
    threshold: int = 0
    failure_type: str | None = None
    would_disable: str | None = None
    recorded: bool = True


@dataclass(frozen=True, slots=True)
class Changes:
    """What a command did to each model it was given; of a selection, *changes* is on disk if long.

    *operation*: what the events of this call have in common; None if it wrote none.
    """

    changes: Sequence[StatusChange]
    cache: CacheState
    dry_run: bool = False
    operation: str | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """How many outcomes were recorded, and the models whose status changed in the end.

    *unknown*: the ids that name no model, in order, and *skipped*: how many outcomes they had.
    *operation*: as in `Changes`.
    """

    recorded: int
    changes: tuple[StatusChange, ...]
    cache: CacheState
    skipped: int = 0
    unknown: tuple[str, ...] = ()
    operation: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderStats:
    """One provider's share of the fleet; the totals are the sums of these."""

    provider: str
    models: int
    active: int
    disabled: int
    auto_disabled: int
    success_count: int
    failure_count: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Totals of the fleet, always from the database."""

    models: int
    active: int
    disabled: int
    auto_disabled: int
    providers: tuple[ProviderStats, ...]
    success_count: int
    failure_count: int
    holds: tuple[Hold, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaderboardEntry:
    """An active model and its success rate (0 to 1; None: never called).

    *score*: the lower bound of the rate with 95 % confidence (Wilson), by which models are ranked;
    None where the rate is.
    """

    rank: int
    id: str
    display_name: str
    provider: str
    success_rate: float | None
    success_count: int
    failure_count: int
    score: float | None


@dataclass(frozen=True, slots=True)
class Event:
    """One change in the history; without a model it is of a provider or the fleet.

    *details*: what changed, as JSON. ``until``: when it ends; ``guard``: what spared the model;
    ``old`` and ``new``: the values that differ; ``application_name``: another program made the
    change, and *actor* is its role in the database. None where there is nothing more to say.
    *operation*: the events that one call wrote have the same one; None in events of earlier releases.
    """

    id: int
    at: datetime
    model_id: str | None
    event: str
    before: ModelStatus | None
    after: ModelStatus | None
    actor: str | None
    reason: str | None
    failure_type: str | None
    provider: str | None = None
    details: Mapping[str, Any] | None = None
    operation: str | None = None


def by_whom(actor: str | None, program: str | None) -> str:
    """Say who caused an event: `` by web (another program: shop)``; *program* None: modelctl did."""
    by = f" by {actor}" if actor else ""
    return by if program is None else f"{by} (another program{program and f': {program}'})"
