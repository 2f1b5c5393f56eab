"""Replays the history: what it says of the status of each model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tests.fleets import sql

TOLD = "SELECT model_id, before, after FROM modelctl_events WHERE model_id <> '' ORDER BY id"


def replay(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """Return the status of each model after all events, the rows of `TOLD`, from the first one on."""
    fleet: dict[str, str] = {}
    for model_id, before, after in rows:
        if after:
            fleet[model_id] = after
        elif before:  # an event with neither says nothing of the status
            fleet.pop(model_id, None)
    return fleet


def replayed(url: str) -> dict[str, str]:
    """Return what the history of a database says."""
    return replay(sql(url, TOLD))


def statuses(url: str) -> dict[str, str]:
    """Return the status of each model in the table."""
    off = "CASE WHEN auto_disabled THEN 'auto-disabled' ELSE 'disabled' END"
    found = sql(url, f"SELECT id, CASE WHEN active THEN 'active' ELSE {off} END FROM models")
    return {row[0]: row[1] for row in found}
