"""`show` explains in sentences why a model is on or off and when it comes back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from modelctl import Fleet, Hold
from modelctl.recovery.explain import describe, left, moment
from tests.commands import Cli
from tests.fleets import ACTOR, HOUR, Ago, alter, is_sqlite, opened, put, put_off, sql

SINCE = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
UNTIL = datetime(2026, 1, 2, 4, 4, 5, tzinfo=UTC)


def said(fleet: Fleet, model_id: str) -> str:
    """Return all sentences, one after the other."""
    return " ".join(fleet.show(model_id).explanation)


# Words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "now"),
        (0, "now"),
        (1, "in 1 s"),
        (89, "in 89 s"),
        (90, "in 2 min"),
        (23 * 60, "in 23 min"),
        (89 * 60, "in 89 min"),
        (90 * 60, "in 1.5 h"),
        (47 * HOUR, "in 47.0 h"),
        (48 * HOUR, "in 2 days"),
        (3650 * 24 * HOUR, "in 3650 days"),
    ],
)
def test_how_long_is_left(seconds: float, words: str) -> None:
    """A duration is said in the unit that a person would take."""
    assert left(seconds) == words


def test_a_moment_is_utc_to_the_second() -> None:
    """Times look as they do everywhere else."""
    assert moment(SINCE) == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize(
    ("hold", "words"),
    [
        (
            Hold(None, None, SINCE, UNTIL, 1380, "maintenance", "ann"),
            "automatic switching is paused by ann until 2026-01-02T04:04:05Z (in 23 min):"
            " maintenance",
        ),
        (
            Hold("acme", None, SINCE, UNTIL, 60, None, None),
            "automatic switching of acme is paused until 2026-01-02T04:04:05Z (in 60 s)",
        ),
        (
            Hold("", None, SINCE, UNTIL, 60, None, None),
            "automatic switching of no provider is paused until 2026-01-02T04:04:05Z (in 60 s)",
        ),
        (
            Hold("acme", "parse-error", SINCE, UNTIL, 60, "3 models", "health rule"),
            "incident at acme: parse-error since 2026-01-02T03:04:05Z (3 models),"
            " until 2026-01-02T04:04:05Z at least",
        ),
        (
            Hold("", "parse-error", SINCE, UNTIL, 60, None, None),
            "incident at no provider: parse-error since 2026-01-02T03:04:05Z,"
            " until 2026-01-02T04:04:05Z at least",
        ),
    ],
)
def test_a_pause_or_an_incident_is_described(hold: Hold, words: str) -> None:
    """The sentence of a pause or incident names its provider, its end and its reason."""
    assert describe(hold) == words


# Models that are off


def test_a_model_in_its_cooldown(fleet_url: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """`show` says since when and by what a model is off, its last error, its counts and its return."""
    reasons = {"failure_reason": "no JSON", "disabled_reason": "no JSON"}
    put_off(
        fleet_url,
        "a",
        failed=37 * 60 + 5,
        ejections=2,
        provider="acme",
        failure_type="parse-error",
        **reasons,
    )
    monkeypatch.setenv("MODELCTL_DATABASE_URL", fleet_url)
    model = cli("show", "a", "-o", "json").json
    off, failed, retry = (
        f"{model[time][:19]}Z" for time in ("disabled_at", "last_failure_at", "retry_at")
    )
    assert model["explanation"] == [
        f"It has been off since {off}, switched off by health rule: no JSON.",
        "It has 5 of 5 failures in a row, and the health rule has switched it off 2 times since it"
        " was last trusted.",
        f"It last failed at {failed} with parse-error: no JSON.",
        f"The next recover leaves it off: its cooldown ends at {retry} (in 23 min).",
    ]
    shown = cli("show", "a", "-o", "table").lines[2:]
    at = len(shown[0]) - len(shown[0].split(" ", 1)[1].lstrip())
    lines = [[line[:at].strip(), line[at:].strip()] for line in shown]
    assert [value for _, value in lines[4:8]] == model["explanation"]
    assert [field for field, _ in lines[4:8]] == ["why", "", "", ""]
    assert ["retry at", retry] in lines


@pytest.mark.parametrize(
    ("columns", "configured", "words"),
    [
        ({}, {}, "The next recover brings it back with 2 of 5 failures."),
        (
            {"ejections": 3},
            {"recovery_max_ejections": 3},
            "The next recover leaves it off: the health rule switched it off 3 times since it was"
            " last trusted (recovery.max_ejections is 3), so only a person enables it.",
        ),
        (
            {"ejections": 3},
            {"recovery_cooldown_factor": 2},
            "The next recover leaves it off: its cooldown ends at ",
        ),
        (
            {"auto_disabled": False},
            {},
            "The next recover leaves it off: a person switched it off, and only a person enables"
            " it.",
        ),
    ],
)
def test_what_the_next_recover_does(
    fleet_url: str, columns: dict[str, Any], configured: dict[str, Any], words: str
) -> None:
    """The last sentence says whether it comes back, and if not, what stops it."""
    put_off(fleet_url, "a", failed=1.7 * HOUR, **columns)
    with opened(fleet_url, **configured) as fleet:
        assert fleet.show("a").explanation[-1].startswith(words)
        comes_back = "brings it back" in words
        assert fleet.recover().recovered == (("a",) if comes_back else ())


def test_behind_others(fleet_url: str) -> None:
    """A run's limit is what stops it where so many others are due before it."""
    for number in range(5):
        put_off(fleet_url, f"m{number}", failed=(9 - number) * HOUR)
    put_off(fleet_url, "fresh", failed=60)
    with opened(fleet_url, recovery_limit=2) as fleet:
        last = [fleet.show(f"m{number}").explanation[-1] for number in range(5)]
        assert last[:2] == ["The next recover brings it back with 2 of 5 failures."] * 2
        assert last[2:] == [
            f"The next recover leaves it off: {ahead} models are due before it, and one run"
            " brings 2 back."
            for ahead in (2, 3, 4)
        ]
        assert "cooldown ends" in said(fleet, "fresh")
        assert fleet.recover().recovered == ("m0", "m1")
        assert "brings it back" in said(fleet, "m2")
    with opened(fleet_url, recovery_limit=1) as fleet:
        assert "leaves it off: 1 model is due before it" in said(fleet, "m3")


def test_disabled_by_a_person(fleet_url: str) -> None:
    """The sentence names actor, time and reason; of a disable in SQL what the history has."""
    put(fleet_url, "a")
    put(fleet_url, "b")
    with opened(fleet_url) as fleet:
        fleet.disable("a", reason="too dear")
        assert f", switched off by {ACTOR}: too dear." in fleet.show("a").explanation[0]
        sql(fleet_url, "UPDATE models SET active = false WHERE id = 'b'")
        said = fleet.show("b").explanation[0]
        if is_sqlite(fleet_url):
            assert said == "It is off, switched off by somebody, not by modelctl."
        else:
            since = moment(fleet.events("b")[0].at)
            by = "postgres (another program)"
            assert said == f"It has been off since {since}, switched off by {by}."
        for model_id in "ab":
            assert fleet.show(model_id).explanation[-1].endswith("only a person enables it.")


def test_disabled_for_a_time(fleet_url: str) -> None:
    """Until when, and that it comes back healthy at the first run after that."""
    put(fleet_url, "a", consecutive_failures=4)
    with opened(fleet_url) as fleet:
        fleet.disable("a", duration=2 * HOUR)
        model = fleet.show("a")
        assert model.retry_at
        assert model.explanation[-1] == (
            "The next recover leaves it off: its timed disable ends at"
            f" {moment(model.retry_at)} (in 2.0 h)."
        )
        alter(fleet_url, "a", disabled_until=Ago(1))
        assert fleet.show("a").explanation[-1] == (
            "The next recover brings it back with 0 of 5 failures."
        )
        assert fleet.recover().recovered == ("a",)
        assert fleet.show("a").consecutive_failures == 0


def test_paused(fleet_url: str) -> None:
    """A pause is what stops it, and is described; that of another provider is not its concern."""
    put_off(fleet_url, "a", failed=9 * HOUR, provider="p")
    put_off(fleet_url, "b", failed=9 * HOUR, provider="q")
    with opened(fleet_url) as fleet:
        fleet.pause(HOUR, provider="p", reason="maintenance")
        assert "leaves it off while automatic switching is paused." in said(fleet, "a")
        assert f"Automatic switching of p is paused by {ACTOR} until " in said(fleet, "a")
        assert "maintenance" in said(fleet, "a")
        assert "paused" not in said(fleet, "b")
        assert "brings it back" in said(fleet, "b")
        fleet.pause(HOUR)
        assert "Automatic switching is paused" in said(fleet, "b")


# Models that are on


def test_a_model_that_is_well(fleet_url: str) -> None:
    """The explanation of a healthy model is short."""
    put(fleet_url, "a")
    with opened(fleet_url) as fleet:
        assert fleet.show("a").explanation == (
            "It is active.",
            "It has 0 of 5 failures in a row, and the health rule has not switched it off since it"
            " was last trusted.",
        )


def test_a_model_that_came_back(fleet_url: str) -> None:
    """The sentences say since when it is back, how it regains trust, and how many ejections remain."""
    put_off(fleet_url, "a", failed=2 * HOUR)
    with opened(fleet_url, recovery_max_ejections=3) as fleet:
        fleet.recover()
        assert "once more" not in said(fleet, "a")
        sql(fleet_url, "UPDATE models SET ejections = 2")
        model = fleet.show("a")
        assert model.recovered_at
        assert model.explanation[0] == f"It is active, back since {moment(model.recovered_at)}."
        assert "has switched it off 2 times" in model.explanation[1]
        assert "A success at least one cooldown after it came back" in said(fleet, "a")
        assert "If the health rule switches it off once more, only a person can enable it." in said(
            fleet, "a"
        )
        alter(fleet_url, "a", recovered_at=Ago(2 * HOUR))
        fleet.record_success("a")
        assert "trusted again" not in said(fleet, "a")
        assert "has not switched it off" in said(fleet, "a")


def test_a_model_that_was_enabled_is_back_since_then(fleet_url: str) -> None:
    """What a recover did before the model was disabled and enabled is not when it came back."""
    put_off(fleet_url, "a", failed=9 * HOUR)
    with opened(fleet_url) as fleet:
        fleet.recover()
        alter(fleet_url, "a", recovered_at=Ago(5 * HOUR))
        fleet.disable("a")
        fleet.enable("a")
        model = fleet.show("a")
        assert model.updated_at
        assert model.explanation[0] == f"It is active, back since {moment(model.updated_at)}."


def test_a_model_that_was_spared(fleet_url: str) -> None:
    """Why the rule did not switch it off, also when that is over by now."""
    put(fleet_url, "a", consecutive_failures=4, provider="p")
    with opened(fleet_url, recovery_min_active=1, recovery_incident_models=1) as fleet:
        fleet.record_failure("a", "parse-error")
        assert "would have switched it off, but the fleet would have fewer active" in said(
            fleet, "a"
        )
        assert "Incident at p: parse-error since" in said(fleet, "a")
        assert "(1 model), until" in said(fleet, "a")
        fleet.record_failure("a", "parse-error")
        assert "would have switched it off, but its provider had an incident." in said(fleet, "a")
        fleet.pause(HOUR)
        fleet.record_failure("a", "parse-error")
        assert "It has 7 of 5 failures in a row" in said(fleet, "a")
        fleet.resume()
        assert "but automatic switching was paused." in said(fleet, "a")
        fleet.record_success("a")
        assert "would have" not in said(fleet, "a")


# And it is so


def test_every_prediction_comes_true(fleet_url: str) -> None:
    """Of many different models exactly those come back whose explanation says so."""
    for number in range(30):
        put_off(
            fleet_url,
            f"auto-{number}",
            failed=(number % 7) * HOUR + 60 * number,
            ejections=number % 5,
            provider="pq"[number % 2],
        )
    for number in range(6):
        put(fleet_url, f"off-{number}", active=False, provider="pq"[number % 2])
        if number % 3:
            ahead = -number if number % 3 == 1 else number
            alter(fleet_url, f"off-{number}", disabled_until=Ago(-ahead * HOUR))
    rule = {"recovery_limit": 7, "recovery_cooldown_factor": 1.5, "recovery_max_ejections": 4}
    with opened(fleet_url, **rule) as fleet:
        fleet.pause(HOUR, provider="q")
        models = [fleet.show(m.id) for m in fleet.list_models()]
        back = {m.id for m in models if any("brings it back" in s for s in m.explanation)}
        behind = {m.id for m in models if any("due before it" in s for s in m.explanation)}
        assert len(back) == 7
        assert set(fleet.recover().recovered) == back
        assert set(fleet.recover(limit=0).recovered) == behind
