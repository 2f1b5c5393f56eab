"""The cache protocol holds in every state of small worlds, and each of its rules is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest

from tests.count.protocol_model import (
    ALREADY,
    COLLAPSE,
    COUNT,
    DISABLE,
    DRAIN,
    ENABLE,
    FOREIGN,
    FRESH,
    PSQL_OFF,
    PSQL_ON,
    STRONG,
    Kind,
    Machine,
    Promise,
    RedisProtocol,
    Result,
    Scenario,
    SqliteProtocol,
    Wrong,
    explore,
    story,
)

S = TypeVar("S", bound=Hashable)

# Each world is as small as it can be and still shows something. The number is a floor for the
# states that are visited: a walk that stops early, or a model that lost a step, has fewer.
ANOTHER_PROGRAM = Scenario("another program", (DISABLE, COUNT, FOREIGN, DRAIN))
ANOTHER_OF_TWO = Scenario("another program, two counts", (DISABLE, COUNT, COUNT, FOREIGN, DRAIN))
REWRITTEN = Scenario("K rewritten at any time", (DISABLE, COUNT, COUNT), rewrites=True, wipe=True)
WIPED = Scenario("Redis wiped", (DISABLE, COUNT, COUNT), wipe=True)
TWO_CHANGES = Scenario("two changes, Redis wiped", (DISABLE, DISABLE, COUNT), wipe=True)
OFF_AND_ON = Scenario("off and on again", (DISABLE, PSQL_ON, COUNT), rewrites=True, wipe=True)
PREDECESSOR = Scenario("a predecessor was killed", (DISABLE, ALREADY, COUNT))
FRESH_COUNT = Scenario("count --fresh", (DISABLE, FRESH, COUNT))
FAILOVER = Scenario("failover", (DISABLE, COUNT), rewrites=True, wipe=True, failovers=1)
FAILOVER_OF_TWO = Scenario("failover, two counts", (DISABLE, COUNT, COUNT), failovers=1)
FAILOVER_AND_BACK = Scenario("failover and back", (DISABLE, COUNT), failovers=2)
SNAPSHOT = Scenario("restart from a snapshot", (DISABLE, COUNT), rewrites=True, snapshots=1)
RAW_SQL = Scenario("raw SQL", (PSQL_OFF, STRONG, COUNT, DRAIN))
RAW_SQL_TWICE = Scenario("raw SQL twice", (PSQL_OFF, PSQL_OFF, STRONG, DRAIN))
RAW_SQL_AND_BACK = Scenario("raw SQL off and on again", (PSQL_OFF, PSQL_ON, COUNT, STRONG))
RAW_SQL_FOREIGN = Scenario("raw SQL, another program", (PSQL_OFF, STRONG, DRAIN, FOREIGN))
RAW_SQL_FAILOVER = Scenario("raw SQL, failover", (PSQL_OFF, STRONG, DRAIN), failovers=1)
TWO_DRAINS = Scenario("two drains", (PSQL_OFF, DRAIN, DRAIN, FOREIGN))
TWO_DRAINS_TWO_ROWS = Scenario("two drains, two rows", (PSQL_OFF, PSQL_OFF, DRAIN, DRAIN, FOREIGN))
COLLAPSED = Scenario("collapsed", (PSQL_OFF, PSQL_OFF, STRONG, DRAIN, COLLAPSE))
COLLAPSED_CHANGE = Scenario("collapsed, a change", (DISABLE, PSQL_OFF, COUNT, COLLAPSE))
COLLAPSED_TWICE = Scenario("collapsed twice", (PSQL_OFF, DRAIN, DRAIN, FOREIGN, COLLAPSE, COLLAPSE))
OUT_OF_MEMORY = Scenario("Redis out of memory", (DISABLE, COUNT, DRAIN), out_of_memory=True)

SCENARIOS = [
    (FAILOVER_OF_TWO, 270_000),
    (ANOTHER_OF_TWO, 120_000),
    (ANOTHER_PROGRAM, 9_300),
    (REWRITTEN, 6_700),
    (WIPED, 3_600),
    (TWO_CHANGES, 6_200),
    (OFF_AND_ON, 2_300),
    (PREDECESSOR, 5_500),
    (FRESH_COUNT, 3_500),
    (FAILOVER, 28_000),
    (FAILOVER_AND_BACK, 39_000),
    (SNAPSHOT, 24_000),
    (RAW_SQL, 5_100),
    (RAW_SQL_TWICE, 3_200),
    (RAW_SQL_AND_BACK, 5_100),
    (RAW_SQL_FOREIGN, 1_600),
    (RAW_SQL_FAILOVER, 16_000),
    (TWO_DRAINS, 240),
    (TWO_DRAINS_TWO_ROWS, 6_600),
    (COLLAPSED, 3_200),
    (COLLAPSED_CHANGE, 3_900),
    (COLLAPSED_TWICE, 400),
    (OUT_OF_MEMORY, 3_600),
]

SQLITE = Scenario("SQLite", (COUNT, COUNT, DISABLE, DISABLE))
SQLITE_SCENARIOS = [
    (SQLITE, 500),
    (Scenario("SQLite, off and on again", (COUNT, COUNT, FRESH, DISABLE, ENABLE)), 3_100),
]

LARGER = [
    (Scenario("two other programs", (DISABLE, COUNT, FOREIGN, FOREIGN, DRAIN)), 29_000),
    (Scenario("change and raw SQL", (DISABLE, PSQL_OFF, STRONG, DRAIN)), 27_000),
    (Scenario("raw SQL three times", (PSQL_OFF, PSQL_OFF, PSQL_ON, STRONG, DRAIN)), 25_000),
    (Scenario("two counts --strong", (PSQL_OFF, STRONG, STRONG, DRAIN, FOREIGN)), 24_000),
    (Scenario("two changes", (DISABLE, DISABLE, COUNT, COUNT), rewrites=True, wipe=True), 309_000),
    (
        Scenario("disable and enable", (DISABLE, ENABLE, COUNT, COUNT), rewrites=True, wipe=True),
        216_000,
    ),
    (Scenario("two failovers", (DISABLE, COUNT, COUNT), failovers=2), 1_340_000),
    (Scenario("two changes, failover", (DISABLE, DISABLE, COUNT), failovers=1), 303_000),
    (
        Scenario("failover, all rewritten", (DISABLE, COUNT, COUNT), rewrites=True, failovers=1),
        638_000,
    ),
    (
        Scenario("failover, snapshot", (DISABLE, COUNT), rewrites=True, failovers=1, snapshots=1),
        139_000,
    ),
    (Scenario("raw SQL, two failovers", (PSQL_OFF, STRONG, DRAIN), failovers=2), 64_000),
    (Scenario("all kinds", (DISABLE, PSQL_OFF, STRONG, FOREIGN, DRAIN)), 223_000),
]

# What breaks without a rule, and in which of the worlds above it shows.
WITHOUT = [
    (Wrong.FILL_WITHOUT_LEASE, WIPED, Promise.READ_YOUR_WRITES),
    (Wrong.DEL_KEEPS_LEASE, WIPED, Promise.READ_YOUR_WRITES),
    (Wrong.LEASE_AFTER_COUNT, WIPED, Promise.READ_YOUR_WRITES),
    (Wrong.LEASE_DELETED_LAST, WIPED, Promise.READ_YOUR_WRITES),
    (Wrong.COUNTER_AS_NONCE, WIPED, Promise.READ_YOUR_WRITES),
    (Wrong.WATCH_MISSES_EXPIRY, WIPED, Promise.READ_YOUR_WRITES),
    (Wrong.VOUCH_NOT_CHECKED, REWRITTEN, Promise.READ_YOUR_WRITES),
    (Wrong.VOUCH_IS_ANY, REWRITTEN, Promise.READ_YOUR_WRITES),
    (Wrong.DEL_KEEPS_VOUCH, REWRITTEN, Promise.READ_YOUR_WRITES),
    (Wrong.K_BEFORE_VOUCH, REWRITTEN, Promise.READ_YOUR_WRITES),
    (Wrong.VOUCH_BEFORE_K, ANOTHER_PROGRAM, Promise.OTHERS),
    (Wrong.VOUCH_WITHOUT_RUN_ID, FAILOVER, Promise.READ_YOUR_WRITES),
    (Wrong.VOUCH_WITHOUT_RUN_ID, SNAPSHOT, Promise.READ_YOUR_WRITES),
    (Wrong.LEASE_WITHOUT_RUN_ID, FAILOVER, Promise.READ_YOUR_WRITES),
    (Wrong.LEASE_WITHOUT_RUN_ID, SNAPSHOT, Promise.READ_YOUR_WRITES),
    (Wrong.RUN_ID_ASKED_BEFORE, FAILOVER, Promise.READ_YOUR_WRITES),
    (Wrong.PRIMARY_AGAIN, FAILOVER_AND_BACK, Promise.READ_YOUR_WRITES),
    (Wrong.SLOW_FOREIGN, TWO_DRAINS, Promise.OTHERS),
    (Wrong.NO_SETTLE_PASS, ANOTHER_PROGRAM, Promise.OTHERS),
    (Wrong.SETTLE_JUDGED_LATE, TWO_DRAINS, Promise.OTHERS),
    (Wrong.SETTLE_JUDGED_WHEN_DUE, TWO_DRAINS, Promise.OTHERS),
    (Wrong.NO_OUTBOX, WIPED, Promise.NOTHING_LOST),
    (Wrong.NO_OP_KEEPS_CACHE, PREDECESSOR, Promise.READ_YOUR_WRITES),
    (Wrong.OLD_COUNT_AFTER_FORGET, RAW_SQL_TWICE, Promise.STRONG),
    (Wrong.DUE_AFTER_DEL, RAW_SQL_TWICE, Promise.STRONG),
    (Wrong.UP_TO_LAST_ID, RAW_SQL_TWICE, Promise.STRONG),
    (Wrong.COLLAPSE_KEEPS_OLDEST, COLLAPSED, Promise.STRONG),
    (Wrong.COLLAPSE_KEEPS_NEWEST, COLLAPSED, Promise.STRONG),
    (Wrong.STRONG_READS_FIRST, RAW_SQL, Promise.STRONG),
    (Wrong.STRONG_POLLS, RAW_SQL, Promise.STRONG),
]
WITHOUT_SQLITE = [
    Wrong.NONCE_NOT_IN_FILL,
    Wrong.LEASE_AFTER_COUNT,
    Wrong.WRITER_WITHOUT_TRIGGER,
]

# What each program must have done, for its world to show anything.
REACHED = {
    Kind.COUNT: {"read, a hit", "read, a miss", "lease", "watch, give up", "fill"},
    Kind.STRONG: {"owed? no", "read, a hit", "owed? yes", "snapshot, owed", "forget", "fill"},
    Kind.FRESH: {"lease", "lease, not got; snapshot", "fill"},
    Kind.CHANGE: {"commit", "del", "settle, exit 0", "answer lost, again", "database away, exit 0"},
    Kind.ALREADY: {"nothing to change", "del", "settle, exit 0"},
    Kind.DRAIN: {"due", "del", "settle"},
    Kind.PSQL: {"commit"},
    Kind.FOREIGN: {"setex", "gives up"},
    Kind.COLLAPSE: {"collapse"},
}


def walk(machine: Machine[S], scenario: Scenario) -> Result[S]:
    """Explore, and write how much there was and the counter-example if there is one."""
    began = time.perf_counter()
    result = explore(machine)
    seconds = time.perf_counter() - began
    rules = "".join(f", without: {rule}" for rule in scenario.wrong)
    sys.stdout.write(
        f"\n{scenario.name}{rules}: {result.states} states, "
        f"{result.transitions} transitions, {seconds:.1f} s\n"
    )
    if result.violation:
        sys.stdout.write(f"{story(machine, result)}\n")
    return result


def without(rule: Wrong, scenario: Scenario, *promises: Promise) -> Scenario:
    """Leave a rule out and look for a break of these promises alone (none named: of all)."""
    asked = frozenset(promises or Promise)
    return replace(scenario, wrong=frozenset({rule}), promises=asked)


def check_holds(machine: Machine[S], scenario: Scenario, floor: int) -> Result[S]:
    """Fail with the counter-example if a promise breaks, or if too little was visited."""
    result = walk(machine, scenario)
    assert not result.violation, story(machine, result)
    assert result.states >= floor
    return result


def check_breaks(machine: Machine[S], scenario: Scenario, promise: Promise) -> None:
    """Fail unless the promise breaks, in a way that can be walked again step by step."""
    result = walk(machine, scenario)
    rules = ", ".join(scenario.wrong) or "nothing"
    assert result.violation, f"{result.states} states and no counter-example without: {rules}"
    assert result.violation.startswith(promise)
    state = machine.initial()
    for step in result.trace:
        assert step in set(machine.steps(state))
        assert not machine.violation(state)
        state = step[1]
    assert machine.violation(state) == result.violation


def check_reached(scenario: Scenario, names: list[str], labels: frozenset[str]) -> None:
    """Fail if a program of the world never did what it is there for, or a fault never came."""
    for name, program in zip(names, scenario.programs, strict=True):
        for step in REACHED[program.kind]:
            assert any(label.startswith(f"{name}: {step}") for label in labels), (name, step)
    faults = (
        {"K expires", "lease expires", "vouch expires"} if COUNT in scenario.programs else set()
    )
    faults |= {"another program: setex 2"} if scenario.rewrites else set()
    faults |= {"Redis wiped"} if scenario.wipe else set()
    faults |= {"Redis out of memory"} if scenario.out_of_memory else set()
    faults |= {"copied", "failover"} if scenario.failovers else set()
    faults |= {"copied", "restart from the snapshot"} if scenario.snapshots else set()
    assert faults <= labels
    assert any(label.startswith("kill ") for label in labels)


@pytest.fixture
def _when_asked(request: pytest.FixtureRequest) -> None:
    """Run only with -m long."""
    if "long" not in request.config.option.markexpr:
        pytest.skip("takes minutes; run with -m long")


# --- the checker itself ---------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """Two clerks add 1 to one number; a state is the number and what each clerk has read."""

    careful: bool
    most: int = 2

    def initial(self) -> tuple[int, tuple[int | None, ...]]:
        """Nothing was added; -1 is a clerk who is done, None one who has read nothing."""
        return 0, (None, None)

    def steps(
        self, state: tuple[int, tuple[int | None, ...]]
    ) -> Iterator[tuple[str, tuple[int, tuple[int | None, ...]]]]:
        """Add in one step, or read in one and write in another."""
        number, clerks = state
        for me, read in enumerate(clerks):

            def after(mine: int, me: int = me) -> tuple[int | None, ...]:
                return (*clerks[:me], mine, *clerks[me + 1 :])

            if read is None:
                if self.careful:
                    yield f"{me} adds", (number + 1, after(-1))
                else:
                    yield f"{me} reads", (number, after(number))
            elif read >= 0:
                yield f"{me} writes", (read + 1, after(-1))

    def violation(self, state: tuple[int, tuple[int | None, ...]]) -> str:
        """Both are done and the number is too small."""
        number, clerks = state
        return "an addition is lost" if clerks == (-1, -1) and number < self.most else ""

    def show(self, state: tuple[int, tuple[int | None, ...]]) -> str:
        """Write the number."""
        return str(state[0])


def test_the_checker_finds_a_lost_update_by_the_shortest_way() -> None:
    """Read, read, write, write: four steps, and no way is shorter."""
    machine = Toy(careful=False)
    result = explore(machine)
    assert result.violation == "an addition is lost"
    assert len(result.trace) == 4
    assert [label.split()[1] for label, _ in result.trace] == ["reads", "reads", "writes", "writes"]
    assert story(machine, result).endswith("=> an addition is lost")


def test_the_checker_visits_every_state_once() -> None:
    """Two processes that add in one step have four states and four transitions, none of them wrong."""
    result = explore(Toy(careful=True))
    assert (result.states, result.transitions, result.violation) == (4, 4, "")
    assert result.labels == {"0 adds", "1 adds"}


def test_the_checker_sees_a_start_that_is_wrong() -> None:
    """A violation needs no step before it."""

    class Broken(Toy):
        def violation(self, state: tuple[int, tuple[int | None, ...]]) -> str:
            return "at once"

    result = explore(Broken(careful=True))
    assert (result.violation, result.trace) == ("at once", ())


def test_a_walk_that_does_not_end_proves_nothing() -> None:
    """Too many states are an error, not a pass."""
    with pytest.raises(RuntimeError, match="more than 3 states"):
        explore(Toy(careful=True), most=3)


# --- PostgreSQL and Redis -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "floor"), SCENARIOS, ids=[world.name for world, _ in SCENARIOS]
)
def test_the_protocol_holds(scenario: Scenario, floor: int) -> None:
    """No interleaving, kill, expiry or lost Redis of a small world breaks a promise."""
    machine = RedisProtocol(scenario)
    result = check_holds(machine, scenario, floor)
    check_reached(scenario, machine.names, result.labels)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("_when_asked")
@pytest.mark.parametrize(("scenario", "floor"), LARGER, ids=[world.name for world, _ in LARGER])
def test_the_protocol_holds_in_larger_worlds(scenario: Scenario, floor: int) -> None:
    """No state of a larger world breaks a promise."""
    machine = RedisProtocol(scenario)
    result = check_holds(machine, scenario, floor)
    check_reached(scenario, machine.names, result.labels)


@pytest.mark.parametrize(
    ("rule", "scenario", "promise"),
    WITHOUT,
    ids=[f"{rule.name}-{promise.name}" for rule, _, promise in WITHOUT],
)
def test_without_a_rule_a_promise_breaks(rule: Wrong, scenario: Scenario, promise: Promise) -> None:
    """Each rule is needed: without it there is a way to break a promise that holds with it."""
    variant = without(rule, scenario, promise)
    check_breaks(RedisProtocol(variant), variant, promise)


def test_every_rule_is_left_out_once() -> None:
    """No rule is without a counter-example, and each shows in a world where all is well with it."""
    assert {rule for rule, _, _ in WITHOUT} | set(WITHOUT_SQLITE) == set(Wrong)
    assert {scenario for _, scenario, _ in WITHOUT} <= {scenario for scenario, _ in SCENARIOS}


# --- SQLite ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "floor"), SQLITE_SCENARIOS, ids=[world.name for world, _ in SQLITE_SCENARIOS]
)
def test_the_sqlite_cache_is_always_right(scenario: Scenario, floor: int) -> None:
    """A count was right at some time since its start, whatever was killed or expired."""
    result = check_holds(SqliteProtocol(scenario), scenario, floor)
    assert {"count 1: read, a hit", "count 1: fill, give up", "kill count 1", "row expires"} <= (
        result.labels
    )


@pytest.mark.parametrize("rule", WITHOUT_SQLITE, ids=lambda rule: rule.name)
def test_without_a_rule_the_sqlite_cache_is_wrong(rule: Wrong) -> None:
    """Each rule of the SQLite cache is needed."""
    variant = without(rule, SQLITE)
    check_breaks(SqliteProtocol(variant), variant, Promise.SQLITE)
