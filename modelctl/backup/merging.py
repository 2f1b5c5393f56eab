"""What a model becomes when an export is restored over it. Pure functions, no I/O.

Without ``enable`` no model comes back sooner than it would have: a model that is off stays off as it
is, unless the export holds it off for at least as long, and as strictly.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING

from modelctl.health import cooldown, waits_for_person
from modelctl.model import ModelStatus

if TYPE_CHECKING:
    from modelctl.backup.lines import SavedModel
    from modelctl.config.sections import RecoveryConfig

# What belongs to the status: either all of it is of the export, or all of it stays.
_OF_STATUS = (
    *("status", "consecutive_failures", "ejections", "last_failure_at", "failure_type"),
    *("failure_reason", "disabled_at", "disabled_by", "disabled_reason", "disabled_until"),
    *("recovered_at", "would_disable"),
)


def merge(
    saved: SavedModel, current: SavedModel, rule: RecoveryConfig, now: str, *, enable: bool
) -> tuple[SavedModel, str | None]:
    """Return what a model becomes, and why it is left off, or None.

    *now*: when the row will be written. *enable*: the model becomes what the export says, even if it
    comes back sooner.
    """
    is_off = saved.status != ModelStatus.ACTIVE
    known = saved._replace(
        # A time that the export does not have is not known: the one that is there stays.
        created_at=saved.created_at or current.created_at,
        disabled_at=(saved.disabled_at or current.disabled_at) if is_off else None,
        updated_at=current.updated_at,
    )
    if enable or not _comes_back_sooner(known, current, rule, now):
        return known, None
    kept = known._replace(**{name: getattr(current, name) for name in _OF_STATUS})
    return kept, f"stays {_described(current)}; in the export it is {_described(saved)}"


def _comes_back_sooner(new: SavedModel, old: SavedModel, rule: RecoveryConfig, now: str) -> bool:
    if old.status == ModelStatus.DISABLED and new.status != ModelStatus.DISABLED:
        return True  # what a person decided, only a person changes
    return _back_at(new, rule, now) < _back_at(old, rule, old.updated_at or now)


def _back_at(model: SavedModel, rule: RecoveryConfig, written: str) -> float:
    """Return when a model comes back at the earliest without a person (seconds since 1970).

    *written*: when its row was written, from which a cooldown runs if there is no better time.
    """
    if model.status == ModelStatus.ACTIVE:
        return -math.inf
    if model.status == ModelStatus.DISABLED:
        return _epoch(model.disabled_until) if model.disabled_until else math.inf
    if waits_for_person(model.ejections, rule):
        return math.inf
    base = model.last_failure_at or model.disabled_at or written
    return _epoch(base) + cooldown(model.ejections, rule)


def _epoch(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _described(model: SavedModel) -> str:
    if model.status != ModelStatus.DISABLED:
        return model.status
    return f"disabled until {model.disabled_until}" if model.disabled_until else "disabled"
