"""The history can be filtered, turned round and read on from an id."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from modelctl import Fleet, UsageError
from tests.commands import Cli
from tests.fleets import HOUR, let_pass, seed, sql, sql_without_events


def found(fleet: Fleet, **wanted: object) -> list[tuple[str | None, str]]:
    """Return (model, event) of the events that match."""
    return [(event.model_id, event.event) for event in fleet.events(**wanted)]  # type: ignore[arg-type]


def test_filters(fleet: Fleet, fleet_url: str) -> None:
    """Each filter leaves what matches it, several leave what matches all, newest first."""
    fleet.add("a", provider="p")
    fleet.add("b", provider="q", actor="bob")
    let_pass(fleet_url, HOUR)
    off = fleet.disable("a", "b")
    fleet.enable("a", actor="bob")
    assert found(fleet, actor="bob") == [("a", "enabled"), ("b", "added")]
    assert found(fleet, event="disabled") == [("b", "disabled"), ("a", "disabled")]
    assert found(fleet, event=["enabled", "added"], limit=2) == [("a", "enabled"), ("b", "added")]
    assert found(fleet, operation=off.operation, id="a") == [("a", "disabled")]
    assert found(fleet, provider="q") == [("b", "disabled"), ("b", "added")]
    assert found(fleet, until=60.0) == [("b", "added"), ("a", "added")]
    assert found(fleet, since=60.0, actor="bob") == [("a", "enabled")]
    now = datetime.now(UTC)
    assert found(fleet, until=now - timedelta(minutes=1)) == [("b", "added"), ("a", "added")]
    assert found(fleet, oldest_first=True, limit=2) == [("a", "added"), ("b", "added")]
    assert found(fleet, actor="nobody") == found(fleet, event="nothing") == []


def test_events_of_a_provider(fleet: Fleet, fleet_url: str) -> None:
    """A provider has its own events, those of its models, and those of models that are gone."""
    fleet.add("stays", provider="p")
    fleet.add("removed", provider="p")
    fleet.add("vanished", provider="p")
    fleet.add("moves", provider="p")
    fleet.add("other", provider="q")
    fleet.import_models(b'{"id": "moves", "provider": "q"}')
    fleet.remove("removed")
    sql(fleet_url, "DELETE FROM models WHERE id = ?", "vanished")
    fleet.pause(60, provider="p")
    fleet.pause(60)
    of_p = {model_id for model_id, _ in found(fleet, provider="p")}
    assert of_p == {"stays", "removed", "vanished", None}
    assert {model_id for model_id, _ in found(fleet, provider="q")} == {"moves", "other"}


def test_garbled_details_stop_no_filter(fleet: Fleet, fleet_url: str) -> None:
    """Details that are no JSON object of ours hide no other event of the provider."""
    fleet.add("a", provider="p")
    fleet.add("b", provider="p")
    garbled = "{" if fleet_url.startswith("sqlite") else "[1]"
    sql(fleet_url, "UPDATE modelctl_events SET details = ? WHERE model_id = ?", garbled, "a")
    sql_without_events(fleet_url, "DELETE FROM models")
    assert found(fleet, provider="p") == [("b", "added")]


def test_a_cursor_gives_each_event_once(fleet: Fleet) -> None:
    """Reading on after the last id, a few at a time, gives the whole history in its order."""
    seed(fleet, "abcdefg")
    fleet.disable(*"abcdefg")
    last, read = 0, []
    while page := fleet.events(after=last, limit=3):
        last = page[-1].id
        read += [event.id for event in page]
    assert read == sorted({event.id for event in fleet.events(limit=0)})
    assert len(read) == 14


def test_a_cursor_waits_for_an_earlier_transaction(pg: Fleet, pg_cleared: str) -> None:
    """An event that commits later than one with a greater id is not skipped."""
    seed(pg, "ab")
    last = pg.events(limit=1)[0].id
    insert = "INSERT INTO modelctl_events (model_id, event) VALUES ('slow', 'tried')"
    with psycopg.connect(pg_cleared) as slow:
        slow.execute(insert)
        pg.disable("a")
        assert pg.events(after=last) == ()
        slow.commit()
    assert found(pg, after=last) == [("slow", "tried"), ("a", "disabled")]


def test_a_missing_id_of_a_transaction_that_failed_stops_nothing(
    pg: Fleet, pg_cleared: str
) -> None:
    """The id of an event that was rolled back is not waited for, whatever runs later."""
    seed(pg, "ab")
    last = pg.events(limit=1)[0].id
    insert = "INSERT INTO modelctl_events (model_id, event) VALUES ('gone', 'tried')"
    with psycopg.connect(pg_cleared) as other:
        other.execute(insert)
        other.rollback()
    pg.disable("a")
    assert found(pg, after=last) == [("a", "disabled")]
    with psycopg.connect(pg_cleared) as running:
        running.execute("SELECT pg_current_xact_id()")
        let_pass(pg_cleared, HOUR)
        assert found(pg, after=last) == [("a", "disabled")]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"after": -1}, "whole number"),
        ({"after": "7"}, "whole number"),
        ({"until": -1.0}, "until"),
        ({"since": 60.0, "until": 60.0}, "both since and until"),
        ({"operation": "nonsense"}, "not an operation"),
        ({"until": datetime(2026, 1, 1)}, "no time zone"),
    ],
)
def test_filters_that_make_no_sense(fleet: Fleet, wanted: dict[str, object], words: str) -> None:
    """A filter that can match nothing, or is of another type, is an error of usage."""
    with pytest.raises(UsageError, match=words):
        fleet.events(**wanted)  # type: ignore[arg-type]


def test_the_options(tool: Cli, fleet: Fleet, fleet_url: str) -> None:
    """The options of `events` are the filters of the library."""
    fleet.add("a", provider="p")
    let_pass(fleet_url, 2 * HOUR)
    fleet.disable("a", actor="bob")
    fleet.enable("a")
    names = "-o", "tsv"
    assert [line.split("\t")[2] for line in tool("events", "--oldest-first", *names).lines] == [
        *("added", "disabled", "enabled")
    ]
    for options, number in {
        ("--actor", "bob"): 1,
        ("--provider", "p"): 3,
        ("--provider", "x"): 0,
        ("--event", "added", "--event", "enabled"): 2,
        ("--until", "1h"): 1,
        ("--since", "3h", "--until", "1h"): 1,
        ("--until", "2020-01-01T00:00Z"): 0,
        ("--after", "0", "--limit", "2"): 2,
    }.items():
        assert len(tool("events", *options, *names).lines) == number, options
    tool("events", "--since", "1h", "--until", "2h").failed(2, "both since and until")
    assert "1 event shown, the oldest," in tool("events", "--after", "0", "--limit", "1").err
