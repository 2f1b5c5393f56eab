"""What every method of a fleet does, the same on every database."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from modelctl import (
    FailureType,
    Fleet,
    KeptChange,
    ModelNotFoundError,
    ModelStatus,
    Outcome,
    OutcomeChange,
    RefusedError,
    StatusChange,
    UsageError,
    crash_points,
    health,
)
from modelctl.database import bulk
from tests import fleets
from tests.fleets import (
    ACTOR,
    HOUR,
    Ago,
    ago,
    alter,
    everything,
    opened,
    put_hold,
    rows,
    seed,
    sql,
    status,
    trip,
)

ACTIVE, DISABLED, AUTO = ModelStatus
# Ids that somebody may type or a program may send, and that are never there.
STRANGE = [
    "",
    "a\0b",
    "\ud800",
    "it's",
    'say "a"',
    "[red]a[/]",
    "\x1b[31ma",
    "%s :id {0} $1",
    "a' OR '1'='1",
    "x" * 10_000,
]


def history(fleet: Fleet, id: str | None = None) -> list[tuple[Any, ...]]:  # noqa: A002
    """Return the newest events first, without their numbers and times."""
    return [
        (e.model_id, e.event, e.before, e.after, e.actor, e.reason, e.failure_type)
        for e in fleet.events(id)
    ]


# The health rule, one outcome at a time


@pytest.mark.parametrize("type_", FailureType)
def test_every_failure_is_stored_and_two_types_count(fleet: Fleet, type_: FailureType) -> None:
    """The fifth counted failure in a row switches off; the other types are only stored."""
    seed(fleet, "a")
    counts = type_ in ("parse-error", "client-error")
    for number in range(1, 6):
        result = fleet.record_failure("a", type_, reason=f"reason {number}")
        after = AUTO if counts and number == 5 else ACTIVE
        assert result.changes == (
            OutcomeChange(
                *("a", ACTIVE, after, after is AUTO, number if counts else 0, counts, 5, type_)
            ),
        )
    model = fleet.show("a")
    assert (model.failure_count, model.success_count) == (5, 0)
    assert model.consecutive_failures == (5 if counts else 0)
    assert (model.failure_type, model.failure_reason) == (type_, "reason 5")
    assert model.last_failure_at is not None
    assert model.last_success_at is None
    assert (model.active, model.auto_disabled) == (not counts, counts)
    if counts:
        assert (model.ejections, model.disabled_by) == (1, "health rule")
        assert (model.disabled_reason, model.disabled_at is None) == ("reason 5", False)
        assert history(fleet)[0] == ("a", "auto-disabled", ACTIVE, AUTO, ACTOR, "reason 5", type_)


def test_a_reason_that_is_missing_is_the_type(fleet: Fleet) -> None:
    """Who looks at an auto-disabled model sees at least which failure it was."""
    seed(fleet, "a")
    for _ in range(5):
        fleet.record_failure("a", "client-error")
    model = fleet.show("a")
    assert (model.disabled_reason, model.failure_reason) == ("client-error", None)


def test_a_success_resets_and_brings_back(fleet: Fleet) -> None:
    """A success ends the row, forgets the reason, and re-enables an auto-disabled model."""
    seed(fleet, "a")
    trip(fleet, "a")
    for before, changed in ((AUTO, True), (ACTIVE, False)):
        [change] = fleet.record_success("a").changes
        assert change == OutcomeChange("a", before, ACTIVE, changed, 0, False, 5)
    model = fleet.show("a")
    assert (model.consecutive_failures, model.failure_reason) == (0, None)
    assert (model.success_count, model.failure_count, model.ejections) == (2, 5, 1)
    assert (model.disabled_at, model.disabled_by, model.disabled_reason) == (None, None, None)
    assert model.last_success_at is not None
    assert history(fleet)[0] == ("a", "recovered", AUTO, ACTIVE, ACTOR, None, None)
    assert len(fleet.events()) == 3


def test_outcomes_of_a_disabled_model_are_stored_and_change_nothing(fleet: Fleet) -> None:
    """A manual disable survives successes, failures and recover."""
    seed(fleet, "a")
    fleet.disable("a", reason="too dear")
    for _ in range(7):
        assert not fleet.record_failure("a", "parse-error").changes[0].changed
    [change] = fleet.record_success("a").changes
    assert change == OutcomeChange("a", DISABLED, DISABLED, False, 0, False, 5)
    recovery = fleet.recover(cooldown=0)
    assert (recovery.recovered, recovery.waiting) == ((), ())
    model = fleet.show("a")
    assert (model.status, model.disabled_reason) == (DISABLED, "too dear")
    assert (model.success_count, model.failure_count, model.ejections) == (1, 7, 0)
    assert [e.event for e in fleet.events()] == ["disabled", "added"]


def test_a_failure_while_off_starts_the_cooldown_again(fleet: Fleet, fleet_url: str) -> None:
    """An auto-disabled model that fails once more waits from then on."""
    seed(fleet, "a")
    trip(fleet, "a")
    alter(fleet_url, "a", last_failure_at=Ago(2 * HOUR))
    fleet.record_failure("a", "timeout")
    assert fleet.recover().recovered == ()
    assert fleet.show("a").status is AUTO


def test_the_rule_is_configuration(fleet: Fleet, fleet_url: str) -> None:
    """Threshold, counted types, cooldown, restart and the length of a reason come from it."""
    seed(fleet, "a")
    how: dict[str, Any] = {
        "health_threshold": 2,
        "health_counted": "timeout",
        "health_reason_length": 3,
        "recovery_cooldown": "10m",
        "recovery_restart_failures": 1,
    }
    with opened(fleet_url, **how) as other:
        for _ in range(3):
            other.record_failure("a", "parse-error")
        assert status(other, "a") == [ACTIVE]
        other.record_failure("a", "timeout", reason="12345")
        assert other.record_failure("a", "timeout", reason="12345").changes[0].after is AUTO
        model = other.show("a")
        assert model.failure_reason == "123"
        assert model.last_failure_at is not None
        assert model.retry_at == model.last_failure_at + timedelta(minutes=10)
        alter(fleet_url, "a", last_failure_at=Ago(0.2 * HOUR))
        assert other.recover().recovered == ("a",)
        assert other.show("a").consecutive_failures == 1
        assert other.record_failure("a", "timeout").changes[0].after is AUTO


def test_a_change_of_the_cooldown_acts_at_once(fleet: Fleet, fleet_url: str) -> None:
    """The cooldown is derived: a model that waits under one configuration is due under another."""
    seed(fleet, "a")
    trip(fleet, "a")
    alter(fleet_url, "a", last_failure_at=Ago(0.5 * HOUR))
    assert fleet.recover().recovered == ()
    with opened(fleet_url, recovery_cooldown="20m") as other:
        assert other.recover().recovered == ("a",)


def test_a_reason_is_cut_and_made_storable(fleet: Fleet) -> None:
    """500 characters of a reason are kept; NUL and lone surrogates are replaced."""
    seed(fleet, "a")
    fleet.record_failure("a", reason="\0\ud800é🎈" + "x" * 600)
    reason = fleet.show("a").failure_reason
    assert reason is not None
    assert len(reason) == 500
    assert reason.startswith("\ufffd\ufffdé🎈x")
    fleet.disable("a", reason="'\"\\{},[red]\x1b%s:id\n")
    assert fleet.show("a").disabled_reason == "'\"\\{},[red]\x1b%s:id\n"


MODELS = {"a": "p", "b": "p", "c": ""}
IDS = st.sampled_from([*MODELS])
COUNTED = ("parse-error", "client-error")
RULES = st.fixed_dictionaries(
    {
        "health_threshold": st.sampled_from([1, 1, 2, 3]),
        "recovery_restart_failures": st.just(0),
        "recovery_cooldown": st.sampled_from(["0s", "1h", "1h"]),
        "recovery_cooldown_factor": st.sampled_from([1, 2]),
        "recovery_max_ejections": st.sampled_from([0, 0, 1, 2]),
    }
)
REASONS = st.sampled_from([None, "", "why"])
HOURS = st.sampled_from([None, 0.5, 1.5, 3.0])
# So often each, and what follows its name.
VERBS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "success": (4, (IDS,)),
    "failure": (8, (IDS, st.sampled_from([*COUNTED, *COUNTED, "timeout"]), REASONS)),
    "disable": (
        3,
        (IDS, REASONS, st.sampled_from([None, None, *fleets.ENDS]), st.sampled_from([0, 0, 1])),
    ),
    "enable": (1, (IDS,)),
    "recover": (1, (st.sampled_from([0.0, None]),)),
    "pause": (1, (st.sampled_from([None, "p", "p", "q", ""]),)),
    "resume": (1, (st.sampled_from([None, "p", "p", ""]),)),
    # How many seconds it lasts; it may be over already.
    "incident": (2, (st.sampled_from("ppq"), st.sampled_from(COUNTED), st.sampled_from([60, -1]))),
    "failed": (1, (IDS, HOURS)),
    "back": (1, (IDS, HOURS)),
}
STEPS = st.sampled_from([verb for verb, (times, _) in VERBS.items() for _ in range(times)]).flatmap(
    lambda verb: st.tuples(st.just(verb), *VERBS[verb][1])
)
# Rows of failures are what the rule is about, so they are made often.
SEQUENCES = st.lists(
    st.tuples(STEPS, st.sampled_from([1, 1, 1, 2, 3])), min_size=8, max_size=25
).map(lambda found: [step for step, times in found for _ in range(times)])


class Ledger:
    """The contract in a few lines: what rows, events and holds a sequence of calls leaves.

    *back*, *failed*: how many hours ago a model came back and last failed, None: nobody knows.
    """

    def __init__(self, config: Any, starts: dict[str, fleets.Start]) -> None:
        self.config = config
        self.rule = config.recovery
        self.models = {
            i: health.Health(
                active=start.status is ACTIVE,
                auto_disabled=start.status is AUTO,
                consecutive_failures=start.in_a_row,
                ejections=start.ejections,
                provider=start.provider,
                would_disable=start.noted,
            )
            for i, start in starts.items()
        }
        self.back = {i: start.back for i, start in starts.items()}
        self.failed = {i: start.failed for i, start in starts.items()}
        # Who switched it off, why, whether it is known when, and until when.
        self.by: dict[str, str | None] = {}
        self.why: dict[str, str | None] = {}
        self.since: set[str] = set()
        self.until = {i: start.until for i, start in starts.items()}
        self.pauses: set[str | None] = set()
        self.incidents: set[tuple[str, FailureType]] = set()
        self.events: list[tuple[Any, ...]] = []

    def over(self, hours: float | None, model_id: str) -> bool:
        """Whether a cooldown that began so long ago is over."""
        wait = health.cooldown(self.models[model_id].ejections, self.rule)
        return hours is None or hours * 3600 >= wait

    def outcome(self, outcome: Outcome) -> None:
        """As the pure rule says, which forgets a type only when there is another."""
        outcome = outcome._replace(reason=outcome.reason or None)  # an empty reason is none
        i, before = outcome.id, self.models[outcome.id]
        before = replace(before, trusted=before.active and self.over(self.back[i], i))
        guards = health.Guards(self.rule, self.pauses, self.incidents)
        after, event = health.record(before, outcome, self.config, guards)
        self.models[i] = after
        if outcome.type:
            self.failed[i] = 0.0
        if after.status is not before.status:
            self.forget(i)
            if after.active:
                self.back[i] = 0.0
            else:
                self.by[i] = health.HEALTH_RULE
                self.why[i] = outcome.type if outcome.reason is None else outcome.reason
                self.since.add(i)
        if event:
            how = (ACTOR, outcome.reason, outcome.type, None)
            details: Any = {"guard": after.would_disable}
            if event != "would-disable":
                details = differences(counts(before), counts(after))
            self.events.append((i, event, before.status, after.status, *how, details))

    def forget(self, i: str) -> None:
        """Forget how it was switched off."""
        self.by.pop(i, None)
        self.why.pop(i, None)
        self.since.discard(i)
        self.until[i] = None

    def off(self, i: str) -> dict[str, Any]:
        """Who switched it off, why and until when."""
        by, why = self.by.get(i), self.why.get(i)
        return {"disabled_by": by, "disabled_reason": why, "disabled_until": self.until[i]}

    def on(self, i: str, event: str, **now: Any) -> None:
        """Switch one on that is off, as a person or recover does."""
        before, off = self.models[i], self.off(i)
        after = replace(before, active=True, auto_disabled=False, would_disable=None, **now)
        self.models[i] = after
        self.forget(i)
        self.back[i] = 0.0
        details = differences(off | counts(before), self.off(i) | counts(after))
        how = (ACTOR, None, None, None)
        self.events.append((i, event, before.status, after.status, *how, details))

    def enable(self, i: str) -> None:
        """Trust it again; one that is on starts afresh without a word."""
        model = self.models[i]
        if not model.active:
            self.on(i, "enabled", consecutive_failures=0, ejections=0)
        elif model.consecutive_failures or model.ejections or model.would_disable:
            self.models[i] = replace(model, would_disable=None, consecutive_failures=0, ejections=0)
            self.forget(i)

    def disable(self, i: str, reason: str | None, until: str | None, force: bool) -> None:
        """Switch it off by hand: of one that is off, facts stay, and no end is given to for good."""
        reason = reason or None
        before, off = self.models[i], self.off(i)
        manual = before.status is DISABLED
        if manual and until and not self.until[i] and not force:
            return
        event = "disabled" if not manual or until != self.until[i] else "updated"
        if before.active:
            self.why[i] = None
        if reason is not None:
            self.why[i] = reason
        if not manual:
            self.by[i] = ACTOR
            self.since.add(i)
        self.until[i] = until
        details: Any = {"until": until} if until else None
        if not before.active:
            details = differences(off, self.off(i))
            if event == "updated" and not details:
                return
            details = {"until": until, **details}
        self.models[i] = replace(before, active=False, auto_disabled=False, would_disable=None)
        how = (ACTOR, reason, None, None)
        self.events.append((i, event, before.status, DISABLED, *how, details))

    def recover(self, cooldown: float | None) -> None:
        """Bring back whoever is due and neither paused nor waits for a person."""
        for i, model in sorted(self.models.items()):
            paused = not self.pauses.isdisjoint((None, model.provider))
            person = health.waits_for_person(model.ejections, self.rule)
            # Where nobody knows when it failed: since it was switched off, just now.
            due = cooldown == 0 or self.over(self.failed[i] or 0.0, i)
            if model.status is AUTO and due and not paused and not person:
                self.on(i, "recovered", consecutive_failures=self.rule.restart_failures)

    def step(self, verb: str, *what: Any) -> None:
        """Do one step."""
        if verb in ("success", "failure"):
            type_ = FailureType(what[1]) if verb == "failure" else None
            self.outcome(Outcome(what[0], type_, what[2] if verb == "failure" else None))
        elif verb == "disable":
            self.disable(*what)
        elif verb == "enable":
            self.enable(what[0])
        elif verb == "recover":
            self.recover(what[0])
        elif verb == "pause" or (verb == "resume" and what[0] in self.pauses):
            (self.pauses.add if verb == "pause" else self.pauses.remove)(what[0])
            self.events.append(("", f"{verb}d", None, None, ACTOR, None, None, what[0], None))
        elif verb == "incident":
            key = what[0], FailureType(what[1])
            (self.incidents.add if what[2] > 0 else self.incidents.discard)(key)
        elif verb in ("back", "failed"):
            getattr(self, verb)[what[0]] = what[1]

    def rows(self) -> list[tuple[Any, ...]]:
        """Return what `fleets.rows` finds."""
        return [
            (
                *(i, "", m.provider, m.active, m.auto_disabled, m.consecutive_failures),
                *(m.ejections, m.successes, m.failures, m.failure_type, m.failure_reason),
                *(self.by.get(i), self.why.get(i), m.would_disable),
                *(m.successes > 0, self.failed[i] is not None, i in self.since),
                *(self.until[i] is not None, self.back[i] is not None),
            )
            for i, m in self.models.items()
        ]


def counts(model: health.Health) -> dict[str, Any]:
    """Return what an outcome counts."""
    return {"consecutive_failures": model.consecutive_failures, "ejections": model.ejections}


def differences(before: dict[str, Any], after: dict[str, Any]) -> Any:
    """Return what differs as the details of an event say it."""
    names = [name for name in before if before[name] != after[name]]
    old, new = ({name: facts[name] for name in names} for facts in (before, after))
    return {"old": old, "new": new} if names else None


def act(fleet: Fleet, url: str, verb: str, *what: Any) -> None:
    """Do one step with the product, or as the time that passes."""
    if verb == "success":
        fleet.record_success(what[0])
    elif verb == "failure":
        fleet.record_failure(what[0], what[1], reason=what[2])
    elif verb == "recover":
        fleet.recover(cooldown=what[0])
    elif verb == "pause":
        fleet.pause(60, provider=what[0])
    elif verb == "resume":
        fleet.resume(provider=what[0])
    elif verb == "incident":
        scope = f"incident:{what[1]}:{what[0]}"
        sql(url, "DELETE FROM modelctl_holds WHERE scope = ?", scope)
        until = Ago(-what[2])
        put_hold(url, scope, provider=what[0], failure_type=what[1], until=until)
    elif verb in ("back", "failed"):
        column = {"back": "recovered_at", "failed": "last_failure_at"}[verb]
        past = None if what[1] is None else Ago(what[1] * HOUR)
        alter(url, what[0], **{column: past})
    elif verb == "disable":
        model_id, reason, until, force = what
        end = until and datetime.fromisoformat(until)
        fleet.disable(model_id, reason=reason, until=end, force=bool(force))
    else:
        fleet.enable(what[0])


@settings(
    max_examples=25,
    deadline=None,
    phases=set(Phase) - {Phase.explain},  # it takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(RULES, st.tuples(*[fleets.STARTS] * len(MODELS)), SEQUENCES)
def test_the_sql_and_the_pure_rule_agree(
    fleet_url: str,
    rule: dict[str, Any],
    starts: tuple[fleets.Start, ...],
    steps: list[tuple[Any, ...]],
) -> None:
    """Any calls in any order leave the rows and events that the rule as a function gives."""
    fleets.clear(fleet_url)
    models = {
        i: replace(start, provider=provider)
        for (i, provider), start in zip(MODELS.items(), starts, strict=True)
    }
    fleets.put_starts(fleet_url, models)
    with opened(fleet_url, **rule) as fleet:
        ledger = Ledger(fleet.config, models)
        for step in steps:
            act(fleet, fleet_url, *step)
            ledger.step(*step)
            assert rows(fleet_url) == ledger.rows(), step
        # Several models that recover at once have no order among each other but their ids'.
        # Until when a pause lasts depends on the time.
        events = [e if e[0] else (*e[:-1], None) for e in fleets.events(fleet_url)]
        assert events == ledger.events


# enable, disable, remove


@pytest.mark.parametrize(
    ("verb", "start", "end", "event"),
    [
        ("disable", ACTIVE, DISABLED, "disabled"),
        ("disable", AUTO, DISABLED, "disabled"),
        ("disable", DISABLED, DISABLED, None),
        ("enable", ACTIVE, ACTIVE, None),
        ("enable", AUTO, ACTIVE, "enabled"),
        ("enable", DISABLED, ACTIVE, "enabled"),
        ("remove", ACTIVE, None, "removed"),
        ("remove", AUTO, None, "removed"),
        ("remove", DISABLED, None, "removed"),
    ],
)
def test_what_each_verb_does_to_each_status(
    fleet: Fleet, verb: str, start: ModelStatus, end: ModelStatus | None, event: str | None
) -> None:
    """A change is one event with actor and reason; "already" succeeds and writes none."""
    seed(fleet, ["a", "other"])
    if start is AUTO:
        trip(fleet, "a")
    elif start is DISABLED:
        fleet.disable("a", reason="first")
    before = history(fleet)
    result = getattr(fleet, verb)("a", reason="first" if start is DISABLED else "why")
    assert result.changes == (StatusChange("a", start, end, event is not None),)
    assert not result.dry_run
    reason = "first" if start is DISABLED else "why"
    new = [("a", event, start, end, ACTOR, reason, None)] if event else []
    assert history(fleet) == new + before
    assert status(fleet, "other") == [ACTIVE]
    if end is None:
        assert [m.id for m in fleet.list_models()] == ["other"]
    else:
        assert status(fleet, "a") == [end]


@pytest.mark.parametrize("reason", [None, "first"])
def test_a_repeated_disable_changes_nothing(
    fleet: Fleet, fleet_url: str, reason: str | None
) -> None:
    """The second disable without anything new leaves row and history as they are."""
    seed(fleet, ["a"])
    fleet.disable("a", reason="first")
    before = everything(fleet_url)
    with opened(fleet_url) as other:
        assert not other.disable("a", reason=reason).changes[0].changed
    assert everything(fleet_url) == before


def test_a_disable_of_an_auto_disabled_model_is_a_manual_one(fleet: Fleet) -> None:
    """Afterwards neither a success nor recover brings it back."""
    seed(fleet, ["a"])
    trip(fleet, "a")
    fleet.disable("a", reason="enough")
    fleet.record_success("a")
    fleet.recover(cooldown=0)
    model = fleet.show("a")
    assert (model.status, model.auto_disabled) == (DISABLED, False)
    assert (model.disabled_by, model.disabled_reason) == (ACTOR, "enough")
    assert (model.retry_at, model.seconds_left) == (None, None)


def test_enable_trusts_again(fleet: Fleet) -> None:
    """Failures in a row and ejections start at 0; no success is counted."""
    seed(fleet, ["a"])
    for _ in range(2):
        trip(fleet, "a")
        fleet.record_success("a")
    trip(fleet, "a")
    assert fleet.show("a").ejections == 3
    fleet.enable("a")
    model = fleet.show("a")
    assert (model.ejections, model.consecutive_failures) == (0, 0)
    assert (model.failure_type, model.failure_reason) == ("parse-error", "no JSON")
    assert (model.success_count, model.failure_count) == (2, 15)
    assert (model.disabled_at, model.disabled_by, model.disabled_reason) == (None, None, None)


@pytest.mark.parametrize("verb", ["disable", "enable", "remove"])
def test_several_ids_are_all_or_nothing(fleet: Fleet, fleet_url: str, verb: str) -> None:
    """One unknown id and nothing is changed; the message names it."""
    seed(fleet, ["a", "b"])
    fleet.disable("b")
    before = everything(fleet_url)
    with pytest.raises(ModelNotFoundError, match="no model 'nope'; nothing was changed"):
        getattr(fleet, verb)("a", "nope", "b")
    assert everything(fleet_url) == before


@pytest.mark.parametrize("verb", ["disable", "enable", "remove"])
def test_repeated_ids_count_once_in_the_order_given(fleet: Fleet, verb: str) -> None:
    """One change per model, in the order in which the models were named."""
    seed(fleet, "abc")
    result = getattr(fleet, verb)("c", "a", "c", "b", "a")
    assert [change.id for change in result.changes] == ["c", "a", "b"]
    assert len(fleet.events("c")) == (1 if verb == "enable" else 2)


@pytest.mark.parametrize("verb", ["disable", "enable", "remove"])
def test_no_id_is_a_usage_error(fleet: Fleet, verb: str) -> None:
    """Nothing named is a mistake, not everything."""
    with pytest.raises(UsageError):
        getattr(fleet, verb)()


@pytest.mark.parametrize("model_id", STRANGE)
def test_strange_ids_are_not_found(fleet: Fleet, fleet_url: str, model_id: str) -> None:
    """No id breaks a statement or a message: it is just not there."""
    seed(fleet, ["a"])
    before = everything(fleet_url)
    batch = [{"id": "a", "outcome": "success"}, {"id": model_id or "nope", "outcome": "success"}]
    for call in (
        lambda: fleet.show(model_id),
        lambda: fleet.disable(model_id),
        lambda: fleet.enable("a", model_id),
        lambda: fleet.remove("a", model_id),
        lambda: fleet.record_success(model_id),
        lambda: fleet.record_failure(model_id, "parse-error"),
        lambda: fleet.record_batch(batch),
    ):
        with pytest.raises(ModelNotFoundError) as caught:
            call()
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 500
    assert everything(fleet_url) == before


@pytest.mark.parametrize("text", STRANGE)
def test_strange_filters_find_nothing(fleet: Fleet, text: str) -> None:
    """A filter is only compared, whatever is in it."""
    fleet.add("a", provider="p")
    assert fleet.list_models(provider=text) == []
    assert fleet.leaderboard(provider=text) == ()
    assert fleet.events(text) == ()


@pytest.mark.parametrize("model_id", [i for i in STRANGE if i not in ("", "a\0b", "\ud800")])
def test_strange_ids_that_another_program_made_work(
    fleet: Fleet, fleet_url: str, model_id: str
) -> None:
    """What is in the table is a model, whatever its id looks like."""
    sql(fleet_url, "INSERT INTO models (id) VALUES (?)", model_id)
    assert fleet.disable(model_id).changes[0].changed
    trip(fleet, model_id)
    fleet.enable(model_id)
    assert fleet.record_failure(model_id).changes[0].id == model_id
    assert [m.id for m in fleet.list_models()] == [model_id]
    assert fleet.events(model_id)[0].event == "enabled"
    assert fleet.remove(model_id).changes[0].after is None


@pytest.mark.parametrize("verb", ["disable", "enable", "remove"])
def test_a_dry_run_changes_nothing_and_foretells(fleet: Fleet, fleet_url: str, verb: str) -> None:
    """Rows, events and queue stay as they are, and the real run then does what was said."""
    seed(fleet, "abc")
    fleet.disable("b")
    trip(fleet, "c")
    before = everything(fleet_url)
    told = getattr(fleet, verb)("c", "b", "a", dry_run=True)
    assert everything(fleet_url) == before
    assert told.dry_run
    done = getattr(fleet, verb)("c", "b", "a")
    assert done.changes == told.changes


def test_a_dry_run_fails_as_the_real_run_would(fleet: Fleet) -> None:
    """An unknown id is found in a dry run too."""
    with pytest.raises(ModelNotFoundError):
        fleet.disable("nope", dry_run=True)


# add


def test_add(fleet: Fleet) -> None:
    """A new model is active; one that is there stays as it is and says unchanged."""
    assert fleet.add("hf:org/m", name="M", provider="hf").changes == (
        StatusChange("hf:org/m", None, ACTIVE, True),
    )
    fleet.disable("hf:org/m")
    for same in ({}, {"name": "M"}, {"name": "", "provider": "hf"}):
        assert fleet.add("hf:org/m", **same).changes == (
            StatusChange("hf:org/m", DISABLED, DISABLED, False),
        )
    note = "its name is 'M', not 'Other'; modelctl import changes that"
    assert fleet.add("hf:org/m", name="Other").changes == (
        KeptChange("hf:org/m", DISABLED, DISABLED, False, note),
    )
    [change] = fleet.add("hf:org/m", name="Other", provider="x").changes
    assert isinstance(change, KeptChange)
    assert "its name is 'M', not 'Other' and its provider is 'hf', not 'x'" in change.note
    model = fleet.show("hf:org/m")
    assert (model.display_name, model.provider) == ("M", "hf")
    assert model.created_at is not None
    assert [e.event for e in fleet.events()] == ["disabled", "added"]
    assert history(fleet)[1] == ("hf:org/m", "added", None, ACTIVE, ACTOR, None, None)


@pytest.mark.parametrize(
    "model_id", ["", " a", "a\n", "\x1b", "\ud800", "a\0", "x" * 201, "\u202e"]
)
def test_add_refuses_what_is_no_id(fleet: Fleet, model_id: str) -> None:
    """Control characters, blanks at the ends and more than 200 characters are usage errors."""
    with pytest.raises(UsageError):
        fleet.add(model_id)
    assert fleet.list_models() == []


def test_case_matters(fleet: Fleet) -> None:
    """Two ids that differ in case are two models."""
    fleet.add("GPT")
    fleet.add("gpt")
    fleet.disable("gpt")
    assert status(fleet, "GPT", "gpt") == [ACTIVE, DISABLED]


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
    """The models that match, in the order that was asked for; equal ones by their id."""
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
    """A reader that is slow or stops in the middle holds nobody up."""
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
    """Active models by success rate; the never called ones come last, if asked for."""
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
    """Of two equal rates the one with more calls is first."""
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
    """The history has one event per change, and outlives its model."""
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


def test_the_actor_is_who_opened_the_fleet(fleet_url: str) -> None:
    """Every change carries its actor; one that is too long or odd is made storable."""
    with Fleet.open(fleets.configured(fleet_url), actor="cron\0" + "x" * 300) as fleet:
        fleet.add("a")
        fleet.disable("a")
        actor = fleet.events()[0].actor
        assert actor == fleet.show("a").disabled_by == "cron\ufffd" + "x" * 195


# recover


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
    """`limit` takes those that wait longest; 0 and None take all; the rest is listed as waiting."""
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
    """A cooldown for one run takes the place of the configured one, for `waiting` too."""
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
    """It changes nothing, and the real run then does what was said."""
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


# import


CATALOGUE = [
    {"id": "a", "name": "A", "provider": "p"},  # as it is
    {"id": "b", "name": "B2", "provider": "p"},  # another name
    {"id": "c", "provider": "q"},  # another provider, no name
    {"id": "d"},  # knows less than the row
    {"id": "e", "name": "E", "provider": "r"},  # new
    {"id": " ", "name": "no id"},
]


@pytest.fixture
def known(fleet: Fleet) -> Fleet:
    """Give a fleet that shares four models with the catalogue."""
    for model_id in "abcd":
        fleet.add(model_id, name=model_id.upper(), provider="p")
    fleet.disable("b")
    trip(fleet, "c")
    return fleet


def catalogue(*without: str) -> bytes:
    """Write the catalogue as JSON Lines."""
    entries = [entry for entry in CATALOGUE if entry["id"] not in without]
    return "\n".join(map(json.dumps, entries)).encode()


@pytest.mark.parametrize("policy", ["update", "skip"])
def test_import(known: Fleet, policy: str) -> None:
    """New models are added, differing ones updated or skipped, equal ones are unchanged."""
    before = len(known.events())
    result = known.import_models(catalogue(), on_conflict=policy)
    updates = policy == "update"
    assert (result.added, result.unchanged, len(result.rejected)) == (1, 2, 1)
    assert (result.updated, result.skipped) == ((2, 0) if updates else (0, 2))
    assert [(m.id, m.display_name, m.provider) for m in known.list_models()] == [
        ("a", "A", "p"),
        ("b", "B2" if updates else "B", "p"),
        ("c", "C", "q" if updates else "p"),
        ("d", "D", "p"),
        ("e", "E", "r"),
    ]
    assert status(known, *"abcde") == [ACTIVE, DISABLED, AUTO, ACTIVE, ACTIVE]
    new = sorted(history(known)[: len(known.events()) - before])
    assert new == [
        *([("b", "updated", DISABLED, DISABLED, ACTOR, None, None)] if updates else []),
        *([("c", "updated", AUTO, AUTO, ACTOR, None, None)] if updates else []),
        ("e", "added", None, ACTIVE, ACTOR, None, None),
    ]


@pytest.mark.parametrize("policy", ["update", "skip", "fail"])
def test_import_again_is_unchanged(known: Fleet, fleet_url: str, policy: str) -> None:
    """The same catalogue a second time writes nothing, under every policy."""
    known.import_models(catalogue(" "))
    before = rows(fleet_url), fleets.events(fleet_url)
    again = known.import_models(catalogue(" "), on_conflict=policy)
    assert (again.added, again.updated, again.unchanged, again.skipped) == (0, 0, 5, 0)
    assert (rows(fleet_url), fleets.events(fleet_url)) == before


@pytest.mark.parametrize("chunk", [1, 2, 5000])
def test_import_fail_is_all_or_nothing(
    known: Fleet, fleet_url: str, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Under `fail` one model that differs, or one bad entry, and nothing is written."""
    monkeypatch.setattr(bulk, "CHUNK", chunk)
    before = everything(fleet_url)
    with pytest.raises(RefusedError, match="'b'"):
        known.import_models(catalogue(" "), on_conflict="fail")
    with pytest.raises(UsageError, match="rejected"):
        known.import_models(catalogue("b", "c"), on_conflict="fail")
    assert everything(fleet_url) == before
    assert known.import_models(catalogue("b", "c", " "), on_conflict="fail").added == 1


@pytest.mark.parametrize("policy", ["update", "skip"])
def test_import_dry_run(known: Fleet, fleet_url: str, policy: str) -> None:
    """It changes nothing, and the real run then does what was said."""
    before = everything(fleet_url)
    told = known.import_models(catalogue(), on_conflict=policy, dry_run=True)
    assert everything(fleet_url) == before
    done = known.import_models(catalogue(), on_conflict=policy)
    assert told.dry_run
    for name in ("added", "updated", "unchanged", "skipped", "rejected"):
        assert getattr(told, name) == getattr(done, name)


def test_import_in_chunks(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of many chunks is one transaction that tells how far it is."""
    monkeypatch.setattr(bulk, "CHUNK", 2)
    seen: list[int] = []
    lines = "\n".join(json.dumps({"id": f"m{n}", "name": "x"}) for n in range(7)).encode()
    assert fleet.import_models(lines, progress=seen.append).added == 7
    assert seen == [2, 4, 6, 7]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    more = "\n".join(json.dumps({"id": f"m{n}", "name": "y"}) for n in range(9)).encode()
    with pytest.raises(KeyboardInterrupt):
        fleet.import_models(more, progress=stop)
    assert {m.display_name for m in fleet.list_models()} == {"x"}
    assert len(fleet.list_models()) == 7


@pytest.mark.parametrize("policy", ["", "UPDATE", "replace"])
def test_import_refuses_an_unknown_policy(fleet: Fleet, policy: str) -> None:
    """A policy that does not exist is a usage error."""
    with pytest.raises(UsageError, match="policy"):
        fleet.import_models(b'{"id": "a"}', on_conflict=policy)


# The count


def test_the_count_follows_every_change(fleet: Fleet, fleet_url: str) -> None:
    """After any change, also one of another program, no count is from before it."""
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
