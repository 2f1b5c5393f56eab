"""What `doctor` found. Frozen data, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``doctor``.

    *check*: what was checked. *detail*: what was found, and what to do about it. *warning*: it is
    *ok*, but a person should look at it.
    """

    check: str
    ok: bool
    detail: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """How often the cached count differed from the database, for monitoring.

    *oldest_queued_seconds*: the age of the oldest queued invalidation, None: the queue is empty.
    *triggers*: whether all triggers are installed and enabled.
    """

    comparisons: int
    differed: int
    oldest_queued_seconds: float | None
    triggers: bool


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What ``doctor`` found; *ok*: every check is.

    *numbers*: what the checks counted, for graphs; a number of seconds is a float.
    """

    ok: bool
    checks: tuple[Check, ...]
    audit: Audit | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
