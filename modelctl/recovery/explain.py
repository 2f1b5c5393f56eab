"""Answers to "why?", in sentences. Pure words; nothing is asked or changed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.model import ModelStatus, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from modelctl.config.config import Config
    from modelctl.models.results import Model
    from modelctl.reports import Candidate, Hold

_SPARED = {
    "floor": "the fleet would have fewer active models than recovery.min_active",
    "share": "too much of its provider is off already (recovery.max_auto_disabled_percent)",
    "incident": "its provider had an incident",
    "paused": "automatic switching was paused",
}


def moment(time: datetime) -> str:
    """Write a time, in UTC."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def left(seconds: float) -> str:
    """Say in how long: ``now``, ``in 23 min``."""
    if seconds <= 0:
        return "now"
    if seconds < 90:
        return f"in {seconds:.0f} s"
    if seconds < 5400:
        return f"in {seconds / 60:.0f} min"
    return f"in {seconds / 3600:.1f} h" if seconds < 172800 else f"in {seconds / 86400:.0f} days"


def describe(hold: Hold) -> str:
    """Say what is held, until when and why."""
    if hold.failure_type is not None:
        what = f"incident at {hold.provider or 'no provider'}: {hold.failure_type}"
        reason = f" ({hold.reason})" if hold.reason else ""
        return f"{what} since {moment(hold.since)}{reason}, until {moment(hold.until)} at least"
    whose = "" if hold.provider is None else f" of {hold.provider or 'no provider'}"
    why = f": {hold.reason}" if hold.reason else ""
    by = f" by {hold.actor}" if hold.actor else ""
    end = f"until {moment(hold.until)} ({left(hold.seconds_left)})"
    return f"automatic switching{whose} is paused{by} {end}{why}"


def explain(
    model: Model, config: Config, holds: Iterable[Hold], candidate: Candidate | None, ahead: int
) -> tuple[str, ...]:
    """Say why *model* is as it is, and what the next `recover` does.

    *candidate*: when it may come back by itself, None: never. *ahead*: how many models are due
    before it.
    """
    told = [_is(model), *_failures(model, config)]
    if model.status is ModelStatus.ACTIVE:
        told += _stays_on(model, config)
    else:
        told.append(_next_recover(model, config, candidate, ahead))
    told += [_sentence(describe(h)) for h in holds if h.provider in (None, model.provider)]
    return tuple(told)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _is(model: Model) -> str:
    if model.status is ModelStatus.ACTIVE:
        back = f", back since {moment(model.recovered_at)}" if model.recovered_at else ""
        return f"It is active{back}."
    since = f" since {moment(model.disabled_at)}" if model.disabled_at else ""
    by = model.disabled_by or "somebody, not by modelctl"
    why = f": {model.disabled_reason}" if model.disabled_reason else ""
    return f"It is off{since}, switched off by {by}{why}."


def _failures(model: Model, config: Config) -> list[str]:
    times = {0: "has not", 1: "has once"}.get(model.ejections, f"has {model.ejections} times")
    told = [
        f"It has {model.consecutive_failures} of {config.health.threshold} failures in a row,"
        f" and the health rule {times} switched it off since it was last trusted."
    ]
    if model.last_failure_at:
        kind = f" with {model.failure_type}" if model.failure_type else ""
        reason = f": {model.failure_reason}" if model.failure_reason else ""
        told.append(f"It last failed at {moment(model.last_failure_at)}{kind}{reason}.")
    return told


def _stays_on(model: Model, config: Config) -> list[str]:
    told = []
    if model.would_disable:
        why = _SPARED.get(model.would_disable, model.would_disable)
        told.append(f"The health rule would have switched it off, but {why}.")
    if model.ejections:
        told.append("A success at least one cooldown after it came back makes it trusted again.")
    rule = config.recovery
    if rule.max_ejections and model.ejections + 1 >= rule.max_ejections:
        told.append("Switched off once more it waits for a person.")
    return told


def _next_recover(model: Model, config: Config, candidate: Candidate | None, ahead: int) -> str:
    rule = config.recovery
    if candidate is None:
        return "The next recover leaves it off: a person switched it off, and only a person enables it."
    waiting = candidate.waiting
    if waiting is not None:
        if waiting.why == "person":
            return (
                f"The next recover leaves it off: {model.ejections} ejections without trust regained"
                f" ({rule.max_ejections} are enough) wait for a person; enable frees it."
            )
        if waiting.why == "paused":
            return "The next recover leaves it off while automatic switching is paused."
        what = "it is switched off for a time that" if waiting.why == "timed" else "its cooldown"
        end = (
            f"{moment(waiting.retry_at)} ({left(waiting.seconds_left or 0)})"
            if waiting.retry_at
            else ""
        )
        return f"The next recover leaves it off: {what} ends at {end}."
    if rule.limit and ahead >= rule.limit:
        are = "is" if ahead == 1 else "are"
        return (
            f"The next recover leaves it off: {numbered(ahead)} {are} due before it, and a run brings"
            f" {rule.limit} back."
        )
    failures = 0 if model.status is ModelStatus.DISABLED else rule.restart_failures
    return f"The next recover brings it back with {failures} of {config.health.threshold} failures."
