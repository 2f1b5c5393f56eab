"""`Fleet.snapshot` reads all that `watch` shows, in two statements."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from modelctl import Fleet, UsageError
from tests import fleets
from tests.fleets import ACTOR, Ago, put, put_hold, put_off, seed
from tests.world import World


def test_what_is_in_it(fleet: Fleet, fleet_url: str) -> None:
    """Totals, what is off (newest first, then what is spared), holds, events and the last recover."""
    seed(fleet, "abc")
    put_off(fleet_url, "tripped", failed=60)
    put(fleet_url, "spared", would_disable="floor")
    fleet.disable("b", duration=3600, reason="why")
    fleet.recover()
    put_hold(fleet_url, "incident", provider="x", failure_type="timeout", until=Ago(-60))
    put_hold(fleet_url, "fleet", until=Ago(-600), actor="ann", reason="because")
    put_hold(fleet_url, "provider:over", provider="over", until=Ago(1))
    found = fleet.snapshot()
    assert (found.active, found.disabled, found.auto_disabled, found.spared) == (3, 1, 1, 1)
    assert (found.count.active, found.count.source, found.cache_problem) == (3, "database", None)
    assert [model.id for model in found.off] == ["b", "tripped", "spared"]
    assert [(h.provider, h.failure_type, h.actor, h.reason) for h in found.holds] == [
        (None, None, "ann", "because"),
        ("x", "timeout", None, None),
    ]
    assert 500 < found.holds[0].seconds_left <= 600
    assert found.hold_count == 2
    last = found.events[0]
    assert (last.model_id, last.event, last.actor, last.reason) == ("b", "disabled", ACTOR, "why")
    assert [(event.event, event.others) for event in found.events[1:]] == [("added", 2)]
    assert abs((found.now - last.at).total_seconds()) < 60
    assert found.recovered_seconds_ago is not None
    assert 0 <= found.recovered_seconds_ago < 60


def test_an_empty_fleet(fleet: Fleet) -> None:
    """Nothing is there, and nothing fails."""
    found = fleet.snapshot(rows=1)
    assert (found.active, found.off, found.holds, found.events) == (0, (), (), ())
    assert (found.recovered_seconds_ago, found.oldest_queued_seconds) == (None, None)
    for rows in (0, 1001, 1.5):
        with pytest.raises(UsageError, match="1 to 1000 rows"):
            fleet.snapshot(rows=rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("models", [1, 50])
def test_two_statements_and_bounded_rows(fleet: Fleet, fleet_url: str, models: int) -> None:
    """Two statements, and at most so many rows as are asked for, however large the fleet is."""
    ids = [f"m{number}" for number in range(models)]
    seed(fleet, ids)
    fleet.disable(*ids)
    for number in range(models):
        put_hold(fleet_url, f"provider:{number}", provider=str(number), until=Ago(-60))
    seen: list[str] = []
    engine = fleet._store.database.engine
    sa.event.listen(engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    found = fleet.snapshot(rows=7)
    assert len(seen) == 2
    assert len(found.off) == len(found.holds) == min(7, models)
    assert [(event.event, event.others) for event in found.events] == [
        ("disabled", models - 1),
        ("added", models - 1),
    ]
    assert (found.disabled, found.hold_count) == (models, models)


def test_more_events_than_are_read(fleet: Fleet) -> None:
    """Of a change of very many models it says at least how many they are."""
    seed(fleet, [f"m{number}" for number in range(510)])
    [event] = fleet.snapshot().events
    assert (event.others, event.others_cut) == (499, True)


def test_events_without_an_operation(fleet: Fleet, fleet_url: str) -> None:
    """Events of earlier releases and of other programs are a row each, and at most so many as asked for."""
    for name in "abcd":
        fleets.sql(fleet_url, "INSERT INTO modelctl_events (model_id, event) VALUES (?, 'x')", name)
    assert [event.model_id for event in fleet.snapshot(rows=3).events] == ["d", "c", "b"]


def test_the_cache_is_only_read(pg_database: str, redis_url: str) -> None:
    """A cached number is shown with its age, a miss fills nothing, and the queue has an age."""
    with World(pg_database, redis_url) as world:
        put(pg_database, "a")
        world.sql("UPDATE modelctl_outbox SET due = due - interval '90 seconds'")
        found = world.fleet.snapshot()
        assert (found.count.active, found.count.source) == (1, "database")
        assert found.queued == 1
        assert 90 <= (found.oldest_queued_seconds or 0) < 150
        assert world.ask("KEYS", "*") == []
        world.cache_believed(7)
        world.age(20)
        found = world.fleet.snapshot()
        assert (found.count.active, found.count.source, found.active) == (7, "cache", 1)
        assert 19 < found.count.age_seconds < 60


def test_redis_is_away(pg_cleared: str) -> None:
    """Without Redis the count comes from the database, and each snapshot says why."""
    with fleets.opened(pg_cleared, redis_url="redis://:secret@127.0.0.1:1/0") as fleet:
        for _ in range(2):
            found = fleet.snapshot()
            assert found.count.source == "database"
            assert "Redis cannot be used" in (found.cache_problem or "")
            assert "secret" not in (found.cache_problem or "")
