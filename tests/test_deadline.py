"""Every call ends within database.timeout, whatever a server or a network in front of it does."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import DatabaseUnavailableError, Fleet, crash_points
from tests.fleets import opened, seed, sql
from tests.line import Line
from tests.servers import Postgres, silent_server
from tests.waiting import side_by_side

TIMEOUT = 1.0
# A loaded machine may be late, but not as late as a call without a limit.
SLACK = 4.0


@contextmanager
def in_time(seconds: float = TIMEOUT) -> Iterator[None]:
    """Fail if what is inside does not end in time."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds + SLACK


def impatient(url: str, **settings: object) -> Fleet:
    """Return a fleet with a short deadline."""
    return opened(url, database_timeout=f"{TIMEOUT}s", **settings)


CALLS: dict[str, Callable[[Fleet], Any]] = {
    "count": lambda fleet: fleet.count(),
    "list": lambda fleet: fleet.list_models(),
    "many": lambda fleet: list(fleet.iter_models()),
    "show": lambda fleet: fleet.show("a"),
    "stats": lambda fleet: fleet.stats(),
    "disable": lambda fleet: fleet.disable("a"),
    "disable several": lambda fleet: fleet.disable("a", "b"),
    "failure": lambda fleet: fleet.record_failure("a", "parse-error"),
    "batch": lambda fleet: fleet.record_batch([{"id": "a", "outcome": "success"}]),
    "import": lambda fleet: fleet.import_models(b'{"id": "new"}'),
    "recover": lambda fleet: fleet.recover(),
    "drain": lambda fleet: fleet.drain(),
    "upgrade": lambda fleet: fleet.upgrade(),
    "status": lambda fleet: fleet.schema_status(),
}


@pytest.mark.parametrize("kind", ["count", "disable", "upgrade"])
def test_a_server_that_takes_connections_and_says_nothing(kind: str) -> None:
    """A connection to a silent server is given up in time."""
    with (
        silent_server() as port,
        impatient(f"postgresql://u@127.0.0.1:{port}/x") as fleet,
        in_time(),
        pytest.raises(DatabaseUnavailableError),
    ):
        CALLS[kind](fleet)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.filterwarnings("ignore:.*ServerCursor.*deleted while still open:ResourceWarning")
def test_a_server_that_freezes(postgres: Postgres, pg_database: str, pooled: bool) -> None:
    """A server that freezes is given up in time, also on a used connection, and the fleet works later."""

    def call(kind: str, fleet: Fleet) -> None:
        with in_time(), pytest.raises(DatabaseUnavailableError):
            CALLS[kind](fleet)

    with ExitStack() as stack:
        fleets = {kind: stack.enter_context(impatient(pg_database)) for kind in CALLS}
        seed(fleets["count"], "ab")
        for fleet in fleets.values():
            assert fleet.show("a").status == "active"
            if not pooled:
                fleet.close()
        postgres.pause()
        try:
            side_by_side(call, fleets.items())
        finally:
            postgres.resume()
        for kind, fleet in fleets.items():
            after = fleet.disable("b").changes[0].after
            assert after == "disabled", kind


def test_a_backend_that_freezes_between_two_statements(pg_database: str) -> None:
    """A COMMIT that its backend never reads is in doubt, and said to be."""
    frozen: list[int] = []

    def freeze(point: str) -> None:
        if point == "before-commit" and not frozen:
            ours = "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'"
            frozen.extend(row[0] for row in sql(pg_database, ours))
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)

    with impatient(pg_database) as fleet:
        seed(fleet, "ab")
        crash_points.hook = freeze
        try:
            with in_time(), pytest.raises(DatabaseUnavailableError, match="it is not known"):
                fleet.disable("a", "b")
        finally:
            crash_points.hook = None
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        assert frozen


@pytest.mark.parametrize("ids", ["a", "ab"])
def test_a_commit_that_waits_for_a_standby(postgres: Postgres, pg_database: str, ids: str) -> None:
    """A COMMIT that waits for a missing standby is in doubt, exit 5, and holds later."""
    with impatient(pg_database) as fleet:
        seed(fleet, "ab")
        postgres.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        postgres.execute("SELECT pg_reload_conf()")
        try:
            sql(pg_database, "SELECT pg_sleep(0.2)")
            with in_time(), pytest.raises(DatabaseUnavailableError, match="it is not known"):
                fleet.disable(*ids)
        finally:
            postgres.execute("ALTER SYSTEM RESET synchronous_standby_names")
            postgres.execute("SELECT pg_reload_conf()")
        deadline_ = time.monotonic() + 10
        while fleet.count().active > 2 - len(ids) and time.monotonic() < deadline_:
            time.sleep(0.05)
        assert fleet.count().active == 2 - len(ids)


def test_a_name_server_that_is_silent(monkeypatch: pytest.MonkeyPatch, pg_database: str) -> None:
    """The host that it knows nothing of costs its share of the time; the next host is used."""
    asked: list[str] = []
    real = socket.getaddrinfo
    silence = threading.Event()

    def getaddrinfo(host: str, *args: Any, **how: Any) -> Any:
        if host != "silent.example":
            return real(host, *args, **how)
        asked.append(host)
        silence.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        with impatient("postgresql://u@silent.example/x") as fleet, in_time():
            for _ in range(2):
                with pytest.raises(DatabaseUnavailableError, match="name server"):
                    fleet.count()
        assert asked == ["silent.example"]  # the second one waits for the same answer
        port = pg_database.rpartition(":")[2].partition("/")[0]
        both = pg_database.replace(f"@127.0.0.1:{port}", f"@silent.example:{port},localhost:{port}")
        with impatient(both) as fleet, in_time():
            assert fleet.count().active == 0
    finally:
        silence.set()


# ── A way to the server that is slow, or ends ──


@settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 4000), min_size=24, max_size=24))
def test_a_line_that_fails_at_any_byte(
    postgres: Postgres, pg_database: str, places: list[int]
) -> None:
    """The call ends in time, and what it says of its change is what the table says."""
    ways = product(
        ["up", "down"], ["stop", "drip", "cut", "delay"], ["failure", "several", "count"]
    )
    cases = [
        Case(number, *way, at) for number, (way, at) in enumerate(zip(ways, places, strict=True))
    ]
    sql(pg_database, "DELETE FROM models")
    for case in cases:
        sql(pg_database, "INSERT INTO models (id) VALUES (?), (?)", *case.ids)
    said: dict[Case, str] = {}
    side_by_side(
        lambda case: said.update({case: call_behind_a_line(case, postgres.port, pg_database)}),
        [(case,) for case in cases],
    )
    # What arrived at the server after all may still be at work.
    busy = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
    busy += " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    ends = time.monotonic() + 20
    while sql(pg_database, busy) and time.monotonic() < ends:
        time.sleep(0.02)
    look = "SELECT failure_count > 0 OR NOT active FROM models WHERE id = ?"
    for case in cases:
        changed = sql(pg_database, look, case.ids[0])[0][0]
        if case.kind == "count":
            continue
        if not said[case]:
            assert changed, case
        elif "it is not known" not in said[case]:
            assert not changed, case


class Case(NamedTuple):
    """A call behind a line that fails; see `Line`."""

    number: int
    side: str
    how: str
    kind: str
    at: int

    @property
    def ids(self) -> tuple[str, str]:
        """The two models that are this case's alone."""
        return f"{self.number}-a", f"{self.number}-b"


def call_behind_a_line(case: Case, port: int, url: str) -> str:
    """Return what the error of the call said, "" if it was done."""
    line = Line(port)
    line.side, line.at, line.how = case.side, case.at, case.how
    behind = url.replace(f":{port}/", f":{line.port}/") + "?sslmode=disable"
    try:
        with impatient(behind, database_pool_size=1) as fleet, in_time():
            if case.kind == "count":
                assert 32 <= fleet.count().active <= 48  # beside the calls that disable two each
            elif case.kind == "failure":
                fleet.record_failure(case.ids[0], "parse-error")
            else:
                fleet.disable(*case.ids)
    except DatabaseUnavailableError as exc:
        return exc.message
    finally:
        line.close()
    return ""
