"""The rules, pure functions, hold for one outcome, for any sequence of them, and for cooldowns."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import Config, FailureType, ModelStatus, Outcome, UsageError
from modelctl.config.sections import HealthConfig, RecoveryConfig
from modelctl.health import (
    Guards,
    Health,
    Share,
    cooldown,
    cooldowns,
    depends_on_others,
    failure_type,
    failure_type_of_status,
    is_trusted,
    parse_outcome,
    read_outcomes,
    record,
    status_of,
    waits_for_person,
)
from tests.fleets import configured

CONFIG = Config()
COUNTED = FailureType.PARSE_ERROR
OTHER = FailureType.CLIENT_ERROR
STORED = FailureType.TIMEOUT
ACTIVE = Health(True, False, 0, 0)
OFF = Health(False, False, 0, 0)
AUTO_OFF = Health(False, True, 5, 1)


def after(health: Health, *types: FailureType | None, config: Config = CONFIG) -> Health:
    """Apply outcomes of these types; nothing is known of other models."""
    guards = Guards(config.recovery)
    for type_ in types:
        health, _ = record(health, Outcome("m", type_), config, guards)
    return health


def event(health: Health, type_: FailureType | None, config: Config = CONFIG) -> str | None:
    """Return the event of one outcome."""
    return record(health, Outcome("m", type_), config, Guards(config.recovery))[1]


# The rule


@pytest.mark.parametrize(
    ("active", "auto_disabled", "status"),
    [
        (True, False, "active"),
        (True, True, "active"),
        (False, True, "auto-disabled"),
        (False, False, "disabled"),
    ],
)
def test_status_is_derived(active: bool, auto_disabled: bool, status: str) -> None:
    """`active` wins, then `auto_disabled`."""
    assert status_of(active, auto_disabled) == status
    assert Health(active, auto_disabled, 0, 0).status is ModelStatus(status)


@pytest.mark.parametrize("type_", FailureType)
def test_only_two_types_count(type_: FailureType) -> None:
    """Every failure is stored; only parse and client errors count against a model."""
    counts = type_ in ("parse-error", "client-error")
    health = after(ACTIVE, *[type_] * 5)
    assert health.failures == 5
    assert health.consecutive_failures == (5 if counts else 0)
    assert health.active is not counts
    assert health.failure_type is type_


def test_the_fifth_counted_failure_switches_off() -> None:
    """Four failures leave a model on; the fifth in a row disables it with one event and one ejection."""
    health = after(ACTIVE, *[COUNTED] * 4)
    assert (health.status, health.ejections) == (ModelStatus.ACTIVE, 0)
    health, said = record(health, Outcome("m", COUNTED, "no JSON"), CONFIG, Guards(CONFIG.recovery))
    assert (health.status, health.ejections) == (ModelStatus.AUTO_DISABLED, 1)
    assert (said, health.failure_reason) == ("auto-disabled", "no JSON")


def test_the_row_is_broken_by_a_success_alone() -> None:
    """Failures that do not count neither add to the row nor break it; a success does."""
    assert not after(ACTIVE, *[COUNTED, STORED] * 5).active
    assert after(ACTIVE, *[COUNTED] * 4, None, *[COUNTED] * 4).active


@pytest.mark.parametrize(
    ("start", "type_", "end", "said"),
    [
        (ACTIVE, None, ModelStatus.ACTIVE, None),
        (AUTO_OFF, None, ModelStatus.ACTIVE, "recovered"),
        (OFF, None, ModelStatus.DISABLED, None),
        (AUTO_OFF, COUNTED, ModelStatus.AUTO_DISABLED, None),
        (Health(False, False, 9, 0), COUNTED, ModelStatus.DISABLED, None),
        (Health(True, False, 9, 0), STORED, ModelStatus.ACTIVE, None),
        (Health(True, False, 9, 0), COUNTED, ModelStatus.AUTO_DISABLED, "auto-disabled"),
    ],
)
def test_what_one_outcome_does(
    start: Health, type_: FailureType | None, end: ModelStatus, said: str | None
) -> None:
    """Only a counted failure switches off and only a success brings back, never a manual disable."""
    assert after(start, type_).status is end
    assert event(start, type_) == said


def test_a_success_forgets_the_reason_and_keeps_the_ejections() -> None:
    """The failure's type and the ejections stay known; the reason and the row do not."""
    health = after(ACTIVE, *[COUNTED] * 5, None)
    assert (health.failure_reason, health.failure_type) == (None, COUNTED)
    assert (health.consecutive_failures, health.ejections) == (0, 1)
    assert (health.successes, health.failures) == (1, 5)


def test_threshold_and_counted_types_are_configuration() -> None:
    """Other numbers and types give another rule."""
    config = configured("", health_threshold=3, health_counted="timeout")
    assert after(ACTIVE, *[COUNTED] * 9, *[STORED] * 2, config=config).active
    assert not after(ACTIVE, *[STORED] * 3, config=config).active


@given(st.lists(st.sampled_from([None, *FailureType]), max_size=40))
def test_no_outcome_changes_a_manual_disable(types: list[FailureType | None]) -> None:
    """Outcomes are counted for a model that a person disabled, and it stays disabled."""
    health = after(OFF, *types)
    assert health.status is ModelStatus.DISABLED
    assert health.ejections == 0
    assert health.successes + health.failures == len(types)


@given(st.lists(st.sampled_from([None, *FailureType]), max_size=40))
def test_off_exactly_while_a_row_is_long_enough(types: list[FailureType | None]) -> None:
    """A model is off exactly if five counted failures came since its last success."""
    health = after(ACTIVE, *types)
    row = 0
    for type_ in types:
        row = 0 if type_ is None else row + (type_ in CONFIG.health.counted)
    assert health.consecutive_failures == row
    assert health.active == (row < 5)


# The guards, over any outcomes of several models

PROVIDERS = {"a": "p", "b": "p", "c": "p", "d": "p", "e": "q"}
Key = tuple[str, FailureType]
Happenings = list[tuple[str, Any]]


@dataclass
class Situation:
    """A few models in memory, and what stands beside them in a database.

    *told*: of whose failures at the threshold the history of the last window tells. *failed*:
    the type of the last failure within it. *out*: who went off since the provider's incident.
    """

    config: Config
    models: dict[str, Health]
    pauses: set[str | None] = field(default_factory=set)
    incidents: set[Key] = field(default_factory=set)
    told: set[tuple[Key, str]] = field(default_factory=set)
    failed: dict[str, FailureType] = field(default_factory=dict)
    out: set[str] = field(default_factory=set)

    def copy(self) -> Situation:
        """Return the same, to look at later."""
        sets = (set(self.pauses), set(self.incidents), set(self.told))
        return Situation(self.config, dict(self.models), *sets, dict(self.failed), set(self.out))

    def load(self) -> Guards:
        """Return what a transaction knows that begins now."""
        guards = Guards(self.config.recovery, set(self.pauses), set(self.incidents))
        for model_id, health in self.models.items():
            share = guards.shares.setdefault(health.provider, Share())
            share.models += 1
            share.active += health.active
            share.auto_disabled += health.status is ModelStatus.AUTO_DISABLED
            guards.active += health.active
            if model_id in self.out:
                guards.ejected.setdefault(health.provider, set()).add(model_id)
        for key, model_id in self.told:
            guards.reachers.setdefault(key, set()).add(model_id)
            if not self.models[model_id].active:
                guards.off.add(model_id)
        for key in {(p, kind) for p in PROVIDERS.values() for kind in FailureType}:
            guards.spared[key] = self.spared(key)
        return guards

    def spared(self, key: Key) -> set[str]:
        """Return the models that are spared and last failed like this."""
        return {
            i
            for i, health in self.models.items()
            if health.active and health.spared and (health.provider, self.failed.get(i)) == key
        }

    def of(self, provider: str) -> list[Health]:
        """Return a provider's models."""
        return [health for health in self.models.values() if health.provider == provider]

    def auto_disabled(self, provider: str) -> int:
        """Return how many of a provider's models the rule has switched off."""
        return sum(health.status is ModelStatus.AUTO_DISABLED for health in self.of(provider))

    def active(self) -> int:
        """Return how many models are on."""
        return sum(health.active for health in self.models.values())

    def paused(self, provider: str) -> bool:
        """Whether a person paused switching, of all or of this provider."""
        return None in self.pauses or provider in self.pauses

    def against(self, provider: str, kind: FailureType) -> str | None:
        """Say what is against switching one more off."""
        rule, off = self.config.recovery, self.auto_disabled(provider)
        if self.paused(provider):
            return "paused"
        if (provider, kind) in self.incidents:
            return "incident"
        if rule.min_active and self.active() <= rule.min_active:
            return "floor"
        if off and 100 * (off + 1) > rule.max_auto_disabled_percent * len(self.of(provider)):
            return "share"
        return None

    def failing(self, key: Key) -> set[str]:
        """Return the models that make an incident, or keep it going."""
        if key in self.incidents:
            return self.spared(key) | {i for i in self.out if self.models[i].provider == key[0]}
        return self.spared(key) | {model_id for what, model_id in self.told if what == key}

    def ill(self, key: Key) -> bool:
        """Whether enough of a provider's models fail alike for an incident of the provider."""
        failing = self.failing(key)
        were_on = failing | {i for i, h in self.models.items() if h.provider == key[0] and h.active}
        least = self.config.recovery.incident_models
        return 0 < least <= len(failing) and 2 * len(failing) >= len(were_on)


@dataclass(frozen=True)
class Step:
    """One outcome: the model and the world before and after it."""

    outcome: Outcome
    before: Health
    after: Health
    event: str | None
    old: Situation
    new: Situation
    guards: Guards

    @property
    def kind(self) -> FailureType | None:
        """The type of the failure with which an active model has reached the threshold."""
        rule, kind = self.old.config.health, self.outcome.type
        if kind is None or kind not in rule.counted or not self.before.active:
            return None
        return kind if self.before.consecutive_failures + 1 >= rule.threshold else None

    @property
    def went(self) -> bool:
        """Whether it was switched off."""
        return self.before.active and not self.after.active

    @property
    def came(self) -> bool:
        """Whether it was switched on."""
        return self.after.active and not self.before.active


@dataclass(frozen=True)
class Play:
    """A world, and what happens in it."""

    config: Config
    models: dict[str, Health]
    happenings: Happenings

    def steps(self, *, keep: bool) -> Iterator[Step]:
        """Do it all; *keep*: a transaction goes on with the guards it has."""
        world = Situation(self.config, dict(self.models))
        guards: Guards | None = None
        for what, value in self.happenings:
            if what == "outcome":
                if guards is None or not keep:
                    guards = world.load()
                yield _recorded(world, value, guards)
                continue
            guards = None  # the transaction is over
            if what == "pause":  # or resume
                world.pauses ^= {value}
            elif what in ("calm", "long"):  # a window has passed
                world.told.clear()
                world.failed.clear()
                if what == "calm":  # and with it the incidents
                    world.incidents.clear()
                ill = {provider for provider, _ in world.incidents}
                world.out = {i for i in world.out if PROVIDERS[i] in ill}
            elif what == "rest" and world.models[value].active:  # a cooldown has passed
                world.models[value] = replace(world.models[value], trusted=True)


def _recorded(world: Situation, outcome: Outcome, guards: Guards) -> Step:
    old, before = world.copy(), world.models[outcome.id]
    after, said = record(before, outcome, world.config, guards)
    step = Step(outcome, before, after, said, old, world, guards)
    world.models[outcome.id] = after
    world.incidents = set(guards.incidents)
    if outcome.type:
        world.failed[outcome.id] = outcome.type
    if step.kind and said:
        world.told.add(((before.provider, step.kind), outcome.id))
    (world.out.add if step.went else world.out.discard)(outcome.id)
    return replace(step, new=world.copy())


def _guarded(**how: Any) -> st.SearchStrategy[RecoveryConfig]:
    """One guard, or some, so that each has its chance beside the others."""
    trust = {"cooldown": st.sampled_from([0.0, 3600.0]), "max_ejections": st.integers(0, 2)}
    return st.builds(RecoveryConfig, **trust, **how)


FLOORS = st.integers(1, 4)
SHARES = st.sampled_from([0, 25, 33, 50, 75, 99])
INCIDENTS = st.integers(1, 3)
CONFIGS = st.builds(
    lambda threshold, counted, recovery: Config(
        health=HealthConfig(threshold=threshold, counted=counted), recovery=recovery
    ),
    st.sampled_from([1, 1, 2, 3]),
    st.sampled_from([(COUNTED, OTHER), (COUNTED,)]),
    st.one_of(
        _guarded(),
        _guarded(min_active=FLOORS),
        _guarded(max_auto_disabled_percent=SHARES),
        _guarded(incident_models=INCIDENTS),
        _guarded(incident_models=INCIDENTS, min_active=FLOORS),
        _guarded(incident_models=INCIDENTS, min_active=FLOORS, max_auto_disabled_percent=SHARES),
    ),
)
STATUSES = st.sampled_from([ModelStatus.ACTIVE] * 5 + list(ModelStatus))
HEALTHS = st.builds(
    lambda status, row, ejections, trusted, noted: Health(
        active=status is ModelStatus.ACTIVE,
        auto_disabled=status is ModelStatus.AUTO_DISABLED,
        consecutive_failures=row,
        ejections=ejections + (status is ModelStatus.AUTO_DISABLED),
        trusted=trusted,
        spared=noted if status is ModelStatus.ACTIVE else None,
    ),
    STATUSES,
    st.integers(0, 2),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([None, None, None, "floor", "share", "incident", "paused"]),
)
OUTCOMES = st.builds(
    lambda model_id, type_, times: [("outcome", Outcome(model_id, type_))] * times,
    st.sampled_from([*PROVIDERS]),
    st.sampled_from([None, None, STORED, OTHER, *[COUNTED] * 4]),
    st.sampled_from([1, 1, 2, 3]),
)
BETWEEN = st.one_of(
    st.tuples(st.just("commit"), st.none()),
    st.tuples(st.just("pause"), st.sampled_from([None, "p", "q"])),
    st.tuples(st.sampled_from(["calm", "long"]), st.none()),
    st.tuples(st.just("rest"), st.sampled_from([*PROVIDERS])),
).map(lambda happening: [happening])
HAPPENING: st.SearchStrategy[Happenings] = st.sampled_from([OUTCOMES] * 6 + [BETWEEN]).flatmap(
    lambda kind: kind
)
HAPPENINGS = st.lists(HAPPENING, min_size=6, max_size=30).map(
    lambda runs: [happening for run in runs for happening in run]
)
PLAYS = st.builds(
    lambda config, healths, happenings: Play(
        config,
        {i: replace(h, provider=p) for (i, p), h in zip(PROVIDERS.items(), healths, strict=True)},
        happenings,
    ),
    CONFIGS,
    st.tuples(*[HEALTHS] * len(PROVIDERS)),
    HAPPENINGS,
)
# One failure switches off and one success brings back: much happens in one transaction.
BRISK = st.builds(
    lambda recovery, outcomes: Play(
        Config(health=HealthConfig(threshold=1), recovery=recovery),
        {i: replace(ACTIVE, provider=p) for i, p in PROVIDERS.items()},
        [("outcome", outcome) for outcome in outcomes],
    ),
    st.builds(
        RecoveryConfig,
        min_active=st.sampled_from([0, 2, 3]),
        max_auto_disabled_percent=st.sampled_from([50, 75, 100]),
        incident_models=st.sampled_from([0, 1, 2]),
    ),
    st.lists(
        st.builds(
            Outcome, st.sampled_from("abcdde"), st.sampled_from([None, None, COUNTED, OTHER])
        ),
        min_size=8,
        max_size=20,
    ),
)
# Enough of them that each guard says no in many.
often = settings(max_examples=100, deadline=None)


@often
@given(PLAYS | BRISK, st.booleans())
def test_off_exactly_at_the_threshold_unless_a_guard_is_against_it(play: Play, keep: bool) -> None:
    """An active model goes at its last allowed counted failure; a guard notes it instead, once."""
    for step in play.steps(keep=keep):
        if step.kind is None:
            assert not step.went
            assert step.event is None or step.came
            continue
        why = step.old.against(step.before.provider, step.kind)
        assert step.went is (why is None)
        assert step.after.spared == why
        assert step.after.ejections == step.before.ejections + step.went
        if step.went:
            assert (step.event, step.after.status) == ("auto-disabled", "auto-disabled")
        else:
            news = step.before.spared is None
            assert step.event == ("would-disable" if news else None)


@often
@given(PLAYS | BRISK, st.booleans())
def test_the_floor_and_the_share_hold(play: Play, keep: bool) -> None:
    """The rule keeps `min_active` models on and the share of a provider, but always allows one."""
    rule = play.config.recovery
    for step in play.steps(keep=keep):
        if step.went:
            assert step.new.active() >= rule.min_active
            provider = step.before.provider
            off, all_of_them = step.new.auto_disabled(provider), len(step.new.of(provider))
            assert off == 1 or 100 * off <= rule.max_auto_disabled_percent * all_of_them


@often
@given(PLAYS | BRISK, st.booleans())
def test_when_an_incident_begins(play: Play, keep: bool) -> None:
    """An incident begins with enough failing models that are half of those that were on, unless paused."""
    for step in play.steps(keep=keep):
        key = step.kind and (step.before.provider, step.kind)
        new = step.new.incidents - step.old.incidents
        assert step.new.incidents >= step.old.incidents
        # As it was when the model was counted: not yet an incident.
        now = replace(step.new, incidents=step.old.incidents)
        if key and now.ill(key) and not step.old.paused(key[0]):
            if key in step.old.incidents:
                assert key in step.guards.went_on  # it lasts for one window more
            else:
                assert new == {key}
                assert step.guards.began[key] == len(now.failing(key))
        else:
            assert not new
            assert keep or not step.guards.went_on


@often
@given(PLAYS | BRISK, st.booleans())
def test_an_incident_spares_its_provider_and_type_alone(play: Play, keep: bool) -> None:
    """While it lasts nothing more of both goes off; without it the same failure may switch off."""
    for step in play.steps(keep=keep):
        key = step.kind and (step.before.provider, step.kind)
        if key in step.old.incidents:
            assert not step.went
        elif step.kind:
            calm = replace(step.old, incidents=set())
            assert step.went is (calm.against(step.before.provider, step.kind) is None)


@often
@given(PLAYS | BRISK, st.booleans())
def test_a_pause_stops_both_directions(play: Play, keep: bool) -> None:
    """While a provider or the fleet is paused its outcomes are recorded and no status changes."""
    for step in play.steps(keep=keep):
        if step.old.paused(step.before.provider):
            assert step.after.status is step.before.status
            assert step.after.successes + step.after.failures == (
                step.before.successes + step.before.failures + 1
            )


@often
@given(PLAYS | BRISK, st.booleans())
def test_which_models_a_success_brings_back(play: Play, keep: bool) -> None:
    """A success enables an auto-disabled model, unless it is paused or ejected too often."""
    most = play.config.recovery.max_ejections
    for step in play.steps(keep=keep):
        may = (
            step.outcome.type is None
            and step.before.status is ModelStatus.AUTO_DISABLED
            and not step.old.paused(step.before.provider)
            and not (most and step.before.ejections >= most)
        )
        assert step.came is may
        assert (step.event == "recovered") is may
        assert waits_for_person(step.before.ejections, play.config.recovery) is (
            most > 0 and step.before.ejections >= most
        )


@often
@given(PLAYS | BRISK, st.booleans())
def test_trust_alone_forgets_ejections(play: Play, keep: bool) -> None:
    """Only a success of an active, trusted model sets them to 0; coming back does not make trusted."""
    for step in play.steps(keep=keep):
        earned = step.outcome.type is None and step.before.active and step.before.trusted
        if earned:
            assert step.after.ejections == 0
        else:
            assert step.after.ejections == step.before.ejections + step.went
        if step.came:  # unless there is no cooldown to wait for
            assert step.after.trusted is (play.config.recovery.cooldown == 0)


@often
@given(PLAYS | BRISK, st.booleans())
def test_nothing_switches_a_manual_disable(play: Play, keep: bool) -> None:
    """Whatever happens, a model that a person disabled is off in the end, without an event."""
    off = {i for i, health in play.models.items() if health.status is ModelStatus.DISABLED}
    for step in play.steps(keep=keep):
        if step.outcome.id in off:
            assert (step.after.status, step.event) == (ModelStatus.DISABLED, None)
        else:
            assert step.after.status is not ModelStatus.DISABLED


@settings(often, max_examples=200)
@given(PLAYS | BRISK)
def test_a_transaction_knows_what_the_next_one_would(play: Play) -> None:
    """Guards that are kept decide as guards that are loaded anew from rows and history."""
    for kept, loaded in zip(play.steps(keep=True), play.steps(keep=False), strict=True):
        assert (kept.after, kept.event) == (loaded.after, loaded.event)
        assert kept.new == loaded.new


@settings(often, max_examples=200)
@given(PLAYS | BRISK, st.booleans())
def test_what_a_row_alone_decides(play: Play, keep: bool) -> None:
    """An outcome that depends on no other model does the same where the holds alone are known."""
    for step in play.steps(keep=keep):
        old = step.old
        holds = Guards(old.config.recovery, old.pauses, old.incidents, set(old.incidents))
        if depends_on_others(step.before, step.outcome, old.config, holds):
            assert step.kind
            assert step.old.config.recovery.guarded
            continue
        assert record(step.before, step.outcome, old.config, holds) == (step.after, step.event)
        assert step.new.incidents == step.old.incidents
        if step.kind and old.config.recovery.guarded:
            assert step.event is None
            # An incident that ends within a window has to be written again, which takes the lock.
            holds.lasting.clear()
            again = depends_on_others(step.before, step.outcome, old.config, holds)
            assert again is (step.before.spared == "incident")


@often
@given(HAPPENINGS)
def test_without_guards_other_models_do_not_matter(happenings: Happenings) -> None:
    """As configured at first, every model goes at its fifth failure, however many others are off."""
    models = {i: replace(ACTIVE, provider=p, consecutive_failures=4) for i, p in PROVIDERS.items()}
    guards = Guards(CONFIG.recovery)  # nothing is loaded where nothing is guarded
    for outcome in (value for what, value in happenings if what == "outcome"):
        before = models[outcome.id]
        models[outcome.id], _ = record(before, outcome, CONFIG, guards)
        assert models[outcome.id] == after(before, outcome.type)


# HTTP statuses and names


@pytest.mark.parametrize(
    ("status", "type_"),
    [
        (400, "client-error"),
        (401, "client-error"),
        (404, "client-error"),
        (408, "timeout"),
        (429, "rate-limit"),
        (498, "client-error"),
        (499, None),  # the caller went away
        (500, "server-error"),
        (503, "server-error"),
        (504, "timeout"),
        (599, "server-error"),
    ],
)
def test_http_statuses(status: int, type_: str | None) -> None:
    """An HTTP status names a failure type."""
    assert failure_type_of_status(status) == type_


@pytest.mark.parametrize("status", [-500, 0, 100, 200, 302, 399, 600, 999, 4000])
def test_http_statuses_that_are_no_failures(status: int) -> None:
    """What is not 400 to 599 is a usage error."""
    with pytest.raises(UsageError, match=str(status)):
        failure_type_of_status(status)


@pytest.mark.parametrize("name", ["", "Timeout", "parse_error", " timeout", "x\x1b[31m"])
def test_an_unknown_failure_type(name: str) -> None:
    """A wrong name is a usage error that lists the right ones and shows no control character."""
    with pytest.raises(UsageError, match="no failure type") as caught:
        failure_type(name)
    assert all(known in str(caught.value.hint) for known in FailureType)
    assert "\x1b" not in caught.value.message


# One outcome


@pytest.mark.parametrize(
    ("given_", "outcome"),
    [
        ({"id": "a", "outcome": "success"}, Outcome("a", None)),
        ({"id": "a", "outcome": "failure"}, Outcome("a", FailureType.UNKNOWN)),
        (
            {"id": "a", "outcome": "failure", "type": "timeout", "reason": "slow"},
            Outcome("a", FailureType.TIMEOUT, "slow"),
        ),
        ({"id": "a", "outcome": "failure", "type": None, "reason": None}, Outcome("a", "unknown")),  # type: ignore[arg-type]
        # Whatever a success says of a failure says nothing.
        ({"id": "a", "outcome": "success", "type": "timeout", "reason": "x"}, Outcome("a", None)),
        (
            {"id": "a", "outcome": "failure", "reason": "12345678901"},
            Outcome("a", FailureType.UNKNOWN, "1234567890"),
        ),
        (
            {"id": "a", "outcome": "failure", "reason": "\0\ud800"},
            Outcome("a", FailureType.UNKNOWN, "\ufffd\ufffd"),
        ),
        (MappingProxyType({"id": "a", "outcome": "success"}), Outcome("a", None)),
    ],
)
def test_outcomes_that_are_taken(given_: object, outcome: Outcome) -> None:
    """Type and reason may be missing or null; a long reason is cut, what cannot be stored replaced."""
    assert parse_outcome(given_, 10) == outcome


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ([], "JSON object"),
        ("a", "JSON object"),
        (None, "JSON object"),
        ({}, "'id'"),
        ({"id": "", "outcome": "success"}, "'id'"),
        ({"id": 5, "outcome": "success"}, "'id'"),
        ({"id": "a"}, "'outcome'"),
        ({"id": "a", "outcome": "ok"}, "'outcome'"),
        ({"id": "a", "outcome": ["success"]}, "'outcome'"),
        ({"id": "a", "outcome": "failure", "type": "oops"}, "oops"),
        ({"id": "a", "outcome": "success", "type": "oops"}, "oops"),
        ({"id": "a", "outcome": "failure", "type": 429}, "'type'"),
        ({"id": "a", "outcome": "failure", "reason": 1}, "'reason'"),
        ({"id": "a", "outcome": "failure", "http_status": 429}, "'http_status'"),
        ({"id": "a", "outcome": "success", 5: 5}, "'5'"),
    ],
)
def test_outcomes_that_are_refused(given_: Any, says: str) -> None:
    """A field that is missing, unknown or of the wrong kind is a usage error that names it."""
    with pytest.raises(UsageError, match=says):
        parse_outcome(given_, 500)


# Lines of outcomes

GOOD = b'{"id": "a", "outcome": "success"}'


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (b"", 0),
        (b"\n  \n\r\n", 0),
        (GOOD, 1),
        (GOOD + b"\n\n" + GOOD + b"\r\n", 2),
        (b"\xef\xbb\xbf" + GOOD + b"\n", 1),
        (GOOD.replace(b'"a"', b'"\\u2028\xe2\x80\xa8"') + b"\n", 1),
    ],
)
def test_lines_that_are_read(text: bytes, count: int) -> None:
    """Blank lines, any line end and a byte order mark are no trouble."""
    assert len(list(read_outcomes(io.BytesIO(text), 500))) == count


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"nonsense",
        b"[1]",
        b'{"id": "a", "outcome": "maybe"}',
        b'{"id": "\xff", "outcome": "success"}',
        b"[" * 100_000,
        b'{"id": "a", "outcome": "success", "x": ' + b"9" * 5000 + b"}",
        GOOD + GOOD,
        b'{"id": "' + b"a" * (1 << 20) + b'", "outcome": "success"}',
    ],
)
def test_a_bad_line_is_named_by_its_number(line: bytes) -> None:
    """A bad line is named by its number, counted from 1 with the blank lines."""
    outcomes = read_outcomes(io.BytesIO(GOOD + b"\n\n" + line + b"\n" + GOOD), 500)
    assert next(outcomes) == Outcome("a", None)
    with pytest.raises(UsageError, match=r"^line 3: "):
        next(outcomes)


def test_lines_are_read_as_they_are_wanted() -> None:
    """An endless stream is no trouble: nothing is read ahead."""

    class Endless(io.RawIOBase):
        def readline(self, size: int | None = -1, /) -> bytes:
            return GOOD + b"\n"

    outcomes: Iterator[Outcome] = read_outcomes(Endless(), 500)  # type: ignore[arg-type]
    assert [next(outcomes).id for _ in range(3)] == ["a"] * 3


# The cooldown


LONGEST = 3650 * 86400.0
RULES = st.builds(
    RecoveryConfig,
    # A duration is read to the microsecond.
    cooldown=st.just(0.0) | st.floats(1e-6, LONGEST),
    cooldown_factor=st.just(1.0) | st.floats(1.1, 10),
    max_cooldown=st.just(0.0) | st.floats(1e-6, LONGEST),
)


@given(RULES)
def test_how_cooldowns_grow(rule: RecoveryConfig) -> None:
    """Cooldowns begin at the configured one, grow by the factor up to the cap, and are few."""
    found = cooldowns(rule)
    cap = max(rule.max_cooldown, rule.cooldown)  # a cap below the first one does not shorten it
    assert found[0] == rule.cooldown
    assert all(seconds <= cap for seconds in found)
    for low, high in pairwise(found):
        assert low < high == min(cap, low * rule.cooldown_factor)
    if rule.cooldown_factor == 1 or rule.cooldown == 0:
        assert len(found) == 1
    else:
        assert found[-1] == cap
    assert len(found) <= 400


@given(RULES, st.integers(-3, 1000))
def test_each_ejection_has_its_cooldown(rule: RecoveryConfig, ejections: int) -> None:
    """The n-th ejection has the n-th cooldown, and later ejections have the last."""
    found = cooldowns(rule)
    assert cooldown(ejections, rule) == found[max(0, min(ejections - 1, len(found) - 1))]
    assert cooldown(ejections, rule) <= cooldown(ejections + 1, rule)


@pytest.mark.parametrize(
    ("back", "ejections", "trusted"),
    [
        (None, 1, True),  # nobody knows when: long ago
        (-1.0, 1, True),
        (0.0, 1, True),  # exactly one cooldown
        (0.1, 1, False),
        (0.0, 2, False),  # the second cooldown is longer
        (-3600.0, 2, True),
        (float("-inf"), 9, True),
        (float("inf"), 1, False),
    ],
)
def test_when_a_model_is_trusted(back: float | None, ejections: int, trusted: bool) -> None:
    """Once it has been back for the cooldown of its ejections."""
    rule = RecoveryConfig(cooldown=3600.0, cooldown_factor=2.0)
    assert is_trusted(back, ejections, 3600.0, rule) is trusted
