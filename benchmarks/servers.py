"""What the measurements run on: PostgreSQL as it is by default, Valkey, and fleets of any size."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from redis import BlockingConnectionPool
from redis import Redis as RedisClient
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich.console import Console

from benchmarks.harness import Report, Spread, seconds
from modelctl import Config, Fleet
from tests.servers import Postgres, Redis

COUNT_KEY = "db:models:count:active"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: everything is the same code at two scales."""

    process_rounds: int
    block_rounds: int  # of short blocks in one process
    patience: float  # seconds for these, unless a few rounds take longer
    bulk_rounds: int  # of runs that take a fresh copy of a database
    sizes: tuple[int, ...]  # of fleets; changes are judged at the last
    read_sizes: tuple[int, ...]  # where reads are measured
    count_sizes: tuple[int, ...]  # where COUNT(*) is measured besides
    imported: int
    batch: int
    keys: tuple[int, ...]  # other keys in Redis


QUICK = Scale(
    process_rounds=15,
    block_rounds=19,
    patience=2.0,
    bulk_rounds=3,
    sizes=(1_000, 10_000, 100_000),
    read_sizes=(1_000, 100_000),
    count_sizes=(10_000,),
    imported=30_000,
    batch=10_000,
    keys=(1_000, 10_000, 100_000),
)
FULL = Scale(
    process_rounds=31,
    block_rounds=41,
    patience=60.0,
    bulk_rounds=5,
    sizes=(1_000, 10_000, 100_000, 1_000_000),
    read_sizes=(1_000, 100_000, 1_000_000),
    count_sizes=(10_000_000,),
    imported=100_000,
    batch=10_000,
    keys=(10_000, 100_000, 1_000_000),
)


class DurablePostgres(Postgres):
    """PostgreSQL as installed: the settings by which tests are faster do not apply."""

    def _command(self, port: int) -> list[str | Path]:
        settings = super()._command(port)
        unwanted = {"fsync=off", "track_commit_timestamp=on"}
        pairs = itertools.pairwise(settings)
        drop = {at for at, (_, word) in enumerate(pairs) if word in unwanted}
        return [word for at, word in enumerate(settings) if not {at, at - 1} & drop]

    def copy(self, template: str) -> str:
        """Make a copy of a database, file by file, and read its models once; return its name."""
        name = f"copy_{next(self._copies)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        self.execute("SELECT count(*) FROM models WHERE updated_at IS NULL", name)
        # The next checkpoint decides when whole pages go to the log: the same moment for all.
        self.execute("CHECKPOINT")
        return name

    @functools.cached_property
    def _copies(self) -> Iterator[int]:
        return itertools.count(1)


class Bench:
    """One run: its scale, its servers (started when they are first needed) and its report."""

    def __init__(self, scale: Scale, console: Console) -> None:
        self.scale = scale
        self.console = console
        self.report = Report()
        self._stack = contextlib.ExitStack()
        self._fleets: dict[tuple[int, int], str] = {}
        self._bare: dict[str, str] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, text: str) -> None:
        """Tell a person what is being done."""
        self.console.print(text, style="dim", markup=False, highlight=False)

    @functools.cached_property
    def folder(self) -> Path:
        """A folder for this run."""
        return Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="modelctl-bench-"))
        )

    @functools.cached_property
    def postgres(self) -> DurablePostgres:
        """The PostgreSQL server."""
        server = self._stack.enter_context(DurablePostgres())
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            if server.execute(f"SHOW {setting}") != [("on",)]:
                raise RuntimeError(f"{setting} is off: these would be no measurements")
        return server

    @functools.cached_property
    def redis(self) -> Redis:
        """The Valkey or Redis server."""
        return self._stack.enter_context(Redis())

    def redis_client(self) -> RedisClient:
        """A client of redis-py with the settings that modelctl uses."""
        how: dict[str, Any] = {
            "max_connections": 10,
            "timeout": 0.5,
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": 0.5,
            "socket_connect_timeout": 0.5,
            "protocol": 2,
            "legacy_responses": False,
            "driver_info": None,
        }
        return RedisClient.from_pool(BlockingConnectionPool.from_url(self.redis.url(), **how))

    def connect(self, database: str, **how: Any) -> psycopg.Connection[Any]:
        """A bare connection; every statement is its own transaction."""
        return psycopg.connect(self.postgres.url(database), autocommit=True, **how)

    def config(self, database: str, *, redis_url: str | None = None) -> Config:
        """The configuration of modelctl for a database; *redis_url*: "" for no cache."""
        url = self.redis.url() if redis_url is None else redis_url
        return configured(self.postgres.url(database), url)

    def fsync_time(self) -> str:
        """How long the disk takes that PostgreSQL writes to: a promise needs more than a memory."""
        with tempfile.TemporaryFile(dir=self.folder) as file:

            def write() -> None:
                os.pwrite(file.fileno(), b"x" * 8192, 0)
                os.fsync(file.fileno())

            spread = Spread.of(seconds(write) for _ in range(50))
        return f"{spread.median * 1e3:.2f} ms for 8 KiB"

    # ── Fleets ──

    def fleet(self, size: int, off_percent: int) -> str:
        """Return a database with so many models, made once.

        *off_percent*: how many of a hundred are switched off by the rule and due to come back.
        """
        key = size, off_percent
        if key not in self._fleets:
            self.say(f"a fleet of {size:,} models, {off_percent} % of them due to recover")
            name = self._fleets[key] = self.postgres.create_database()
            with Fleet(self.config(name, redis_url="")) as fleet:
                fleet.upgrade()
            with self.connect(name) as connection:
                connection.execute(_MODELS.encode(), {"size": size, "off": off_percent})
                connection.execute("DELETE FROM modelctl.modelctl_outbox")
                connection.execute("VACUUM (ANALYZE)")
                connection.execute("CHECKPOINT")
        return self._fleets[key]

    def bare(self, template: str) -> str:
        """Return a copy without what modelctl adds: no triggers, no tables; the same indexes."""
        if template not in self._bare:
            name = self._bare[template] = self.postgres.copy(template)
            with self.connect(name) as connection:
                triggers = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'models'::regclass"
                for (trigger,) in connection.execute(triggers).fetchall():
                    connection.execute(f"DROP TRIGGER {trigger} ON models".encode())
                connection.execute("DROP SCHEMA modelctl CASCADE")
        return self._bare[template]


def configured(database_url: str, redis_url: str = "") -> Config:
    """The configuration of modelctl; counts live as long as they may, an hour."""
    environ = {
        "MODELCTL_DATABASE_URL": database_url,
        "MODELCTL_CACHE_TTL": "1h",
        "HOME": "/nowhere",
    }
    if redis_url:
        environ["MODELCTL_REDIS_URL"] = redis_url
    return Config.load(environ=environ)


def model_id(number: int) -> str:
    """The id of a model of `Bench.fleet`."""
    return f"provider-{number % 50:02}/model-{number:08}"


# Every hundredth few are off, so that they lie all over the table, and in no order of time.
_MODELS = """
INSERT INTO models (
    id, display_name, provider, active, auto_disabled, consecutive_failures, ejections,
    success_count, failure_count, last_success_at, last_failure_at, failure_type, failure_reason,
    disabled_at, disabled_by, disabled_reason
)
SELECT
    provider || '/model-' || lpad(i::text, 8, '0'), 'Model ' || i, provider,
    NOT off, off, CASE WHEN off THEN 5 ELSE 0 END, off::int,
    (i * 7919) %% 100000, (i * 104729) %% 1000, since, since,
    CASE WHEN off THEN 'parse-error' END, CASE WHEN off THEN 'no JSON' END,
    CASE WHEN off THEN since END, CASE WHEN off THEN 'health rule' END,
    CASE WHEN off THEN 'no JSON' END
FROM
    generate_series(0::bigint, %(size)s - 1) AS i,
    LATERAL (
        SELECT
            'provider-' || lpad((i %% 50)::text, 2, '0') AS provider,
            i %% 100 < %(off)s AS off,
            now() - interval '2 hours' - (i * 7919 %% 86400) * interval '1 second' AS since
    ) AS derived
"""
