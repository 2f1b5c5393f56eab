"""recover brings back what is due, in order and in chunks, the same on every database."""

from __future__ import annotations

import pytest

from modelctl import Fleet, UsageError, crash_points
from modelctl.database import bulk
from tests.fleets import (
    ACTIVE,
    ACTOR,
    AUTO,
    HOUR,
    Ago,
    alter,
    everything,
    history,
    opened,
    seed,
    sql,
    status,
    trip,
)


def test_recover_after_the_cooldown(fleet: Fleet, fleet_url: str) -> None:
    """What waited an hour comes back with two failures; three more switch it off again."""
    seed(fleet, "abc")
    trip(fleet, "a", "b")
    alter(fleet_url, "a", last_failure_at=Ago(1.01 * HOUR))
    result = fleet.recover()
    assert (result.recovered, result.busy, result.dry_run) == (("a",), False, False)
    assert [w.id for w in result.waiting] == ["b"]
    assert 3500 < (result.waiting[0].seconds_left or 0) <= 3600
    assert result.waiting[0].retry_at == fleet.show("b").retry_at
    model = fleet.show("a")
    assert (model.status, model.consecutive_failures, model.ejections) == (ACTIVE, 2, 1)
    assert (model.disabled_at, model.disabled_by, model.disabled_reason) == (None, None, None)
    assert history(fleet)[0] == ("a", "recovered", AUTO, ACTIVE, ACTOR, None, None)
    changed = [fleet.record_failure("a", "parse-error").changes[0].changed for _ in range(3)]
    assert changed == [False, False, True]
    model = fleet.show("a")
    assert (model.status, model.ejections, model.consecutive_failures) == (AUTO, 2, 5)


def test_recover_longest_waiting_first(fleet: Fleet, fleet_url: str) -> None:
    """`limit` takes the models that wait longest; 0 and None take all; the rest is listed as waiting."""
    seed(fleet, "abcde")
    trip(fleet, *"abcde")
    for model_id, hours in {"a": 2, "b": 5, "c": 3, "d": 4, "e": 0.5}.items():
        alter(fleet_url, model_id, last_failure_at=Ago(hours * HOUR))
    first = fleet.recover(limit=2)
    assert first.recovered == ("b", "d")
    assert [(w.id, w.why, (w.seconds_left or 0) > 0) for w in first.waiting] == [
        ("c", "limit", False),
        ("a", "limit", False),
        ("e", "cooldown", True),
    ]
    assert fleet.recover(limit=0).recovered == ("c", "a")
    assert fleet.recover().recovered == ()


def test_recover_with_another_cooldown(fleet: Fleet, fleet_url: str) -> None:
    """A cooldown for one run replaces the configured cooldown, also in `waiting`."""
    seed(fleet, "ab")
    trip(fleet, "a", "b")
    alter(fleet_url, "a", last_failure_at=Ago(3 * HOUR))
    assert fleet.recover(cooldown=4 * 3600).recovered == ()
    waiting = fleet.recover(cooldown=4 * 3600).waiting
    assert 3500 < (waiting[0].seconds_left or 0) <= 3600
    assert fleet.recover(cooldown=7200).recovered == ("a",)
    assert fleet.recover(cooldown=0).recovered == ("b",)
    with pytest.raises(UsageError):
        fleet.recover(cooldown=-1)
    with pytest.raises(UsageError):
        fleet.recover(limit=-1)


def test_recover_dry_run(fleet: Fleet, fleet_url: str) -> None:
    """A dry run of recover changes nothing, and the real run does what it said."""
    seed(fleet, "abc")
    trip(fleet, *"abc")
    alter(fleet_url, "b", last_failure_at=Ago(3 * HOUR))
    alter(fleet_url, "c", last_failure_at=Ago(2 * HOUR))
    before = everything(fleet_url)
    told = fleet.recover(limit=1, dry_run=True)
    assert everything(fleet_url) == before
    assert (told.recovered, told.dry_run) == (("b",), True)
    done = fleet.recover(limit=1)
    assert done.recovered == told.recovered
    assert [w.id for w in done.waiting] == [w.id for w in told.waiting] == ["c", "a"]


@pytest.mark.parametrize("columns", ["last_failure_at", "last_failure_at, disabled_at"])
def test_recover_of_rows_that_another_program_wrote(
    fleet: Fleet, fleet_url: str, columns: str
) -> None:
    """Without a last failure the disabling, else the last change, starts the cooldown."""
    seed(fleet, "ab")
    sql(fleet_url, "UPDATE models SET active = false, auto_disabled = true")
    last = "disabled_at" if columns == "last_failure_at" else "updated_at"
    alter(fleet_url, **dict.fromkeys(columns.split(", ")))
    alter(fleet_url, **{last: Ago(60)})
    alter(fleet_url, "b", **{last: Ago(2 * HOUR)})
    assert [m.id for m in fleet.list_models(status=AUTO) if not m.seconds_left] == ["b"]
    result = fleet.recover()
    assert result.recovered == ("b",)
    assert [w.id for w in result.waiting] == ["a"]


def test_recover_in_chunks(fleet: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More models than one chunk all come back, each once, in their order."""
    monkeypatch.setattr(bulk, "CHUNK", 3)
    ids = [f"m{n}" for n in range(9)]
    seed(fleet, ids)
    trip(fleet, *ids)
    for number, model_id in enumerate(ids):
        alter(fleet_url, model_id, last_failure_at=Ago((20 - number) * HOUR))
    seen: list[int] = []
    assert fleet.recover(limit=7, progress=seen.append).recovered == tuple(ids[:7])
    assert seen == [3, 6, 7]
    assert fleet.recover(cooldown=0).recovered == tuple(ids[7:])
    assert [e.event for e in fleet.events()].count("recovered") == 9
    assert fleet.count().active == 9


def test_what_fails_again_during_a_run_waits_for_the_next(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with no cooldown ends, even while its models go on failing."""
    monkeypatch.setattr(bulk, "CHUNK", 1)
    ids = ["a", "b", "c"]
    seed(fleet, ids)
    trip(fleet, *ids)

    def fail_again(done: int) -> None:
        trip(fleet, *(m.id for m in fleet.list_models(status="active")))

    assert sorted(fleet.recover(cooldown=0, progress=fail_again).recovered) == ids
    assert status(fleet, *ids) == [AUTO, AUTO, AUTO]


def test_a_run_is_remembered(fleet: Fleet) -> None:
    """`doctor` tells when recover ran last, also when there was nothing to do."""

    def told() -> str:
        return next(c.detail for c in fleet.doctor().checks if c.check == "recover")

    assert told() == "never ran"
    fleet.recover(dry_run=True)
    assert told() == "never ran"
    fleet.recover()
    assert told() == "last finished 0 s ago"


def test_one_invalidation_for_all_that_recover(
    pg_database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many models and chunks: the caches are cleared once, at the end."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    reached: list[str] = []
    with opened(pg_database, redis_url=redis_url) as fleet:
        seed(fleet, "abcdefg")
        trip(fleet, *"abcdefg")
        monkeypatch.setattr(crash_points, "hook", reached.append)
        result = fleet.recover(cooldown=0)
    assert (len(result.recovered), result.cache) == (7, "invalidated")
    assert reached.count("before-commit") >= 4
    assert reached.count("after-del") == 1
