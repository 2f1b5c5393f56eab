"""Recording a history: start the processes, inject one fault after the other, collect."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from modelctl import Fleet
from tests.count.history import (
    READERS,
    SLACK,
    TTL,
    WRITERS,
    Event,
    History,
    State,
    VoidError,
    clock,
    clock_setting,
)
from tests.count.history_faults import Servers
from tests.count.history_processes import (
    Journal,
    Work,
    drainer,
    filler,
    models_of,
    mortal,
    person,
    reader,
    run_process,
    writer,
)
from tests.count.history_protocols import COUNT, Naive, Product
from tests.servers import Postgres
from tests.world import KEY

_AUDIT = """
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY,
    -- A transaction of its own for each statement, or the judge would see its steps.
    xid xid8 DEFAULT pg_current_xact_id() UNIQUE,
    who text DEFAULT current_setting('application_name'),
    locked_at timestamptz DEFAULT clock_timestamp(),
    active bigint
);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1);
    -- A statement of its own: it sees all that was committed before the lock was ours.
    INSERT INTO audit (active) SELECT count(*) FROM models WHERE active;
    RETURN NULL;
END $$;
-- After modelctl's triggers, which fire in the order of their names.
CREATE TRIGGER zz_audit AFTER INSERT OR UPDATE OR DELETE ON models
FOR EACH STATEMENT EXECUTE FUNCTION audit();
"""


def record(
    servers: Servers,
    protocol: type[Product | Naive],
    seconds: float,
    folder: Path,
    *,
    longest_fault: float,
    each_fault: int = 1,
    seed: int | None = None,
) -> History:
    """Let all processes work for *seconds*, with one fault after the other, and collect their journals.

    *folder* keeps the journals. Faults last up to *longest_fault*, and however slow the machine
    is, it goes on until each came *each_fault* times.

    Raises:
        VoidError: somebody set the clock, or a process did not end.
    """
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    servers.recover()
    servers.empty()
    name = servers.postgres.create_database()
    database, redis_url = servers.postgres.url(name), servers.redis_url
    clerk = Product(database, redis_url, "clerk").fleet
    with clerk:
        clerk.upgrade()
    roles: dict[str, Callable[[Work], None]] = {f"reader-{n}": reader for n in range(READERS)}
    roles |= {f"writer-{n}": writer for n in range(WRITERS)}
    roles |= {"person": person, "filler": filler}
    if protocol is Product:
        roles |= {"writer-0": mortal, "drainer": drainer}
    writing = [who for who in roles if who.startswith("writer") or who == "person"]
    servers.postgres.execute(
        "INSERT INTO models (id) VALUES"
        + ", ".join(f"('{model}')" for who in writing for model in models_of(who)),
        name,
    )
    servers.postgres.execute(_AUDIT, name)
    servers.postgres.execute("TRUNCATE modelctl.modelctl_outbox", name)

    initial = int(servers.postgres.execute(COUNT, name)[0][0])
    setting, began = clock_setting(), time.monotonic()
    over = mmap.mmap(-1, 1)  # shared with the processes
    # Made before the fork and used after it, as a server with workers does.
    clients = {who: protocol(database, redis_url, who) for who in roles}
    fork = multiprocessing.get_context("fork")
    processes = []
    journal = Journal(folder / "nemesis", "nemesis")
    try:
        for who, role in roles.items():
            work = Work(
                who,
                clients[who],
                database,
                redis_url,
                random.Random(f"{seed} {who}"),
                Journal(folder / who, who),
                over,
                os.getpid(),
            )
            processes.append(fork.Process(target=run_process, args=(role, work), name=who))
            processes[-1].start()
            if role is reader:
                servers.readers.append(processes[-1].pid or 0)
        dice, coming, left = random.Random(seed), list[str](), each_fault * len(servers.faults)
        while left > 0 or time.monotonic() < began + seconds:
            time.sleep(dice.uniform(0.3, 1) * min(1.0, longest_fault))
            coming = coming or dice.sample(list(servers.faults), len(servers.faults))
            fault, start = coming.pop(), clock()
            servers.faults[fault](servers, dice.uniform(0.2, longest_fault))
            journal.write(fault, start, "over")
            left -= 1
        over[0] = 1
        seconds = time.monotonic() - began
        for process in processes:
            process.join(30)
            if process.is_alive():
                raise VoidError(f"{process.name} does not end")
    finally:
        for process in processes:
            process.kill()
            process.join()
        servers.readers.clear()
        servers.recover()
    if abs(clock_setting() - setting) > SLACK:
        raise VoidError("somebody set the clock")
    with clerk:
        leftovers = list(_leftovers(servers, clerk, name)) if protocol is Product else []
    return History(
        f"{protocol.__name__.lower()} (seed {seed})",
        seconds,
        (State(initial, 0, 0), *_states(servers.postgres, name)),
        tuple(_events(folder)),
        tuple(leftovers),
    )


def _states(postgres: Postgres, database: str) -> Iterator[State]:
    rows = postgres.execute(
        "SELECT xid::text, who, active, (extract(epoch FROM locked_at) * 1000000)::bigint,"
        " (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint"
        " FROM audit ORDER BY id",
        database,
    )
    ended = clock()
    for number, (_, who, active, _, commit) in enumerate(rows):
        following = rows[number + 1][3] if number + 1 < len(rows) else ended
        yield State(active, commit, following, who)


def _events(folder: Path) -> Iterator[Event]:
    for file in sorted(folder.iterdir()):
        for line in file.read_text().splitlines():
            yield Event(**json.loads(line))


def _leftovers(servers: Servers, fleet: Fleet, database: str) -> Iterator[str]:
    """Deliver everything, and say what is still wrong then."""
    truth = int(servers.postgres.execute(COUNT, database)[0][0])
    fleet.drain()
    if queued := fleet.cache_report().queued:
        yield f"{queued} invalidations are queued after a drain"
    # Another program stores an old number, as late as it may; that is what settling is for.
    servers.primary.ask("SETEX", KEY, TTL, truth + 1)
    servers.postgres.execute(
        "UPDATE modelctl.modelctl_outbox SET due = clock_timestamp()", database
    )
    fleet.drain()
    if waiting := servers.postgres.execute(
        "SELECT count(*) FROM modelctl.modelctl_outbox", database
    )[0][0]:
        yield f"{waiting} invalidations wait after they settled"
    if (raw := servers.primary.ask("GET", KEY)) not in (None, str(truth)):
        yield f"the raw key says {raw}, the database {truth}"
    for source in ("database", "cache"):
        count = fleet.count()
        if (count.active, count.source) != (truth, source):
            yield f"the count says {count}, the database {truth}"
    if (raw := servers.primary.ask("GET", KEY)) != str(truth):
        yield f"filled, the raw key says {raw}, the database {truth}"
