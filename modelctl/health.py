"""The health rule: which outcomes count, and what each does to a model. Data and pure functions.

`store` says the same rule in SQL for a single outcome, so that increment and test are one
statement; a property test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from modelctl.errors import UsageError
from modelctl.model import FailureType, ModelStatus, storable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from modelctl.config import Config, HealthConfig

# Who switched a model off when nobody did.
HEALTH_RULE = "health rule"
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call of a model; *type* is None for a success."""

    id: str
    type: FailureType | None
    reason: str | None = None

    def fields(self) -> dict[str, str | None]:
        """Return it as `parse_outcome` takes it."""
        kind = "success" if self.type is None else "failure"
        return {"id": self.id, "outcome": kind, "type": self.type, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Health:
    """What the rule reads and writes of a model; the counts are those of this batch alone."""

    active: bool
    auto_disabled: bool
    consecutive_failures: int
    ejections: int
    successes: int = 0
    failures: int = 0
    failure_type: FailureType | None = None
    failure_reason: str | None = None

    @property
    def status(self) -> ModelStatus:
        """Active wins, then auto-disabled."""
        return status_of(self.active, self.auto_disabled)


def status_of(active: bool, auto_disabled: bool) -> ModelStatus:
    """Derive a status from its two columns."""
    if active:
        return ModelStatus.ACTIVE
    return ModelStatus.AUTO_DISABLED if auto_disabled else ModelStatus.DISABLED


def record(health: Health, outcome: Outcome, rule: HealthConfig) -> tuple[Health, str | None]:
    """Apply one outcome; return the new health and the event of a change of status, if any.

    A success brings an auto-disabled model back. The *threshold*-th counted failure in a row
    switches an active one off. A model that a person disabled only has its outcomes stored.
    """
    if outcome.type is None:
        back = health.status is ModelStatus.AUTO_DISABLED
        return replace(
            health,
            active=health.active or back,
            auto_disabled=health.auto_disabled and not back,
            consecutive_failures=0,
            successes=health.successes + 1,
            failure_reason=None,
        ), "recovered" if back else None
    counted = outcome.type in rule.counted
    failures = health.consecutive_failures + counted
    off = counted and health.active and failures >= rule.threshold
    return replace(
        health,
        active=health.active and not off,
        auto_disabled=health.auto_disabled or off,
        consecutive_failures=failures,
        ejections=health.ejections + off,
        failures=health.failures + 1,
        failure_type=outcome.type,
        failure_reason=outcome.reason,
    ), "auto-disabled" if off else None


def failure_type_of_status(status: int) -> FailureType:
    """Return the failure type of an HTTP status (RFC 9110).

    Raises:
        UsageError: the status is not 400-599.
    """
    if status in (408, 504):
        return FailureType.TIMEOUT
    if status == 429:
        return FailureType.RATE_LIMIT
    if 400 <= status <= 499:
        return FailureType.CLIENT_ERROR
    if 500 <= status <= 599:
        return FailureType.SERVER_ERROR
    raise UsageError(f"HTTP status {status} is not a failure", hint="give a status from 400 to 599")


def failure_type(name: str) -> FailureType:
    """Return the failure type called *name*; UsageError names the known ones."""
    try:
        return FailureType(name)
    except ValueError:
        known = ", ".join(FailureType)
        raise UsageError(f"no failure type '{name}'", hint=f"one of: {known}") from None


def parse_outcome(record: object, reason_length: int) -> Outcome:
    """Check one outcome: ``{"id", "outcome": "success"|"failure", "type"?, "reason"?}``.

    *reason_length*: a longer reason is cut to this many characters.

    Raises:
        UsageError: a field is missing, unknown or of the wrong kind.
    """
    if not isinstance(record, Mapping):
        raise UsageError("an outcome is a JSON object")
    unknown = record.keys() - {"id", "outcome", "type", "reason"}
    if unknown:
        raise UsageError(f"an outcome has no field '{min(map(str, unknown))}'")
    model_id, kind, type_, reason = (record.get(k) for k in ("id", "outcome", "type", "reason"))
    if not isinstance(model_id, str) or not model_id:
        raise UsageError("'id' is not the id of a model")
    if kind not in ("success", "failure"):
        raise UsageError('\'outcome\' is neither "success" nor "failure"')
    if not isinstance(type_, str | None):
        raise UsageError("'type' is not text")
    if not isinstance(reason, str | None):
        raise UsageError("'reason' is not text")
    failed_by = failure_type("unknown" if type_ is None else type_)
    if kind == "success":  # whatever is said of a failure says nothing here
        return Outcome(model_id, None)
    return Outcome(model_id, failed_by, None if reason is None else storable(reason, reason_length))


def retry_at(
    config: Config,
    last_failure_at: datetime | None,
    disabled_at: datetime | None,
    updated_at: datetime | None,
) -> datetime | None:
    """When the cooldown of an auto-disabled model is over (UTC). Derived, never stored."""
    since = last_failure_at or disabled_at or updated_at
    return since and after(since, config.recovery.cooldown)


def after(since: datetime, seconds: float) -> datetime:
    """Return the time *seconds* after *since*; the last there is where that is beyond it."""
    try:
        return since + timedelta(seconds=seconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def read_outcomes(stream: BinaryIO, reason_length: int) -> Iterator[Outcome]:
    """Read JSON Lines of outcomes; blank lines are skipped.

    Raises:
        UsageError: a line is wrong; the message gives its number (from 1).
    """
    import json

    for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_LINE + 1), b""), 1):
        try:
            if len(line) > _LONGEST_LINE:
                raise UsageError("is longer than 1 MiB")
            if not line.strip():
                continue
            yield parse_outcome(json.loads(line), reason_length)
        except UsageError as exc:
            raise UsageError(f"line {number}: {exc.message}", hint=exc.hint) from None
        except (ValueError, RecursionError) as exc:
            raise UsageError(f"line {number}: is not JSON ({exc})") from None
