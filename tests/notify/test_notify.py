"""`notify` tells the receiver each wanted event at least once, in order, and nothing else."""

from __future__ import annotations

import psycopg
import pytest

from modelctl import Fleet, InvalidConfigError, Notified
from tests.fleets import put_off, seed, sql, trip
from tests.notify.receiver import Handler, Receiver, telling


def begin(fleet: Fleet) -> None:
    """Let the first run remember where the history ends."""
    result = fleet.notify()
    assert result.began, result


def test_the_events_that_were_asked_for(fleet_url: str, receiver: Receiver) -> None:
    """The first run sends nothing; then each wanted event comes once, in order, with all its fields."""
    with telling(fleet_url, receiver) as fleet:
        seed(fleet, "abc")
        trip(fleet, "a")
        assert fleet.notify() == Notified(0, 0, 0, fleet.events()[0].id, began=True)
        trip(fleet, "b")
        fleet.disable("c")
        fleet.record_success("b")
        result = fleet.notify()
        assert (result.sent, result.waiting, result.problem) == (2, 0, None)
        assert fleet.notify().sent == 0
        assert receiver.events == [("b", "auto-disabled"), ("b", "recovered")]
        [(_, headers, body)] = receiver.got
        tripped = fleet.events("b", event="auto-disabled")[0]
        assert {
            k: body["events"][0][k] for k in ("id", "before", "after", "reason", "operation")
        } == {
            "id": tripped.id,
            "before": "active",
            "after": "auto-disabled",
            "reason": "no JSON",
            "operation": tripped.operation,
        }
        assert headers["Content-Type"] == "application/json"


def test_what_slack_shows(fleet_url: str, receiver: Receiver) -> None:
    """The text has no markup of Slack and no control character, whatever a name or a reason says."""
    nasty = "a/<!channel>&<http://evil|x>"
    with telling(fleet_url, receiver, events=("disabled",)) as fleet:
        seed(fleet, [nasty])
        begin(fleet)
        fleet.disable(nasty, reason="<!here>\n\x1b[31m* done")
        fleet.notify()
    [text] = receiver.texts
    heading, line = text.split("\n")
    assert heading == "modelctl: 1 disabled"
    assert (
        "a/&lt;!channel&gt;&amp;&lt;http://evil|x&gt; disabled by tester: &lt;!here&gt;\\n\\x1b[31m* done"
        in line
    )
    assert receiver.events == [(nasty, "disabled")]


def test_a_mass_disable_is_a_few_messages(fleet_url: str, receiver: Receiver) -> None:
    """All of 2,000 events come, in few messages of bounded size; each text says how many it left out."""
    ids = [f"acme/{number:04}" for number in range(2000)]
    with telling(fleet_url, receiver, events=("disabled",)) as fleet:
        seed(fleet, ids)
        begin(fleet)
        fleet.disable(*ids)
        assert fleet.notify().sent == 2000
    assert receiver.events == [(model_id, "disabled") for model_id in ids]
    assert len(receiver.got) <= 10
    for _, headers, body in receiver.got:
        assert int(headers["Content-Length"]) < 100_000
        assert len(body["text"]) < 4000
        more = len(body["events"]) - 20
        assert body["text"].endswith(f"... and {more} more" if more > 0 else "disabled by tester")


def test_nothing_of_ejected_models_but_what_waits_for_a_person(
    fleet_url: str, receiver: Receiver
) -> None:
    """`ejected` are the auto-disabled models that only a person brings back."""
    with telling(fleet_url, receiver, events=("ejected",)) as fleet:
        seed(fleet, "ab")
        put_off(fleet_url, "c", ejections=2, failed=99999)
        begin(fleet)
        trip(fleet, "a")
        assert fleet.notify().sent == 0
        fleet.recover()
        trip(fleet, "c")
        trip(fleet, "b")
        assert fleet.notify(dry_run=True).waiting == 1
        assert fleet.notify().sent == 1
    assert receiver.events == [("c", "auto-disabled")]
    assert receiver.texts[0].endswith("; it waits for a person")


def test_fewer_active_models_than_the_minimum(fleet_url: str, receiver: Receiver) -> None:
    """One notice when the number falls below min_active, one when it is back; none in between."""
    with telling(fleet_url, receiver, events=(), min_active=2) as fleet:
        seed(fleet, "abc")
        begin(fleet)
        fleet.disable("a")
        assert fleet.notify().sent == 0
        sql(fleet_url, "UPDATE models SET active = FALSE WHERE id = 'b'")  # another program
        assert fleet.notify().sent == 1
        fleet.disable("c")
        assert fleet.notify().sent == 0
        fleet.enable("a", "b")
        assert fleet.notify().sent == 1
        assert fleet.notify().sent == 0
    assert receiver.events == [(None, "below-min-active"), (None, "min-active-restored")]
    details = [body["events"][0]["details"] for _, _, body in receiver.got]
    assert details == [{"active": 1, "min_active": 2}, {"active": 2, "min_active": 2}]


def test_a_notice_that_did_not_arrive_comes_again(fleet_url: str, receiver: Receiver) -> None:
    """The edge is stored only after the receiver accepted it, and comes behind the events."""
    with telling(fleet_url, receiver, events=("disabled",), min_active=2) as fleet:
        seed(fleet, "ab")
        begin(fleet)
        fleet.disable("a")
        receiver.answers = [(503, {})]
        assert fleet.notify(patience=0).sent == 0
        assert fleet.notify().sent == 2
    assert receiver.events[2:] == [("a", "disabled"), (None, "below-min-active")]


def test_a_late_commit_is_not_skipped(pg_cleared: str, receiver: Receiver) -> None:
    """An event with a smaller id that commits later is sent, and before the later ones."""
    with telling(pg_cleared, receiver, events=("disabled",)) as fleet:
        seed(fleet, "a")
        begin(fleet)
        with psycopg.connect(pg_cleared) as slow:
            slow.execute("INSERT INTO modelctl_events (model_id, event) VALUES ('s', 'disabled')")
            fleet.disable("a")
            assert fleet.notify().sent == 0
            slow.commit()
        assert fleet.notify().sent == 2
    assert receiver.events == [("s", "disabled"), ("a", "disabled")]


def test_only_one_run_works(fleet_url: str, receiver: Receiver) -> None:
    """While a run waits for the receiver, another does nothing and says busy."""
    with (
        telling(fleet_url, receiver, events=("disabled",)) as fleet,
        telling(fleet_url, receiver, events=("disabled",)) as other,
    ):
        seed(fleet, "a")
        begin(fleet)
        fleet.disable("a")
        others: list[Notified] = []

        def run_another(handler: Handler) -> None:
            others.append(other.notify())
            handler.send_error(500)

        receiver.answers = [run_another]
        assert fleet.notify(patience=0).problem == "HTTP 500"
        assert [result.busy for result in others] == [True]
        assert other.notify().sent == 1
    assert len(receiver.got) == 2


def test_a_dry_run(fleet_url: str, receiver: Receiver) -> None:
    """A dry run says what would be sent; it sends and stores nothing."""
    with telling(fleet_url, receiver, events=("disabled",)) as fleet:
        seed(fleet, "a")
        assert fleet.notify(dry_run=True) == Notified(0, 0, 0, None, began=True, dry_run=True)
        begin(fleet)
        fleet.disable("a", reason="why")
        stored = sql(fleet_url, "SELECT * FROM modelctl_state ORDER BY name")
        result = fleet.notify(dry_run=True)
        assert (result.sent, result.waiting) == (0, 1)
        assert result.text
        assert "a disabled by tester: why" in result.text
        assert sql(fleet_url, "SELECT * FROM modelctl_state ORDER BY name") == stored
        assert receiver.got == []
        assert fleet.notify().sent == 1
        assert receiver.texts == [result.text]


def test_without_a_receiver(fleet: Fleet) -> None:
    """Without [notify] the call is an error of the configuration."""
    with pytest.raises(InvalidConfigError, match="no receiver"):
        fleet.notify()


def test_a_cursor_that_cannot_be_read(fleet_url: str, receiver: Receiver) -> None:
    """If another program changed the stored cursor, nothing is sent, and the error says what to do."""
    with telling(fleet_url, receiver) as fleet:
        begin(fleet)
        sql(fleet_url, "UPDATE modelctl_state SET value = 'x' WHERE name = 'notify'")
        with pytest.raises(InvalidConfigError, match="cannot be read") as caught:
            fleet.notify()
        assert "delete its row 'notify'" in str(caught.value.hint)
