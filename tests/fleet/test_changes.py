"""enable, disable, remove and add change what they say, all or nothing, the same on every database."""

from __future__ import annotations

import pytest

from modelctl import Fleet, KeptChange, ModelNotFoundError, ModelStatus, StatusChange, UsageError
from tests.fleets import (
    ACTIVE,
    ACTOR,
    AUTO,
    DISABLED,
    everything,
    history,
    opened,
    seed,
    sql,
    status,
    trip,
)

# Ids that a person may type or a program may send, and that no model has.
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
    """A change is one event with actor and reason; a repeated change succeeds and writes no event."""
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
    """If one id is unknown, nothing is changed, and the message names the id."""
    seed(fleet, ["a", "b"])
    fleet.disable("b")
    before = everything(fleet_url)
    with pytest.raises(ModelNotFoundError, match="no model 'nope'; nothing was changed"):
        getattr(fleet, verb)("a", "nope", "b")
    assert everything(fleet_url) == before


@pytest.mark.parametrize("verb", ["disable", "enable", "remove"])
def test_repeated_ids_count_once_in_the_order_given(fleet: Fleet, verb: str) -> None:
    """There is one change for each model, in the order in which the models were named."""
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
    """A new model is active; an existing model stays as it is and is reported as unchanged."""
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
