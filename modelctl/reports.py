"""What the other methods of `Fleet` return, but the count: a change does not load it. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from modelctl.model import CacheState, FailureType


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Pause:
    """What `pause` or `resume` did: *changed* is False where nothing was paused."""

    provider: str | None
    paused: bool
    until: datetime | None
    reason: str | None
    changed: bool


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of asking a model; *seconds*: how long it took.

    Neither *healthy* nor with a *failure_type* it could not be asked.
    """

    id: str
    healthy: bool
    failure_type: FailureType | None
    reason: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The answers of models that were asked; *requests*: how many were, or would be."""

    answers: tuple[ProbeResult, ...]
    requests: int
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class LastRecover:
    """When `recover` last finished (UTC, None: never), and how often it is expected (seconds)."""

    at: datetime | None
    seconds_ago: float | None
    expect_every: float | None
    overdue: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model that is off and does not come back now, and why.

    *why*: ``cooldown``, ``timed`` (a person said until when), ``limit`` (beyond what this run brings
    back), ``paused``, ``person`` (ejected too often), ``probe`` (asked, and not healthy), ``unasked``
    (it could not be asked), ``refused`` (the database kept it as it was), ``unreadable`` (its id is not
    text). Where it waits for a person *retry_at* and *seconds_left* are None.
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
    due: datetime | None
    waiting: Waiting | None


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Rejection:
    """A catalogue entry that was not taken, and why."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class ImportResult:
    """How many catalogue entries ended where.

    *ignored_status*: how many entries say that their model is off while it is on in the fleet, or the
    other way round; import never changes a status.
    *notes*: what else there is to know of the catalogue, in sentences.
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


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``doctor``: what was looked at, whether it is well, what was seen and what to do.

    *warning*: it works, and somebody should look at it all the same.
    """

    check: str
    ok: bool
    detail: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """Cache and database compared, for monitoring; ages in seconds."""

    comparisons: int
    differed: int
    oldest_queued_seconds: float | None
    triggers: bool


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What ``doctor`` found."""

    ok: bool
    checks: tuple[Check, ...]
    audit: Audit | None = None


@dataclass(frozen=True, slots=True)
class CacheKey:
    """A name in the cache: its value (None: absent) and its time to live (seconds)."""

    key: str
    value: str | None
    expires_in_seconds: float | None


@dataclass(frozen=True, slots=True)
class CacheReport:
    """The cache's keys and the invalidations that wait for delivery."""

    backend: str
    keys: tuple[CacheKey, ...]
    queued: int
    settling: int
    oldest_queued_seconds: float | None


@dataclass(frozen=True, slots=True)
class DrainResult:
    """How many queued invalidations were delivered, and how many still wait."""

    delivered: int
    queued: int
    cache: CacheState


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """Where the schema stands against this release.

    *table*: the application's, with its schema. *findings*: what differs and `db upgrade` repairs.
    *obstacles*: what differs and only a person can change. *repaired*: what this run did.
    """

    database: str
    current: str | None
    head: str
    up_to_date: bool
    table: str | None = None
    findings: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of ``config show``; *value* as the file would write it: a duration is text."""

    key: str
    value: str | float | tuple[str, ...] | list[str]
    origin: str
    variable: str
