"""A process may fork after it used its fleet, and close it while other threads use it."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.dialects.postgresql import _psycopg_common

from modelctl import Fleet
from modelctl.errors import ModelctlError
from tests.fleets import opened, seed, sql
from tests.servers import Redis

IDS = [f"m{number}" for number in range(8)]
CHILDREN = 30
SECONDS = 60

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@pytest.fixture(params=["postgresql", "sqlite"])
def fleet(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fleet]:
    """Open a fleet of eight models on PostgreSQL and Redis, and on SQLite."""
    if request.param == "sqlite":
        # On a busy machine 30 processes that write one file wait for longer than the usual 5 s.
        monkeypatch.setattr("modelctl.database.sqlite.BUSY_SECONDS", 30)
        url, settings = f"sqlite:///{tmp_path}/models.db", {"database_timeout": "30s"}
    else:
        server: Redis = request.getfixturevalue("redis_server")
        url, settings = request.getfixturevalue("pg_database"), {"redis_url": server.url(db=9)}
    with opened(url, **settings) as made:
        if request.param == "sqlite":
            made.upgrade()
        made.on_warning = lambda _: None
        seed(made, IDS)
        yield made


@contextmanager
def busy(work: Callable[[], object], threads: int = 4) -> Iterator[list[BaseException]]:
    """Let threads do the same again and again; give what they raised."""
    raised: list[BaseException] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                work()
            except BaseException as exc:
                raised.append(exc)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield raised
    finally:
        stop.set()
        for thread in running:
            thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in running)


def child(work: Callable[[], object]) -> int:
    """Run *work* in a child; it exits with 0 if nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)  # one that hangs is killed, and says before where it was
        faulthandler.dump_traceback_later(SECONDS - 5, file=2)
        work()
        gc.collect()
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def test_children_of_a_process_that_used_its_fleet(fleet: Fleet) -> None:
    """Children of a threaded process count, list and record rightly, and the parent goes on."""

    def use() -> None:
        assert fleet.count().active == len(IDS)
        assert {model.id for model in fleet.list_models()} == set(IDS)

    def work() -> None:
        for _ in range(3):
            use()
            fleet.record_success("m3")
            assert fleet.show("m3").id == "m3"
        fleet.close()

    use()
    fleet.disable("m1")
    fleet.enable("m1")
    with busy(use) as raised:
        pids = [child(work) for _ in range(CHILDREN)]
        ended = [os.waitpid(pid, 0)[1] for pid in pids]
        for _ in range(5):
            use()
    assert (ended, raised) == ([0] * CHILDREN, [])
    assert fleet.show("m3").success_count == 3 * CHILDREN
    use()


def test_a_child_shares_no_lock(redis_server: Redis, pg_database: str) -> None:
    """A fork while a thread sweeps, and others wait for it: the child sweeps on its own."""
    from modelctl import crash_points

    with opened(pg_database, redis_url=redis_server.url(db=9)) as fleet:
        seed(fleet, IDS)
        pids: list[int] = []

        def fork(point: str) -> None:
            if point == "in-sweep" and not pids:
                # Another thread than that which holds the locks.
                thread = threading.Thread(target=lambda: pids.append(child(work)))
                thread.start()
                thread.join(SECONDS)

        def work() -> None:
            crash_points.hook = None
            assert fleet.disable("m2").cache == "invalidated"
            assert fleet.count().active == len(IDS) - 2

        crash_points.hook = fork
        try:
            fleet.disable("m1")
        finally:
            crash_points.hook = None
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0]
        assert fleet.count().active == len(IDS) - 2
        assert sql(pg_database, "SELECT count(*) FROM models WHERE NOT active") == [(2,)]


def test_a_child_of_a_thread_that_opens_a_cursor(fleet: Fleet) -> None:
    """A fork while another thread holds the lock of SQLAlchemy that numbers cursors: the child reads."""
    number: Any = _psycopg_common._server_side_id
    (lock,) = (cell.cell_contents for cell in number.__closure__ if "lock" in repr(cell))

    def work() -> None:
        assert len(fleet.list_models()) == len(IDS)

    work()
    with lock:
        pid = child(work)
    assert os.waitpid(pid, 0)[1] == 0
    work()


def test_close_while_threads_work(fleet: Fleet) -> None:
    """Those that are at work finish, or get an error of ours; the next call connects anew."""

    def use() -> None:
        assert fleet.count().active == len(IDS)
        assert len(fleet.list_models()) == len(IDS)
        fleet.record_success("m3")

    with busy(use) as raised:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            fleet.close()
    assert [exc for exc in raised if not isinstance(exc, ModelctlError)] == []
    use()
