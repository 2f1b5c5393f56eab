"""PostgreSQL breaks at any step of a command, or others are in its way: all or nothing, and said."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from modelctl import DatabaseUnavailableError, Fleet, crash_points
from modelctl.database import bulk, database
from modelctl.model import CacheState
from tests import commands
from tests.faults.relays import BATCH, BOARD, ENDS, MULTIPLE, READS, SINGLE, RelayedWorld
from tests.fleets import opened
from tests.servers import Postgres
from tests.world import KEY, STATS

# PostgreSQL


ROWS = (
    "UPDATE models SET consecutive_failures = 4 WHERE id = 'm3'",
    "INSERT INTO models (id, active, auto_disabled, last_failure_at) SELECT 'off' || n, FALSE,"
    " TRUE, now() - interval '1 day' FROM generate_series(1, 3) AS n",
)
COMMIT = b"COMMIT\0"
# The other ways to end mean the same to the client.
WAYS = [
    (kind, how)
    for kind in SINGLE | MULTIPLE
    for how in ENDS.values()
    if how in ("drop", "lose") or kind in ("failure", "batch")
]


def without_operation(result: Any) -> Any:
    """Return a result without the id of its operation, which each call has anew."""
    return replace(result, operation=None)


def dry(world: RelayedWorld, call: Callable[[Fleet], Any]) -> tuple[Any, list[Any], list[bytes]]:
    """Make a change without a fault: its result, all states on the way, what was asked."""
    world.renew(*ROWS)
    world.fleet.stats()  # the first connection of all asks the server more
    world.to_postgres.heal()
    world.to_postgres.disconnect()
    states = [world.state()]

    def look(request: bytes) -> None:
        if states[-1] != (now := world.state()):
            states.append(now)

    world.to_postgres.fault = look
    result = without_operation(call(world.fleet))
    look(b"")
    assert result.cache == CacheState.INVALIDATED
    return result, states, list(world.to_postgres.requests)


@pytest.mark.parametrize(("kind", "how"), WAYS)
@pytest.mark.filterwarnings("ignore:.*ServerCursor.*deleted while still open:ResourceWarning")
def test_a_change_whose_connection_ends_at_any_step(
    world: RelayedWorld,
    kind: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a result or an error says of the change is true; nothing is half done or done twice."""
    monkeypatch.setattr(bulk, "CHUNK", 2 if kind == "recover" else 5)
    call = (SINGLE | MULTIPLE)[kind]
    result, states, requests = dry(world, call)
    assert len(states) == (3 if kind == "recover" else 2)
    commits = [step for step, request in enumerate(requests) if COMMIT in request]
    for step in range(len(requests)):
        world.renew(*ROWS)
        world.to_postgres.disconnect()
        world.to_postgres.break_at(step, how, once=True)
        done = error = None
        try:
            done = call(world.fleet)
        except DatabaseUnavailableError as exc:
            error = exc.message
        state = world.state()
        if error is None:
            assert (without_operation(done), state) == (result, states[-1])
            assert not world.redis.exists(KEY, STATS, BOARD)
        else:
            assert state in states[: 1 if kind != "recover" else None]
            assert "it is not known" not in error
            assert ("the change was not made" in error) == (step in commits)
        if step in commits:
            assert (error is None) == (how in ("lose", "cut"))
        world.to_postgres.heal()
        assert not world.warnings
        # What recover lists is read by a cursor that cannot be closed any more.
        assert set(caplog.messages) <= {"Error closing cursor"}
        assert world.fleet.drain().queued == 0
        world.sql("DELETE FROM modelctl_outbox WHERE settle")
        world.assert_right()
        if state != states[0]:
            world.assert_delivered()
    gc.collect()  # a cursor that could not be closed warns now, not in another test


@pytest.mark.parametrize("how", ENDS.values(), ids=ENDS)
def test_a_failure_whose_commit_is_not_answered(world: RelayedWorld, how: str) -> None:
    """A failure whose COMMIT gets no answer is recorded once and reported, or not at all."""
    result, _, requests = dry(world, SINGLE["failure"])
    world.renew(*ROWS)
    world.to_postgres.disconnect()
    commit = next(step for step, request in enumerate(requests) if COMMIT in request)
    world.to_postgres.break_at(commit, how, once=True)
    arrived = how in ("lose", "cut")
    if arrived:
        assert without_operation(SINGLE["failure"](world.fleet)) == result
    else:
        with pytest.raises(DatabaseUnavailableError, match="the change was not made"):
            SINGLE["failure"](world.fleet)
    tried = [b"failure_count = " in request for request in world.to_postgres.requests]
    assert tried.count(True) == 1
    model = world.fleet.show("m3")
    assert (model.failure_count, model.status) == (
        (1, "auto-disabled") if arrived else (0, "active")
    )
    assert len(world.fleet.events("m3")) == arrived


@pytest.mark.parametrize("kind", [*SINGLE, *MULTIPLE])
@pytest.mark.parametrize("how", ENDS.values(), ids=ENDS)
def test_a_change_whose_outcome_is_unknown(world: RelayedWorld, how: str, kind: str) -> None:
    """A COMMIT without an answer and no server to ask: the error says that it is not known."""
    call = (SINGLE | MULTIPLE)[kind]
    _, states, requests = dry(world, call)
    commit = next(n for n, request in enumerate(requests) if COMMIT in request)
    world.renew(*ROWS)
    world.to_postgres.disconnect()
    world.to_postgres.break_at(commit, how, once=False)
    with pytest.raises(DatabaseUnavailableError, match="it is not known whether"):
        call(world.fleet)
    assert world.state() == states[how in ("lose", "cut")]
    world.to_postgres.heal()
    world.fleet.drain()
    world.assert_right()


@pytest.mark.parametrize("method", ["upgrade", "detach", "uninstall"])
@pytest.mark.parametrize("how", ENDS.values(), ids=ENDS)
def test_a_schema_change_whose_outcome_is_unknown(
    world: RelayedWorld, how: str, method: str
) -> None:
    """A COMMIT without an answer: it is not known whether the schema was changed; it may be repeated."""
    if method == "upgrade":
        world.sql("DROP TABLE modelctl_ignored")
    before = world.fleet.schema_status()
    world.to_postgres.disconnect()
    world.to_postgres.fault = lambda request: how if COMMIT in request else None
    with pytest.raises(DatabaseUnavailableError, match="it is not known whether the schema"):
        getattr(world.fleet, method)()
    world.to_postgres.heal()
    assert (world.fleet.schema_status() != before) == (how in ("lose", "cut"))
    getattr(world.fleet, method)()
    assert world.fleet.schema_status() != before
    world.fleet.upgrade()
    assert world.fleet.schema_status().up_to_date


@pytest.mark.parametrize("how", ENDS.values(), ids=ENDS)
def test_a_commit_without_a_transaction_id(
    world: RelayedWorld, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of several models without a transaction id: it is not known, and nothing is claimed."""
    call = MULTIPLE["disable several"]
    _, states, _ = dry(world, call)
    world.renew(*ROWS)
    world.fleet.close()
    asks = "CAST(pg_current_xact_id() AS text), pg_postmaster_start_time(),"
    assert asks in database._WRITE
    monkeypatch.setattr(database, "_WRITE", database._WRITE.replace(asks, ""))
    world.to_postgres.fault = lambda request: how if COMMIT in request else None
    with pytest.raises(DatabaseUnavailableError, match="it is not known whether") as caught:
        call(world.fleet)
    assert "nothing was changed" not in f"{caught.value.message} {caught.value.hint}"
    assert world.state() == states[how in ("lose", "cut")]
    world.to_postgres.heal()
    world.fleet.drain()
    world.assert_right()
    world.fleet.close()  # its transactions would go on to begin like that


@pytest.mark.parametrize("kind", SINGLE | MULTIPLE)
def test_an_interrupt_before_commit(
    world: RelayedWorld, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C rolls the change back, and the next change uses the same connection."""
    call = (SINGLE | MULTIPLE)[kind]
    result, states, _ = dry(world, call)
    world.renew(*ROWS)
    asked = world.to_postgres.requests
    before: list[bytes] = []

    def interrupt(point: str) -> None:
        monkeypatch.setattr(crash_points, "hook", None)
        before.extend(asked)
        raise KeyboardInterrupt

    monkeypatch.setattr(crash_points, "hook", interrupt)
    with pytest.raises(KeyboardInterrupt):
        call(world.fleet)
    assert world.state() == states[0]
    assert b"ROLLBACK\0" in asked[len(before)]
    assert without_operation(call(world.fleet)) == result
    # Its first message begins with a length, whose first byte is 0.
    assert not any(request.startswith(b"\0") for request in asked)
    assert world.state() == states[-1]
    world.assert_delivered()


@pytest.mark.parametrize("how", ["reset", "cut"])
@pytest.mark.parametrize("kind", READS)
@pytest.mark.filterwarnings("ignore:.*ServerCursor.*deleted while still open:ResourceWarning")
def test_a_read_whose_connection_ends_at_any_step(world: RelayedWorld, kind: str, how: str) -> None:
    """A read whose connection ends is an error to retry, and the next call works."""
    call = READS[kind]
    world.to_postgres.disconnect()
    world.to_postgres.heal()
    call(world.fleet)
    for step in range(len(world.to_postgres.requests)):
        world.renew()
        world.to_postgres.disconnect()
        world.to_postgres.break_at(step, how, once=True)
        with pytest.raises(DatabaseUnavailableError, match="not available"):
            call(world.fleet)
        world.to_postgres.heal()
        assert call(world.fleet) == call(world.other)
    gc.collect()  # a cursor that could not be closed warns now, not in another test


def test_a_listing_whose_connection_ends(
    world: RelayedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing whose connection ends gives one JSON value with the error, and no traceback."""
    monkeypatch.setenv("MODELCTL_DATABASE_URL", world.postgres_url)
    world.to_postgres.fault = lambda request: "lose" if b"CLOSE" in request else None
    done = commands.run("list", "-o", "json")
    assert (done.code, done.json["error"]["code"], done.err) == (5, "database_unavailable", "")


# Other programs in the way


@contextmanager
def another(world: RelayedWorld, statement: str) -> Iterator[psycopg.Connection]:
    """Let another program do something in a transaction, which is committed at the end."""
    with psycopg.connect(world.database) as other:
        other.execute("SET deadlock_timeout = '1min'")
        other.execute(statement.encode())
        yield other


@contextmanager
def waiting(world: RelayedWorld, call: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Let a call run in a thread until it waits for a lock."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        deadline = time.monotonic() + 10
        while not world.sql(f"SELECT 1 FROM pg_stat_activity WHERE {WAITS}"):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield future


WAITS = (
    "wait_event_type = 'Lock' AND datname = current_database() AND application_name = 'modelctl'"
)
WRITE_LOCK = "LOCK TABLE models IN SHARE MODE"
LIMITS = {
    "lock timeout": "lock_timeout=100",
    "statement timeout": "lock_timeout=0 -c statement_timeout=150",
}


@pytest.mark.parametrize("kind", SINGLE | MULTIPLE)
@pytest.mark.parametrize("limit", LIMITS)
def test_a_change_that_waits_too_long(world: RelayedWorld, limit: str, kind: str) -> None:
    """A change that waits too long is "busy" and changes nothing; later the same fleet makes it."""
    call = (SINGLE | MULTIPLE)[kind]
    world.renew(*ROWS)
    before = world.state()
    with world.open(options=f"-c {LIMITS[limit]}") as fleet:
        with (
            another(world, WRITE_LOCK),
            pytest.raises(DatabaseUnavailableError, match=rf"busy.*{limit}"),
        ):
            call(fleet)
        assert world.state() == before
        assert call(fleet).cache == CacheState.INVALIDATED
    assert world.state() != before
    world.assert_delivered()


@pytest.mark.parametrize("kind", SINGLE | MULTIPLE)
def test_a_change_whose_server_process_ends(world: RelayedWorld, kind: str) -> None:
    """Terminated in the middle of its statement it changes nothing, and is made when repeated."""
    call = (SINGLE | MULTIPLE)[kind]
    world.renew(*ROWS)
    before = world.state()
    with another(world, WRITE_LOCK), waiting(world, lambda: call(world.fleet)) as future:
        world.sql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {WAITS}")
        with pytest.raises(DatabaseUnavailableError, match=r"not available.*terminating") as caught:
            future.result()
    assert "it is not known" not in caught.value.message
    assert world.state() == before
    assert call(world.fleet).cache == CacheState.INVALIDATED
    world.assert_delivered()


def test_a_server_that_crashes_in_the_middle(world: RelayedWorld, postgres: Postgres) -> None:
    """A batch that was under way is not recorded; after the restart the same fleet records it."""
    world.renew(*ROWS)
    before = world.state()
    with (
        another(world, WRITE_LOCK) as other,
        waiting(world, lambda: world.fleet.record_batch(BATCH)) as future,
    ):
        postgres.kill()
        with pytest.raises(DatabaseUnavailableError):
            future.result()
        other.close()
    with pytest.raises(DatabaseUnavailableError):
        world.fleet.record_batch(BATCH)
    assert world.fleet.count().source == world.other.count().source == "cache"
    postgres.start()
    world.disconnect()
    assert world.state() == before
    assert world.fleet.record_batch(BATCH).recorded == 3
    world.assert_delivered()


def test_too_many_connections(world: RelayedWorld) -> None:
    """A server without free connections is unavailable; a cached count needs no connection."""
    world.sql("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
    url = world.database.replace("postgres@", "crowd@")
    with opened(url, redis_url=f"redis://127.0.0.1:{world.to_redis.port}/0") as fleet:
        assert fleet.count().source == "cache"
        for call in (*READS.values(), *SINGLE.values(), *MULTIPLE.values()):
            with pytest.raises(DatabaseUnavailableError, match="too many connections"):
                call(fleet)
    world.sql("DROP ROLE crowd")


@pytest.mark.parametrize("kind", ["disable several", "import"])
def test_a_deadlock_with_another_program(world: RelayedWorld, kind: str) -> None:
    """A change that PostgreSQL aborts for a deadlock is made again from the beginning, once."""
    world.renew(*ROWS)
    result, states, _ = dry(world, MULTIPLE[kind])
    world.renew(*ROWS)
    # The change has the first row, and waits for the second one, when the other program asks for the first.
    first, second = {
        "disable several": ("SELECT 1 FROM models WHERE id = 'm1' FOR UPDATE", "m2"),
        "import": ("INSERT INTO models (id) VALUES ('new')", "m1"),
    }[kind]
    with (
        another(world, f"SELECT 1 FROM models WHERE id = '{second}' FOR UPDATE") as other,
        waiting(world, lambda: MULTIPLE[kind](world.fleet)) as future,
    ):
        other.execute(first.encode())
        other.rollback()
        assert without_operation(future.result()) == result
    assert world.state() == states[-1]
    assert any(b"ROLLBACK\0" in request for request in world.to_postgres.requests)
    world.assert_delivered()


# It watches the rows that it has read; in a scan of the table that is all of them.
STRICT = "-c enable_indexscan=off"
STRICT += " -c enable_bitmapscan=off -c enable_indexonlyscan=off"


def serializable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writes be of a level at which the server refuses them, as a pooler might."""
    strict = database._WRITE.replace("READ COMMITTED", "SERIALIZABLE")
    monkeypatch.setattr(database, "_WRITE", strict)


@pytest.mark.parametrize("kind", SINGLE | MULTIPLE)
def test_a_serialization_failure_at_the_end(
    world: RelayedWorld, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction whose COMMIT fails to serialize is made again, once."""
    call = (SINGLE | MULTIPLE)[kind]
    result, states, _ = dry(world, call)
    world.renew(*ROWS)
    met: list[str] = []

    def interfere(point: str) -> None:
        met.append(point)
        if len(met) > 1:
            return
        with psycopg.connect(world.database) as other:
            other.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            other.execute("SELECT sum(failure_count) FROM models")
            other.execute("SELECT count(*) FROM modelctl_events")
            other.execute("UPDATE models SET display_name = 'x' WHERE id = 'm4'")

    monkeypatch.setattr(crash_points, "hook", interfere)
    serializable(monkeypatch)
    with world.open(options=STRICT) as fleet:
        assert without_operation(call(fleet)) == result
    # That of recover has a transaction more, which notes that it ran.
    tries = 3 if kind == "recover" else 2
    assert met[: tries + 1] == ["before-commit"] * tries + ["after-commit"]
    assert world.state() == states[-1]
    world.assert_delivered()


@pytest.mark.parametrize("kind", SINGLE)
def test_a_serialization_failure_of_one_statement(
    world: RelayedWorld, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that changed while a change waited for it is changed at the second try, once."""
    result, states, _ = dry(world, SINGLE[kind])
    world.renew(*ROWS)
    serializable(monkeypatch)
    with (
        world.open(options=STRICT) as fleet,
        another(world, "UPDATE models SET display_name = 'x'") as other,
        waiting(world, lambda: SINGLE[kind](fleet)) as future,
    ):
        other.commit()
        assert without_operation(future.result()) == result
    assert world.state() == states[-1]
    world.assert_delivered()
