"""The rows of ``models``: contradictions, counters, how many models are active."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.doctor.facts import Finding, warning, well, wrong
from modelctl.errors import clean
from modelctl.model import numbered

if TYPE_CHECKING:
    from modelctl.doctor.facts import Facts

# Warn if this share of the active models failed in their last call with a type that does not count.
FAILING_SHARE = 0.1


def rows(facts: Facts) -> Finding:
    """Find rows that contradict themselves or cannot be read."""
    survey = facts.survey
    if survey.contradictory:
        are = "is" if survey.contradictory == 1 else "are"
        return wrong(
            f"{numbered(survey.contradictory)} {are} both active and auto-disabled;"
            " run: UPDATE models SET auto_disabled = false WHERE active"
        )
    if survey.unreadable:
        detail = f"'{clean(survey.such_as, longest=200)}'"
        if survey.unreadable > 1:
            detail += f" and {survey.unreadable - 1} more"
        have = "has" if survey.unreadable == 1 else "have"
        return warning(f"{detail} {have} values that cannot be read; see: modelctl list")
    return well("consistent")


def counters(facts: Facts) -> Finding | None:
    """Find counters of an application's table that are too small, before outcomes fail."""
    filling = facts.survey.filling
    if not filling:
        return None
    widen = ", ".join(f"ALTER COLUMN {name} TYPE bigint" for name in filling.split(", "))
    detail = (
        f"full or nearly full: {filling}; an outcome fails when its counter is at 2,147,483,647."
        f" As the owner, run: ALTER TABLE models {widen}"
    )
    return wrong(detail) if facts.survey.full else warning(detail)


def fleet(facts: Facts) -> Finding:
    """Count the models, and warn if none is active or many fail without being switched off."""
    survey, config = facts.survey, facts.config
    facts.numbers |= {"active": survey.active, "models": survey.models}
    detail = f"{survey.active} active of {numbered(survey.models)}"
    if not survey.models and config.embedded:
        return warning(
            f"{detail}: no database is configured, so modelctl uses {config.sqlite_path}. For another"
            " database set database.url (MODELCTL_DATABASE_URL)"
        )
    if not survey.models:
        return warning(f"{detail}; add some: modelctl add, modelctl import")
    if not survey.active:
        return warning(f"{detail}; see: modelctl list, modelctl recover --dry-run")
    if survey.failing and survey.failing >= FAILING_SHARE * survey.active:
        counted = ", ".join(config.health.counted)
        return warning(
            f"{detail}; the last call of {survey.failing} failed with a type that does not count"
            f" against a model (only {counted} do): see modelctl list --sort failures, and"
            " health.counted"
        )
    return well(detail)
