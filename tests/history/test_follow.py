"""`events --follow` prints each event as it comes, and outlives a database that goes away."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

import psycopg
import pytest

from modelctl import Fleet
from tests import commands
from tests.commands import Cli
from tests.fleets import opened, seed
from tests.servers import Postgres


@contextmanager
def following(url: str, *options: str) -> Iterator[Popen[bytes]]:
    """Run `events --follow` in a process of its own until the block ends."""
    environ = os.environ | {"MODELCTL_DATABASE_URL": url}
    words = ["events", "--follow", "-o", "jsonl", *options]
    with commands.start(*words, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_event(process: Popen[bytes]) -> tuple[str, str]:
    """Wait for the next line; return its model and event."""
    assert process.stdout
    line = json.loads(process.stdout.readline())
    return line["model_id"], line["event"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_events_come_as_they_are_written(fleet: Fleet, fleet_url: str, stop: int) -> None:
    """Past events come from --after on, then new ones; a signal ends it without a traceback."""
    seed(fleet, "ab")
    with following(fleet_url, "--after", "0") as process:
        assert [next_event(process) for _ in "ab"] == [("a", "added"), ("b", "added")]
        fleet.disable("a", "b")
        assert [next_event(process) for _ in "ab"] == [("a", "disabled"), ("b", "disabled")]
        process.send_signal(stop)
        out, err = process.communicate(timeout=commands.SECONDS)
    assert (out, process.returncode) == (b"", 130 if stop == signal.SIGINT else -stop)
    assert err in (b"", b"error: Interrupted; what was not committed is not done.\n")


def test_filters_work(fleet: Fleet, fleet_url: str) -> None:
    """A filter leaves out other events, and the cursor goes on behind them."""
    seed(fleet, "ab")
    with following(fleet_url, "--after", "0", "--event", "disabled") as process:
        fleet.disable("a")
        fleet.enable("a")
        fleet.disable("b")
        assert [next_event(process) for _ in "ab"] == [("a", "disabled"), ("b", "disabled")]


def test_a_late_commit_is_not_missed(pg: Fleet, pg_cleared: str) -> None:
    """An event with a smaller id that commits later comes first, and both come."""
    seed(pg, "a")
    with following(pg_cleared, "--after", "0") as process, psycopg.connect(pg_cleared) as slow:
        assert next_event(process) == ("a", "added")
        slow.execute("INSERT INTO modelctl_events (model_id, event) VALUES ('slow', 'tried')")
        pg.disable("a")
        slow.commit()
        assert [next_event(process) for _ in "ab"] == [("slow", "tried"), ("a", "disabled")]


def test_a_database_that_goes_away(pg_database: str, postgres: Postgres) -> None:
    """While the server is down it says so once, and it goes on when the server is back."""
    with opened(pg_database) as fleet:
        seed(fleet, "a")
    with following(pg_database, "--after", "0") as process:
        assert process.stderr
        assert next_event(process) == ("a", "added")
        postgres.stop()
        assert b"trying again every second" in process.stderr.readline()
        postgres.start()
        assert b"the database is back" in process.stderr.readline()
        with opened(pg_database) as fleet:
            fleet.disable("a")
        assert next_event(process) == ("a", "disabled")


def test_what_makes_no_sense_with_follow(tool: Cli) -> None:
    """One JSON value, a limit and an end do not go with an endless listing."""
    refused = tool("events", "--follow", "-o", "json")
    assert (refused.code, refused.json["error"]["hint"]) == (2, "use -o jsonl")
    tool("events", "--follow", "--limit", "3").failed(2, "neither --limit nor --until")
    tool("events", "--follow", "--until", "1h").failed(2, "neither --limit nor --until")


def test_no_database_at_the_beginning(tool: Cli) -> None:
    """Only a database that was there is waited for."""
    url = "postgresql://nobody@127.0.0.1:1/none"
    tool("events", "--follow", database_url=url).failed(5)
