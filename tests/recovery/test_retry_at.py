"""`retry_at` is the time at which a model really comes back, wherever it is shown."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from modelctl import Fleet, ModelStatus, health
from tests import fleets
from tests.commands import Cli
from tests.fleets import HOUR, Ago, let_pass, opened, put, put_hold, seed, sql, trip

# A model that is off: by the rule or for a time, how often, since when, until when (hours).
OFF = st.fixed_dictionaries(
    {
        "timed": st.booleans(),
        "provider": st.sampled_from(["p", "q", ""]),
        "ejections": st.integers(0, 3),
        "failed": st.sampled_from([None, 0.1, 0.6, 1.7, 5.0]),
        "disabled": st.sampled_from([0.2, 0.9]),
        "until": st.sampled_from([-1.0, 0.4, 2.3]),
    }
)
# Until when switching is paused, of whom; with a type of failure it is an incident.
HOLDS = st.lists(
    st.tuples(
        st.sampled_from([None, "p", "q"]),
        st.sampled_from([None, None, "parse-error"]),
        st.sampled_from([-1.0, 0.3, 1.1, 9.0]),
    ),
    max_size=3,
    unique_by=lambda hold: hold[:2],
)
RULES = st.fixed_dictionaries(
    {
        "recovery_cooldown_factor": st.sampled_from([1, 2]),
        "recovery_max_ejections": st.sampled_from([0, 3]),
        "recovery_min_active": st.sampled_from([0, 5]),
    }
)


def expected(off: dict[str, Any], holds: list[Any], rule: Any) -> float | None:
    """Return in how many hours it comes back, as the documents say; None: not by itself."""
    if off["timed"]:
        hours: float = off["until"]
    elif health.waits_for_person(off["ejections"], rule):
        return None
    else:
        since = off["disabled"] if off["failed"] is None else off["failed"]
        hours = health.cooldown(off["ejections"], rule) / HOUR - since
    pauses = [
        end for provider, kind, end in holds if kind is None and provider in (None, off["provider"])
    ]
    return float(max([hours, *(end for end in pauses if end > 0)]))


def put_all(url: str, models: list[dict[str, Any]], holds: list[Any]) -> None:
    """Fill the tables."""
    fleets.clear(url)
    for number, off in enumerate(models):
        put(
            url,
            f"m{number}",
            provider=off["provider"],
            active=False,
            auto_disabled=not off["timed"],
            ejections=off["ejections"],
            last_failure_at=None if off["failed"] is None else Ago(off["failed"] * HOUR),
            disabled_at=Ago(off["disabled"] * HOUR),
            disabled_until=Ago(-off["until"] * HOUR) if off["timed"] else None,
        )
    for provider, kind, hours in holds:
        scope, until = f"{provider}:{kind}", Ago(-hours * HOUR)
        put_hold(url, scope, provider=provider, failure_type=kind, until=until)


@settings(
    max_examples=25,
    deadline=None,
    phases=set(Phase) - {Phase.explain},
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(OFF, min_size=1, max_size=4), HOLDS, RULES)
def test_when_a_model_comes_back(
    fleet_url: str, models: list[dict[str, Any]], holds: list[Any], rule: dict[str, Any]
) -> None:
    """list, show and recover say the same time; just before it recover waits, just after it not."""
    put_all(fleet_url, models, holds)
    with opened(fleet_url, **rule) as fleet:
        shown = {model.id: model for model in fleet.list_models()}
        hours = {
            f"m{number}": expected(off, holds, fleet.config.recovery)
            for number, off in enumerate(models)
        }
        for waiting in fleet.recover(dry_run=True).waiting:
            assert waiting.retry_at == shown[waiting.id].retry_at
            assert (waiting.retry_at is None) is (waiting.why == "person")
        for model_id, model in shown.items():
            again = fleet.show(model_id)
            assert again.retry_at == model.retry_at
            end = hours[model_id]
            if end is None:
                assert (model.retry_at, model.seconds_left) == (None, None)
                continue
            assert model.retry_at is not None
            assert model.seconds_left == pytest.approx(max(0, end * HOUR), abs=20)
        ends = sorted({h for h in hours.values() if h is not None and h > 0})
        past = 0.0
        for end in [0.0, *ends]:
            for at in (end * HOUR - 30, end * HOUR + 30):
                if at > past:
                    let_pass(fleet_url, at - past)
                    past = at
                    due = {i for i, h in hours.items() if h is not None and h * HOUR <= at}
                    assert {*fleet.recover(dry_run=True).recovered} == due


def test_a_pause_is_in_every_output(
    cli: Cli, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused beyond the cooldown, list, show, recover and its dry run name the end of the pause."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", fleet_url)
    with opened(fleet_url) as fleet:
        seed(fleet, "ab")
        trip(fleet, "a")
        fleet.disable("b", duration=2 * HOUR)
        end = fleet.pause(5 * HOUR).until
        assert end is not None
        assert {m.retry_at for m in fleet.list_models()} == {fleet.show("a").retry_at}
    told = [row["retry_at"] for row in cli("list", "-o", "json").json]
    told += [cli("show", i, "-o", "json").json["retry_at"] for i in "ab"]
    told += [w["retry_at"] for w in cli("recover", "--dry-run", "-o", "json").json["waiting"]]
    told += [w["retry_at"] for w in cli("recover", "-o", "json").json["waiting"]]
    assert len(told) == 8
    assert set(told) == {end.isoformat(timespec="milliseconds").replace("+00:00", "Z")}


def test_a_pause_of_another_provider_delays_nothing(fleet: Fleet) -> None:
    """Neither a pause of another provider nor a pause that ends earlier delays the return."""
    seed(fleet, "a")
    trip(fleet, "a")
    before = fleet.show("a").retry_at
    fleet.pause(5 * HOUR, provider="p")
    fleet.pause(60)
    assert fleet.show("a").retry_at == before


def test_an_unknown_time_is_now(fleet: Fleet, fleet_url: str) -> None:
    """Without any time of its own a model is due, so its time is now, not never."""
    seed(fleet, "a")
    trip(fleet, "a")
    # An adopted column may be without NOT NULL.
    if fleets.is_sqlite(fleet_url):
        sql(fleet_url, "UPDATE models SET updated_at = 'zzz'")
    else:
        sql(fleet_url, "ALTER TABLE models ALTER updated_at DROP NOT NULL")
        sql(fleet_url, "UPDATE models SET updated_at = NULL")
    sql(fleet_url, "UPDATE models SET last_failure_at = NULL, disabled_at = NULL")
    model = fleet.show("a")
    assert model.status is ModelStatus.AUTO_DISABLED
    assert model.retry_at is not None
    assert abs(model.retry_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert model.seconds_left == 0
    assert fleet.recover(dry_run=True).recovered == ("a",)


@pytest.mark.parametrize("failed", ["infinity", "-infinity"])
def test_a_failure_beyond_the_calendar(pg_cleared: str, failed: str) -> None:
    """A failure at minus infinity is long ago; a failure at infinity waits until the end of the calendar."""
    with opened(pg_cleared) as fleet:
        seed(fleet, "a")
        trip(fleet, "a")
        sql(pg_cleared, "UPDATE models SET last_failure_at = ?", failed)
        due = failed == "-infinity"
        assert (fleet.recover(dry_run=True).recovered == ("a",)) is due
        at = fleet.show("a").retry_at
        assert at is not None
        assert (at.year == 9999) is not due


def test_a_pause_without_an_end(fleet: Fleet, fleet_url: str) -> None:
    """A pause that another program wrote for ever shows the last time there is, in valid JSON."""
    seed(fleet, "a")
    trip(fleet, "a")
    end = "zzz" if fleets.is_sqlite(fleet_url) else "infinity"
    sql(fleet_url, "INSERT INTO modelctl_holds (scope, until) VALUES ('fleet', ?)", end)
    (waiting,) = fleet.recover(dry_run=True).waiting
    assert waiting.why == "paused"
    for at in (waiting.retry_at, fleet.show("a").retry_at):
        assert at is not None
        assert at.year == 9999
    assert json.dumps(waiting.seconds_left) != "Infinity"


def test_null_is_for_a_person_alone(fleet_url: str) -> None:
    """`retry_at` is null exactly for models that only a person enables."""
    with opened(fleet_url, recovery_max_ejections=1) as fleet:
        seed(fleet, ["good", "psql", "garbled", "often"])
        fleet.disable("good", "garbled")
        never = "12:00" if fleets.is_sqlite(fleet_url) else "infinity"
        sql(fleet_url, "UPDATE models SET disabled_until = ? WHERE id = 'garbled'", never)
        sql(fleet_url, "UPDATE models SET active = false WHERE id = 'psql'")
        trip(fleet, "often")
        fleet.pause(HOUR)
        assert {m.retry_at for m in fleet.list_models()} == {None}
        assert [w.id for w in fleet.recover(dry_run=True).waiting] == ["often"]
        for model_id in ("good", "psql", "garbled"):
            assert "only a person enables it" in " ".join(fleet.show(model_id).explanation)


def test_a_list_asks_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many models wait under a pause, a listing is one statement."""
    ids = [f"m{n}" for n in range(50)]
    seed(fleet, ids)
    trip(fleet, *ids)
    fleet.pause(HOUR)
    statements: list[str] = []
    engine = fleet._store.database.engine
    import sqlalchemy as sa

    @sa.event.listens_for(engine, "before_cursor_execute")
    def seen(*call: Any) -> None:
        statements.append(call[2])

    assert len(fleet.list_models()) == 50
    assert len([s for s in statements if "FROM models" in s]) == 1
    assert len(statements) == 1
