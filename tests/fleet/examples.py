"""Strange ids, statuses and the history for the tests of a fleet."""

from __future__ import annotations

from typing import Any

from modelctl import (
    Fleet,
    ModelStatus,
)

ACTIVE, DISABLED, AUTO = ModelStatus


def history(fleet: Fleet, id: str | None = None) -> list[tuple[Any, ...]]:  # noqa: A002
    """Return the newest events first, without their numbers and times."""
    return [
        (e.model_id, e.event, e.before, e.after, e.actor, e.reason, e.failure_type)
        for e in fleet.events(id)
    ]
