"""A Redis in trouble costs a count little time, and gives one clear error."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress

import pytest

from modelctl import crash_points
from modelctl.count.cache import Cache
from modelctl.count.redis import RedisCache
from modelctl.errors import InvalidConfigError, StaleCacheError
from tests import servers
from tests.count.rigs import (
    LEADERBOARD,
    OPERATIONS,
    OTHERS,
    RedisRig,
    configured,
    every_operation,
    fails,
    fill,
    populate,
    setex,
    shown,
)
from tests.servers import Redis, RedisGroup
from tests.world import KEY, LEASE


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """Give the port of a server that says the same to everybody and hangs up."""

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


SILENT: dict[str, Callable[[], AbstractContextManager[int]]] = {
    "refuses": lambda: nullcontext(servers.refused_port()),
    "is silent": servers.silent_server,
    "hangs up": lambda: answering(b""),
    "hangs up in the middle of a string": lambda: answering(b"*2\r\n$50\r\nabc"),
    "hangs up in the middle of a line": lambda: answering(b":1"),
    "loads its data": lambda: answering(b"-LOADING Redis is loading the dataset in memory\r\n"),
    "is out of connections": lambda: answering(b"-ERR max number of clients reached\r\n"),
    "speaks HTTP": lambda: answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "counts in words": lambda: answering(b":many\r\n"),
}


@every_operation
@pytest.mark.parametrize("trouble", SILENT.values(), ids=SILENT)
def test_a_server_that_does_not_work(
    trouble: Callable[[], AbstractContextManager[int]], operation: Callable[[Cache], object]
) -> None:
    """Whatever is wrong with the server, every operation soon says that the cache is not there."""
    with trouble() as port:
        fails(operation, f"redis://:zq7secret@127.0.0.1:{port}/0", StaleCacheError)


@every_operation
@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
@pytest.mark.parametrize("trouble", ["refuses", "hangs up", "speaks HTTP"])
def test_several_servers_that_do_not_work(
    trouble: str, kind: str, operation: Callable[[Cache], object]
) -> None:
    """Nodes of a cluster and Sentinels that do not work give the same quick error."""
    with SILENT[trouble]() as port:
        places = f"127.0.0.1:{port},localhost:{port}"
        url = f"redis+{kind}://:zq7secret@{places}" + ("/main/0" if kind == "sentinel" else "")
        fails(operation, url, StaleCacheError)


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
def test_many_silent_servers_take_no_longer_than_a_second(kind: str) -> None:
    """The time to find all addresses silent does not grow with their number."""
    with servers.silent_server() as port, ExitStack() as others:
        for host in range(2, 11):
            others.enter_context(socket.create_server((f"127.0.0.{host}", port)))
        places = ",".join(f"127.0.0.{host}:{port}" for host in range(1, 11))
        url = f"redis+{kind}://{places}" + ("/main" if kind == "sentinel" else "")
        # Half a second for each would be five; the slack is for a busy machine.
        fails(OPERATIONS["peek"], url, StaleCacheError, seconds=3)


LOGINS = {
    "no password": "",
    "wrong password": ":zq7wrong@",
    "unknown user": "joe:zq7wrong@",
    "no rights": "nothing:zq7user@",
    "other keys": "elsewhere:zq7user@",
}


@every_operation
@pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS)
def test_a_refused_user(guarded: Redis, login: str, operation: Callable[[Cache], object]) -> None:
    """A wrong password or missing rights are a matter of configuration, in every operation."""
    fails(operation, f"redis://{login}127.0.0.1:{guarded.port}/0", InvalidConfigError)


@pytest.mark.parametrize(
    "url", ["redis+cluster://:zq7wrong@{}", "redis+sentinel://{}/main?sentinel_password=zq7wrong"]
)
def test_a_password_that_several_servers_refuse(guarded: Redis, url: str) -> None:
    """The error tells a refused password from servers that are away, for nodes and Sentinels."""
    url = url.format(f"127.0.0.1:{guarded.port}")
    fails(OPERATIONS["peek"], url, InvalidConfigError)


def test_rights_that_end_in_the_middle(guarded: Redis) -> None:
    """Without the right to sweep or to store it is a matter of configuration; the DEL is done."""
    with guarded.client() as admin:
        setex(admin, 60, "5")
        url = f"redis://sweepless:zq7user@127.0.0.1:{guarded.port}/0"
        fails(OPERATIONS["invalidate"], url, InvalidConfigError)
        assert admin.get(KEY) is None
        url = url.replace("sweepless", "setless")
        admin.set(LEASE, f"token {admin.info('server')['run_id']}", px=10_000)
        fails(OPERATIONS["fill"], url, InvalidConfigError)
        assert admin.get(KEY) is None
        admin.delete(LEASE)
        filler = RedisCache(configured(guarded.url()))
        fill(filler, 5)
        filler.close()
        reader = RedisCache(configured(url.replace("setless", "reader")))
        assert shown(reader) == 5
        with pytest.raises(InvalidConfigError):
            reader.lease()
        reader.close()


def test_a_replica_takes_no_writes(sentinel: RedisGroup) -> None:
    """On a replica every write is refused, and nothing is counted as delivered."""
    replica = sentinel.nodes[1]
    for name in ("lease", "invalidate"):
        told = fails(OPERATIONS[name], replica.url(), StaleCacheError)
        assert "read only" in told.message


def test_out_of_memory() -> None:
    """A full Redis stores no number and takes no lease, and an invalidation is delivered."""
    with Redis("--maxmemory-policy", "noeviction") as server:
        cache = RedisCache(configured(server.url()))
        fill(cache, 1)
        token = cache.lease()
        assert token
        server.ask("CONFIG", "SET", "maxmemory", "1")
        assert shown(cache) == 1
        with pytest.raises(StaleCacheError, match="memory"):
            cache.fill(token, 2)
        assert shown(cache) == 1
        cache.invalidate(2.0)
        assert shown(cache) is None
        with pytest.raises(StaleCacheError, match="memory"):
            cache.lease()
        cache.fill(token, 3)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert shown(cache) is None
        cache.invalidate(2.0)
        cache.close()


def test_an_invalidation_that_breaks_off(
    one_redis: RedisRig, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that dies after any of its steps makes an invalidation an error."""
    for point in ("after-del", "in-sweep"):
        redis_server.recover()
        populate(one_redis.client, LEADERBOARD | OTHERS)  # several pages
        cache = one_redis.cache()
        fill(cache, 1)

        def die(reached: str, point: str = point) -> None:
            if reached == point:
                redis_server.kill()

        monkeypatch.setattr(crash_points, "hook", die)
        with pytest.raises(StaleCacheError):
            cache.invalidate(2.0)
        monkeypatch.setattr(crash_points, "hook", None)


def test_a_restart_costs_nothing_and_an_absence_one_error(
    one_redis: RedisRig, redis_server: Redis
) -> None:
    """A cache in a long-lived process notices a restart itself, and comes back after an absence."""
    cache = one_redis.cache()
    fill(cache, 1)
    redis_server.kill()
    redis_server.start()
    assert cache.peek() is None
    fill(cache, 2)
    redis_server.kill()
    for operation in OPERATIONS.values():
        with pytest.raises(StaleCacheError):
            operation(cache)
    redis_server.start()
    fill(cache, 3)
    assert shown(cache) == 3


def test_a_late_reply_reaches_no_other_call(
    one_redis: RedisRig, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server answers after we gave up waiting is not taken for the next answer."""
    monkeypatch.setattr("modelctl.count.redis_link.SKIP_SECONDS", (0.0, 0.0))
    cache = one_redis.cache(timeout=1)
    fill(cache, 1)
    redis_server.pause()
    for name in ("peek", "lease"):
        with pytest.raises(StaleCacheError):
            OPERATIONS[name](cache)
    redis_server.resume()
    one_redis.client.delete(LEASE)  # that of the request which was sent and not waited for
    fill(one_redis.cache(), 2)
    assert [shown(cache) for _ in range(3)] == [2, 2, 2]
