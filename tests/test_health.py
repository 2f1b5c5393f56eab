from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl import Config, FailureType, ModelStatus, Outcome, UsageError
from modelctl.config import HealthConfig
from modelctl.health import (
    Health,
    failure_type,
    failure_type_of_status,
    parse_outcome,
    read_outcomes,
    record,
    retry_at,
    status_of,
)
from tests.fleets import configured

RULE = HealthConfig()
COUNTED = FailureType.PARSE_ERROR
STORED = FailureType.TIMEOUT
ACTIVE = Health(True, False, 0, 0)
OFF = Health(False, False, 0, 0)
AUTO_OFF = Health(False, True, 5, 1)


def after(health: Health, *types: FailureType | None, rule: HealthConfig = RULE) -> Health:
    """Apply outcomes of these types."""
    for type_ in types:
        health, _ = record(health, Outcome("m", type_), rule)
    return health


def event(health: Health, type_: FailureType | None, rule: HealthConfig = RULE) -> str | None:
    """Return the event of one outcome."""
    return record(health, Outcome("m", type_), rule)[1]


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
    """Four leave it on; the fifth in a row switches it off, with one event and one ejection."""
    health = after(ACTIVE, *[COUNTED] * 4)
    assert (health.status, health.ejections) == (ModelStatus.ACTIVE, 0)
    health, said = record(health, Outcome("m", COUNTED, "no JSON"), RULE)
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
    rule = configured("", health_threshold=3, health_counted="timeout").health
    assert after(ACTIVE, *[COUNTED] * 9, *[STORED] * 2, rule=rule).active
    assert not after(ACTIVE, *[STORED] * 3, rule=rule).active


@given(st.lists(st.sampled_from([None, *FailureType]), max_size=40))
def test_no_outcome_changes_a_manual_disable(types: list[FailureType | None]) -> None:
    """Whatever is recorded: it is counted, and what a person switched off stays off."""
    health = after(OFF, *types)
    assert health.status is ModelStatus.DISABLED
    assert health.ejections == 0
    assert health.successes + health.failures == len(types)


@given(st.lists(st.sampled_from([None, *FailureType]), max_size=40))
def test_off_exactly_while_a_row_is_long_enough(types: list[FailureType | None]) -> None:
    """After any outcomes a model is off exactly if five counted ones came since the last success."""
    health = after(ACTIVE, *types)
    row = 0
    for type_ in types:
        row = 0 if type_ is None else row + (type_ in RULE.counted)
    assert health.consecutive_failures == row
    assert health.active == (row < 5)


# HTTP statuses and names


@pytest.mark.parametrize(
    ("status", "type_"),
    [
        (400, "client-error"),
        (401, "client-error"),
        (404, "client-error"),
        (408, "timeout"),
        (429, "rate-limit"),
        (499, "client-error"),
        (500, "server-error"),
        (503, "server-error"),
        (504, "timeout"),
        (599, "server-error"),
    ],
)
def test_http_statuses(status: int, type_: str) -> None:
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
            Outcome("a", FailureType.UNKNOWN, "\ufffd?"),
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
    """The number of a wrong line counts from 1 and counts the blank ones."""
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


def test_retry_at_counts_from_the_last_failure() -> None:
    """The last failure, else the disabling, else the last change starts the cooldown."""
    config = Config(recovery=configured("", recovery_cooldown="2h").recovery)
    first, second, third = (datetime(2026, 1, day, tzinfo=UTC) for day in (3, 2, 1))
    two_hours = timedelta(hours=2)
    assert retry_at(config, first, second, third) == first + two_hours
    assert retry_at(config, None, second, third) == second + two_hours
    assert retry_at(config, None, None, third) == third + two_hours
    assert retry_at(config, None, None, None) is None
