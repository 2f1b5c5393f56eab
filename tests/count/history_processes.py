"""The processes of a history: what each of them does all the time, and its journal."""

from __future__ import annotations

import json
import mmap
import os
import random
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import redis

from modelctl.errors import DatabaseUnavailableError, StaleCacheError
from tests.count.history import MODELS, TTL, Event, clock
from tests.count.history_protocols import COUNT, Client, Naive, Product, RedisClient, Sql
from tests.world import KEY


class Journal:
    """Where a process writes; every line is on its way before the next call begins."""

    def __init__(self, file: Path, who: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._who = who

    def write(self, what: str, start: int, outcome: str, **more: Any) -> None:
        """Write an event that ends now."""
        event = Event(self._who, what, start, clock(), outcome, **more)
        os.write(self._file, json.dumps(asdict(event)).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Work:
    """What a process is given."""

    who: str
    client: Client
    database: str
    redis_url: str
    dice: random.Random
    journal: Journal
    over: mmap.mmap
    boss: int

    def going(self) -> bool:
        """Whether to go on: the run is not over, and the process that waits for it is alive."""
        return not self.over[0] and os.getppid() == self.boss


def reader(work: Work) -> None:
    """Count, over and over; now and then strongly or afresh."""
    work.client.prepare(work.dice, mortal=False)
    while work.going():
        what = work.dice.choice(work.client.reads)
        start = clock()
        try:
            number, hit = work.client.count(what)
        except DatabaseUnavailableError as exc:
            work.journal.write(what, start, "unavailable", detail=str(exc))
        else:
            work.journal.write(what, start, "cache" if hit else "database", number=number)
        time.sleep(work.dice.uniform(0, 0.01))


def models_of(who: str) -> list[str]:
    """Name the models that a process has for itself."""
    return [f"{who}/{number}" for number in range(MODELS)]


def writer(work: Work) -> None:
    """Change some of its own models, in all the ways there are."""
    dice, own = work.dice, models_of(work.who)
    work.client.prepare(dice, mortal=work.who == "writer-0")
    naive, last = isinstance(work.client, Naive), ("enable", own[:1])
    while work.going():
        # At times no writer does anything: then only drain delivers what psql changed, and what
        # was lost earlier is not made good by the next change at once.
        while clock() % 5_000_000 > 3_500_000 and work.going():
            time.sleep(0.02)
        way = dice.random()
        if way < 0.8 or naive:
            # Many at once: a number that comes back soon would hide a stale read.
            last = (dice.choice(["disable", "enable"]), dice.sample(own, dice.randint(1, 12)))
            calls = [last]
        elif way < 0.88:
            calls = [last]
        elif way < 0.96:
            one = dice.sample(own, 1)
            calls = [("record-failure", one)] * 5 + [("record-success", one)] * dice.randint(0, 1)
        else:
            calls = [("recover", own[:0])]
        for what, ids in calls:
            start = clock()
            try:
                outcome, changed = work.client.change(what, ids)
            except (DatabaseUnavailableError, StaleCacheError) as exc:
                work.journal.write(what, start, "unavailable", detail=str(exc))
            else:
                work.journal.write(what, start, outcome, changed=changed)
        time.sleep(dice.choice((0.0, 0.02, 0.1, 0.2)) * dice.uniform(0.5, 1.5))


def mortal(work: Work) -> None:
    """Be a writer that dies between two steps and is started again."""
    while work.going():
        start, seed, me = clock(), work.dice.random(), os.getpid()
        if (child := os.fork()) == 0:
            try:
                run_process(writer, replace(work, dice=random.Random(seed), boss=me))
            finally:
                os._exit(0)  # what went wrong is in the journal
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            work.journal.write("killed", start, "killed")


def filler(work: Work) -> None:
    """Be another program that keeps the same key: slow, and at times with a number of long ago."""
    sql, cache, known = (
        Sql(work.database, work.who),
        RedisClient(work.redis_url),
        deque[int]([], 100),
    )
    while work.going():
        start, dice = clock(), work.dice
        try:
            with cache.home() as client:
                missed = client.get(KEY) is None
            if missed:
                known.append(sql.execute(COUNT))
                time.sleep(dice.choice((0.0, 0.1, 0.5, 3.0)) * dice.random())
            if missed or (known and dice.random() < 0.2):
                number = known[-1] if missed else dice.choice(known)
                with cache.home() as client:
                    client.set(KEY, number, ex=TTL)
                work.journal.write("fill", start, "stored", number=number)
        except (redis.RedisError, psycopg.Error):
            time.sleep(0.05)
        time.sleep(dice.uniform(0, 0.1))


def person(work: Work) -> None:
    """Change models with SQL, as a person with psql does."""
    sql, own = Sql(work.database, work.who), models_of(work.who)
    while work.going():
        active = work.dice.choice(["true", "false"])
        names = ", ".join(f"'{name}'" for name in work.dice.sample(own, work.dice.randint(1, 12)))
        start = clock()
        try:
            sql.execute(f"UPDATE models SET active = {active} WHERE id IN ({names})")
        except psycopg.Error as exc:
            work.journal.write("psql", start, "unavailable", detail=str(exc))
        else:
            work.journal.write("psql", start, "committed")
        time.sleep(work.dice.uniform(0.05, 0.6))


def drainer(work: Work) -> None:
    """Deliver what is queued, every second or so."""
    assert isinstance(work.client, Product)
    work.client.prepare(work.dice, mortal=False)
    while work.going():
        start = clock()
        try:
            outcome = str(work.client.fleet.drain().cache)
        except (DatabaseUnavailableError, StaleCacheError) as exc:
            work.journal.write("drain", start, "unavailable", detail=str(exc))
        else:
            work.journal.write("drain", start, outcome)
        time.sleep(work.dice.uniform(0.5, 1.2))


def run_process(role: Callable[[Work], None], work: Work) -> None:
    """Run a process; whatever else it raises goes into the journal."""
    start = clock()
    try:
        role(work)
    except Exception:
        work.journal.write(role.__name__, start, "crash", detail=traceback.format_exc())
        raise SystemExit(1) from None
