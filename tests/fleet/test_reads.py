"""list, stats, leaderboard, events and count show the rows as they are, the same on every database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from modelctl import Fleet, ModelStatus, UsageError
from tests import fleets
from tests.fleets import ACTIVE, ACTOR, DISABLED, Ago, ago, alter, history, seed, sql, trip

# Reads


@pytest.fixture
def zoo(fleet: Fleet, fleet_url: str) -> Fleet:
    """Give a fleet of every status, with what another program left NULL or empty."""
    for model_id, name, provider in (
        ("a", "Zebra", "p"),
        ("b", "", "p"),
        ("c", "Ant", "q"),
        ("d", "Bee", ""),
        ("e", "Cow", "q"),
    ):
        fleet.add(model_id, name=name, provider=provider)
    fleet.disable("b")
    trip(fleet, "c")
    fleet.record_batch(
        [{"id": "a", "outcome": "success"}] * 3
        + [{"id": "a", "outcome": "failure", "type": "parse-error"}]
        + [{"id": "d", "outcome": "success"}]
    )
    updated = {"a": 1, "b": 4, "c": 2, "d": 5, "e": 3}
    for model_id, seconds in updated.items():
        alter(fleet_url, model_id, updated_at=Ago(seconds))
    return fleet


@pytest.mark.parametrize(
    ("how", "ids"),
    [
        ({}, "abcde"),
        ({"status": "active"}, "ade"),
        ({"status": "disabled"}, "b"),
        ({"status": ModelStatus.AUTO_DISABLED}, "c"),
        ({"provider": "q"}, "ce"),
        ({"provider": ""}, "d"),
        ({"provider": "none"}, ""),
        ({"provider": "q", "status": "active"}, "e"),
        ({"sort": "name"}, "cdeab"),
        ({"sort": "provider"}, "dabce"),
        ({"sort": "status"}, "adecb"),
        ({"sort": "failures"}, "cabde"),
        ({"sort": "updated"}, "acebd"),
        ({"sort": "updated", "limit": 2}, "ac"),
        ({"limit": 100}, "abcde"),
    ],
)
def test_list(zoo: Fleet, how: dict[str, Any], ids: str) -> None:
    """The matching models come in the order that was asked for, equal models by their id."""
    if how.get("sort") == "name":  # an empty name shows as the id, and capitals come first here
        assert [m.display_name or m.id for m in zoo.list_models(**how)] == [
            "Ant",
            "Bee",
            "Cow",
            "Zebra",
            "b",
        ]
    else:
        assert "".join(m.id for m in zoo.list_models(**how)) == ids


@pytest.mark.parametrize(
    "how", [{"status": "on"}, {"sort": "price"}, {"limit": -1}, {"limit": 1.5}, {"sort": ""}]
)
def test_list_refuses(fleet: Fleet, how: dict[str, Any]) -> None:
    """An unknown status or sort key and a limit below 1 are usage errors."""
    with pytest.raises(UsageError):
        fleet.list_models(**how)


def test_a_listing_does_not_block_changes(fleet: Fleet) -> None:
    """A reader that is slow or stops in the middle blocks no change."""
    seed(fleet, [f"m{n:04}" for n in range(2500)])
    models = fleet.iter_models()
    assert next(models).id == "m0000"
    fleet.disable("m0000", "m2499")
    models.close()  # type: ignore[attr-defined]
    assert fleet.count().active == 2498


def test_times_are_utc(zoo: Fleet) -> None:
    """Every time is aware and UTC, and of today."""
    model = zoo.show("c")
    for time in (model.created_at, model.updated_at, model.last_failure_at, model.disabled_at):
        assert time is not None
        assert time.tzinfo is UTC
        assert abs(datetime.now(UTC) - time) < timedelta(minutes=5)


def test_retry_at_is_only_for_auto_disabled_models(zoo: Fleet) -> None:
    """The end of the cooldown is one hour after the last failure, by the database's clock."""
    model = zoo.show("c")
    assert model.last_failure_at is not None
    assert model.retry_at == model.last_failure_at + timedelta(hours=1)
    assert model.seconds_left is not None
    assert 3500 < model.seconds_left <= 3600
    assert all(
        (m.retry_at, m.seconds_left) == (None, None) for m in zoo.list_models() if m.id != "c"
    )


def test_stats(zoo: Fleet) -> None:
    """Totals by status and provider, and all outcomes."""
    stats = zoo.stats()
    assert (stats.models, stats.active, stats.disabled, stats.auto_disabled) == (5, 3, 1, 1)
    assert [(p.provider, p.models, p.active) for p in stats.providers] == [
        ("", 1, 1),
        ("p", 2, 1),
        ("q", 2, 1),
    ]
    assert (stats.success_count, stats.failure_count) == (4, 6)
    assert all(type(n) is int for n in (stats.success_count, stats.providers[0].models))


def test_stats_of_nothing(fleet: Fleet) -> None:
    """An empty fleet has zeros."""
    stats = fleet.stats()
    assert (stats.models, stats.success_count, stats.providers) == (0, 0, ())
    assert fleet.leaderboard() == ()
    assert fleet.list_models() == []
    assert fleet.count().active == 0


def test_leaderboard(zoo: Fleet) -> None:
    """Active models come by success rate; models without calls come last, and only if asked for."""
    assert [e.id for e in zoo.leaderboard()] == ["a", "d"]
    board = zoo.leaderboard(untested=True)
    assert [(e.rank, e.id, e.success_rate) for e in board] == [
        (1, "a", 0.75),  # of 4 calls
        (2, "d", 1.0),  # of 1
        (3, "e", None),
    ]
    assert [e.id for e in zoo.leaderboard(top=1)] == ["a"]
    assert [e.id for e in zoo.leaderboard(provider="q", untested=True)] == ["e"]
    assert [e.id for e in zoo.leaderboard(top=0, untested=True)] == ["a", "d", "e"]
    assert (board[0].success_count, board[0].failure_count) == (3, 1)


def test_leaderboard_prefers_more_calls(fleet: Fleet) -> None:
    """Of two models with the same rate, the model with more calls comes first."""
    seed(fleet, "ab")
    fleet.record_batch([{"id": i, "outcome": "success"} for i in "abb"])
    assert [e.id for e in fleet.leaderboard()] == ["b", "a"]


@pytest.mark.parametrize(
    ("better", "worse"),
    [((420, 1), (1, 0)), ((1, 0), (1, 1)), ((95, 5), (9, 1)), ((0, 1), (0, 9)), ((1, 99), (0, 1))],
)
def test_a_rate_of_many_calls_is_worth_more(
    fleet: Fleet, fleet_url: str, better: tuple[int, int], worse: tuple[int, int]
) -> None:
    """Models are ranked by what their rate is at least, given how often they were called."""
    seed(fleet, "ab")
    for model_id, (successes, failures) in {"b": better, "a": worse}.items():
        sql(
            fleet_url,
            "UPDATE models SET success_count = ?, failure_count = ? WHERE id = ?",
            *(successes, failures, model_id),
        )
    assert [e.id for e in fleet.leaderboard()] == ["b", "a"]


@pytest.mark.parametrize(
    ("successes", "failures", "score"),
    # Of Wilson, E. B. (1927), worked out with SciPy's binomtest(...).proportion_ci.
    [(1, 0, 0.206549), (420, 1, 0.986670), (3, 1, 0.300642), (0, 5, 0.0), (2**62, 2**62, 0.5)],
)
def test_the_score_is_wilsons_lower_bound(
    fleet: Fleet, fleet_url: str, successes: int, failures: int, score: float
) -> None:
    """The score is the lower end of Wilson's interval of 95 %, and odd counters are no error."""
    seed(fleet, "ab")
    sql(
        fleet_url,
        f"UPDATE models SET success_count = {successes}, failure_count = {failures} WHERE id = 'a'",
    )
    sql(fleet_url, "UPDATE models SET success_count = -3, failure_count = 5 WHERE id = 'b'")
    found = {e.id: e.score for e in fleet.leaderboard()}
    assert found == {"a": pytest.approx(score, abs=1e-6), "b": 0.0}


# The history


def test_events_of_one_model_newest_first(fleet: Fleet) -> None:
    """The history has one event for each change, and outlives its model."""
    seed(fleet, "ab")
    fleet.disable("a", reason="why")
    fleet.disable("a")
    fleet.enable("a")
    fleet.remove("a", reason="gone")
    assert history(fleet, "a") == [
        ("a", "removed", ACTIVE, None, ACTOR, "gone", None),
        ("a", "enabled", DISABLED, ACTIVE, ACTOR, None, None),
        ("a", "disabled", ACTIVE, DISABLED, ACTOR, "why", None),
        ("a", "added", None, ACTIVE, ACTOR, None, None),
    ]
    found = fleet.events()
    assert len(found) == 5
    assert [e.id for e in found] == sorted((e.id for e in found), reverse=True)
    assert all(e.at.tzinfo is UTC for e in found)
    assert fleet.events("nobody") == ()


def test_events_since_and_limit(fleet: Fleet, fleet_url: str) -> None:
    """`since` counts seconds back on the database's clock; 100 events unless `limit` says else."""
    seed(fleet, [f"m{n}" for n in range(120)])
    sql(fleet_url, f"UPDATE modelctl_events SET at = {ago(fleet_url, 7200)} WHERE model_id <> 'm7'")
    assert len(fleet.events()) == 100
    assert len(fleet.events(limit=110)) == 110
    assert [e.model_id for e in fleet.events(since=3600)] == ["m7"]
    assert len(fleet.events(since=7300, limit=1000)) == 120
    assert fleet.events("m8", since=3600) == ()
    with pytest.raises(UsageError):
        fleet.events(limit=-1)


def test_every_change_has_the_actor_of_the_fleet(fleet_url: str) -> None:
    """Every change carries its actor; a name that is too long or odd is made storable."""
    with Fleet.open(fleets.configured(fleet_url), actor="cron\0" + "x" * 300) as fleet:
        fleet.add("a")
        fleet.disable("a")
        actor = fleet.events()[0].actor
        assert actor == fleet.show("a").disabled_by == "cron\ufffd" + "x" * 195


# The count


def test_the_count_follows_every_change(fleet: Fleet, fleet_url: str) -> None:
    """After any change, also of another program, no count is older than the change."""
    seed(fleet, "abc")
    expected = 3
    assert fleet.count().active == expected
    for call, delta in (
        (lambda: fleet.disable("a"), -1),
        (lambda: fleet.enable("a"), +1),
        (lambda: trip(fleet, "b"), -1),
        (lambda: fleet.recover(cooldown=0), +1),
        (lambda: trip(fleet, "b"), -1),
        (lambda: fleet.record_success("b"), +1),
        (lambda: fleet.add("d"), +1),
        (lambda: fleet.remove("d"), -1),
        (lambda: fleet.import_models(b'{"id": "e"}'), +1),
        (lambda: sql(fleet_url, "UPDATE models SET active = false WHERE id = 'e'"), -1),
    ):
        call()
        expected += delta
        assert fleet.count().active == fleet.count(fresh=True).active == expected
        assert fleet.count(strong=True).active == expected


def test_a_closed_fleet_connects_again(fleet: Fleet) -> None:
    """`close` ends the connections, not the fleet."""
    fleet.add("a")
    fleet.close()
    assert fleet.count().active == 1
