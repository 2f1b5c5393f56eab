"""The history tells of each change more than the status before and after."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from modelctl import Fleet
from modelctl.model import FailureType
from tests import fleets
from tests.commands import Cli
from tests.fleets import opened, seed, sql

BAD = FailureType.PARSE_ERROR
END = datetime(2100, 6, 1, 8, tzinfo=UTC)


def details(fleet: Fleet, id: str | None = None) -> list[tuple[str, Any]]:  # noqa: A002 - as in Fleet
    """Return each event and its details, the newest first."""
    return [(event.event, event.details) for event in fleet.events(id)]


def test_a_timed_disable_says_until_when(fleet: Fleet) -> None:
    """The event of a timed disable has the end in its details; another disable has no details."""
    seed(fleet, "ab")
    fleet.disable("a", until=END)
    fleet.disable("b")
    assert details(fleet, "a")[0] == ("disabled", {"until": "2100-06-01T08:00:00.000Z"})
    assert details(fleet, "b")[0] == ("disabled", None)


@pytest.mark.parametrize("batch", [False, True])
def test_a_spared_model_names_its_guard(fleet_url: str, batch: bool) -> None:
    """`would-disable` says which guard kept the model on, recorded alone or in a batch."""
    with opened(fleet_url, health_threshold=1, recovery_restart_failures=0) as fleet:
        seed(fleet, "a")
        fleet.pause(3600)
        if batch:
            fleet.record_batch([{"id": "a", "outcome": "failure", "type": BAD}])
        else:
            fleet.record_failure("a", BAD)
        assert details(fleet, "a")[0] == ("would-disable", {"guard": "paused"})


def test_a_pause_says_until_when(fleet: Fleet) -> None:
    """The end of a pause is in its event."""
    end = fleet.pause(3600, provider="p").until
    assert end is not None
    [(event, found)] = details(fleet)
    assert event == "paused"
    assert datetime.fromisoformat(found["until"]) == end.replace(
        microsecond=end.microsecond // 1000 * 1000
    )


def test_details_in_every_format(cli: Cli, fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON has an object or null; the others have it as JSON text, in the last column but one."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", fleet_url)
    with opened(fleet_url) as fleet:
        seed(fleet, "a")
        fleet.disable("a", until=END)
    disabled, added = cli("events", "-o", "json").json
    assert disabled["details"] == {"until": "2100-06-01T08:00:00.000Z"}
    assert added["details"] is None
    assert [json.loads(line) for line in cli("events", "-o", "jsonl").lines] == [disabled, added]
    cells = [line.split("\t")[-2] for line in cli("events", "-o", "tsv").lines]
    assert [cell and json.loads(cell) for cell in cells] == [disabled["details"], ""]
    assert cli("events", "-o", "csv").lines[0].endswith(",details,operation")


def test_details_that_another_program_garbled(fleet: Fleet, fleet_url: str) -> None:
    """What is no JSON object is shown as nothing, and stops no listing."""
    seed(fleet, "ab")
    values = ("[1]", "7") if not fleets.is_sqlite(fleet_url) else ("{", "[[" * 100_000)
    for model_id, value in zip("ab", values, strict=True):
        sql(
            fleet_url,
            "UPDATE modelctl_events SET details = ? WHERE model_id = ?",
            *(value, model_id),
        )
    assert [found for _, found in details(fleet)] == [None] * 2
