"""What the commands around recovery return. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from modelctl.health import Hold
    from modelctl.model import CacheState
    from modelctl.probe.results import ProbeResult


@dataclass(frozen=True, slots=True)
class Pause:
    """What `pause` or `resume` did; *until*: UTC.

    *provider*: None if it is about the whole fleet. *changed*: False if there was no pause to end.
    *operation*: that of the event; None if there is none.
    """

    provider: str | None
    paused: bool
    until: datetime | None
    reason: str | None
    changed: bool
    operation: str | None = None


@dataclass(frozen=True, slots=True)
class LastRecover:
    """When `recover` last finished (UTC; None: never), and whether that is too long ago.

    *expect_every*: the seconds of ``recovery.expect_every``, None if it is not set.
    """

    at: datetime | None
    seconds_ago: float | None
    expect_every: float | None
    overdue: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model that is off and does not come back now, and why. Times are UTC.

    *why*: ``cooldown`` and ``timed`` (its cooldown or its timed disable is not over), ``limit`` (the
    run brings back no more models), ``paused``, ``person`` (the health rule switched it off too
    often), ``probe`` (it was asked and is not healthy), ``unasked`` (it could not be asked),
    ``refused`` (the database did not let it change), ``unreadable`` (its id is not text).
    *retry_at* and *seconds_left* are None if only a person enables it.
    """

    id: str
    retry_at: datetime | None
    seconds_left: float | None
    why: str


class Candidate(NamedTuple):
    """A model that is off and may come back by itself.

    *timed*: a person disabled it until a time. *waiting*: why it does not come back yet; None: it is
    due.
    """

    id: str
    provider: str
    timed: bool
    due: datetime | None
    waiting: Waiting | None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one run of ``recover`` did.

    *recovered* (ids) and *waiting* are sequences on disk if they are long. *busy*: another run was
    at work, so this one did nothing. *paused*: the pause of the whole fleet. *requests*: how many
    probes were sent, or would be; *unhealthy*: their answers that were not healthy. *operation*:
    what the events of this run have in common; None if it wrote none.
    """

    recovered: Sequence[str]
    waiting: Sequence[Waiting]
    busy: bool
    cache: CacheState
    dry_run: bool = False
    paused: Hold | None = None
    requests: int = 0
    unhealthy: tuple[ProbeResult, ...] = ()
    operation: str | None = None
