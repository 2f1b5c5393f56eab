"""What came of asking models. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from modelctl.model import FailureType


class Failure(NamedTuple):
    """Why an answer is not that of a healthy model; without a type the probe itself is at fault."""

    failure_type: FailureType | None
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of asking one model; *seconds*: how long it took.

    If it is neither *healthy* nor has a *failure_type*, it could not be asked.
    """

    id: str
    healthy: bool
    failure_type: FailureType | None
    reason: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The answers of models that were asked; *requests*: how many were asked, or would be."""

    answers: tuple[ProbeResult, ...]
    requests: int
    dry_run: bool = False
