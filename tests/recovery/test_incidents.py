"""Models of one provider that fail alike are an incident of the provider and stay active."""

from __future__ import annotations

import pytest

from modelctl.database import bulk
from tests import fleets
from tests.commands import Cli, plain, seen
from tests.fleets import (
    ACTIVE,
    AUTO,
    HOUR,
    Ago,
    alter,
    environ,
    let_pass,
    opened,
    put,
    put_off,
    status,
)
from tests.recovery.outcomes import BAD, Fail, in_a_batch, one_by_one, story, would

OTHER = "client-error"
GUARDED = {"recovery_incident_models": 3, "recovery_incident_window": "10m"}


def test_an_incident_of_a_provider(fleet_url: str, fail: Fail) -> None:
    """Three models, half of the active ones, that fail alike make one incident, which spares the rest."""
    put(fleet_url, *"abcdef", provider="p")
    put(fleet_url, *"xy", provider="q")
    put(fleet_url, "off", provider="p", active=False)
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"ab")
        assert fleet.holds() == ()
        fail(fleet, "c")
        (hold,) = fleet.holds()
        assert (hold.provider, hold.failure_type, hold.reason) == ("p", BAD, "3 models")
        assert 890 < hold.seconds_left <= 900
        event = next(e for e in fleet.events() if e.event == "incident")
        assert (event.model_id, event.provider, event.failure_type) == (None, "p", BAD)
        assert (event.before, event.after) == (None, None)
        fail(fleet, "d")
        # Another type of failure, another provider.
        fail(fleet, "e", kind=OTHER)
        fail(fleet, "x")
        assert status(fleet, *"abcdefx") == [AUTO, AUTO, AUTO, ACTIVE, AUTO, ACTIVE, AUTO]
        assert would(fleet, "d") == ["incident"]
        fail(fleet, "d", times=3)
        assert story(fleet, "d") == ["would-disable"]
        assert story(fleet).count("incident p") == 1


def test_a_batch_that_is_an_incident(fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch in which a whole provider fails disables three models, whatever its chunks."""
    put(fleet_url, *"abcdef", provider="p")
    for chunk in (4, 5000):
        monkeypatch.setattr(bulk, "CHUNK", chunk)
        with opened(fleet_url, **GUARDED) as fleet:
            in_a_batch(fleet, *"abcdef")
            assert status(fleet, *"abcdef") == [AUTO] * 3 + [ACTIVE] * 3
            assert would(fleet, *"def") == ["incident"] * 3
            assert story(fleet).count("incident p") == 1
            assert [story(fleet, i) for i in "cd"] == [["auto-disabled"], ["would-disable"]]
        fleets.clear(fleet_url)
        put(fleet_url, *"abcdef", provider="p")


def test_an_incident_is_half_of_the_active_ones(fleet_url: str, fail: Fail) -> None:
    """Three of eight are three bad models; the fourth makes it the provider's fault."""
    put(fleet_url, *"abcdefgh", provider="p")
    put(fleet_url, *(f"off-{n}" for n in range(9)), provider="p", active=False)
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"abc")
        assert fleet.holds() == ()
        fail(fleet, *"de")
        assert status(fleet, *"abcde") == [AUTO] * 4 + [ACTIVE]
        assert [h.reason for h in fleet.holds()] == ["4 models"]


def test_an_incident_is_of_one_type_of_failure(fleet_url: str, fail: Fail) -> None:
    """Models that fail in different ways are no incident."""
    put(fleet_url, *"abcd", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"ab")
        fail(fleet, *"cd", kind=OTHER)
        assert fleet.holds() == ()
        assert status(fleet, *"abcd") == [AUTO] * 4


def test_an_incident_is_within_the_window(fleet_url: str, fail: Fail) -> None:
    """Failures of longer ago than the window do not add up to an incident."""
    put(fleet_url, *"abcdef", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"ab")
        let_pass(fleet_url, 601)
        fail(fleet, *"cd")
        assert fleet.holds() == ()
        fail(fleet, "e")
        assert len(fleet.holds()) == 1
        assert status(fleet, *"abcde") == [AUTO] * 5


def test_an_incident_goes_on_and_ends(fleet_url: str, fail: Fail) -> None:
    """An incident lasts one and a half windows from its last written failure; then a new one begins."""
    put(fleet_url, *"abcdef", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"abcd")
        let_pass(fleet_url, 400)
        began = fleet.holds()[0].since
        assert fleet.holds()[0].seconds_left < 501
        # What does not count, or does not reach the threshold, prolongs nothing.
        fail(fleet, "e", times=4)
        fail(fleet, "d", kind="timeout")
        assert fleet.holds()[0].seconds_left < 501
        fail(fleet, "d", times=1)
        assert fleet.holds()[0].seconds_left > 890
        fail(fleet, "d", times=1)
        assert fleet.holds()[0].since == began
        let_pass(fleet_url, 890)
        assert would(fleet, "d") == ["incident"]
        assert len(fleet.holds()) == 1
        let_pass(fleet_url, 20)
        assert fleet.holds() == ()
        fail(fleet, "d", times=1)
        assert status(fleet, *"def") == [AUTO, ACTIVE, ACTIVE]
        fleet.enable(*"abc")
        fail(fleet, *"ab")
        assert story(fleet).count("incident p") == 2
        fail(fleet, *"ef")
        assert status(fleet, *"abcdef") == [AUTO, AUTO, ACTIVE, AUTO, ACTIVE, ACTIVE]
        assert would(fleet, *"ef") == ["incident"] * 2


def test_an_incident_outlasts_a_silence_of_a_window(fleet_url: str, fail: Fail) -> None:
    """A failure within a window of the last failure is spared, however the failures are spread."""
    put(fleet_url, *"abcd", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        fail(fleet, *"abcd")
        for silence in (280, 590, 10, 290, 595, 301, 299, 590):
            let_pass(fleet_url, silence)
            fail(fleet, "d", times=1)
            assert fleet.show("d").active
        let_pass(fleet_url, 901)
        assert not fleet.holds()


def test_a_long_outage_does_not_darken_a_small_provider(fleet_url: str, fail: Fail) -> None:
    """Hours of it switch off those that made it an incident, once; after it a bad model goes again."""
    put(fleet_url, *"abcd", provider="p")
    put_off(fleet_url, "dead", "gone", failed=9 * HOUR, ejections=5, provider="p")
    with opened(fleet_url, **GUARDED, recovery_max_ejections=5) as fleet:

        def hours_go_by(*failing: str) -> None:
            for _ in range(12):
                let_pass(fleet_url, 500)
                fail(fleet, *failing, times=1)

        fail(fleet, *"abcd")
        hours_go_by("d")
        assert fleet.holds()[0].seconds_left > 290
        assert sorted(fleet.recover().recovered) == ["a", "b", "c"]
        fail(fleet, *"abc", times=3)
        assert would(fleet, *"abcd") == ["incident"] * 4
        hours_go_by(*"abcd")
        assert story(fleet).count("incident p") == 1
        assert status(fleet, *"abcd") == [ACTIVE] * 4
        fleet.record_batch({"id": i, "outcome": "success"} for i in "abc")
        hours_go_by("d")
        assert fleet.holds() == ()
        assert status(fleet, *"abcd") == [ACTIVE] * 3 + [AUTO]


def test_a_model_spared_by_an_incident_is_forgotten_with_it(fleet_url: str) -> None:
    """A model that failed early in a long incident does not count for the next incident."""
    put(fleet_url, *"abcdefgh", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        one_by_one(fleet, *"abcdefg")
        assert status(fleet, *"abcdefgh") == [AUTO] * 4 + [ACTIVE] * 4
        let_pass(fleet_url, 901)
        one_by_one(fleet, "e", times=1)
        assert fleet.holds() == ()
        assert status(fleet, "e") == [AUTO]


def test_recover_goes_on_during_an_incident(fleet_url: str) -> None:
    """An incident stops switching off alone: successes and recover bring back."""
    put(fleet_url, *"abcd", provider="p")
    with opened(fleet_url, **GUARDED) as fleet:
        one_by_one(fleet, *"abc")
        assert len(fleet.holds()) == 1
        fleet.record_success("a")
        alter(fleet_url, "b", last_failure_at=Ago(2 * HOUR))
        assert fleet.recover().recovered == ("b",)
        assert status(fleet, *"ab") == [ACTIVE, ACTIVE]


def test_a_model_is_noted_once_whatever_spares_it(fleet_url: str, fail: Fail) -> None:
    """Failures that are spared for two reasons write one event; the column has the latest reason."""
    put(fleet_url, *"abcd", provider="p")
    with opened(fleet_url, **GUARDED, recovery_min_active=1) as fleet:
        fail(fleet, *"abcd")
        for kind, reason in ((OTHER, "floor"), (BAD, "incident")) * 2:
            fail(fleet, "d", times=1, kind=kind)
            assert would(fleet, "d") == [reason]
        assert story(fleet, "d") == ["would-disable"]
        # A success ends it: the next time is news.
        fleet.record_success("d")
        fail(fleet, "d")
        assert story(fleet, "d") == ["would-disable"] * 2


def test_an_incident_is_shown(fleet_url: str, tool: Cli) -> None:
    """stats, doctor and a listing on a terminal say that a provider has an incident."""
    put(fleet_url, *"abcd", provider="acme")
    with opened(fleet_url, **GUARDED) as fleet:
        in_a_batch(fleet, *"abcd")
    (hold,) = tool("stats", "-o", "json").json["holds"]
    assert (hold["provider"], hold["failure_type"]) == ("acme", BAD)
    doctor = tool("doctor")
    assert (doctor.code, f"incident at acme: {BAD} since " in doctor.out) == (0, True)
    assert "Incident at acme" in tool("show", "d").out
    last = tool("events", "-o", "json").json
    (event,) = [e for e in last if e["event"] == "incident"]
    assert (event["model_id"], event["provider"], event["actor"]) == (None, "acme", "health rule")
    assert ["", "incident", "acme"] in [
        [row.split("\t")[i] for i in (1, 2, 9)] for row in tool("events").lines
    ]
    assert f"incident at acme: {BAD} since" in tool("stats", "-o", "table").out
    code, shown = seen("list", environ=environ(fleet_url))
    assert (code, f"incident at acme: {BAD} since" in plain(shown)) == (0, True)
