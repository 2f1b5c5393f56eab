"""A fleet used in random ways beside other programs, checked against a plain dict after each step.

Two things may go on at the same time: readers and other programs are cut into their steps, and
an operation can run in the middle of another one, at the points that the product names. Time
does not pass by itself: keys expire and the 15 s of the settle pass are over when a rule says so,
only when the two times the protocol counts on allow it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from modelctl.count import outbox, protocol
from tests.faults.machine import Machine
from tests.faults.machine_rules import FleetRules, StatusRules
from tests.faults.oracle import MachineWorld, deliveries, rarely
from tests.servers import Redis
from tests.world import KEY, LEASE, VOUCH

# ── The machine ─────────────────────────────────────────────────────────────────────────────────


class RedisMachine(FleetRules):
    """PostgreSQL and Redis, which expires, is wiped and goes away, and programs that share K."""

    @rule(how=deliveries, later=st.booleans())
    def delivering(self, how: str, later: bool) -> None:
        """Deliver what is due, perhaps 15 s after the last time."""
        if later:
            self.fifteen_seconds()
        self.deliver(how)

    @rule(read=st.booleans(), which=st.integers(0, 2), for_ever=rarely)
    def another_program(self, read: bool, which: int, for_ever: bool) -> None:
        """Another program counts, or writes what it counted earlier."""
        if read or not self.foreign:
            self.foreign_read()
        else:
            self.foreign_write(which, for_ever)

    @rule(fault=st.sampled_from([KEY, LEASE, VOUCH, "foreign_delete", "wipe", "leave"]))
    def losing(self, fault: str) -> None:
        """A key expires or is deleted, Redis is wiped or goes away; or it comes back empty."""
        if self.away and self.world.server is not None:
            self.world.server.start()
            self.away = False
        elif fault in (KEY, LEASE, VOUCH):
            self.expire(fault)
        else:
            self.do((fault,))

    @invariant()
    def outbox(self) -> None:
        """The outbox has the rows it should; empty, K is right for everybody."""
        assert self.world.queue == (self.queued, self.settling)
        if not (self.away or self.queued or self.settling):
            assert self.world.ask("GET", KEY) in (None, str(self.active))


class WholeMachine(StatusRules, RedisMachine):
    """All of it."""


class SqliteMachine(StatusRules):
    """SQLite, whose cache lies in the same file and is always right."""

    @invariant()
    def always_right(self) -> None:
        """Whatever another program wrote, a plain count is right."""
        assert self.believable == {self.active}


# ── The tests ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by rule: no retries, no polls, and 15 s are never over by themselves."""
    monkeypatch.setattr(protocol, "INVALIDATE_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(protocol, "WARN_SECONDS", 0)
    monkeypatch.setattr(outbox, "SETTLE_SECONDS", 3600)


@pytest.fixture
def redis_world(
    pg_database: str, redis_server: Redis, redis_url: str, _no_waiting: None
) -> Iterator[MachineWorld]:
    """Give a fleet on PostgreSQL and Redis."""
    with MachineWorld(pg_database, redis_server) as world:
        yield world


@pytest.fixture
def sqlite_world(sqlite_database: str, _no_waiting: None) -> Iterator[MachineWorld]:
    """Give a fleet on SQLite."""
    with MachineWorld(sqlite_database) as world:
        yield world


def explore(
    machine: type[Machine], world: MachineWorld, examples: int, *, random: bool = False
) -> None:
    """Run *examples* examples: always the same, or different ones each time."""
    # Any function that makes one will do, although the types say class.
    make = cast("type[Machine]", lambda: machine(world))
    run_state_machine_as_test(
        make,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            derandomize=not random,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


EXAMPLES = [(RedisMachine, 40), (WholeMachine, 25)]


# A failure is made smaller before it is shown, which takes minutes.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("machine", "examples"), EXAMPLES)
def test_postgresql_and_redis(
    redis_world: MachineWorld, machine: type[Machine], examples: int
) -> None:
    """Whatever happens in whatever order, rows, events, outbox and every count are right."""
    explore(machine, redis_world, examples)


@pytest.mark.timeout(900)
def test_sqlite(sqlite_world: MachineWorld) -> None:
    """The same holds on SQLite, where a count is right at once, whichever program changed the table."""
    explore(SqliteMachine, sqlite_world, 20)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("machine", "examples"), EXAMPLES)
def test_postgresql_and_redis_for_long(
    redis_world: MachineWorld, machine: type[Machine], examples: int
) -> None:
    """The same holds for 25 times as many examples, different ones each time."""
    explore(machine, redis_world, 25 * examples, random=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_sqlite_for_long(sqlite_world: MachineWorld) -> None:
    """The same holds for twenty times as many examples, different ones each time."""
    explore(SqliteMachine, sqlite_world, 20 * 20, random=True)
