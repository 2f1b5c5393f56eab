"""The health rule: what an outcome does to a model, what spares the model, and when it comes back.

Data and pure functions. The rule is written here and nowhere else: `outcomes.record` locks the rows,
calls `record` for each outcome and writes what differs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from modelctl.errors import UsageError
from modelctl.model import FailureType, ModelStatus
from modelctl.redact import storable_reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from typing import BinaryIO

    from modelctl.config.config import Config
    from modelctl.config.sections import RecoveryConfig

# What `disabled_by` says of a model that the rule has switched off.
HEALTH_RULE = "health rule"
_LONGEST_LINE = 1 << 20
_FIELDS = {"id", "outcome", "type", "reason"}


class Outcome(NamedTuple):
    """One call of a model; *type* is None for a success."""

    id: str
    type: FailureType | None
    reason: str | None = None

    def fields(self) -> dict[str, str | None]:
        """Return the outcome as `parse_outcome` reads it."""
        kind = "success" if self.type is None else "failure"
        return {"id": self.id, "outcome": kind, "type": self.type, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Hold:
    """A pause or an incident, which stops automatic switching until it ends. Times are UTC.

    A pause (*failure_type* None) stops all automatic switching, of the whole fleet (*provider*
    None) or of one provider. An incident stops the models of a provider from being switched off
    for that type of failure.
    """

    provider: str | None
    failure_type: str | None
    since: datetime
    until: datetime
    seconds_left: float
    reason: str | None
    actor: str | None


@dataclass(frozen=True, slots=True)
class Health:
    """The part of a model's row that the rule reads and changes.

    *trusted*: the model has been back for at least one cooldown. *spared*: why the rule keeps the
    model active although it reached the threshold (the column `would_disable`). *successes*,
    *failures*: only those that were recorded since the row was read.
    """

    active: bool
    auto_disabled: bool
    consecutive_failures: int
    ejections: int
    provider: str = ""
    trusted: bool = False
    spared: str | None = None
    successes: int = 0
    failures: int = 0
    failure_type: FailureType | None = None
    failure_reason: str | None = None

    @property
    def status(self) -> ModelStatus:
        """The status that follows from *active* and *auto_disabled*."""
        return status_of(self.active, self.auto_disabled)


def scope_of(provider: str | None, failure_type: str | None) -> str:
    """Return the key of a hold in the table: there is at most one hold of a scope."""
    if failure_type is not None:
        return f"incident:{failure_type}:{provider}"
    return "fleet" if provider is None else f"provider:{provider}"


def status_of(active: bool, auto_disabled: bool) -> ModelStatus:
    """Derive a status from its two columns; *active* wins."""
    if active:
        return ModelStatus.ACTIVE
    return ModelStatus.AUTO_DISABLED if auto_disabled else ModelStatus.DISABLED


def record(
    health: Health, outcome: Outcome, config: Config, guards: Guards
) -> tuple[Health, str | None]:
    """Apply one outcome; return the new health, and the name of its event or None.

    A success brings an auto-disabled model back, unless the model waits for a person or switching
    is paused. A success of a trusted model clears its ejections. The *threshold*-th counted failure
    in a row switches an active model off, unless a guard spares the model. If a person disabled the
    model, its outcomes are stored and its status stays. *guards* is brought up to date.
    """
    if outcome.type is None:
        back = health.status is ModelStatus.AUTO_DISABLED and not (
            guards.paused(health.provider) or waits_for_person(health.ejections, config.recovery)
        )
        if back:
            guards.switched_on(outcome.id, health.provider)
        if health.spared:
            guards.failed(outcome.id, health.provider, None)
        return Health(  # not replace(), which takes three times as long
            active=health.active or back,
            auto_disabled=health.auto_disabled and not back,
            consecutive_failures=0,
            ejections=0 if health.active and health.trusted else health.ejections,
            provider=health.provider,
            trusted=not cooldown(health.ejections, config.recovery) if back else health.trusted,
            spared=None,
            successes=health.successes + 1,
            failures=health.failures,
            failure_type=health.failure_type,
            failure_reason=None,
        ), "recovered" if back else None
    reached = reaches_threshold(health, outcome, config)
    why = guards.against(health.provider, outcome.type) if reached else None
    off = reached and why is None
    spared = why if reached else health.spared
    if spared or health.spared:
        kind = outcome.type if spared and health.active else None
        guards.failed(outcome.id, health.provider, kind)
    event = None
    if reached:
        if off:
            event = "auto-disabled"
        elif health.spared is None:  # only once, even if the reason changes later
            event = "would-disable"
        guards.reached(outcome.id, health.provider, outcome.type, event)
    return Health(
        active=health.active and not off,
        auto_disabled=health.auto_disabled or off,
        consecutive_failures=health.consecutive_failures + (outcome.type in config.health.counted),
        ejections=health.ejections + off,
        provider=health.provider,
        trusted=health.trusted,
        spared=spared,
        successes=health.successes,
        failures=health.failures + 1,
        failure_type=outcome.type,
        failure_reason=outcome.reason,
    ), event


def reaches_threshold(health: Health, outcome: Outcome, config: Config) -> bool:
    """Whether this outcome switches the model off unless a guard spares it."""
    return (
        health.active
        and outcome.type in config.health.counted
        and health.consecutive_failures + 1 >= config.health.threshold
    )


def depends_on_others(health: Health, outcome: Outcome, config: Config, guards: Guards) -> bool:
    """Whether the rule needs the rows of other models to decide about this outcome.

    It does not for a failure below the threshold, and not for a failure of a model that is spared
    by a hold which stays valid for at least one more incident window. Reads only the holds of
    *guards*.
    """
    if not config.recovery.guarded or not reaches_threshold(health, outcome, config):
        return False
    if health.spared == "paused":
        return not guards.paused(health.provider)
    return health.spared != "incident" or (health.provider, outcome.type) not in guards.lasting


@dataclass(slots=True)
class Share:
    """How many models a provider has: all, the active ones, and those that the rule switched off."""

    models: int = 0
    active: int = 0
    auto_disabled: int = 0


@dataclass(slots=True)
class Guards:
    """What one transaction knows of the fleet; it is kept up to date with each outcome.

    *pauses*: providers whose switching is paused; None for the whole fleet. *incidents*: provider
    and failure type of each incident that is not over; *lasting*: those that stay valid for at least
    one more window. *active*: how many models are active. *reachers*: models that reached the threshold
    within the last window; *off*: those of them that are not active. *spared*: models that are
    spared and whose last failure, within the last window, was of this type. *ejected*: models of a
    provider that the rule switched off since the provider's incident began, or at most a window
    before.
    """

    rule: RecoveryConfig
    pauses: set[str | None] = field(default_factory=set)
    incidents: set[tuple[str, FailureType]] = field(default_factory=set)
    lasting: set[tuple[str, FailureType]] = field(default_factory=set)
    active: int = 0
    shares: dict[str, Share] = field(default_factory=dict)
    reachers: dict[tuple[str, FailureType], set[str]] = field(default_factory=dict)
    off: set[str] = field(default_factory=set)
    spared: dict[tuple[str, FailureType], set[str]] = field(default_factory=dict)
    ejected: dict[str, set[str]] = field(default_factory=dict)
    # The incidents that began in this transaction, each with its number of failing models; and the
    # incidents that went on in it.
    began: dict[tuple[str, FailureType], int] = field(default_factory=dict)
    went_on: set[tuple[str, FailureType]] = field(default_factory=set)

    def paused(self, provider: str) -> bool:
        """Whether a person has paused switching for this provider or for the fleet."""
        return not self.pauses.isdisjoint((None, provider))

    def against(self, provider: str, kind: FailureType) -> str | None:
        """Return why a model of *provider* is spared now, or None.

        ``paused``: a person paused switching. ``incident``: the provider has an incident of this
        type. ``floor``: too few models would stay active. ``share``: the rule has switched off one
        of the provider's models already, and with one more it would be too many.
        """
        if self.paused(provider):
            return "paused"
        if (provider, kind) in self.incidents:
            return "incident"
        if self.rule.min_active and self.active - 1 < self.rule.min_active:
            return "floor"
        percent, share = self.rule.max_auto_disabled_percent, self.shares.get(provider, Share())
        too_many = (share.auto_disabled + 1) * 100 > percent * share.models
        if percent < 100 and share.auto_disabled and too_many:  # at 100 the models are not counted
            return "share"
        return None

    def failed(self, model_id: str, provider: str, kind: FailureType | None) -> None:
        """Note the type of the last failure of a model that is spared; None: it is not spared."""
        for each in FailureType:
            self.spared.get((provider, each), set()).discard(model_id)
        if kind:
            self.spared.setdefault((provider, kind), set()).add(model_id)

    def reached(self, model_id: str, provider: str, kind: FailureType, event: str | None) -> None:
        """Note that a model reached the threshold, and with which event.

        A provider has an incident if at least *incident_models* of its models fail with the same type,
        and these are at least half of the models that were active. An incident spares the provider's
        next models. It goes on while the spared models that fail, together with the models that were
        switched off since it began, are as many: models that are off get no more calls. During a pause no incident begins or goes
        on: the pause spares all models.
        """
        key, share = (provider, kind), self.shares.setdefault(provider, Share())
        spared, ejected = self.spared.get(key, set()), self.ejected.setdefault(provider, set())
        reachers = self.reachers.setdefault(key, set())
        if event:
            reachers.add(model_id)
        if event == "auto-disabled":
            self.active -= 1
            share.active -= 1
            share.auto_disabled += 1
            self.off.add(model_id)
            ejected.add(model_id)
        if not self.rule.incident_models or self.paused(provider):
            return
        if key in self.incidents:
            if self._is_incident(len(spared) + len(ejected), share.active + len(ejected)):
                self.went_on.add(key)
            return
        failing = reachers | spared
        if self._is_incident(len(failing), share.active + len(failing & self.off)):
            self.incidents.add(key)
            self.began[key] = len(failing)

    def _is_incident(self, failing: int, were_active: int) -> bool:
        return failing >= self.rule.incident_models and 2 * failing >= were_active

    def switched_on(self, model_id: str, provider: str) -> None:
        """Note that a model came back."""
        self.active += 1
        share = self.shares.setdefault(provider, Share())
        share.active += 1
        share.auto_disabled -= 1
        self.off.discard(model_id)
        self.ejected.get(provider, set()).discard(model_id)


def waits_for_person(ejections: int, rule: RecoveryConfig) -> bool:
    """Whether a model was switched off so often in a row that only a person brings it back."""
    return bool(rule.max_ejections) and ejections >= rule.max_ejections


def is_trusted(back: float | None, ejections: int, now: float, rule: RecoveryConfig) -> bool:
    """Whether a model that is active has been back for at least one cooldown.

    *back*: when it came back (seconds since 1970, as *now*); None if that is not known.
    """
    return back is None or back + cooldown(ejections, rule) <= now


@functools.lru_cache(maxsize=8)
def cooldowns(rule: RecoveryConfig) -> tuple[float, ...]:
    """Return the cooldown (seconds) after the first, second, ... ejection in a row.

    The last cooldown holds for all further ejections. The cooldowns grow exponentially up to a
    cap, like the ejection times of outlier detection in Envoy and the backoff of Kubernetes. A cap
    below the configured cooldown, as the default may be, does not shorten the cooldown.
    """
    found = [rule.cooldown]
    cap = max(rule.cooldown, rule.max_cooldown)
    while rule.cooldown_factor > 1 and 0 < found[-1] < cap:
        found.append(min(cap, found[-1] * rule.cooldown_factor))
    return tuple(found)


def cooldown(ejections: int, rule: RecoveryConfig) -> float:
    """Return how long (seconds) a model with so many ejections in a row stays off."""
    known = cooldowns(rule)
    return known[min(max(ejections, 1), len(known)) - 1]


def failure_type_of_status(status: int) -> FailureType | None:
    """Return the failure type of an HTTP status (RFC 9110).

    Return None for 499: the caller closed the connection before the answer, which says nothing
    about the model.

    Raises:
        UsageError: the status is not 400-599.
    """
    if status == 499:
        return None
    if status in (408, 504):
        return FailureType.TIMEOUT
    if status == 429:
        return FailureType.RATE_LIMIT
    if 400 <= status <= 498:
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
    if not record.keys() <= _FIELDS:
        raise UsageError(f"an outcome has no field '{min(map(str, record.keys() - _FIELDS))}'")
    get = record.get
    model_id, kind, type_, reason = get("id"), get("outcome"), get("type"), get("reason")
    if not isinstance(model_id, str) or not model_id:
        raise UsageError("'id' is not the id of a model")
    if kind not in ("success", "failure"):
        raise UsageError('\'outcome\' is neither "success" nor "failure"')
    if not isinstance(type_, str | None):
        raise UsageError("'type' is not text")
    if not isinstance(reason, str | None):
        raise UsageError("'reason' is not text")
    failed_by = failure_type("unknown" if type_ is None else type_)
    if kind == "success":  # a success has no type and no reason
        return Outcome(model_id, None)
    return Outcome(model_id, failed_by, storable_reason(reason, reason_length))


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
