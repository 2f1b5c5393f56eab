"""What a message says, for all texts; and the order of events, for all that a receiver may answer."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl.errors import UNSAFE
from modelctl.models.results import Event
from modelctl.notify.messages import Notice, message
from tests.config.loading import load
from tests.fleets import seed, sql
from tests.notify.receiver import Receiver, telling

AT = datetime(2026, 11, 29, tzinfo=UTC)
TEXTS = st.text(st.characters(exclude_categories=[])) | st.text("<>&!@#|\n\x1b\u202e", max_size=5)
EVENTS = st.builds(
    Event,
    id=st.integers(1),
    at=st.just(AT) | st.none(),
    model_id=TEXTS | st.none(),
    event=TEXTS | st.sampled_from(["auto-disabled", "would-disable"]),
    before=st.none(),
    after=st.none(),
    actor=TEXTS | st.none(),
    reason=TEXTS | st.none(),
    failure_type=st.none(),
    provider=TEXTS | st.none(),
    details=st.none() | st.dictionaries(st.sampled_from(["new", "guard"]), TEXTS | st.just({})),
)


@given(st.lists(EVENTS, min_size=1, max_size=30), st.booleans())
def test_no_text_has_markup_or_controls(events: list[Event], with_notice: bool) -> None:
    """Whatever another program wrote: the text mentions nobody, links nowhere, and is a line an event."""
    notice = Notice(AT, True, 1, 2) if with_notice else None
    made = message(events, notice, 3, 1)
    assert not re.search("[<>]|&(?!(?:amp|lt|gt);)", made.text)
    assert not any(map(UNSAFE.search, made.text.split("\n")))
    assert made.text.count("\n") == min(20, made.events) + (made.events > 20) + with_notice + 1
    document = json.loads(made.content)
    assert (document["text"], document["dropped"]) == (made.text, 3)
    assert [item["id"] for item in document["events"]][: made.events] == [e.id for e in events]


def test_an_event_that_is_larger_than_a_message() -> None:
    """A large event is sent alone, and the next message has the others."""
    how: dict[str, Any] = dict.fromkeys(("before", "after", "actor", "failure_type"))
    large = Event(1, AT, "a", "disabled", reason="x" * 200_000, **how)
    small = Event(2, AT, "b", "disabled", reason="", **how)
    assert message([large, small], None, 0, 0).events == 1
    assert message([small, large], None, 0, 0).events == 1
    assert message([small, small], None, 0, 0).events == 2


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(answers=st.lists(st.sampled_from([200, 200, 500, 404]), max_size=8))
def test_whatever_the_receiver_answers(
    sqlite_database: str, receiver: Receiver, answers: list[int]
) -> None:
    """What it accepted is all that happened, in order, and once if no run was killed."""
    accepted: list[int] = []
    with telling(sqlite_database, receiver, events=("disabled", "enabled")) as fleet:
        seed(fleet, "a")
        fleet.notify(patience=0)
        receiver.answers = []
        fleet.notify(patience=0)  # what an earlier example left
        start = fleet.events()[0].id
        for number, answer in enumerate(answers):
            (fleet.disable, fleet.enable)[number % 2]("a")
            receiver.answers = [(answer, {})]
            sent = fleet.notify(patience=0).sent
            assert bool(sent) == (answer == 200)
            if sent:
                accepted += [event["id"] for event in receiver.got[-1][2]["events"]]
        receiver.answers = []
        if fleet.notify(patience=0).sent:
            accepted += [event["id"] for event in receiver.got[-1][2]["events"]]
        happened = fleet.events(event=("disabled", "enabled"), after=start, limit=None)
        assert accepted == [event.id for event in happened]
        fleet.enable("a")


def test_rows_that_another_program_wrote(fleet_url: str, receiver: Receiver) -> None:
    """An event with values that cannot be read is sent as far as it can be, and stops nothing."""
    with telling(fleet_url, receiver, events=("disabled",)) as fleet:
        fleet.notify()
        details = "'[1, \"x\"]'"
        sql(
            fleet_url,
            "INSERT INTO modelctl_events (model_id, event, before, details)"
            f" VALUES ('odd', 'disabled', 'odd', {details})",
        )
        if fleet_url.startswith("sqlite"):
            sql(
                fleet_url,
                "INSERT INTO modelctl_events (model_id, event, at, reason)"
                " VALUES ('odder', 'disabled', 'yesterday', x'ff00')",
            )
        seed(fleet, "a")
        fleet.disable("a")
        assert fleet.notify().sent in (2, 3)
        assert fleet.notify().sent == 0
    assert receiver.events[-1] == ("a", "disabled")


def test_variables_that_the_section_names(tmp_path: Path) -> None:
    """A variable of a secret may have any name; other variables of [notify] do not exist."""
    text = "[notify]\nurl_env = 'MODELCTL_NOTIFY_URL'\ntoken_env = 'MODELCTL_REDIS_URLS'"
    variables = {"MODELCTL_NOTIFY_URL": "https://h", "MODELCTL_REDIS_URLS": "x"}
    assert load(tmp_path, text, **variables).notify
    with pytest.raises(Exception, match="unknown environment variable") as caught:
        load(tmp_path, None, MODELCTL_NOTIFY_URL="https://h")
    assert "only the file sets [notify]" in str(getattr(caught.value, "hint", ""))
