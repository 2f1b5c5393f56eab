"""The servers of a history, and the faults that can be injected into them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import redis

from modelctl.count.cache import LEASE_SECONDS
from tests.count.history import VoidError
from tests.servers import Postgres, Redis, RedisGroup
from tests.world import KEY


class Servers:
    """A PostgreSQL and a Redis for histories alone, and what can happen to them."""

    def __init__(self, postgres: Postgres, redis_server: Redis) -> None:
        self.postgres, self.redis = postgres, redis_server
        self.redis_url = redis_server.url()
        self.readers: list[int] = []  # their process ids
        self.stop_seconds = LEASE_SECONDS + 1

    @property
    def faults(self) -> dict[str, Callable[[Any, float], None]]:
        """Each fault by its name: a server first, if the fault is one of it."""
        return FAULTS

    @property
    def primary(self) -> Redis:
        """The server that has K."""
        return self.redis

    def recover(self) -> None:
        """Let every server run, and work."""
        self.postgres.recover()
        self.redis.recover()
        self._usual_memory()

    def empty(self) -> None:
        """Forget every key."""
        self.redis.ask("FLUSHALL")

    def stop_readers(self, _: float) -> None:
        """SIGSTOP some of the readers for longer than a lease lasts, and SIGCONT."""
        stopped = self.readers[::2]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(self.stop_seconds)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)

    def flush_redis(self, seconds: float) -> None:
        """FLUSHALL, several times."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.redis.ask("FLUSHALL")
            time.sleep(0.1)

    def restore_redis(self, seconds: float) -> None:
        """SAVE; some time later SIGKILL, and it comes back with what it saved."""
        self.redis.ask("SAVE")
        time.sleep(seconds)
        self.redis.kill()
        self.redis.start()
        (self.redis.folder / "dump.rdb").unlink()

    def fill_redis(self, seconds: float) -> None:
        """Let another program fill the memory of a Redis that then evicts any key."""
        with self.redis.client() as client:
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("maxmemory", used + 2_000_000)
            until, number = time.monotonic() + seconds, 0
            while time.monotonic() < until:
                pipe = client.pipeline(transaction=False)
                for _ in range(100):
                    number += 1
                    pipe.set(f"other:{number}", "x" * 2000, px=5000)
                pipe.execute(raise_on_error=False)
                time.sleep(0.005)
        self._usual_memory()

    def _usual_memory(self) -> None:
        self.redis.ask("CONFIG", "SET", "maxmemory", 0)
        self.redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")

    def pause_redis(self, seconds: float) -> None:
        """SIGSTOP and SIGCONT."""
        self.redis.pause()
        time.sleep(seconds)
        self.redis.resume()

    def restart_redis(self, seconds: float) -> None:
        """SIGKILL; it comes back without a key."""
        self.redis.kill()
        time.sleep(seconds)
        self.redis.start()

    def exhaust_redis(self, seconds: float) -> None:
        """Let it refuse every write that needs memory."""
        self.redis.ask("CONFIG", "SET", "maxmemory", 1)
        time.sleep(seconds)
        self.redis.ask("CONFIG", "SET", "maxmemory", 0)

    def drop_redis_connections(self, seconds: float) -> None:
        """Close all connections, several times."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.redis.ask("CLIENT", "KILL", "TYPE", "normal")
            time.sleep(0.1)

    def terminate_backends(self, seconds: float) -> None:
        """End all sessions, several times."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            time.sleep(0.2)

    def restart_postgres(self, seconds: float) -> None:
        """Stop fast, and start."""
        self.postgres.stop()
        time.sleep(seconds / 2)
        self.postgres.start()

    def crash_postgres(self, seconds: float) -> None:
        """Stop at once; it comes back after a recovery."""
        self.postgres.kill()
        time.sleep(seconds / 2)
        self.postgres.start()


FAULTS: dict[str, Callable[[Any, float], None]] = {
    "Redis paused": Servers.pause_redis,
    "Redis restarted empty": Servers.restart_redis,
    "Redis restarted from a snapshot": Servers.restore_redis,
    "Redis flushed": Servers.flush_redis,
    "Redis full and evicting": Servers.fill_redis,
    "Redis out of memory": Servers.exhaust_redis,
    "Redis connections dropped": Servers.drop_redis_connections,
    "readers stopped": Servers.stop_readers,
    "PostgreSQL backends terminated": Servers.terminate_backends,
    "PostgreSQL restarted": Servers.restart_postgres,
    "PostgreSQL crashed": Servers.crash_postgres,
}


class ServerGroup(Servers):
    """A PostgreSQL, and a primary of Redis with a replica: watched by Sentinels, or in a cluster."""

    def __init__(self, postgres: Postgres, group: RedisGroup) -> None:
        super().__init__(postgres, group.nodes[0])
        self.group, self.redis_url = group, group.url
        for sentinel in group.sentinels:
            # On a busy machine a second is too short: they would name another primary while the
            # old one answers, and of two primaries the protocol promises nothing.
            sentinel.ask("SENTINEL", "SET", "mymaster", "down-after-milliseconds", 3000)

    @property
    def faults(self) -> dict[str, Callable[[Any, float], None]]:
        """The database works all the time, so that changes are acknowledged."""
        return {
            "Redis failed over": ServerGroup.fail_over,
            "Redis flushed": ServerGroup.flush_redis,
            "readers stopped": Servers.stop_readers,
        }

    @property
    def primary(self) -> Redis:
        """The server that has K, once there is one."""
        self._until(lambda: self._primary() is not None)
        found = self._primary()
        assert found is not None
        return found

    def _primary(self) -> Redis | None:
        if self.group.sentinels:
            question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
            port = int(self.group.sentinels[0].ask(*question)[1])
            nodes = [node for node in self.group.nodes if node.port == port]
        else:
            nodes = self.group.nodes
        for node in nodes:
            # The others of a cluster say where K is.
            with contextlib.suppress(redis.RedisError):
                if node.running and node.ask("ROLE")[0] == "master":
                    node.ask("GET", KEY)
                    return node
        return None

    @staticmethod
    def _until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                raise VoidError("no primary, or no replica follows it")
            time.sleep(0.05)

    def _is_followed(self) -> bool:
        primary = self._primary()
        return primary is not None and self._replica_of(primary) is not None

    def _replica_of(self, primary: Redis) -> Redis | None:
        for node in self.group.nodes:
            role = node.ask("ROLE")
            if role[0] == "slave" and (role[2], role[3]) == (primary.port, "connected"):
                return node
        return None

    def fail_over(self, seconds: float) -> None:
        """Cut the replica off, and kill the primary after some more changes."""
        self._until(self._is_followed)
        home = self.primary
        heir = self._replica_of(home)
        assert heir is not None
        heir.pause()
        home.ask("CLIENT", "KILL", "TYPE", "replica")
        # Not for as long as the others would take to think that it is gone.
        time.sleep(min(seconds, 0.7))
        home.kill()
        heir.resume()
        self._until(lambda: self._primary() is heir)
        home.start()
        if self.group.sentinels:
            # A Sentinel would see to it, later.
            home.ask("REPLICAOF", "127.0.0.1", heir.port)
        # On a busy machine the Sentinels may have named the other one meanwhile.
        self._until(self._is_followed)

    def flush_redis(self, seconds: float) -> None:
        """FLUSHALL, several times."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.primary.ask("FLUSHALL")
            time.sleep(0.1)

    def recover(self) -> None:
        """Let every server run."""
        self.postgres.recover()
        for node in self.group.nodes:
            node.recover()

    def empty(self) -> None:
        """Forget every key."""
        self.primary.ask("FLUSHALL")
