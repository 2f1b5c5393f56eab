"""A fleet, and its database and its Redis as other programs see and change them."""

from __future__ import annotations

from typing import Any, Self

import psycopg
import redis

from modelctl import Fleet
from tests import fleets

KEY = "db:models:count:active"
LEASE, VOUCH = f"{{{KEY}}}:lease", f"{{{KEY}}}:vouch"
STATS = "db:stats:overall"
STATUSES = """
    SELECT id, CASE WHEN active THEN 'active' WHEN auto_disabled THEN 'auto-disabled'
    ELSE 'disabled' END FROM models"""


class World:
    """A fleet on a database and a Redis (or none), and another program that uses both.

    *warnings* has what all fleets of this world warned about.
    """

    def __init__(self, database: str, redis_url: str = "", **settings: object) -> None:
        self.database = database
        self.redis_url = redis_url
        self.warnings: list[str] = []
        self.redis: Any = None
        if redis_url:
            self.redis = redis.Redis.from_url(redis_url, decode_responses=True)
        self._postgres: psycopg.Connection | None = None
        self._fleets: list[Fleet] = []
        self.fleet = self.another(**settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        for fleet in self._fleets:
            fleet.close()
        self.disconnect()
        if self.redis:
            self.redis.close()

    def another(self, **settings: object) -> Fleet:
        """Return a fleet as another process would have it."""
        both: dict[str, object] = {"redis_url": self.redis_url} if self.redis_url else {}
        fleet = fleets.opened(self.database, **both | settings)
        fleet.on_warning = self.warnings.append
        self._fleets.append(fleet)
        return fleet

    # What another program does

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run SQL with ``?`` for each value; PostgreSQL keeps its connection for the next call."""
        if fleets.is_sqlite(self.database):
            return fleets.sql(self.database, statement, *values)
        if self._postgres is None:
            self._postgres = psycopg.connect(self.database, autocommit=True, connect_timeout=10)
        return fleets.execute(self._postgres, statement, *values)

    def disconnect(self) -> None:
        """Close the connection to PostgreSQL; the next `sql` makes another."""
        if self._postgres:
            self._postgres.close()
        self._postgres = None

    def ask(self, *command: str | int) -> Any:
        """Send one command to Redis."""
        return self.redis.execute_command(*command)

    def forget(self) -> None:
        """Forget the queued invalidations."""
        if not fleets.is_sqlite(self.database):
            self.sql("DELETE FROM modelctl_outbox")

    def cache_foreign(self, number: int) -> None:
        """Store a count as another program does: without the vouch of modelctl."""
        self.ask("SETEX", KEY, 60, number)

    def cache_believed(self, number: int, seconds: int = 60) -> None:
        """Store a count that modelctl believes, as only its own fill would."""
        self.redis.set(KEY, number, ex=seconds)
        self.redis.set(VOUCH, f"{number} {self.home}", ex=seconds)

    def age(self, seconds: float) -> None:
        """Make the cached count so much older."""
        if self.redis:
            self.redis.pexpire(VOUCH, int(self.redis.pttl(VOUCH) - seconds * 1000))
        else:
            self.sql(f"UPDATE modelctl_cache SET expires_at = expires_at - {seconds}")

    # What is there

    @property
    def home(self) -> str:
        """The identity of the Redis server as modelctl writes it; a promoted one has two parts."""
        info = self.redis.info()
        promoted = int(info["second_repl_offset"]) >= 0
        return f"{info['run_id']} {info['master_replid']}" if promoted else str(info["run_id"])

    @property
    def truth(self) -> int:
        """The number of active models in the database."""
        return int(self.sql("SELECT count(*) FROM models WHERE active")[0][0])

    @property
    def queue(self) -> tuple[int, int]:
        """How many invalidations are queued, and how many wait for their settle pass."""
        sql = "SELECT count(*) FILTER (WHERE NOT settle), count(*) FILTER (WHERE settle)"
        queued, settling = self.sql(f"{sql} FROM modelctl_outbox")[0]
        return queued, settling

    @property
    def statuses(self) -> dict[str, str]:
        """The status of each model."""
        return dict(self.sql(STATUSES))

    @property
    def events(self) -> list[tuple[Any, ...]]:
        """What modelctl did, as model and event, in the order of the ids."""
        own = "operation IS NOT NULL"  # not what other programs did
        return self.sql(
            f"SELECT model_id, event FROM modelctl_events WHERE {own} ORDER BY model_id, id"
        )
