"""Outcomes for the tests of recovery, one by one and in batches, and what they led to."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

from modelctl import DatabaseUnavailableError, Fleet
from tests.commands import Cli

BAD = "parse-error"
Fail = Callable[..., None]


def patiently(call: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Call again where the database was busy, as an application does; a deadlock is an error."""
    for _ in range(10):
        try:
            call(*arguments, **options)
        except DatabaseUnavailableError as exc:
            if "deadlock" in exc.message:
                raise
        else:
            return
    raise AssertionError("the database stays busy")


def one_by_one(fleet: Fleet, *ids: str, times: int = 5, kind: str = BAD) -> None:
    """Record failures in calls of their own."""
    for model_id in ids:
        for _ in range(times):
            patiently(fleet.record_failure, model_id, kind, reason="no JSON")


def in_a_batch(fleet: Fleet, *ids: str, times: int = 5, kind: str = BAD) -> None:
    """Record failures in one batch."""
    failure = {"outcome": "failure", "type": kind, "reason": "no JSON"}
    patiently(fleet.record_batch, [{"id": i, **failure} for i in ids for _ in range(times)])


def succeed_one_by_one(fleet: Fleet, *ids: str) -> None:
    """Record successes in calls of their own."""
    for model_id in ids:
        fleet.record_success(model_id)


def succeed_in_a_batch(fleet: Fleet, *ids: str) -> None:
    """Record successes in one batch."""
    fleet.record_batch({"id": i, "outcome": "success"} for i in ids)


def listed(tool: Cli, *words: str, **configured: object) -> dict[str, dict[str, str]]:
    """Return what `list` says of each model, by column."""
    rows = csv.DictReader(tool("list", *words, "-o", "csv", **configured).lines)
    return {row["id"]: row for row in rows}


def story(fleet: Fleet, model_id: str | None = None) -> list[str]:
    """Return what happened, the oldest first; of a provider with its name."""
    events = reversed(fleet.events(model_id, limit=10_000))
    return [e.event if e.model_id else f"{e.event} {e.provider}" for e in events]


def would(fleet: Fleet, *ids: str) -> list[str | None]:
    """Return why each model was spared."""
    return [fleet.show(model_id).would_disable for model_id in ids]


def why(fleet: Fleet, **how: Any) -> dict[str, str]:
    """Return what a dry run of recover says of each model."""
    told = fleet.recover(dry_run=True, **how)
    return dict.fromkeys(told.recovered, "due") | {w.id: w.why for w in told.waiting}
