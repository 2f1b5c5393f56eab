"""The cooldown of a model grows with each ejection, and a model regains trust in time."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.commands import Cli
from tests.fleets import ACTIVE, AUTO, HOUR, Ago, alter, opened, put, put_off, sql
from tests.recovery.outcomes import Fail, one_by_one, story, why


@pytest.mark.parametrize(
    ("factor", "cap", "hours"),
    [
        (1, "1d", [1, 1, 1, 1]),
        (2, "5h", [1, 2, 4, 5, 5]),
        (1.5, "1d", [1, 1.5, 2.25, 3.375]),
        (10, "2h", [1, 2, 2]),
        (2, "1h", [1, 1, 1]),
    ],
)
def test_the_cooldown_grows_with_each_ejection(
    fleet_url: str, factor: float, cap: str, hours: list[float]
) -> None:
    """The cooldown is the base times the factor for each ejection, up to a cap above the base."""
    for ejections, after in enumerate(hours, 1):
        put_off(fleet_url, f"soon-{ejections}", failed=after * HOUR - 60, ejections=ejections)
        put_off(fleet_url, f"due-{ejections}", failed=after * HOUR + 60, ejections=ejections)
    due = {f"due-{ejections}" for ejections in range(1, len(hours) + 1)}
    rule = {"recovery_cooldown_factor": factor, "recovery_max_cooldown": cap}
    with opened(fleet_url, **rule) as fleet:
        told = fleet.recover(dry_run=True)
        assert set(told.recovered) == due
        assert {(w.id, w.why) for w in told.waiting} == {
            (i.replace("due", "soon"), "cooldown") for i in due
        }
        for waiting in told.waiting:
            model = fleet.show(waiting.id)
            assert model.last_failure_at is not None
            ends = model.last_failure_at + timedelta(hours=hours[model.ejections - 1])
            assert model.retry_at == waiting.retry_at == ends
            for left in (model.seconds_left, waiting.seconds_left):
                assert left is not None
                assert 30 < left < 61
        assert set(fleet.recover().recovered) == due
        assert {m.id for m in fleet.list_models(status=AUTO)} == {w.id for w in told.waiting}


def test_by_default_every_cooldown_is_the_same(fleet_url: str) -> None:
    """Without a factor an hour is an hour, however often the model was ejected."""
    put_off(fleet_url, "often", failed=1.01 * HOUR, ejections=99)
    put_off(fleet_url, "never", failed=1.01 * HOUR, ejections=0)
    put_off(fleet_url, "soon", failed=0.99 * HOUR, ejections=1)
    with opened(fleet_url) as fleet:
        assert why(fleet) == {"often": "due", "never": "due", "soon": "cooldown"}


def test_a_model_that_keeps_failing_waits_longer_each_time(fleet_url: str) -> None:
    """Each ejection doubles the wait, and the model comes back with two failures of five."""
    put(fleet_url, "a")
    with opened(fleet_url, recovery_cooldown_factor=2) as fleet:
        one_by_one(fleet, "a")
        for ejections, hours in enumerate([1, 2, 4], 1):
            assert fleet.show("a").ejections == ejections
            alter(fleet_url, "a", last_failure_at=Ago(hours * HOUR - 60))
            assert fleet.recover().recovered == ()
            alter(fleet_url, "a", last_failure_at=Ago(hours * HOUR + 1))
            assert fleet.recover().recovered == ("a",)
            model = fleet.show("a")
            assert (model.consecutive_failures, model.ejections) == (2, ejections)
            one_by_one(fleet, "a", times=2)
            assert fleet.show("a").status is ACTIVE
            one_by_one(fleet, "a", times=1)
        assert story(fleet, "a") == ["auto-disabled", *["recovered", "auto-disabled"] * 3]


@pytest.mark.parametrize(
    ("failed", "disabled", "updated", "is_due"),
    [
        (2, 0, 0, True),
        (0, 2, 2, False),
        (None, 2, 0, True),
        (None, 0, 2, False),
        (None, None, 2, True),
        (None, None, 0, False),
    ],
)
def test_the_cooldown_counts_from_the_last_failure(
    fleet_url: str, failed: float | None, disabled: float | None, updated: float, is_due: bool
) -> None:
    """The cooldown starts at the last failure, else at the disable, else at the last change."""
    put_off(fleet_url, "a")
    sql(fleet_url, "UPDATE models SET last_failure_at = NULL, disabled_at = NULL")
    times = {"last_failure_at": failed, "disabled_at": disabled, "updated_at": updated}
    for column, hours in times.items():
        if hours is not None:
            alter(fleet_url, "a", **{column: Ago(hours * HOUR)})
    with opened(fleet_url) as fleet:
        assert why(fleet) == {"a": "due" if is_due else "cooldown"}
        assert (fleet.show("a").seconds_left == 0) is is_due
        assert fleet.recover().recovered == (("a",) if is_due else ())


def test_a_cooldown_for_one_run(fleet_url: str, tool: Cli) -> None:
    """--cooldown replaces the configured cooldown and its growth for one run."""
    put_off(fleet_url, "a", failed=100, ejections=5)
    grows = {"recovery_cooldown_factor": 2}
    assert tool("recover", "--cooldown", "2m", **grows).out == ""
    assert tool("recover", "--cooldown", "90s", **grows).out == "a\n"


def test_trust_comes_back_by_a_success_after_a_cooldown(fleet_url: str, succeed: Fail) -> None:
    """Only a success at least one grown cooldown after the return clears the ejections."""
    for model_id, ejections, back in (("young", 3, 3.9), ("old", 3, 4.1), ("first", 1, 1.1)):
        put(fleet_url, model_id, ejections=ejections, consecutive_failures=2)
        alter(fleet_url, model_id, last_failure_at=Ago(9 * HOUR))
        alter(fleet_url, model_id, recovered_at=Ago(back * HOUR))
    put_off(fleet_url, "back", failed=9 * HOUR, ejections=2)
    with opened(fleet_url, recovery_cooldown_factor=2) as fleet:
        succeed(fleet, "young", "old", "first", "back")
        assert [fleet.show(i).ejections for i in ("young", "old", "first", "back")] == [3, 0, 0, 2]
        assert fleet.show("back").status is ACTIVE
        # The one that the success brought back has to wait from then on.
        succeed(fleet, "back")
        assert fleet.show("back").ejections == 2
        alter(fleet_url, "back", recovered_at=Ago(2.1 * HOUR))
        succeed(fleet, "back")
        assert fleet.show("back").ejections == 0


def test_failures_alone_never_bring_trust(fleet_url: str, fail: Fail) -> None:
    """A failure long after the return keeps the ejections, and the next ejection adds to them."""
    put(fleet_url, "a", ejections=2)
    alter(fleet_url, "a", recovered_at=Ago(99 * HOUR))
    with opened(fleet_url) as fleet:
        fail(fleet, "a", times=4)
        assert fleet.show("a").ejections == 2
        fail(fleet, "a", times=1)
        assert fleet.show("a").ejections == 3


def test_enable_trusts_one_that_is_on(fleet_url: str, tool: Cli) -> None:
    """Enabling a model that is active clears its ejections at once."""
    put(fleet_url, "a", ejections=3, consecutive_failures=2)
    assert tool("enable", "a", "--dry-run").code == 0
    assert tool("show", "a", "-o", "json").json["ejections"] == 3
    assert tool("enable", "a").out == "a\tactive\tactive\talready active\tfalse\n"
    assert tool("show", "a", "-o", "json").json["ejections"] == 0


def test_enable_trusts_at_once(fleet_url: str, tool: Cli) -> None:
    """An enabled model has no ejections and no failures, so its next cooldown is the base."""
    put_off(fleet_url, "a", failed=2 * HOUR, ejections=4)
    grows = {"recovery_cooldown_factor": 2}
    assert tool("recover", **grows).out == ""
    assert tool("enable", "a", **grows).code == 0
    model = tool("show", "a", "-o", "json").json
    assert (model["ejections"], model["consecutive_failures"]) == (0, 0)
    with opened(fleet_url, **grows) as fleet:
        one_by_one(fleet, "a")
        alter(fleet_url, "a", last_failure_at=Ago(1.01 * HOUR))
        assert fleet.recover().recovered == ("a",)
