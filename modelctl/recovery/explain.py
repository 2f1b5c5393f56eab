"""Sentences for `show`: why a model has its status, and what the next `recover` does with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.model import SYNC, ModelStatus, numbered

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from modelctl.config.config import Config
    from modelctl.database.database import Database
    from modelctl.health import Hold
    from modelctl.models.results import ExplainedModel, Model, SourcedModel
    from modelctl.recovery.candidates import Candidates
    from modelctl.recovery.holds import Holds
    from modelctl.recovery.results import Candidate

_SPARED = {
    "floor": "the fleet would have fewer active models than recovery.min_active",
    "share": "too much of its provider is off already (recovery.max_auto_disabled_percent)",
    "incident": "its provider had an incident",
    "paused": "automatic switching was paused",
}


def moment(time: datetime) -> str:
    """Write a UTC time."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def left(seconds: float) -> str:
    """Write how long something still takes: ``now``, ``in 23 min``."""
    if seconds <= 0:
        return "now"
    if seconds < 90:
        return f"in {seconds:.0f} s"
    if seconds < 5400:
        return f"in {seconds / 60:.0f} min"
    return f"in {seconds / 3600:.1f} h" if seconds < 172800 else f"in {seconds / 86400:.0f} days"


def describe(hold: Hold) -> str:
    """Describe a pause or an incident: what is stopped, until when and why."""
    if hold.failure_type is not None:
        what = f"incident at {hold.provider or 'no provider'}: {hold.failure_type}"
        reason = f" ({hold.reason})" if hold.reason else ""
        return f"{what} since {moment(hold.since)}{reason}, until {moment(hold.until)} at least"
    whose = "" if hold.provider is None else f" of {hold.provider or 'no provider'}"
    why = f": {hold.reason}" if hold.reason else ""
    by = f" by {hold.actor}" if hold.actor else ""
    end = f"until {moment(hold.until)} ({left(hold.seconds_left)})"
    return f"automatic switching{whose} is paused{by} {end}{why}"


def explained(
    model: SourcedModel, config: Config, database: Database, holds: Holds, candidates: Candidates
) -> ExplainedModel:
    """Return *model* with its explanation; the database is asked what the sentences need."""
    from dataclasses import fields

    from modelctl.models.events import other_program
    from modelctl.models.results import ExplainedModel

    current = holds.current()
    # A model that only a person enables is no candidate.
    candidate = None if model.active else next(candidates.plan(ids=[model.id]), None)
    is_due = candidate is not None and not candidate.waiting
    ahead = candidates.ahead(model.id) if is_due and config.recovery.limit else 0
    is_told = model.active or model.disabled_by is not None
    other = None if is_told else other_program(database, model.id)
    sentences = explain(model, config, current, candidate, ahead, other)
    values = {field.name: getattr(model, field.name) for field in fields(model)}
    return ExplainedModel(**values, explanation=sentences)


def explain(
    model: SourcedModel,
    config: Config,
    holds: Iterable[Hold],
    candidate: Candidate | None,
    ahead: int,
    other: tuple[str, str] | None,
) -> tuple[str, ...]:
    """Return the sentences.

    *holds*: the pauses and incidents of now. *candidate*: None if only a person enables the model.
    *ahead*: how many models are due before it. *other*: when another program switched it off, and who.
    """
    sentences = [_status(model, other), *_failures(model, config)]
    if model.status is ModelStatus.ACTIVE:
        sentences += _trust(model, config)
    else:
        sentences.append(_next_recover(model, config, candidate, ahead))
    sentences += [
        _sentence(describe(hold)) for hold in holds if hold.provider in (None, model.provider)
    ]
    return tuple(sentences)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _status(model: Model, other: tuple[str, str] | None) -> str:
    if model.status is ModelStatus.ACTIVE:
        back = f", back since {moment(model.recovered_at)}" if model.recovered_at else ""
        return f"It is active{back}."
    if other:
        return f"It has been off since {other[0]}, switched off{other[1]}."
    since = f" since {moment(model.disabled_at)}" if model.disabled_at else ""
    by = model.disabled_by or "somebody, not by modelctl"
    why = f": {model.disabled_reason}" if model.disabled_reason else ""
    off = f"It has been off{since}," if since else "It is off,"
    return f"{off} switched off by {by}{why}."


def _failures(model: Model, config: Config) -> list[str]:
    switched = {0: "has not switched it off", 1: "has switched it off once"}.get(
        model.ejections, f"has switched it off {model.ejections} times"
    )
    sentences = [
        f"It has {model.consecutive_failures} of {config.health.threshold} failures in a row,"
        f" and the health rule {switched} since it was last trusted."
    ]
    if model.last_failure_at:
        kind = f" with {model.failure_type}" if model.failure_type else ""
        reason = f": {model.failure_reason}" if model.failure_reason else ""
        sentences.append(f"It last failed at {moment(model.last_failure_at)}{kind}{reason}.")
    return sentences


def _trust(model: Model, config: Config) -> list[str]:
    """Say how near an active model is to being switched off, or for good."""
    sentences = []
    if model.would_disable:
        why = _SPARED.get(model.would_disable, model.would_disable)
        sentences.append(f"The health rule would have switched it off, but {why}.")
    if model.ejections:
        sentences.append(
            "A success at least one cooldown after it came back makes it trusted again."
        )
    rule = config.recovery
    if rule.max_ejections and model.ejections + 1 >= rule.max_ejections:
        sentences.append(
            "If the health rule switches it off once more, only a person can enable it."
        )
    return sentences


def _next_recover(
    model: SourcedModel, config: Config, candidate: Candidate | None, ahead: int
) -> str:
    rule = config.recovery
    if candidate is None and model.disabled_by == SYNC and model.gone_since:
        return (
            "The next recover leaves it off: sync switched it off, and enables it when its source"
            " offers it again, unless a person has disabled it since."
        )
    if candidate is None:
        return "The next recover leaves it off: a person switched it off, and only a person enables it."
    waiting = candidate.waiting
    if waiting is not None:
        if waiting.why == "person":
            return (
                "The next recover leaves it off: the health rule switched it off"
                f" {numbered(model.ejections, 'time')} since it was last trusted"
                f" (recovery.max_ejections is {rule.max_ejections}), so only a person enables it."
            )
        if waiting.why == "paused":
            return "The next recover leaves it off while automatic switching is paused."
        what = "its timed disable" if waiting.why == "timed" else "its cooldown"
        end = (
            f"{moment(waiting.retry_at)} ({left(waiting.seconds_left or 0)})"
            if waiting.retry_at
            else ""
        )
        return f"The next recover leaves it off: {what} ends at {end}."
    if rule.limit and ahead >= rule.limit:
        are = "is" if ahead == 1 else "are"
        return (
            f"The next recover leaves it off: {numbered(ahead)} {are} due before it, and one run"
            f" brings {rule.limit} back."
        )
    failures = 0 if model.status is ModelStatus.DISABLED else rule.restart_failures
    return f"The next recover brings it back with {failures} of {config.health.threshold} failures."
