"""Recording an outcome says what it did, and only counted failures count against a model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelctl import Fleet, ModelNotFoundError, OutcomeChange, UsageError
from modelctl.health import failure_type_of_status
from tests.commands import Cli
from tests.fleets import everything, opened, seed, sql


@pytest.fixture
def on(fleet_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the program find a fleet with one model."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", fleet_url)
    with opened(fleet_url) as fleet:
        seed(fleet, "a")
    return fleet_url


def result(cli: Cli, *words: str) -> str:
    """Return what the program says that recording a failure did."""
    done = cli("record-failure", "a", *words)
    assert done.code == 0
    return done.lines[0].split("\t")[3]


def test_it_says_what_it_did(on: str, cli: Cli) -> None:
    """A failure is counted or not, and how many there are of the threshold is said."""
    assert result(cli, "--http-status", "404") == "counted, 1 of 5"
    assert result(cli, "--type", "server-error") == "not counted (server-error), 1 of 5"
    assert result(cli) == "not counted (unknown), 1 of 5"
    for number in range(2, 5):
        assert result(cli, "--type", "parse-error") == f"counted, {number} of 5"
    assert result(cli, "--type", "parse-error") == "counted: switched off (5 of 5)"
    assert result(cli, "--type", "parse-error") == "counted, 6 of 5"
    assert result(cli, "--type", "timeout") == "not counted (timeout), 6 of 5"


@pytest.mark.parametrize("guarded", ["0", "1"])
def test_json_has_the_numbers(
    on: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, guarded: str
) -> None:
    """The change has `counted`, the failures in a row and the threshold, beside guards too."""
    monkeypatch.setenv("MODELCTL_RECOVERY_MIN_ACTIVE", guarded)
    monkeypatch.setenv("MODELCTL_HEALTH_THRESHOLD", "3")
    kinds = ["client-error", "timeout", "parse-error", "parse-error"]
    found = [
        cli("record-failure", "a", "--type", kind, "-o", "json").json["changes"][0]
        for kind in kinds
    ]
    numbers = [(c["counted"], c["consecutive_failures"], c["threshold"]) for c in found]
    assert numbers == [(True, 1, 3), (False, 1, 3), (True, 2, 3), (True, 3, 3)]
    assert [c["failure_type"] for c in found] == kinds
    assert (found[-1]["after"], found[-1]["would_disable"]) == (
        ("active", "floor") if guarded == "1" else ("auto-disabled", None)
    )
    [success] = cli("record-success", "a", "-o", "json").json["changes"]
    assert (success["counted"], success["consecutive_failures"]) == (False, 0)


def test_what_keeps_a_model_on_is_said(on: str, cli: Cli) -> None:
    """A failure beyond the threshold that switches nothing off says why not."""
    cli("pause", "--for", "1h")
    sql(on, "UPDATE models SET consecutive_failures = 4")
    assert result(cli, "--type", "parse-error") == "counted, 5 of 5; kept on (paused)"


def test_a_disabled_model_counts_too(fleet: Fleet) -> None:
    """Failures of a model that a person disabled are counted, and it stays disabled."""
    seed(fleet, "a")
    fleet.disable("a")
    [change] = fleet.record_failure("a", "parse-error").changes
    assert isinstance(change, OutcomeChange)
    assert (change.counted, change.consecutive_failures, change.changed) == (True, 1, False)


def test_a_caller_that_went_away(on: str, cli: Cli, fleet: Fleet) -> None:
    """HTTP status 499 records nothing and says so; an unknown id is still exit 4."""
    fleet.record_failure("a", "parse-error")
    before = everything(on)
    assert result(cli, "--http-status", "499") == "not recorded: the caller went away"
    done = cli("record-failure", "a", "--http-status", "499", "-o", "json").json
    assert done["cache"] in ("unchanged", "off")
    [change] = done["changes"]
    assert (change["recorded"], change["counted"], change["changed"]) == (False, False, False)
    assert (change["consecutive_failures"], change["threshold"]) == (1, 5)
    line = cli("record-failure", "a", "--http-status", "499", "-o", "jsonl").lines[0]
    assert json.loads(line)["recorded"] is False
    cli("record-failure", "nobody", "--http-status", "499").failed(4, "no model 'nobody'")
    [change] = fleet.record_failure("a", failure_type_of_status(499)).changes
    assert not change.changed
    with pytest.raises(ModelNotFoundError):
        fleet.record_failure("nobody", None)
    assert everything(on) == before


def test_an_exception_is_a_type(fleet: Fleet) -> None:
    """An exception gives its type and its text, without keys; the caller's own is not recorded."""
    seed(fleet, "a")
    refused = ConnectionRefusedError("no route, api_key=abcdef123456")
    try:
        raise RuntimeError(f"gave up: {refused}") from refused
    except RuntimeError as exc:
        [change] = fleet.record_failure("a", exc).changes
    assert isinstance(change, OutcomeChange)
    assert (change.recorded, change.failure_type) == (True, "network-error")
    assert fleet.show("a").failure_reason == "gave up: no route, api_key=***"
    [change] = fleet.record_failure("a", TimeoutError(), reason="slow").changes
    assert fleet.show("a").failure_reason == "slow"
    fleet.record_failure("a", TimeoutError())
    assert fleet.show("a").failure_reason == "TimeoutError"
    for own in (KeyError("app"), KeyboardInterrupt()):
        [change] = fleet.record_failure("a", own).changes
        assert isinstance(change, OutcomeChange)
        assert not change.recorded
    with pytest.raises(ModelNotFoundError):
        fleet.record_failure("nobody", KeyError("app"))
    assert fleet.show("a").failure_count == 3


class _SilentError(TimeoutError):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class _LongError(TimeoutError):
    """Would copy its text a thousand times."""

    def __str__(self) -> str:
        return str(self.args[0]) * 1000


@pytest.mark.parametrize(
    ("exception", "reason"),
    [
        (_SilentError(), "_SilentError"),
        (_SilentError("said"), "_SilentError"),
        (TimeoutError("   "), "TimeoutError"),
        (TimeoutError("x" * 10_000_000), "x" * 500),
        (_LongError("y" * 1_000_000), "y" * 500),
        (TimeoutError("a\0b\ud800"), "a\ufffdb\ufffd"),
    ],
    ids=["silent", "silent with arguments", "blank", "10 MB", "1 GB", "not storable"],
)
def test_texts_of_exceptions(fleet: Fleet, exception: BaseException, reason: str) -> None:
    """The reason is the text of the exception, cut before it is formatted, or its class."""
    seed(fleet, "a")
    fleet.record_failure("a", exception)
    assert fleet.show("a").failure_reason == reason


def test_an_http_status_is_a_type(fleet: Fleet) -> None:
    """`http_status` decides the type, as on the command line; 499 is not recorded."""
    seed(fleet, "a")
    fleet.record_failure("a", http_status=429)
    assert fleet.show("a").failure_type == "rate-limit"
    [change] = fleet.record_failure("a", http_status=499).changes
    assert isinstance(change, OutcomeChange)
    assert not change.recorded
    wrong: Any
    for wrong in ("429", True, 4.29):
        with pytest.raises(UsageError, match="http_status is a number"):
            fleet.record_failure("a", http_status=wrong)
    for number in (200, 399, 600, -1):
        with pytest.raises(UsageError, match="not a failure"):
            fleet.record_failure("a", http_status=number)
    for kind in ("timeout", None, TimeoutError()):
        with pytest.raises(UsageError, match="not both"):
            fleet.record_failure("a", kind, http_status=503)
    for wrong in (TimeoutError, 5, b"timeout", object()):
        with pytest.raises(UsageError, match="no failure type"):
            fleet.record_failure("a", wrong)
    assert fleet.show("a").failure_count == 1
