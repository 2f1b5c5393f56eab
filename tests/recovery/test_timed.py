"""A model that is disabled for a time comes back when the time is over, and not before."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from modelctl import UsageError
from tests.commands import Cli, run, seen
from tests.fleets import DISABLED, HOUR, Ago, alter, environ, everything, opened, put, put_off, sql
from tests.recovery.outcomes import Fail, listed, one_by_one, story, why


def test_disabled_for_a_time(fleet_url: str, tool: Cli) -> None:
    """--for says when it comes back, in show and list, and recover brings it back healthy."""
    put_off(fleet_url, "a", failed=9 * HOUR, ejections=4, failure_reason="no JSON")
    put(fleet_url, "b", active=False)
    done = tool("disable", "a", "--for", "2h", "--reason", "maintenance")
    assert (done.code, done.out) == (0, "a\tauto-disabled\tdisabled\tdisabled\ttrue\n")
    model = tool("show", "a", "-o", "json").json
    assert model["retry_at"] == model["disabled_until"]
    assert 7100 < model["seconds_left"] <= 7200
    rows = listed(tool, "--status", "disabled")
    assert {i: row["retry_at"] for i, row in rows.items()} == {
        "a": model["retry_at"],
        "b": "",
    }
    code, shown = seen("list", "--status", "disabled", columns=80, environ=environ(fleet_url))
    assert (code, f"{model['retry_at'][:19]}Z" in shown, "never" in shown) == (0, True, True)
    assert tool("recover").out == ""
    waiting = tool("recover", "--dry-run", "-o", "json").json["waiting"]
    assert [(w["id"], w["why"], w["retry_at"]) for w in waiting] == [
        ("a", "timed", model["retry_at"])
    ]
    alter(fleet_url, "a", disabled_until=Ago(1))
    assert tool("recover").out == "a\n"
    model = tool("show", "a", "-o", "json").json
    assert (model["status"], model["consecutive_failures"], model["ejections"]) == ("active", 0, 0)
    unset = ("disabled_at", "disabled_by", "disabled_reason", "disabled_until")
    assert [model[name] for name in unset] == [None] * 4
    assert model["failure_reason"] == "no JSON"
    last = tool("events", "a", "-o", "json").json[0]
    assert (last["event"], last["before"], last["after"]) == ("recovered", "disabled", "active")


def test_disabled_until_a_time(fleet_url: str, tool: Cli) -> None:
    """--until is a time with its zone, to the second, in whatever zone it is written."""
    put(fleet_url, *"ab")
    assert tool("disable", "a", "--until", "2100-06-01T08:00Z").code == 0
    assert tool("disable", "b", "--until", "2100-06-01T08:00:30+02:00").code == 0
    shown = [tool("show", i, "-o", "json").json["retry_at"] for i in "ab"]
    assert shown == ["2100-06-01T08:00:00.000Z", "2100-06-01T06:00:30.000Z"]
    assert "2100-06-01T08:00:00Z" in tool("show", "a").out


@pytest.mark.parametrize(
    "words",
    [
        ["--until", "2020-01-01T00:00Z"],
        ["--until", "tomorrow"],
        ["--until", ""],
        ["--until", "\x1b[31m2100-06-01T08:00Z"],
        ["--until", "2100-06-01T08:00Z\n"],
        ["--until", "2100-13-01T08:00Z"],
        ["--until", "10000-01-01T00:00Z"],
        ["--for", "0s"],
        ["--for", "-1h"],
        ["--for", "1"],
        ["--for", "forever"],
        ["--for", ""],
        ["--for", "99999d"],
        ["--until", "9999-12-31T23:59-12:00"],
        ["--for", "1h", "--until", "2100-06-01T08:00Z"],
    ],
)
def test_an_end_that_is_none(fleet_url: str, tool: Cli, words: list[str]) -> None:
    """A time that is past, without zone or no time is exit 2, and nothing is written."""
    put(fleet_url, "a")
    before = everything(fleet_url)
    for more in ([], ["--dry-run"]):
        result = tool("disable", "a", *words, *more)
        result.failed(2)
        assert len(result.err.splitlines()) <= 2
    assert everything(fleet_url) == before


def test_the_last_time_there_is(fleet_url: str, tool: Cli) -> None:
    """The end of the calendar is a time like any other, not a permanent disable."""
    put(fleet_url, "a")
    assert tool("disable", "a", "--until", "9999-12-31T23:59:59Z").code == 0
    assert tool("show", "a", "-o", "json").json["retry_at"] == "9999-12-31T23:59:59.000Z"
    (waiting,) = tool("recover", "--dry-run", "-o", "json").json["waiting"]
    assert (waiting["why"], waiting["retry_at"]) == ("timed", "9999-12-31T23:59:59.000Z")


def test_a_time_that_never_comes(pg_cleared: str) -> None:
    """An end at infinity keeps the JSON valid, and the model does not come back."""
    put_off(pg_cleared, "a")
    put(pg_cleared, "b", active=False)
    sql(pg_cleared, "UPDATE models SET last_failure_at = 'infinity' WHERE id = 'a'")
    sql(pg_cleared, "UPDATE models SET disabled_until = 'infinity' WHERE id = 'b'")
    result = run("recover", "-o", "json", **environ(pg_cleared))
    told = json.loads(result.out, parse_constant=lambda word: pytest.fail(word))
    assert told["recovered"] == []
    # An end that never comes is none: b waits for a person, not for recover.
    assert {w["id"]: w["why"] for w in told["waiting"]} == {"a": "cooldown"}


def test_a_plain_disable_makes_it_permanent(fleet_url: str, tool: Cli) -> None:
    """A disable without an end makes a timed disable permanent, says so and writes an event."""
    put(fleet_url, "a")
    tool("disable", "a", "--for", "2h")
    done = tool("disable", "a", "--reason", "for good")
    assert done.out == "a\tdisabled\tdisabled\tdisabled\ttrue\n"
    assert tool("disable", "a").out == "a\tdisabled\tdisabled\talready disabled\tfalse\n"
    model = tool("show", "a", "-o", "json").json
    assert (model["retry_at"], model["disabled_reason"]) == (None, "for good")
    with opened(fleet_url) as fleet:
        assert story(fleet, "a") == ["disabled", "disabled"]
        assert why(fleet, cooldown=0) == {}
        assert fleet.recover(cooldown=0).recovered == ()


def test_a_permanent_one_can_be_given_a_time(fleet_url: str, tool: Cli) -> None:
    """--force gives a permanent disable an end; a second --force changes the end."""
    put(fleet_url, "a")
    tool("disable", "a")
    for hours in (5, 1):
        done = tool("disable", "a", "--for", f"{hours}h", *(["--force"] if hours == 5 else []))
        assert done.out == "a\tdisabled\tdisabled\tdisabled\ttrue\n"
        left = tool("show", "a", "-o", "json").json["seconds_left"]
        assert hours * HOUR - 60 < left <= hours * HOUR
    with opened(fleet_url) as fleet:
        assert story(fleet, "a") == ["disabled"] * 3
        alter(fleet_url, "a", disabled_until=Ago(1))
        assert fleet.recover().recovered == ("a",)


def test_enable_ends_the_time(fleet_url: str, tool: Cli) -> None:
    """A model that is enabled before its time stays on, and a later disable in SQL is permanent."""
    put(fleet_url, "a")
    tool("disable", "a", "--for", "2h")
    assert tool("enable", "a").code == 0
    assert tool("show", "a", "-o", "json").json["disabled_until"] is None
    sql(fleet_url, "UPDATE models SET active = false")
    assert tool("recover", "--cooldown", "0s").out == ""
    assert tool("recover", "--dry-run").out == ""


@pytest.mark.parametrize("over", [False, True])
def test_raw_sql_ends_the_time(fleet_url: str, tool: Cli, over: bool) -> None:
    """A model that is enabled and disabled in SQL is disabled permanently, whatever it was before."""
    put(fleet_url, *"abc")
    tool("disable", "a", "--for", "2h")
    put_off(fleet_url, "d", failed=9 * HOUR)
    with opened(fleet_url) as fleet:
        one_by_one(fleet, "b")
    if over:
        alter(fleet_url, "a", disabled_until=Ago(60))
        alter(fleet_url, "b", last_failure_at=Ago(9 * HOUR))
    sql(fleet_url, "UPDATE models SET active = true")
    sql(fleet_url, "UPDATE models SET active = false")
    assert tool("recover", "--cooldown", "0s").out == ""
    assert tool("recover", "--dry-run", "--cooldown", "0s").out == ""
    rows = listed(tool).values()
    assert {(row["status"], row["retry_at"]) for row in rows} == {("disabled", "")}


def test_the_rule_leaves_a_timed_one_alone(fleet_url: str, succeed: Fail) -> None:
    """Successes are recorded and do not bring back before the time; failures change nothing."""
    put(fleet_url, "a")
    with opened(fleet_url) as fleet:
        fleet.disable("a", duration=HOUR)
        succeed(fleet, "a")
        one_by_one(fleet, "a", times=6)
        model = fleet.show("a")
        assert (model.status, model.success_count, model.failure_count) == (DISABLED, 1, 6)
        alter(fleet_url, "a", disabled_until=Ago(1))
        assert fleet.recover().recovered == ("a",)
        assert fleet.show("a").consecutive_failures == 0


def test_an_end_from_python(fleet_url: str) -> None:
    """A duration or an end with its zone; anything else is a UsageError that writes nothing."""
    put(fleet_url, "a")
    end = datetime(2100, 1, 1, tzinfo=UTC)
    before = everything(fleet_url)
    with opened(fleet_url) as fleet:
        for wrong in (
            {"duration": 0},
            {"duration": -1},
            {"duration": float("nan")},
            {"duration": float("inf")},
            {"until": end.replace(tzinfo=None)},
            {"until": end.replace(year=2020)},
            {"duration": 60, "until": end},
        ):
            with pytest.raises(UsageError):
                fleet.disable("a", **wrong)
        assert everything(fleet_url) == before
        assert fleet.disable("a", until=end).changes[0].changed
        assert fleet.show("a").retry_at == end
