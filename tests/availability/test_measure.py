"""What `Fleet.availability` says is what the history says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import Fleet, ModelAvailability, ModelNotFoundError, ModelStatus, UsageError
from tests import fleets
from tests.commands import Cli
from tests.fleets import ACTIVE, AUTO, DISABLED, HOUR, Ago, opened

DAY = 24 * HOUR
# Far enough in the past that no clock of a test reaches it, and between two milliseconds nothing lies.
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
END = BEGIN + timedelta(hours=100)
Status = ModelStatus | None


def tell(
    url: str, model_id: str, *events: tuple[float, Status, Status], name: str = "told"
) -> None:
    """Add events to the history: hours after `BEGIN`, the status before and after."""
    _tell(url, [(model_id, name, *event) for event in events])


def _tell(url: str, events: Sequence[tuple[str, str, float, Status, Status]]) -> None:
    values: list[object] = []
    for model_id, name, hours, *statuses in events:
        values += [_time(hours), model_id, name]
        values += [status and status.value for status in statuses]
    fleets.sql(
        url,
        "INSERT INTO modelctl_events (at, model_id, event, before, after)"
        f" VALUES {', '.join(['(?, ?, ?, ?, ?)'] * len(events))}",
        *values,
    )


def _time(hours: float) -> str:
    at = BEGIN + timedelta(hours=hours)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def put(
    url: str, *ids: str, status: ModelStatus = ACTIVE, created: float = -1000, **columns: Any
) -> None:
    """Add models that exist since so many hours after `BEGIN`."""
    flags = {"active": status is ACTIVE, "auto_disabled": status is AUTO}
    fleets.put(url, *ids, created_at=_time(created), **flags, **columns)


def measured(fleet: Fleet, model_id: str = "m", **how: Any) -> ModelAvailability:
    """Return the availability of one model within the 100 hours."""
    period: dict[str, Any] = {"since": BEGIN, "until": END, "parts": 10}
    found = fleet.availability(model_id, **period | how)
    [model] = found.models
    return model


def hours(model: ModelAvailability) -> tuple[float, float]:
    """Return the hours on and off."""
    return model.on_seconds / HOUR, model.off_seconds / HOUR


def test_an_outage_within_the_period(fleet: Fleet, fleet_url: str) -> None:
    """Its length, its cause and its place in the strip follow from two events."""
    put(fleet_url, "m", provider="acme")
    tell(fleet_url, "m", (-5, None, ACTIVE), (20, ACTIVE, AUTO), (45, AUTO, ACTIVE))
    model = measured(fleet)
    assert (model.share, *hours(model)) == (0.75, 75, 25)
    assert (model.outages, model.mean_outage_seconds) == (1, 25 * HOUR)
    assert (model.outages_by_rule, model.outages_by_person) == (1, 0)
    assert (model.off_by_rule_seconds, model.off_by_person_seconds) == (25 * HOUR, 0)
    assert model.strip == (1, 1, 0, 0, 0.5, 1, 1, 1, 1, 1)
    assert (model.provider, model.status) == ("acme", ACTIVE)
    assert (model.differs, model.goes_on) == (False, False)


def test_a_person_keeps_off_what_the_rule_switched_off(fleet: Fleet, fleet_url: str) -> None:
    """It is one outage, begun by the rule; the time counts for each as long as it kept it off."""
    put(fleet_url, "m", status=DISABLED)
    tell(fleet_url, "m", (-5, None, ACTIVE), (80, ACTIVE, AUTO), (85, AUTO, DISABLED))
    model = measured(fleet)
    assert (model.outages, model.outages_by_rule, model.outages_by_person) == (1, 1, 0)
    assert model.off_by_rule_seconds == 5 * HOUR
    assert model.off_by_person_seconds == 15 * HOUR
    assert model.longest_outage_seconds == 20 * HOUR
    assert model.goes_on


def test_what_is_outside_of_the_period_is_cut(fleet: Fleet, fleet_url: str) -> None:
    """An outage that began before counts from the begin, and events after the end do not count."""
    put(fleet_url, "m")
    tell(fleet_url, "m", (-9, None, ACTIVE), (-3, ACTIVE, DISABLED), (10, DISABLED, ACTIVE))
    tell(fleet_url, "m", (100, ACTIVE, AUTO), (150, AUTO, ACTIVE))
    model = measured(fleet)
    assert (*hours(model), model.outages) == (90, 10, 1)
    assert not model.goes_on


def test_a_model_exists_from_its_addition_to_its_removal(fleet: Fleet, fleet_url: str) -> None:
    """Only the time for which it existed counts, also for one that was removed and added again."""
    details = '{"old": {"provider": "acme"}, "new": {"provider": null}}'
    tell(fleet_url, "m", (10, None, ACTIVE), (20, ACTIVE, AUTO))
    tell(fleet_url, "m", (30, AUTO, None), name="removed")
    fleets.sql(fleet_url, "UPDATE modelctl_events SET details = ? WHERE event = 'removed'", details)
    model = measured(fleet)
    assert (model.share, *hours(model), model.status) == (0.5, 10, 10, None)
    assert model.strip == (None, 1, 0, *[None] * 7)
    assert (model.provider, model.differs, model.goes_on) == ("acme", False, False)
    assert [m.id for m in fleet.availability(since=BEGIN, until=END, provider="acme").models] == [
        "m"
    ]
    tell(fleet_url, "m", (90, None, DISABLED))
    put(fleet_url, "m", created=90, status=DISABLED)
    model = measured(fleet)
    assert (*hours(model), model.outages) == (10, 20, 2)


def test_a_model_that_was_removed_before(fleet: Fleet, fleet_url: str) -> None:
    """It is no model of the period; asked for by its id it has no share."""
    tell(fleet_url, "m", (-20, None, ACTIVE), (-10, ACTIVE, None))
    assert measured(fleet).share is None
    assert not fleet.availability(since=BEGIN, until=END).models


def test_a_history_that_begins_late(fleet: Fleet, fleet_url: str) -> None:
    """Before its first event a model was as that event found it, since its row was created."""
    put(fleet_url, "m", "late")
    tell(fleet_url, "m", (40, DISABLED, ACTIVE))
    model = measured(fleet)
    assert hours(model) == (60, 40)
    assert model.known_since == BEGIN + timedelta(hours=40)
    assert model.concluded_seconds == 40 * HOUR
    tell(fleet_url, "late", (130, DISABLED, ACTIVE))
    assert hours(measured(fleet, "late")) == (0, 100)
    fleets.sql(fleet_url, "UPDATE models SET created_at = ?", "2026-03-02T00:00:00.000Z")
    assert hours(measured(fleet)) == (60, 16)


def test_a_model_without_events(fleet: Fleet, fleet_url: str) -> None:
    """It has had its present status since its row was created."""
    put(fleet_url, "m", created=50, status=AUTO)
    model = measured(fleet)
    assert (*hours(model), model.outages_by_rule) == (0, 50, 1)
    assert (model.known_since, model.differs, model.goes_on) == (None, False, True)
    assert model.concluded_seconds == 50 * HOUR
    put(fleet_url, "later", created=200)
    assert measured(fleet, "later").share is None


def test_another_program_changed_the_status(fleet: Fleet, fleet_url: str) -> None:
    """A status that the last event does not tell is reported, of each kind of change."""
    put(fleet_url, "m", status=DISABLED)
    put(fleet_url, "back", "same")
    tell(fleet_url, "m", (1, None, ACTIVE))
    tell(fleet_url, "gone", (1, None, ACTIVE))
    tell(fleet_url, "back", (1, ACTIVE, None))
    tell(fleet_url, "same", (1, None, ACTIVE))
    found = fleet.availability(since=BEGIN, until=END).models
    assert {m.id: m.differs for m in found} == {
        "m": True,
        "gone": True,
        "back": True,
        "same": False,
    }


def test_the_commands_leave_a_history_that_agrees(fleet: Fleet, fleet_url: str) -> None:
    """After every kind of change by modelctl itself the history ends with the status of the row."""
    fleets.seed(fleet, "abcdef")
    fleet.disable("a", "b", duration=HOUR)
    fleet.enable("b")
    fleets.trip(fleet, "c", "d")
    fleet.record_success("d")
    fleet.remove("e")
    fleets.let_pass(fleet_url, 2 * HOUR)
    fleet.recover()
    found = fleet.availability(since=DAY)
    assert {m.id for m in found.models} == set("abcdef")
    assert not any(m.differs or m.concluded_seconds for m in found.models)
    assert found.total.outages == 4
    assert (found.total.outages_by_rule, found.total.outages_by_person) == (2, 2)
    assert found.until <= datetime.now(UTC) + timedelta(seconds=5)


def test_events_that_say_no_status(fleet: Fleet, fleet_url: str) -> None:
    """Events of a provider, and events with other words, change nothing."""
    put(fleet_url, "m")
    tell(fleet_url, "m", (1, ACTIVE, DISABLED), (11, DISABLED, ACTIVE))
    tell(fleet_url, "", (5, None, None), name="paused")
    fleets.sql(
        fleet_url,
        "INSERT INTO modelctl_events (at, model_id, event, before, after)"
        " VALUES ('2026-03-01T05:00:00.000Z', 'm', 'odd', 'disabled', 'elsewhere')",
    )
    assert hours(measured(fleet)) == (90, 10)
    assert [m.id for m in fleet.availability(since=BEGIN, until=END).models] == ["m"]


def test_providers_and_the_total(fleet: Fleet, fleet_url: str) -> None:
    """The sums over the models of each provider, and over all; the lowest share is first."""
    put(fleet_url, "a", "b", provider="acme")
    put(fleet_url, "c", provider="other")
    put(fleet_url, "none", provider="other", created=500)
    tell(
        fleet_url,
        "a",
        (0, ACTIVE, AUTO),
        (30, AUTO, ACTIVE),
        (50, ACTIVE, DISABLED),
        (60, DISABLED, ACTIVE),
    )
    tell(fleet_url, "b", (30, ACTIVE, DISABLED), (40, DISABLED, ACTIVE))
    found = fleet.availability(since=BEGIN, until=END, parts=10)
    assert [m.id for m in found.models] == ["a", "b", "c", "none"]
    acme, other = found.providers
    assert (acme.provider, acme.models, acme.share, acme.outages) == ("acme", 2, 0.75, 3)
    assert acme.longest_outage_seconds == 30 * HOUR
    assert acme.mean_outage_seconds == pytest.approx(50 * HOUR / 3)
    assert (acme.outages_by_rule, acme.outages_by_person) == (1, 2)
    assert acme.strip == (0.5, 0.5, 0.5, 0.5, 1, 0.5, 1, 1, 1, 1)
    assert (other.models, other.share) == (2, 1)
    assert (found.total.provider, found.total.models) == (None, 4)
    assert found.total.share == pytest.approx(250 / 300)
    only = fleet.availability(since=BEGIN, until=END, provider="other", parts=10)
    assert only.providers == (other,)
    assert only.total.models == 2


def test_a_clock_that_was_set_back(fleet: Fleet, fleet_url: str) -> None:
    """Events count in the order in which they were written, and no time is negative."""
    put(fleet_url, "m")
    tell(fleet_url, "m", (-1, None, ACTIVE), (50, ACTIVE, AUTO), (45, AUTO, ACTIVE))
    model = measured(fleet)
    assert (*hours(model), model.outages) == (100, 0, 0)


def test_times_that_are_none(fleet: Fleet, fleet_url: str) -> None:
    """Infinite and unreadable times of other programs stop nothing."""
    put(fleet_url, "m")
    tell(fleet_url, "m", (10, ACTIVE, DISABLED), (20, DISABLED, ACTIVE))
    bad = ("soon", "12:00") if fleets.is_sqlite(fleet_url) else ("infinity", "-infinity")
    for value in bad:
        fleets.sql(
            fleet_url,
            "INSERT INTO modelctl_events (at, model_id, event, before, after)"
            " VALUES (?, 'm', 'odd', 'active', 'disabled')",
            value,
        )
        fleets.sql(fleet_url, "UPDATE models SET created_at = ?", value)
        assert hours(measured(fleet)) == (90, 10)


def test_values_of_other_types(
    sqlite_database: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite ids, providers and statuses of other types stop neither the numbers nor the page."""
    fleets.sql(
        sqlite_database,
        "INSERT INTO models (id, provider, active, created_at)"
        " VALUES (x'ff61', x'fe', 1, 7), (17, 5, 'yes', 'soon')",
    )
    fleets.sql(
        sqlite_database,
        "INSERT INTO modelctl_events (model_id, event, before, after, details)"
        " VALUES (x'ff62', 'removed', 'active', NULL, '{'), (9, 'removed', 3, 4, NULL)",
    )
    with opened(sqlite_database) as fleet:
        found = [(model.id, model.share) for model in fleet.availability(since=HOUR).models]
    assert found == [("17", 0), ("\udcffa", 1), ("\udcffb", 1)]
    page = tmp_path / "page.html"
    monkeypatch.setenv("MODELCTL_DATABASE_URL", sqlite_database)
    assert cli("availability", "--html", str(page)).code == 0
    assert r"\udcffa" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "how",
    [
        {"since": END, "until": BEGIN},
        {"since": BEGIN, "until": BEGIN},
        {"since": 0},
        {"since": datetime(2999, 1, 1, tzinfo=UTC)},
        {"since": datetime(2026, 1, 1)},
        {"until": 7},
        {"parts": 0},
        {"parts": 1001},
        {"since": None},
    ],
    ids=str,
)
def test_periods_that_are_none(fleet: Fleet, how: dict[str, Any]) -> None:
    """An empty period, a time without a zone and a wrong number of parts are refused."""
    with pytest.raises(UsageError):
        fleet.availability(**how)


def test_unknown_ids(fleet: Fleet, fleet_url: str) -> None:
    """An id that neither the table nor the history has is an error that names it."""
    put(fleet_url, "m")
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        fleet.availability("m", "nowhere")


def test_the_end_is_now_at_the_latest(fleet: Fleet, fleet_url: str) -> None:
    """An end that lies ahead is the database's clock."""
    fleets.put(fleet_url, "m", created_at=Ago(10 * HOUR))
    found = fleet.availability(since=100 * HOUR, until=datetime(2999, 1, 1, tzinfo=UTC))
    [model] = found.models
    assert model.on_seconds == pytest.approx(10 * HOUR, abs=60)
    assert (found.until - found.since).total_seconds() == pytest.approx(100 * HOUR)


def test_the_number_of_statements_is_constant(fleet_url: str) -> None:
    """As many statements for a hundred models as for one."""
    from sqlalchemy import event

    counts = []
    with opened(fleet_url) as fleet:
        fleet.list_models()
        seen: list[str] = []
        engine = fleet._store.database.engine
        event.listen(engine, "before_cursor_execute", lambda *said: seen.append(said[2]))
        for number in (1, 100):
            put(fleet_url, *(f"{number}/{i}" for i in range(number)))
            seen.clear()
            fleet.availability(since=BEGIN, until=END)
            counts.append(sum("SELECT" in statement for statement in seen))
    assert counts == [2, 2]


# ── The same as a computation in Python ─────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Told:
    """A model for the property: its row, None if there is none, and its events in their order."""

    status: Status
    created: int
    events: Sequence[tuple[int, Status, Status]]


STATUSES = st.sampled_from([None, *ModelStatus])
TIMES = st.integers(-20, 120)


@st.composite
def histories(draw: st.DrawFn) -> Told:
    """Draw a model whose events mostly, but not always, fit to one another and to its row."""
    times = sorted(draw(st.lists(TIMES, max_size=8)))
    before = draw(STATUSES)
    events = []
    for at in times:
        after = draw(STATUSES)
        if before is not None or after is not None:
            events.append((at, before, after))
        before = after if draw(st.integers(0, 9)) else draw(STATUSES)
    row = draw(STATUSES) if events else draw(st.sampled_from([*ModelStatus]))
    return Told(row, draw(TIMES), events)


def computed(model: Told, begin: int, end: int) -> dict[str, Any] | None:
    """Compute in plain Python, hour by hour, what `availability` says; None: not of this period."""
    at_hour: list[Status] = []
    for hour in range(begin, end):
        past = [after for at, _, after in model.events if at <= hour]
        if past:
            at_hour.append(past[-1])
        elif model.events and any(at < begin for at, _, _ in model.events):
            raise AssertionError("unreachable: such an event is in the past of every hour")
        else:
            first = model.events[0] if model.events else None
            state = first[1] if first else model.status
            exists = model.status is None or hour >= model.created
            if first and first[0] <= model.created:
                exists = model.status is None
            at_hour.append(state if exists else None)
    if model.status is None and not any(begin <= at < end for at, _, _ in model.events):
        return None
    off = [status in (DISABLED, AUTO) for status in at_hour]
    begins = [i for i, is_off in enumerate(off) if is_off and not (i and off[i - 1])]
    lengths = [next((j for j in range(i, len(off)) if not off[j]), len(off)) - i for i in begins]
    return {
        "on_seconds": at_hour.count(ACTIVE) * HOUR,
        "off_seconds": sum(off) * HOUR,
        "outages": len(begins),
        "outages_by_rule": sum(at_hour[i] is AUTO for i in begins),
        "off_by_rule_seconds": at_hour.count(AUTO) * HOUR,
        "off_by_person_seconds": at_hour.count(DISABLED) * HOUR,
        "longest_outage_seconds": max(lengths, default=None) and max(lengths) * HOUR,
        "goes_on": off[-1],
        "differs": bool(model.events) and model.events[-1][2] is not model.status,
        "strip": tuple(
            {True: 1.0, False: 0.0}[status is ACTIVE] if status else None for status in at_hour
        ),
    }


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    models=st.lists(histories(), min_size=1, max_size=6),
    period=st.tuples(TIMES, TIMES).filter(lambda pair: pair[0] < pair[1]),
)
def test_sql_agrees_with_a_simple_computation(
    fleet: Fleet, fleet_url: str, models: list[Told], period: tuple[int, int]
) -> None:
    """For any history the SQL says what a computation hour by hour in Python says."""
    fleets.clear(fleet_url)
    told: Mapping[str, Told] = {f"m{place}": model for place, model in enumerate(models)}
    for model_id, model in told.items():
        if model.status:
            put(fleet_url, model_id, status=model.status, created=model.created)
    events = [(i, "told", *event) for i, model in told.items() for event in model.events]
    if events:
        _tell(fleet_url, events)
    begin, end = period
    found = fleet.availability(
        since=BEGIN + timedelta(hours=begin),
        until=BEGIN + timedelta(hours=end),
        parts=end - begin,
    )
    said = {model.id: {name: getattr(model, name) for name in _MEASURED} for model in found.models}
    expected = {model_id: computed(model, begin, end) for model_id, model in told.items()}
    assert said == {model_id: of for model_id, of in expected.items() if of is not None}


_MEASURED = (
    "on_seconds",
    "off_seconds",
    "outages",
    "outages_by_rule",
    "off_by_rule_seconds",
    "off_by_person_seconds",
    "longest_outage_seconds",
    "goes_on",
    "differs",
    "strip",
)
