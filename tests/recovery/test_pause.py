"""While switching is paused, neither the health rule nor `recover` changes a status."""

from __future__ import annotations

import pytest

from modelctl import Pause
from modelctl.database import bulk
from tests.commands import Cli, plain, seen
from tests.fleets import (
    ACTIVE,
    ACTOR,
    AUTO,
    DISABLED,
    HOUR,
    Ago,
    ago,
    alter,
    environ,
    everything,
    opened,
    put,
    put_off,
    sql,
    status,
)
from tests.recovery.outcomes import Fail, one_by_one, story, would


def test_a_pause_freezes_switching(fleet_url: str, fail: Fail, succeed: Fail) -> None:
    """Meanwhile nothing is switched off or on by itself, outcomes are recorded, people still can."""
    put(fleet_url, *"ab", consecutive_failures=4)
    put_off(fleet_url, "auto", failed=9 * HOUR)
    put(fleet_url, "timed", active=False)
    alter(fleet_url, "timed", disabled_until=Ago(HOUR))
    with opened(fleet_url) as fleet:
        pause = fleet.pause(HOUR, reason="maintenance")
        assert (pause.provider, pause.paused, pause.changed) == (None, True, True)
        fail(fleet, *"ab", times=2)
        succeed(fleet, "auto")
        result = fleet.recover()
        assert (result.recovered, result.paused and result.paused.reason) == ((), "maintenance")
        assert {w.id: w.why for w in result.waiting} == {"auto": "paused", "timed": "paused"}
        assert fleet.recover(cooldown=0).recovered == ()
        assert status(fleet, "a", "b", "auto", "timed") == [ACTIVE, ACTIVE, AUTO, DISABLED]
        assert would(fleet, *"ab") == ["paused"] * 2
        assert story(fleet, "a") == ["would-disable"]
        assert [fleet.show(i).failure_count for i in "ab"] == [2, 2]
        assert fleet.show("auto").success_count == 1
        fleet.disable("a")
        fleet.enable("timed")
        assert status(fleet, "a", "timed") == [DISABLED, ACTIVE]
        # It ends by itself.
        sql(fleet_url, f"UPDATE modelctl_holds SET until = {ago(fleet_url, 1)}")
        assert fleet.holds() == ()
        fail(fleet, "b", times=1)
        assert fleet.recover().recovered == ("auto",)
        assert status(fleet, "b", "auto") == [AUTO, ACTIVE]


def test_a_pause_of_one_provider(fleet_url: str, fail: Fail, succeed: Fail) -> None:
    """Switching goes on for other providers and for models without a provider."""
    for model_id, provider in (("p", "p"), ("q", "q"), ("none", "")):
        put(fleet_url, f"on-{model_id}", provider=provider, consecutive_failures=4)
        put_off(fleet_url, f"off-{model_id}", provider=provider, failed=9 * HOUR)
        put_off(fleet_url, f"good-{model_id}", provider=provider, failed=9 * HOUR)
    with opened(fleet_url) as fleet:
        fleet.pause(HOUR, provider="p")
        fail(fleet, "on-p", "on-q", "on-none", times=1)
        assert status(fleet, "on-p", "on-q", "on-none") == [ACTIVE, AUTO, AUTO]
        succeed(fleet, "good-p", "good-q", "good-none")
        assert status(fleet, "good-p", "good-q", "good-none") == [AUTO, ACTIVE, ACTIVE]
        result = fleet.recover()
        assert sorted(result.recovered) == ["off-none", "off-q"]
        assert result.paused is None
        assert {w.id for w in result.waiting if w.why == "paused"} == {"off-p", "good-p"}


def test_pausing_models_of_no_provider(fleet_url: str, tool: Cli) -> None:
    """An empty provider means the models without a provider, not the whole fleet."""
    put(fleet_url, "none", consecutive_failures=4)
    put(fleet_url, "p", provider="p", consecutive_failures=4)
    with opened(fleet_url) as fleet:
        fleet.pause(HOUR, provider="")
        one_by_one(fleet, "none", "p", times=1)
        assert status(fleet, "none", "p") == [ACTIVE, AUTO]
        assert [e.provider for e in fleet.events() if e.event == "paused"] == [""]
    assert tool("events").lines[-1].split("\t")[1:3] == ["", "paused"]
    assert tool("resume", "--provider", "").out.startswith("\tfalse\t\t\ttrue\t")


def test_pause_and_resume_on_the_command_line(fleet_url: str, tool: Cli) -> None:
    """Pausing again replaces, resume ends it, twice is "was not paused", and all is in the history."""
    put_off(fleet_url, "a", failed=9 * HOUR)
    assert tool("pause", "--for", "2h", "--reason", "first").code == 0
    done = tool("pause", "--for", "1h", "--reason", "second", "--actor", "ann")
    provider, paused, until, reason, *_ = done.out.rstrip("\n").split("\t")
    assert (provider, paused, reason) == ("", "true", "second")
    (hold,) = tool("stats", "-o", "json").json["holds"]
    assert (hold["reason"], hold["actor"], hold["failure_type"]) == ("second", "ann", None)
    assert hold["until"][:19] == until[:19]
    assert 3500 < hold["seconds_left"] <= 3600
    assert tool("pause", "--for", "1h", "--provider", "p").code == 0
    assert len(tool("stats", "-o", "json").json["holds"]) == 2
    assert tool("recover").out == ""
    assert tool("resume", "--reason", "over").out.startswith("\tfalse\t\t\ttrue\t")
    assert tool("resume").out == "\tfalse\t\t\tfalse\t\n"
    assert tool("resume", "--provider", "p").out.startswith("p\tfalse\t\t\ttrue\t")
    assert tool("recover").out == "a\n"
    events = tool("events", "-o", "json").json
    assert [
        (e["event"], e["model_id"], e["provider"], e["reason"], e["actor"]) for e in events[::-1]
    ] == [
        ("paused", None, None, "first", ACTOR),
        ("paused", None, None, "second", "ann"),
        ("paused", None, "p", None, ACTOR),
        ("resumed", None, None, "over", ACTOR),
        ("resumed", None, "p", None, ACTOR),
        ("recovered", "a", None, None, ACTOR),
    ]


def test_a_pause_of_an_unknown_provider(fleet_url: str, tool: Cli) -> None:
    """A provider without models is paused, with a warning that its name may be mistyped."""
    put(fleet_url, "a", provider="openai")
    done = tool("pause", "--for", "1h", "--provider", "opnai")
    assert (done.code, "no model has the provider 'opnai'" in done.err) == (0, True)
    assert tool("pause", "--for", "1h", "--provider", "openai").err == ""


@pytest.mark.parametrize(
    "words", [[], ["--for", "0s"], ["--for", "-1h"], ["--for", "soon"], ["--for", "99999d"]]
)
def test_a_pause_has_an_end(fleet_url: str, tool: Cli, words: list[str]) -> None:
    """A pause without a duration that makes sense is exit 2, and nothing is paused."""
    before = everything(fleet_url)
    tool("pause", *words).failed(2)
    assert everything(fleet_url) == before


def test_a_resumed_fleet_acts_at_once(fleet_url: str, fail: Fail) -> None:
    """After resume the next counted failure switches off, and the pause's end is not waited for."""
    put(fleet_url, "a", consecutive_failures=9)
    with opened(fleet_url) as fleet:
        fleet.pause(HOUR)
        fail(fleet, "a", times=1)
        assert fleet.resume().changed
        fail(fleet, "a", times=1)
        assert (status(fleet, "a"), would(fleet, "a")) == ([AUTO], [None])


def test_a_pause_in_the_middle_of_a_recover(
    fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that come after it bring nothing back."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    put_off(fleet_url, *"abcde", failed=9 * HOUR)
    pauses: list[Pause] = []
    with opened(fleet_url) as fleet, opened(fleet_url) as other:
        result = fleet.recover(progress=lambda done: pauses.append(other.pause(HOUR)))
        assert len(result.recovered) == 2  # which ones is the table's order
        assert {w.why for w in result.waiting} == {"paused"}


def test_everything_says_that_it_is_paused(fleet_url: str, tool: Cli) -> None:
    """Tables of recover, list, stats, doctor and show name the pause, by whom, until when and why."""
    put_off(fleet_url, "acme/one", failed=9 * HOUR, provider="acme")
    tool("pause", "--for", "1h", "--reason", "maintenance")
    words = f"utomatic switching is paused by {ACTOR} until "
    for command in ("recover", "recover --dry-run", "list", "stats", "doctor", "show acme/one"):
        result = tool(*command.split(), "-o", "table")
        text = " ".join(result.out.split())
        assert (result.code, words in text, "(in 60 min): maintenance" in text) == (0, True, True)
    assert "leaves it off while automatic switching is paused" in text
    code, shown = seen("list", columns=160, environ=environ(fleet_url))
    assert (code, words in plain(shown)) == (0, True)
