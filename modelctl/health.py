"""The rules: what an outcome does to a model, what guards the fleet, when a model comes back.

Data and pure functions. `store` says the rule of a single outcome in SQL too, so that increment
and test are one statement; a property test holds the two together.
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
    from typing import BinaryIO

    from modelctl.config.config import Config
    from modelctl.config.sections import RecoveryConfig

# Who switched a model off when nobody did.
HEALTH_RULE = "health rule"
_LONGEST_LINE = 1 << 20
_FIELDS = {"id", "outcome", "type", "reason"}


class Outcome(NamedTuple):
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
    """What the rule reads and writes of a model; the counts are those of this batch alone.

    *trusted*: it has been back for at least one cooldown.
    """

    active: bool
    auto_disabled: bool
    consecutive_failures: int
    ejections: int
    provider: str = ""
    trusted: bool = False
    would_disable: str | None = None
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


def record(
    health: Health, outcome: Outcome, config: Config, guards: Guards
) -> tuple[Health, str | None]:
    """Apply one outcome; return the new health and its event, if there is one.

    A success brings an auto-disabled model back, unless it waits for a person or switching is
    paused; a trusted one has its ejections forgotten. The *threshold*-th counted failure in a row
    switches an active model off, unless a guard is against it: then it is only noted. A model
    that a person disabled only has its outcomes stored. *guards* learns of every switch.
    """
    if outcome.type is None:
        back = health.status is ModelStatus.AUTO_DISABLED and not (
            guards.paused(health.provider) or waits_for_person(health.ejections, config.recovery)
        )
        if back:
            guards.switched_on(outcome.id, health.provider)
        if health.would_disable:
            guards.failed(outcome.id, health.provider, None)
        return Health(  # not replace(), which takes three times as long
            active=health.active or back,
            auto_disabled=health.auto_disabled and not back,
            consecutive_failures=0,
            ejections=0 if health.active and health.trusted else health.ejections,
            provider=health.provider,
            trusted=not cooldown(health.ejections, config.recovery) if back else health.trusted,
            would_disable=None,
            successes=health.successes + 1,
            failures=health.failures,
            failure_type=health.failure_type,
            failure_reason=None,
        ), "recovered" if back else None
    counted = outcome.type in config.health.counted
    failures = health.consecutive_failures + counted
    reached = counted and health.active and failures >= config.health.threshold
    why = guards.against(health.provider, outcome.type) if reached else None
    off = reached and why is None
    noted = why if reached else health.would_disable
    if noted or health.would_disable:
        spared = outcome.type if noted and health.active else None
        guards.failed(outcome.id, health.provider, spared)
    event = None
    if reached:
        if off:
            event = "auto-disabled"
        elif health.would_disable is None:  # once, also if the reason changes later
            event = "would-disable"
        guards.reached(outcome.id, health.provider, outcome.type, event)
    return Health(
        active=health.active and not off,
        auto_disabled=health.auto_disabled or off,
        consecutive_failures=failures,
        ejections=health.ejections + off,
        provider=health.provider,
        trusted=health.trusted,
        would_disable=noted,
        successes=health.successes,
        failures=health.failures + 1,
        failure_type=outcome.type,
        failure_reason=outcome.reason,
    ), event


@dataclass(slots=True)
class Share:
    """A provider's models: all, the active ones, those that the rule has switched off."""

    models: int = 0
    active: int = 0
    auto_disabled: int = 0


@dataclass(slots=True)
class Guards:
    """What one transaction knows of the fleet; it keeps count of what it switches itself.

    *pauses*: providers whose switching is paused, None for the whole fleet. *incidents*: the
    (provider, failure type) of those that last. *reachers*: the models that reached the threshold
    within the window of an incident, *off*: those of them that are off. *spared*: the models that
    are spared and last failed so, within the window. *out*: the models of a provider that the rule
    switched off since its incident began, or at most a window before.
    """

    rule: RecoveryConfig
    pauses: set[str | None] = field(default_factory=set)
    incidents: set[tuple[str, FailureType]] = field(default_factory=set)
    active: int = 0
    shares: dict[str, Share] = field(default_factory=dict)
    reachers: dict[tuple[str, FailureType], set[str]] = field(default_factory=dict)
    off: set[str] = field(default_factory=set)
    spared: dict[tuple[str, FailureType], set[str]] = field(default_factory=dict)
    out: dict[str, set[str]] = field(default_factory=dict)
    # Incidents that began or went on in this transaction, and how many models are in each.
    began: dict[tuple[str, FailureType], int] = field(default_factory=dict)
    went_on: set[tuple[str, FailureType]] = field(default_factory=set)

    def paused(self, provider: str) -> bool:
        """Whether a person has paused switching for it."""
        return not self.pauses.isdisjoint((None, provider))

    def against(self, provider: str, kind: FailureType) -> str | None:
        """Why a model of *provider* must not be switched off now; None: nothing is against it.

        ``paused``; ``incident`` of the provider; ``floor``: too few models would stay on;
        ``share``: too many of the provider's would be off, and one of them is already.
        """
        if self.paused(provider):
            return "paused"
        if (provider, kind) in self.incidents:
            return "incident"
        if self.rule.min_active and self.active - 1 < self.rule.min_active:
            return "floor"
        percent, share = self.rule.max_auto_disabled_percent, self.shares.get(provider, Share())
        too_many = (share.auto_disabled + 1) * 100 > percent * share.models
        if percent < 100 and share.auto_disabled and too_many:  # at 100 nobody counts them
            return "share"
        return None

    def failed(self, model_id: str, provider: str, spared: FailureType | None) -> None:
        """Learn of which type the last failure of a *spared* model is; None: it is not spared."""
        for kind in FailureType:
            self.spared.get((provider, kind), set()).discard(model_id)
        if spared:
            self.spared.setdefault((provider, spared), set()).add(model_id)

    def reached(self, model_id: str, provider: str, kind: FailureType, event: str | None) -> None:
        """Learn that a model reached the threshold, and what the history says of it.

        At least *incident_models* of a provider, and at least half of those that were active, are
        an incident of the provider, which spares the ones to come. It goes on while so many are
        spared and fail, or are off since it began: those send no failures any more.
        In a pause none begins or goes on: nobody has to be spared.
        """
        key, share = (provider, kind), self.shares.setdefault(provider, Share())
        spared, out = self.spared.get(key, set()), self.out.setdefault(provider, set())
        reachers = self.reachers.setdefault(key, set())
        if event:
            reachers.add(model_id)
        if event == "auto-disabled":
            self.active -= 1
            share.active -= 1
            share.auto_disabled += 1
            self.off.add(model_id)
            out.add(model_id)
        if not self.rule.incident_models or self.paused(provider):
            return
        if key in self.incidents:
            if self._enough(len(spared) + len(out), share.active + len(out)):
                self.went_on.add(key)
            return
        failing = reachers | spared
        if self._enough(len(failing), share.active + len(failing & self.off)):
            self.incidents.add(key)
            self.began[key] = len(failing)

    def _enough(self, failing: int, were_active: int) -> bool:
        """Whether so many are an incident."""
        return failing >= self.rule.incident_models and 2 * failing >= were_active

    def switched_on(self, model_id: str, provider: str) -> None:
        """Learn that a model came back."""
        self.active += 1
        share = self.shares.setdefault(provider, Share())
        share.active += 1
        share.auto_disabled -= 1
        self.off.discard(model_id)
        self.out.get(provider, set()).discard(model_id)


def waits_for_person(ejections: int, rule: RecoveryConfig) -> bool:
    """Whether a model was ejected so often without trust regained that only a person frees it."""
    return bool(rule.max_ejections) and ejections >= rule.max_ejections


@functools.lru_cache(maxsize=8)
def cooldowns(rule: RecoveryConfig) -> tuple[float, ...]:
    """Return the cooldown (seconds) after the first, second, ... ejection in a row; the last stays.

    Exponential, with a cap, as the ejection times of outlier detection in Envoy and the backoff
    of Kubernetes; a cap below the base, as the default may be, does not shorten it.
    """
    ladder = [rule.cooldown]
    cap = max(rule.cooldown, rule.max_cooldown)
    while rule.cooldown_factor > 1 and 0 < ladder[-1] < cap:
        ladder.append(min(cap, ladder[-1] * rule.cooldown_factor))
    return tuple(ladder)


def cooldown(ejections: int, rule: RecoveryConfig) -> float:
    """Return how long (seconds) a model with so many ejections in a row stays off."""
    ladder = cooldowns(rule)
    return ladder[min(max(ejections, 1), len(ladder)) - 1]


def failure_type_of_status(status: int) -> FailureType | None:
    """Return the failure type of an HTTP status (RFC 9110).

    None for 499: the caller went away before the answer, which says nothing about the model.

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
    if kind == "success":  # whatever is said of a failure says nothing here
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
