"""Replays the history: what it says of the status of each model."""

from __future__ import annotations

from tests.fleets import sql


def replayed(url: str) -> dict[str, str]:
    """Return the status of each model after all events, from the first one on."""
    found = sql(
        url,
        "SELECT model_id, event, before, after FROM modelctl_events WHERE model_id <> '' ORDER BY id",
    )
    fleet: dict[str, str] = {}
    for model_id, _, before, after in found:
        if after:
            fleet[model_id] = after
        elif before:  # an event with neither says nothing of the status
            fleet.pop(model_id, None)
    return fleet


def statuses(url: str) -> dict[str, str]:
    """Return the status of each model in the table."""
    off = "CASE WHEN auto_disabled THEN 'auto-disabled' ELSE 'disabled' END"
    found = sql(url, f"SELECT id, CASE WHEN active THEN 'active' ELSE {off} END FROM models")
    return {row[0]: row[1] for row in found}
