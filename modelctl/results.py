"""What the methods of `Fleet` return, but the count. Frozen data, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from modelctl.record import record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from modelctl.model import CacheState, FailureType, ModelStatus


@record
class Model:
    """One row of ``models``. Times are UTC.

    *would_disable*: why the health rule has not switched it off although it reached the threshold
    (``floor``, ``share``, ``incident`` or ``paused``).
    *retry_at* and *seconds_left* say when `recover` may bring it back: derived from the cooldown
    and the database's clock, or from *disabled_until*. None where it waits for a person.
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


@record
class Hold:
    """What keeps the health rule from switching; it ends by itself. Times are UTC.

    A pause (*failure_type* None) stops all automatic switching, of the whole fleet (*provider*
    None) or of one provider. An incident stops a provider's models from being switched off for
    that type of failure.
    """

    provider: str | None
    failure_type: str | None
    since: datetime
    until: datetime
    seconds_left: float
    reason: str | None
    actor: str | None


@record
class ExplainedModel(Model):
    """A model, and the sentences that answer why it is as it is and what comes next."""

    explanation: tuple[str, ...]


@record
class Pause:
    """What `pause` or `resume` did: *changed* is False where nothing was paused."""

    provider: str | None
    paused: bool
    until: datetime | None
    reason: str | None
    changed: bool


@record
class StatusChange:
    """One model before and after a command; *before* is None when added, *after* when removed."""

    id: str
    before: ModelStatus | None
    after: ModelStatus | None
    changed: bool


@record
class Changes:
    """What a command did to each model it was given."""

    changes: tuple[StatusChange, ...]
    cache: CacheState
    dry_run: bool = False


@record
class BatchResult:
    """How many outcomes were recorded, and the models whose status changed in the end."""

    recorded: int
    changes: tuple[StatusChange, ...]
    cache: CacheState


@record
class ProbeResult:
    """What came of asking a model; *seconds*: how long it took."""

    id: str
    healthy: bool
    failure_type: FailureType | None
    reason: str | None
    seconds: float


@record
class ProbeReport:
    """The answers of models that were asked; *requests*: how many were, or would be."""

    answers: tuple[ProbeResult, ...]
    requests: int
    dry_run: bool = False


@record
class LastRecover:
    """When `recover` last finished (UTC, None: never), and how often it is expected (seconds)."""

    at: datetime | None
    seconds_ago: float | None
    expect_every: float | None
    overdue: bool


@record
class Waiting:
    """A model that is off and does not come back now, and why.

    *why*: ``cooldown``, ``timed`` (a person said until when), ``limit`` (beyond what this run brings
    back), ``paused``, ``person`` (ejected too often), ``probe`` (asked, and not healthy). Where no
    time can be told, *retry_at* and *seconds_left* are None.
    """

    id: str
    retry_at: datetime | None
    seconds_left: float | None
    why: str


class Candidate(NamedTuple):
    """A model that is off and may come back by itself; *waiting*: why not yet, None: it is due."""

    id: str
    provider: str
    timed: bool
    due: datetime
    waiting: Waiting | None


@record
class Recovery:
    """What one run of ``recover`` did; *busy*: another run was at work.

    *recovered* and *waiting* may be longer than the memory: sequences on disk. *requests*: how
    many probes were made, or would be.
    """

    recovered: Sequence[str]
    waiting: Sequence[Waiting]
    busy: bool
    cache: CacheState
    dry_run: bool = False
    paused: Hold | None = None
    requests: int = 0
    unhealthy: tuple[ProbeResult, ...] = ()


@record
class Rejection:
    """A catalogue entry that was not taken, and why."""

    id: str
    why: str


@record
class ImportResult:
    """How many catalogue entries ended where."""

    added: int
    updated: int
    unchanged: int
    skipped: int
    rejected: tuple[Rejection, ...]
    cache: CacheState
    dry_run: bool = False


@record
class ProviderStats:
    """One provider's share of the fleet."""

    provider: str
    models: int
    active: int


@record
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


@record
class LeaderboardEntry:
    """An active model and its success rate (0 to 1; None: never called)."""

    rank: int
    id: str
    display_name: str
    provider: str
    success_rate: float | None
    success_count: int
    failure_count: int


@record
class Event:
    """One change of status in the history; without a model it is of a provider or the fleet."""

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


@record
class Check:
    """One line of ``doctor``: what was looked at, whether it is well, what was seen."""

    check: str
    ok: bool
    detail: str


@record
class Audit:
    """Cache and database compared, for monitoring; ages in seconds."""

    comparisons: int
    differed: int
    oldest_queued_seconds: float | None
    triggers: bool


@record
class Diagnosis:
    """What ``doctor`` found."""

    ok: bool
    checks: tuple[Check, ...]
    audit: Audit | None = None


@record
class CacheKey:
    """A name in the cache: its value (None: absent) and its time to live (seconds)."""

    key: str
    value: str | None
    expires_in_seconds: float | None


@record
class CacheReport:
    """The cache's keys and the invalidations that wait for delivery."""

    backend: str
    keys: tuple[CacheKey, ...]
    queued: int
    settling: int
    oldest_queued_seconds: float | None


@record
class DrainResult:
    """How many queued invalidations were delivered, and how many still wait."""

    delivered: int
    queued: int
    cache: CacheState


@record
class SchemaStatus:
    """Where the schema stands against this release."""

    database: str
    current: str | None
    head: str
    up_to_date: bool


@record
class Setting:
    """One line of ``config show``."""

    key: str
    value: str
    origin: str
    variable: str
