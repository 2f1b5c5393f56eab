"""When recover last ran, what stops models from coming back or from being switched off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.doctor.facts import Finding, first_three, warning, well, wrong

if TYPE_CHECKING:
    from modelctl.doctor.facts import Facts


def recover(facts: Facts) -> Finding:
    """Say when recover last finished, and whether it is overdue."""
    from modelctl.recovery.last_run import CLOCK_SKEW_SECONDS

    last, every = facts.storage.last_run.read(), facts.config.recovery.expect_every
    ago = last.seconds_ago
    if ago is not None:
        facts.numbers["recover_age"] = max(0.0, ago)
    in_the_future = ago is not None and ago < -CLOCK_SKEW_SECONDS
    if ago is None:
        detail = "never ran"
    elif in_the_future:
        detail = f"last finished {-ago:.0f} s in the future: the database's clock was set back"
    else:
        detail = f"last finished {max(0.0, ago):.0f} s ago"
    detail += f", expected every {every:.0f} s" if every else ""
    if last.overdue:
        return wrong(detail)
    return warning(detail) if in_the_future else well(detail)


def holds(facts: Facts) -> Finding:
    """List pauses and incidents."""
    from modelctl.recovery.explain import describe

    current = "; ".join(map(describe, facts.storage.holds.current()))
    return well(current or "nothing is paused, and there is no incident")


def spared(facts: Facts) -> Finding:
    """List the models that a guard keeps active."""
    models = [f"{model_id} ({why})" for model_id, why in facts.storage.candidates.spared()]
    return well(f"would be off without a guard: {first_three(models)}" if models else "none")


def ejected(facts: Facts) -> Finding:
    """List the models that recover will not bring back."""
    models = facts.storage.candidates.for_a_person()
    return well(f"off until a person enables them: {first_three(models)}" if models else "none")


def guards(facts: Facts) -> Finding:
    """List the guards that are not configured."""
    rule = facts.config.recovery
    configured = {
        "min_active": rule.min_active > 0,
        "max_auto_disabled_percent": rule.max_auto_disabled_percent < 100,
        "incident_models": rule.incident_models > 0,
        "max_ejections": rule.max_ejections > 0,
        "limit": rule.limit > 0,
        "cooldown_factor": rule.cooldown_factor > 1,
        "expect_every": rule.expect_every > 0,
    }
    off = ", ".join(name for name, on in configured.items() if not on)
    return well(
        f"off: {off}; modelctl config example has recommended values" if off else "all are on"
    )
