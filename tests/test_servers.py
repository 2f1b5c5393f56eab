"""The test servers start, stop, pause and come back as a test asks them to."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import _lru_cache_wrapper
from pathlib import Path

import psycopg
import pytest
import redis
from redis.cluster import RedisCluster

from tests import ROOT, servers
from tests.servers import Binary, Postgres, Redis


def ping(url: str) -> bool:
    """Ask the server of a URL for a sign of life within half a second."""
    with redis.Redis.from_url(url, socket_timeout=0.5) as client:
        return bool(client.ping())


def test_postgres_databases_are_separate(postgres: Postgres, empty_pg: str) -> None:
    """A database made from another has its tables, and the other does not change with it."""
    original = empty_pg.rpartition("/")[2]
    postgres.execute("CREATE TABLE things AS SELECT 1 AS id", original)
    copy = postgres.create_database(original)
    postgres.execute("INSERT INTO things VALUES (2)", copy)
    assert postgres.execute("SELECT id FROM things ORDER BY id", copy) == [(1,), (2,)]
    assert postgres.execute("SELECT id FROM things", original) == [(1,)]
    with psycopg.connect(postgres.url(copy)):
        postgres.drop_database(copy)
    assert not postgres.execute(f"SELECT FROM pg_database WHERE datname = '{copy}'")


@pytest.mark.parametrize("end", [Postgres.stop, Postgres.kill])
def test_postgres_comes_back_with_its_data(
    postgres: Postgres, empty_pg: str, end: Callable[[Postgres], None]
) -> None:
    """After a stop or a crash the same URL refuses, and answers again after a start."""
    with psycopg.connect(empty_pg, autocommit=True) as connection:
        connection.execute("CREATE TABLE things AS SELECT 1 AS id")
    end(postgres)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(empty_pg)
    postgres.start()
    with psycopg.connect(empty_pg) as connection:
        assert connection.execute("SELECT id FROM things").fetchall() == [(1,)]


def test_postgres_pause_is_silence(postgres: Postgres, empty_pg: str) -> None:
    """A paused server accepts connections but answers no client until it resumes."""
    with psycopg.connect(empty_pg) as connection:
        postgres.pause()
        connection.pgconn.send_query(b"SELECT 1")
        with socket.create_connection(("127.0.0.1", postgres.port)) as newcomer:
            # What libpq says first, to be answered with one letter.
            newcomer.sendall(bytes.fromhex("00000008 04d2162f"))
            both = {newcomer.fileno(), connection.fileno()}
            assert not select.select(both, [], [], 0.3)[0]
            postgres.resume()
            deadline = time.monotonic() + 10
            while both and time.monotonic() < deadline:
                both -= set(select.select(both, [], [], 1)[0])
            assert not both
        connection.pgconn.finish()


def test_postgres_asks_a_role_for_its_password(postgres: Postgres) -> None:
    """Only a role that was created with a password needs it."""
    postgres.require_password("alice", "right")
    psycopg.connect(postgres.url(user="alice", password="right")).close()
    for wrong in ("wrong", None):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(postgres.url(user="alice", password=wrong))


def test_redis_starts_again_empty(redis_server: Redis, redis_url: str) -> None:
    """After a stop the same URL refuses, and after a start it is an empty Redis."""
    redis_server.ask("SET", "key", "value")
    redis_server.stop()
    with pytest.raises(redis.ConnectionError):
        ping(redis_url)
    redis_server.start()
    assert redis_server.ask("DBSIZE") == 0


def test_redis_pause_is_silence(redis_server: Redis, redis_url: str) -> None:
    """A paused server times out and answers again when it resumes."""
    redis_server.pause()
    with pytest.raises(redis.TimeoutError):
        ping(redis_url)
    redis_server.resume()
    assert ping(redis_url)


def test_redis_takes_options() -> None:
    """A server can be started with a password and any option of the program."""
    with Redis("--maxmemory", "2mb", password="se cret") as server:
        assert server.ask("CONFIG", "GET", "maxmemory") == {"maxmemory": "2097152"}
        assert ping(server.url(db=3))
        with pytest.raises(redis.AuthenticationError):
            ping(f"redis://127.0.0.1:{server.port}")


def test_cluster_spreads_keys() -> None:
    """A cluster takes keys of all slots, and every node holds some."""
    with servers.redis_cluster() as cluster:
        assert cluster.url.startswith(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port},")
        with RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as client:
            for number in range(100):
                client.set(f"key{number}", number)
        sizes = [node.ask("DBSIZE") for node in cluster.nodes]
        assert sum(sizes) == 100
        assert all(sizes)


def test_sentinels_name_a_new_master() -> None:
    """When the master dies, the Sentinels make the replica the master."""
    with servers.redis_sentinel() as group:
        master, replica = group.nodes
        assert group.url.endswith(f":{group.sentinels[2].port}/mymaster/0")
        master.kill()
        deadline = time.monotonic() + 30
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        while int(group.sentinels[0].ask(*question)[1]) != replica.port:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_silent_server() -> None:
    """The silent server lets clients connect and never answers."""
    with servers.silent_server() as port, pytest.raises(redis.TimeoutError):
        ping(f"redis://127.0.0.1:{port}")


def test_refused_port() -> None:
    """No program listens on the refused port."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", servers.refused_port()))


def test_a_port_taken_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose port was taken after it was found starts on another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        offers = iter([taken, taken])
        find = servers.free_port
        monkeypatch.setattr(servers, "free_port", lambda: next(offers, None) or find())
        with Redis() as server:
            assert server.port != taken
            assert ping(server.url())


@pytest.mark.parametrize(
    ("variable", "find"),
    [
        ("TEST_POSTGRES_BIN", servers.postgres_binary),
        ("TEST_REDIS_BIN", servers.redis_binary),
    ],
)
def test_a_named_server_must_work(
    variable: str,
    find: _lru_cache_wrapper[Binary],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A server named in the environment that does not run is an error that says what to do."""
    monkeypatch.setenv(variable, str(tmp_path / "absent"))
    with pytest.raises(RuntimeError) as error:
        find.__wrapped__()
    assert str(tmp_path / "absent") in str(error.value)
    assert servers.INSTALL in str(error.value)


def test_nothing_stays_of_killed_tests() -> None:
    """When the process of the tests is killed, servers and folders go away, paused ones too."""
    program = """
import time
from tests.servers import Postgres, Redis
postgres, paused = Postgres(), Redis()
postgres.start(), paused.start(), paused.pause()
print(postgres.port, paused.port, postgres.folder.parent, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        *ports, folder = process.stdout.readline().split()
        process.kill()
    deadline = time.monotonic() + 30
    # The folder goes last.
    while os.path.exists(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)))
