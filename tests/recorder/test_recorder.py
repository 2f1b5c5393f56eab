"""The recorder: what an application records is in the database, in its order, whatever happens."""

from __future__ import annotations

import os
import re
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import DatabaseUnavailableError, Fleet, ModelNotFoundError, RefusedError, UsageError
from modelctl.recorder import background as module
from tests import ROOT, waiting
from tests.faults.relays import RelayedWorld
from tests.faults.test_postgres_faults import COMMIT
from tests.fleet.test_forks import child
from tests.fleets import clear, environ, events, is_sqlite, opened, put, rows, sql
from tests.recorder.conftest import Told, locked
from tests.servers import Postgres, Redis

IDS = ("a", "b", "c")
KINDS = (None, None, "parse-error", "client-error", "timeout")


def counts(url: str, *ids: str) -> list[tuple[int, int]]:
    """Return successes and failures of each model."""
    found = {
        row[0]: row[1:] for row in sql(url, "SELECT id, success_count, failure_count FROM models")
    }
    return [found[model_id] for model_id in ids]


def record(to: Any, model_id: str, kind: str | None, reason: str) -> None:
    """Record an outcome with a fleet, or with a recorder."""
    if isinstance(to, Fleet):
        to.record_failure(model_id, kind, reason=reason) if kind else to.record_success(model_id)
    elif kind:
        to.failure(model_id, kind, reason=reason)
    else:
        to.success(model_id)


# ── What is recorded ──


@given(
    outcomes=st.lists(
        st.tuples(st.sampled_from(IDS), st.sampled_from(KINDS), st.sampled_from(["x", "y"])),
        max_size=40,
    ),
    batch=st.integers(1, 12),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_it_records_what_single_calls_record(
    fleet: Fleet,
    fleet_url: str,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: list[tuple[str, str | None, str]],
    batch: int,
) -> None:
    """For each model the row and the events are those of the same outcomes, recorded one by one."""
    found = []
    for make in (lambda: fleet, fleet.recorder):
        clear(fleet_url)
        put(fleet_url, *IDS)
        monkeypatch.setattr(module, "BATCH", batch)
        to = make()
        for outcome in outcomes:
            record(to, *outcome)
        if to is not fleet:
            to.close()
        history = events(fleet_url)
        found.append((rows(fleet_url), {i: [e for e in history if e[0] == i] for i in IDS}))
    assert found[0] == found[1]


def test_when_it_writes(told: Told) -> None:
    """Successes wait for about a second; a failure that counts takes them along at once."""
    put(told.url, *IDS)
    with told.fleet.recorder() as recorder:
        recorder.success("a")
        recorder.failure("a", "timeout")
        assert recorder.stats.waiting == 2
        waiting.until(lambda: recorder.stats.recorded == 2)
        recorder.success("b")
        recorder.failure("c", "parse-error", wait=True)
        assert counts(told.url, *IDS) == [(1, 1), (1, 0), (0, 1)]
        assert recorder.stats.waiting == 0


def test_outcomes_that_come_while_it_writes(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that counts is written at once, but not what comes after it."""
    from modelctl import crash_points

    put(told.url, *IDS)
    monkeypatch.setattr(module, "SECONDS", 1.5)

    def come(point: str) -> None:
        if point == "before-commit":
            recorder.success("b")

    with told.fleet.recorder() as recorder:
        crash_points.hook = come
        try:
            recorder.failure("a", "parse-error", wait=True)
        finally:
            crash_points.hook = None
        threading.Event().wait(0.5)
        assert (recorder.stats.recorded, recorder.stats.waiting) == (1, 1)
        waiting.until(lambda: recorder.stats.waiting == 0)


def test_many_at_once(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many waiting outcomes are written before their second is over, in batches."""
    put(told.url, *IDS)
    monkeypatch.setattr(module, "SECONDS", 60.0)
    with told.fleet.recorder() as recorder:
        for _ in range(module.BATCH):
            recorder.success("a")
        waiting.until(lambda: recorder.stats.recorded == module.BATCH)
    assert counts(told.url, "a") == [(module.BATCH, 0)]


def test_eight_threads(told: Told) -> None:
    """Threads share a recorder: nothing is lost, and each thread's model has its order."""
    ids = [f"m{number}" for number in range(8)]
    put(told.url, *ids)

    def work(model_id: str) -> None:
        for number in range(400):
            recorder.success(model_id)
            if number % 100 == 99:
                recorder.failure(model_id, "parse-error", reason=str(number), wait=True)

    with told.fleet.recorder() as recorder:
        waiting.side_by_side(work, [(model_id,) for model_id in ids])
    assert counts(told.url, *ids) == [(400, 4)] * 8
    assert recorder.stats.recorded == 8 * 404
    found = sql(told.url, "SELECT DISTINCT consecutive_failures, failure_reason FROM models")
    assert found == [(1, "399")]


def test_the_actor_is_in_the_history(told: Told) -> None:
    """Events have the actor of the recorder, else that of the fleet."""
    put(told.url, *IDS)
    for model_id, actor, shown in (("a", None, "tester"), ("b", "web", "web")):
        with told.fleet.recorder(actor=actor) as recorder:
            for _ in range(5):
                recorder.failure(model_id, "parse-error")
        assert [event[4] for event in events(told.url) if event[0] == model_id] == [shown]


def test_the_example_of_the_page(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example in docs/applications.md runs as it is written."""
    page = (ROOT / "docs" / "applications.md").read_text()
    page = page[page.index("## Many calls a second") :].partition("\n## ")[0]
    (example,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "recorder()" in b]
    put(told.url, "openai/gpt-5")
    for name, value in environ(told.url).items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - our own page
    names["fleet"].close()
    assert counts(told.url, "openai/gpt-5") == [(1, 2)]


# ── Outcomes that cannot be recorded ──


def test_unknown_ids(told: Told) -> None:
    """Unknown ids stop nothing; they are counted, and named in a warning once."""
    put(told.url, *IDS)
    with told.fleet.recorder() as recorder:
        for _ in range(3):
            for model_id in ("a", "gone", "x\0y"):
                recorder.success(model_id)
            recorder.flush()
        with pytest.raises(ModelNotFoundError, match="no model 'gone'"):
            recorder.failure("gone", "parse-error", wait=True)
        put(told.url, "gone")
        recorder.failure("gone", "parse-error", wait=True)
    assert (recorder.stats.recorded, recorder.stats.unknown) == (4, 7)
    assert told.warnings == [r"no model 'gone', 'x\x00y': such outcomes are not recorded"]


def test_outcomes_that_the_database_refuses(told: Told) -> None:
    """A model whose row the application protects stops no other model; who waits gets the error."""
    put(told.url, *IDS)
    if is_sqlite(told.url):
        raises = "BEGIN SELECT RAISE(ABORT, 'hands off'); END"
        sql(told.url, f"CREATE TRIGGER keep BEFORE UPDATE ON models WHEN NEW.id = 'b' {raises}")
    else:
        sql(
            told.url,
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RAISE EXCEPTION 'hands off'; END$$",
        )
        sql(
            told.url,
            "CREATE TRIGGER keep BEFORE UPDATE ON models FOR EACH ROW WHEN (NEW.id = 'b')"
            " EXECUTE FUNCTION keep()",
        )
    try:
        with told.fleet.recorder() as recorder:
            for number in range(30):
                record(recorder, IDS[number % 3], KINDS[number % 5], str(number))
            with pytest.raises(RefusedError, match="hands off"):
                recorder.failure("b", "parse-error", wait=True)
    finally:
        sql(told.url, "DROP TRIGGER keep" + ("" if is_sqlite(told.url) else " ON models"))
        if not is_sqlite(told.url):
            sql(told.url, "DROP FUNCTION keep()")
    assert [sum(both) for both in counts(told.url, *IDS)] == [10, 0, 10]
    assert (recorder.stats.recorded, recorder.stats.dropped) == (20, 11)
    assert len(told.warnings) == 1
    assert "outcomes of 'b' are dropped" in told.warnings[0]


class UnprintableError(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Text(str):
    """A string of an application's own class."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be pickled")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1,), "a model id is text, not int"),
        (("",), "at least one character"),
        (("x" * 5000,), "no model has an id of 5000 characters"),
        ((["a"],), "a model id is text, not list"),
        (("a", "broken"), "no failure type 'broken'"),
        (("a", 7), "no failure type '7'"),
    ],
)
def test_a_wrong_outcome_is_refused_at_once(
    told: Told, arguments: tuple[Any, ...], words: str
) -> None:
    """The caller gets the error, and nothing waits."""
    with told.fleet.recorder() as recorder:
        with pytest.raises(UsageError, match=words):
            recorder.failure(*arguments)
        with pytest.raises(UsageError, match="not text"):
            recorder.failure("a", reason=b"bytes")  # type: ignore[arg-type]
        assert recorder.stats.waiting == 0


def test_exceptions_and_long_reasons(told: Told) -> None:
    """An exception is classified; a reason of any length is cut; no key is stored; nothing raises."""
    put(told.url, *IDS)
    with told.fleet.recorder() as recorder:
        recorder.failure(Text("a"), UnprintableError(), wait=True)
        recorder.failure("a", TimeoutError("too slow: sk-ant-abcdefgh12345678"), wait=True)
        recorder.failure("b", "parse-error", reason="x" * 10_000_000, wait=True)
        recorder.failure("c", KeyboardInterrupt())
        recorder.failure("c", None)
    found = sql(told.url, "SELECT id, failure_type, failure_reason FROM models ORDER BY id")
    assert found == [
        ("a", "timeout", "too slow: ***"),
        ("b", "parse-error", "x" * 500),
        ("c", None, None),
    ]


# ── The database is away ──


def test_a_database_that_is_away_for_seconds(pg_database: str, postgres: Postgres) -> None:
    """Outcomes wait until the server is back: one warning, no outcome lost, none recorded twice."""
    warnings: list[str] = []
    with opened(pg_database, database_timeout="2s") as fleet:
        fleet.on_warning = warnings.append
        put(pg_database, *IDS)
        with fleet.recorder() as recorder:
            recorder.failure("a", "parse-error", wait=True)
            postgres.stop()
            for number in range(300):
                recorder.success("a")
                recorder.failure("b", "parse-error", reason=str(number))
            with pytest.raises(
                DatabaseUnavailableError, match="'c' is not recorded yet: the database"
            ):
                recorder.failure("c", "parse-error", wait=True)
            with pytest.raises(
                DatabaseUnavailableError, match="601 outcomes could not be recorded yet"
            ):
                recorder.flush(0.1)
            assert recorder.stats.waiting == 601
            postgres.start()
            recorder.flush(30)
        assert counts(pg_database, *IDS) == [(300, 1), (0, 300), (0, 1)]
    assert recorder.stats.retries
    assert recorder.stats.dropped == 0
    assert [text for text in warnings if "outcomes wait in memory" in text] == warnings[:1]
    assert len(warnings) == 1


def test_a_commit_in_doubt_is_said(pg_database: str, postgres: Postgres) -> None:
    """If nobody knows whether a batch was committed, it is written again, and a warning says so."""
    from modelctl import crash_points

    warnings: list[str] = []
    with opened(pg_database) as fleet:
        fleet.on_warning = warnings.append
        put(pg_database, *IDS)

        def crash(point: str) -> None:
            if point == "before-commit":
                crash_points.hook = None
                postgres.kill()

        crash_points.hook = crash
        try:
            with fleet.recorder() as recorder:
                recorder.success("a")
                waiting.until(lambda: warnings)
                postgres.start()
                recorder.flush(30)
        finally:
            crash_points.hook = None
    assert counts(pg_database, "a") == [(1, 0)]
    assert len(warnings) == 2
    assert warnings[1].startswith("1 outcome may be recorded twice: ")


@pytest.mark.parametrize("how", ["lose", "drop"])
def test_a_commit_whose_answer_is_lost(
    postgres: Postgres, pg_template: str, redis_server: Redis, how: str
) -> None:
    """If the same server is back after the connection was cut, nothing is lost or recorded twice."""
    name = postgres.create_database(pg_template)
    cut = threading.Event()

    def fault(request: bytes) -> str | None:
        if COMMIT in request:
            cut.set()
            return how
        return "drop" if cut.is_set() else None

    with RelayedWorld(postgres, name, redis_server) as world:
        put(world.database, *IDS)
        with world.fleet.recorder() as recorder:
            recorder.failure("b", "timeout", wait=True)
            world.to_postgres.fault = fault
            recorder.success("a")
            waiting.until(lambda: world.warnings)
            world.to_postgres.heal()
            recorder.flush(30)
            assert recorder.stats.recorded == 2
        assert counts(world.database, "a", "b") == [(1, 0), (0, 1)]
        assert len(world.warnings) == 1
        assert "it is not known whether" in world.warnings[0]
    postgres.drop_database(name)


def test_a_full_recorder_drops_what_finds_no_room(told: Told) -> None:
    """It says so once, counts it, and keeps the failures that count; the caller never waits."""
    ids = [f"m{number}" for number in range(40)]
    put(told.url, *ids)
    with told.fleet.recorder(capacity=20) as recorder:
        with locked(told.url):
            recorder.failure("m0", "parse-error")
            waiting.until(lambda: recorder.stats.retries)  # this one is being written
            with waiting.at_most(1):
                for model_id in ids:
                    recorder.success(model_id)
                for number in range(3):
                    recorder.failure("m1", "parse-error", reason=str(number))
            assert (recorder.stats.waiting, recorder.stats.dropped) == (21, 23)
        recorder.flush(30)
        assert recorder.stats.recorded == 21
    full = [text for text in told.warnings if text.startswith("the recorder is full")]
    assert full == ["the recorder is full: outcomes are dropped, first one of 'm18'; see its stats"]
    assert counts(told.url, "m0", "m1", "m17", "m18") == [(1, 1), (1, 2), (1, 0), (0, 0)]


def test_a_full_recorder_can_block(told: Told) -> None:
    """With when_full="block" callers wait for room, and nothing is dropped."""
    ids = [f"m{number}" for number in range(40)]
    put(told.url, *ids)
    with told.fleet.recorder(capacity=10, when_full="block") as recorder:

        def work() -> None:
            for model_id in ids:
                recorder.success(model_id)

        blocked = threading.Thread(target=work)
        with locked(told.url):
            recorder.failure("m0", "parse-error")
            blocked.start()
            # What is being written, which may be up to nine models, and nine more.
            waiting.until(lambda: recorder.stats.waiting >= 10)
            blocked.join(0.1)
            assert blocked.is_alive()
            assert recorder.stats.waiting <= 20
        blocked.join(30)
        assert not blocked.is_alive()
    assert counts(told.url, *ids) == [(1, 1), *[(1, 0)] * 39]
    assert recorder.stats.dropped == 0


# ── Its end ──


def test_what_is_lost_at_the_end_is_said(told: Told) -> None:
    """A recorder that is closed while the database is away waits as long as it was told, and says it."""
    put(told.url, *IDS)
    recorder = told.fleet.recorder()
    with locked(told.url):
        recorder.success("a")
        recorder.success("b")
        with waiting.at_most(1):
            recorder.close(1)
    assert (recorder.stats.waiting, recorder.stats.dropped) == (0, 2)
    assert told.warnings[-1].startswith(
        "the recorder ended before 2 outcomes could be recorded; lost"
    )
    for thread in threading.enumerate():
        if thread.name == "modelctl-recorder":
            thread.join(30)  # its last try must not meet the rows of another test


def test_a_closed_recorder(told: Told) -> None:
    """It writes what waited, is an error to use, and may be closed again; so with a closed fleet."""
    put(told.url, *IDS)
    for close in ("recorder", "fleet"):
        recorder = told.fleet.recorder()
        recorder.success("a")
        (recorder if close == "recorder" else told.fleet).close()
        with pytest.raises(UsageError, match="the recorder is closed"):
            recorder.success("a")
        with pytest.raises(UsageError, match="the recorder is closed"):
            recorder.failure("a", wait=True)
        recorder.close()
        recorder.flush()
    assert (counts(told.url, "a"), told.warnings) == ([(2, 0)], [])


def test_wrong_arguments(told: Told) -> None:
    """A wrong capacity or policy is refused; so is waiting in the function that gets warnings."""
    wrong: dict[str, Any]
    for wrong in ({"capacity": 0}, {"capacity": 1.5}, {"capacity": True}, {"when_full": "wait"}):
        with pytest.raises(UsageError):
            told.fleet.recorder(**wrong)
    raised: list[BaseException] = []

    def wait_for_it(text: str) -> None:
        try:
            recorder.flush()
        except BaseException as exc:
            raised.append(exc)
            raise

    told.fleet.on_warning = wait_for_it
    with told.fleet.recorder() as recorder:
        with pytest.raises(UsageError, match="a timeout is from 0 s"):
            recorder.flush(-1)
        recorder.success("nobody")
        recorder.flush()
        assert recorder.stats.unknown == 1
    assert [str(exc) for exc in raised] == ["on_warning cannot wait for the recorder that calls it"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child begins without outcomes and writes its own; what waited is written once, by the parent."""
    put(told.url, *IDS)
    monkeypatch.setattr(module, "SECONDS", 60.0)
    with told.fleet.recorder() as recorder:
        recorder.failure("a", "parse-error", wait=True)
        recorder.success("b")

        def work() -> None:
            assert recorder.stats.recorded == recorder.stats.waiting == 0
            recorder.success("c")
            recorder.flush(30)
            recorder.success("c")
            told.fleet.close()
            assert recorder.stats.recorded == 2

        assert os.waitpid(child(work), 0)[1] == 0
        assert recorder.stats.waiting == 1
    assert counts(told.url, *IDS) == [(0, 1), (1, 0), (2, 0)]
