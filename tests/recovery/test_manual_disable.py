"""Whatever happens, a model that a person disabled for good is enabled only by a person."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import Fleet
from tests.fleets import HOUR, opened
from tests.recovery.outcomes import in_a_batch, one_by_one, succeed_in_a_batch

IDS = "abc"
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("disable", "disable", "disable --for", "enable"),
                *("raw off", "raw off", "raw on", "raw off and on"),
                *("fail", "fail", "fail in a batch", "succeed", "succeed in a batch"),
                *("recover", "recover", "recover at once", "time", "time", "pause", "resume"),
            ]
        ),
        st.sampled_from(IDS),
    ),
    min_size=4,
    max_size=14,
)


@pytest.fixture
def sacred(sqlite_database: str) -> Iterator[tuple[Fleet, Callable[..., Any]]]:
    """Give a fleet that guards itself, and its file as another program sees it, without waiting."""
    path = sqlite_database.removeprefix("sqlite:///")
    guards = {
        "recovery_min_active": 1,
        "recovery_max_ejections": 3,
        "recovery_cooldown_factor": 2,
        "recovery_incident_models": 2,
    }
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as file,
        opened(sqlite_database, **guards) as fleet,
    ):
        file.execute("PRAGMA synchronous = OFF")
        yield fleet, file.execute


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STEPS)
def test_what_a_person_switched_off_only_a_person_switches_on(
    sacred: tuple[Fleet, Callable[..., Any]], steps: list[tuple[str, str]]
) -> None:
    """No outcome, recovery, pause or passing time enables a model that a person disabled."""
    fleet, ask = sacred
    for table in ("models", "modelctl_events", "modelctl_holds"):
        ask(f"DELETE FROM {table}")
    ask("INSERT INTO models (id, provider) VALUES ('a', 'p'), ('b', 'p'), ('c', '')")
    for_good: set[str] = set()
    for step, model_id in steps:
        was_on = ask("SELECT active FROM models WHERE id = ?", [model_id]).fetchone()[0]
        match step:
            case "disable":
                fleet.disable(model_id, force=True)
                for_good.add(model_id)
            case "disable --for":
                fleet.disable(model_id, duration=HOUR, force=True)
                for_good.discard(model_id)
            case "enable":
                fleet.enable(model_id)
                for_good.discard(model_id)
            case "raw off":
                ask("UPDATE models SET active = 0 WHERE id = ?", [model_id])
                if was_on:
                    for_good.add(model_id)
            case "raw on":
                ask("UPDATE models SET active = 1 WHERE id = ?", [model_id])
                for_good.discard(model_id)
            case "raw off and on":
                ask("UPDATE models SET active = 1 WHERE id = ?", [model_id])
                ask("UPDATE models SET active = 0 WHERE id = ?", [model_id])
                for_good.add(model_id)
            case "fail":
                one_by_one(fleet, model_id, times=3)
            case "fail in a batch":
                in_a_batch(fleet, *IDS)
            case "succeed":
                fleet.record_success(model_id)
            case "succeed in a batch":
                succeed_in_a_batch(fleet, *IDS)
            case "recover":
                fleet.recover()
            case "recover at once":
                fleet.recover(cooldown=0)
            case "time":
                for column in ("last_failure_at", "disabled_at", "disabled_until", "recovered_at"):
                    ask(
                        f"UPDATE models SET {column} ="
                        f" strftime('%Y-%m-%dT%H:%M:%fZ', {column}, '-5 hours')"
                    )
                ask("UPDATE modelctl_events SET at = '2026-01-01T00:00:00.000Z'")
                ask("DELETE FROM modelctl_holds")
            case "pause":
                fleet.pause(HOUR, provider="p")
            case "resume":
                fleet.resume(provider="p")
        on = {row[0] for row in ask("SELECT id FROM models WHERE active").fetchall()}
        assert not on & for_good, (step, on, for_good)
