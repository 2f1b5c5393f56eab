"""What a receiver may do: refuse, be slow, be away for a day; and what becomes of the events then."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from modelctl import Fleet, InvalidConfigError
from tests.fleets import HOUR, seed, sql
from tests.notify.receiver import (
    SECRET,
    Answer,
    Receiver,
    endless,
    later,
    receiving,
    silent,
    slow,
    telling,
)
from tests.probe.provider import alive
from tests.waiting import at_most, until

EVENTS = ("disabled",)


@pytest.fixture
def url(sqlite_database: str) -> str:
    """Give a database; how a receiver behaves does not depend on its kind."""
    return sqlite_database


def with_news(fleet: Fleet, *ids: str) -> None:
    """Let the first run pass, then disable models."""
    seed(fleet, ids)
    assert fleet.notify().began
    for model_id in ids:
        fleet.disable(model_id)


@pytest.mark.parametrize(
    ("answer", "problem", "permanent"),
    [
        ((500, {}), "HTTP 500", False),
        ((503, {"Retry-After": "x"}), "HTTP 503", False),
        ((408, {}), "HTTP 408", False),
        ((425, {}), "HTTP 425", False),
        ((429, {}), "HTTP 429", False),
        ((400, {}), "HTTP 400", True),
        ((404, {}), "HTTP 404", True),
        ((302, {"Location": "http://127.0.0.1:1/"}), "HTTP 302: a redirect, refused", True),
        (silent, "no answer in 0.5 s", False),
        (slow, "no answer in 0.5 s", False),
        (lambda handler: handler.wfile.write(b"no HTTP\r\n\r\n"), "does not speak HTTP", False),
        (lambda handler: None, "the connection broke", False),
    ],
)
def test_a_receiver_that_says_no(
    url: str, receiver: Receiver, answer: Answer, problem: str, permanent: bool
) -> None:
    """The result says why, without a word of the URL; the cursor stays, and the next run sends all."""
    with telling(url, receiver, events=EVENTS, timeout=0.5) as fleet:
        with_news(fleet, "a", "b")
        cursor = fleet.notify(dry_run=True).cursor
        receiver.answers = [answer]
        result = fleet.notify(patience=0)
        assert (result.sent, result.waiting, result.cursor) == (0, 2, cursor)
        assert problem in (result.problem or "")
        assert result.permanent is permanent
        assert SECRET not in repr(result)
        assert len(receiver.got) == 1
        assert fleet.notify().sent == 2
    assert receiver.events[2:] == [("a", "disabled"), ("b", "disabled")]


def test_an_answer_without_an_end(url: str, receiver: Receiver) -> None:
    """A receiver that said yes has said yes; the rest of its answer is not read."""
    with telling(url, receiver, events=EVENTS, timeout=5) as fleet:
        with_news(fleet, "a")
        receiver.answers = [endless]
        assert fleet.notify().sent == 1


def test_again_with_backoff(url: str, receiver: Receiver) -> None:
    """Within its patience a run tries again, and waits as long as Retry-After asks for."""
    with telling(url, receiver, events=EVENTS) as fleet:
        with_news(fleet, "a")
        receiver.answers = [(500, {}), (429, {"Retry-After": "3"})]
        start = time.monotonic()
        assert fleet.notify(patience=30).sent == 1
        assert 4 <= time.monotonic() - start < 20
    assert receiver.events == [("a", "disabled")] * 3


def test_a_permanent_refusal_is_not_tried_again(url: str, receiver: Receiver) -> None:
    """A message that was refused for good is sent once in a run."""
    with telling(url, receiver, events=EVENTS) as fleet:
        with_news(fleet, "a")
        receiver.answers = [(404, {})] * 3
        assert fleet.notify(patience=30).permanent
    assert len(receiver.got) == 1


def test_the_patience_is_a_limit(url: str, receiver: Receiver) -> None:
    """A Retry-After that is longer than the patience ends the run; the next runs keep to it."""
    with telling(url, receiver, events=EVENTS) as fleet:
        with_news(fleet, "a")
        date = format_datetime(datetime.now(UTC) + timedelta(hours=9), usegmt=True)
        receiver.answers = [(503, {"Retry-After": date})]
        with at_most(3):
            assert fleet.notify(patience=5).waiting == 1
            result = fleet.notify(patience=5)
            assert (result.problem, result.waiting) == ("HTTP 503", 1)
        assert len(receiver.got) == 1
        later(url, HOUR)  # it cannot silence us for longer
        assert fleet.notify().sent == 1


def test_away_for_a_day(url: str, receiver: Receiver) -> None:
    """After a day of failures the events that are a day old are dropped, and the later ones sent."""
    warnings: list[str] = []
    with telling(url, receiver, events=EVENTS) as fleet:
        fleet.on_warning = warnings.append
        with_news(fleet, "a", "b", "c")
        first = fleet.events(event="disabled", oldest_first=True)[0].id
        receiver.answers = [(500, {})] * 3
        assert fleet.notify(patience=0).dropped == 0
        later(url, 23 * HOUR)
        assert fleet.notify(patience=0).dropped == 0
        fleet.enable("a")
        fleet.disable("a", reason="again")
        later(url, 1.5 * HOUR)
        result = fleet.notify(patience=0)
        assert (result.sent, result.dropped, result.waiting) == (0, 3, 1)
        assert warnings == [
            "3 events could not be delivered for a day, and will not be tried again;"
            f" see: modelctl events --after {first - 1}"
        ]
        checks = {check.check: check for check in fleet.doctor().checks}
        assert (checks["notify"].ok, "accepted nothing for" in checks["notify"].detail) == (
            False,
            True,
        )
        assert fleet.notify().sent == 1
        checks = {check.check: check for check in fleet.doctor().checks}
        assert (checks["notify"].ok, checks["notify"].warning) == (True, True)
        assert "3 events could not be delivered for a day" in checks["notify"].detail
        fleet.disable("a", "b", reason="a third time")
        fleet.enable("c")
        fleet.disable("c")
        assert fleet.notify().sent == 1
    last, told = receiver.got[-1][2], receiver.got[-2][2]
    assert (told["dropped"], last["dropped"]) == (3, 0)
    assert "3 earlier events could not be delivered for a day" in told["text"]
    assert [event["reason"] for event in told["events"]] == ["again"]


def test_a_cron_job_that_slept_drops_nothing(url: str, receiver: Receiver) -> None:
    """Old events are sent if nobody tried for a day; only a receiver that failed for a day loses some."""
    with telling(url, receiver, events=EVENTS) as fleet:
        with_news(fleet, "a")
        later(url, 72 * HOUR)
        receiver.answers = [(500, {})]
        assert fleet.notify(patience=0).dropped == 0
        assert fleet.notify().sent == 1


def test_nobody_listens(url: str, receiver: Receiver) -> None:
    """A refused connection is temporary; with a private address that is not allowed it is not."""
    with telling(url, receiver, url="http://127.0.0.1:9/x", events=EVENTS) as fleet:
        with_news(fleet, "a")
        result = fleet.notify(patience=0)
        assert (result.problem, result.permanent) == ("Connection refused", False)
    with telling(url, receiver, allow_private=False, events=EVENTS) as fleet:
        result = fleet.notify(patience=0)
        assert "127.0.0.1 is not public; allow_private permits it" in (result.problem or "")
        assert result.permanent
    assert receiver.got == []


def test_no_other_server_sees_a_redirected_message(url: str, receiver: Receiver) -> None:
    """A redirect is not followed, and the token goes nowhere else."""
    with receiving() as other, telling(url, receiver, events=EVENTS) as fleet:
        with_news(fleet, "a")
        receiver.answers = [(307, {"Location": other.url})]
        assert fleet.notify(patience=0).sent == 0
        assert other.got == []


@pytest.mark.parametrize("how", ["env", "file"])
def test_secrets_by_name(
    url: str, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """URL and token come from variables or files, and reach the receiver alone."""
    named: dict[str, str] = {}
    for key, value in {"url": receiver.url, "token": SECRET}.items():
        (tmp_path / key).write_text(f"{value}\n")
        monkeypatch.setenv(f"MODELCTL_NOTIFY_{key}".upper(), value)
        env = f"MODELCTL_NOTIFY_{key}".upper()
        named[f"{key}_{how}"] = env if how == "env" else str(tmp_path / key)
    options: dict[str, Any] = {"url": "", "allow_http": True, "allow_private": True, **named}
    with telling(url, receiver, events=EVENTS, **options) as fleet:
        with_news(fleet, "a")
        assert fleet.notify().sent == 1
    [(path, headers, _)] = receiver.got
    assert path == f"/{SECRET}?sig={SECRET}"
    assert headers["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "value", [None, "", f"ftp://h/{SECRET}", f"http://h/{SECRET}", f"https://h/ {SECRET}"]
)
def test_a_bad_url_in_a_variable(
    url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """A URL that is missing or makes no sense is an error of the configuration, and is not shown."""
    monkeypatch.delenv("HOOK", raising=False)
    if value is not None:
        monkeypatch.setenv("HOOK", value)
    how = {"url": "", "url_env": "HOOK", "allow_http": False}
    with (
        telling(url, receiver, **how) as fleet,
        pytest.raises(InvalidConfigError, match="HOOK") as caught,
    ):
        fleet.notify()
    assert SECRET not in f"{caught.value} {caught.value.hint}"


def test_tls(url: str, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An https receiver needs a certificate that is trusted; it is asked by the rules of probes."""
    from tests.probe.provider import secured

    authority = trustme.CA()
    with secured(authority, "127.0.0.1") as server:
        how = {"url": f"https://{server.place}/ok", "allow_private": True}
        with telling(url, receiver, events=EVENTS, **how) as fleet:
            with_news(fleet, "a")
            assert "certificate refused" in (fleet.notify(patience=0).problem or "")
            authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
            assert fleet.notify().sent == 1
        assert [body["events"][0]["model_id"] for _, _, body in server.requests] == ["a"]


# ── Commands ──


def test_a_command(url: str, tmp_path: Path) -> None:
    """A command gets the message on stdin; exit 0 is a yes, and no shell is between."""
    words = ["sh", "-c", 'cat > "$1"', "-", str(tmp_path / "$(got)")]
    with telling(url, words, events=EVENTS) as fleet:
        with_news(fleet, "a", "b")
        assert fleet.notify().sent == 2
    message = json.loads((tmp_path / "$(got)").read_text())
    assert [event["model_id"] for event in message["events"]] == ["a", "b"]
    assert set(message) == {"text", "events", "dropped"}


@pytest.mark.parametrize(
    ("words", "problem", "permanent"),
    [
        (
            ["sh", "-c", "echo out; echo sorry >&2; exit 3"],
            "the command failed: exit 3: sorry",
            False,
        ),
        (["sh", "-c", f"echo password={SECRET} >&2; exit 3"], "exit 3: password=***", False),
        (["sh", "-c", "kill -9 $$"], "the command failed: signal 9", False),
        (["sh", "-c", "no-such-program"], "exit 127", True),
        (["/no/such/program"], "cannot run /no/such/program", True),
    ],
)
def test_a_command_that_fails(url: str, words: list[str], problem: str, permanent: bool) -> None:
    """A command that does not exit 0 has not accepted the message."""
    with telling(url, words, events=EVENTS) as fleet:
        with_news(fleet, "a")
        result = fleet.notify(patience=0)
        assert (result.sent, result.waiting, result.permanent) == (0, 1, permanent)
        assert problem in (result.problem or "")


def test_a_command_without_an_end(url: str, tmp_path: Path) -> None:
    """At its timeout a command is killed with all it started."""
    words = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; sleep 60"]
    with telling(url, words, events=EVENTS, timeout=0.5) as fleet:
        with_news(fleet, "a")
        assert fleet.notify(patience=0).problem == "no answer in 0.5 s"
    until(lambda: not alive(int((tmp_path / "pid").read_text())), 2)


# ── kill -9 ──

KILLED = """
import os, signal, sys
from modelctl import Fleet, crash_points
def die(name):
    if name == "after-send":
        os.kill(os.getpid(), signal.SIGKILL)
crash_points.hook = die
Fleet.open(sys.argv[1]).notify()
"""


def test_killed_between_the_yes_and_the_cursor(
    fleet_url: str, receiver: Receiver, tmp_path: Path
) -> None:
    """A run that is killed there is repeated: the message comes twice, and nothing is lost."""
    file = tmp_path / "config.toml"
    file.write_text(
        f'[database]\nurl = "{fleet_url}"\n[notify]\nurl = "{receiver.url}"\n'
        'events = ["disabled"]\nallow_http = true\nallow_private = true\n'
    )
    with Fleet.open(file) as fleet:
        with_news(fleet, "a")
        done = subprocess.run([sys.executable, "-c", KILLED, str(file)])
        assert done.returncode == -signal.SIGKILL
        assert receiver.events == [("a", "disabled")]
        fleet.disable("a", reason="more")
        assert fleet.notify().busy  # until the lease of the killed run ends
        lease = "UPDATE modelctl_state SET at = ? WHERE name = 'notify lease'"
        sql(fleet_url, lease, "2020-01-01T00:00:00.000Z")
        assert fleet.notify().sent == 1
    assert receiver.events == [("a", "disabled")] * 2
