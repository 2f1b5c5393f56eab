"""Whatever answers in place of Redis, however slowly, a count is right and a change is queued."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelctl import Fleet
from modelctl.cli.main import main
from modelctl.config.config import Config
from modelctl.config.sections import CacheConfig, DatabaseConfig, RedisConfig
from modelctl.count import redis_link
from modelctl.count.cache import Hit
from modelctl.count.redis import RedisCache
from modelctl.errors import InvalidConfigError, ModelctlError, StaleCacheError
from modelctl.model import CacheState
from tests import servers
from tests.servers import Redis
from tests.waiting import at_most, side_by_side

# The timeout of these tests, in seconds.
FAST = 0.06


# ── A server that answers as it likes ───────────────────────────────────────────────────────────


class Listener:
    """A server on this machine that serves each connection in a thread of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop to accept connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        raise NotImplementedError


class FakeRedis(Listener):
    """A server that reads commands and gives each the next of *answers*, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[bytes] = [b"+OK\r\n"]
        super().__init__()

    def _serve(self, client: socket.socket) -> None:
        number = 0
        with suppress(OSError), client, client.makefile("rb") as asked:
            while (line := asked.readline()).startswith(b"*"):
                for _ in range(int(line[1:])):
                    asked.read(int(asked.readline()[1:]) + 2)
                client.sendall(self.answers[min(number, len(self.answers) - 1)])
                number += 1


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeRedis]:
    """Run one server for the module."""
    server = FakeRedis()
    yield server
    server.close()


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _array(items: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)


words = st.sampled_from([b"OK", b"QUEUED", b"0", b"5", b"none", b"string", b"master", b"run_id:x"])
values: st.SearchStrategy[bytes] = st.recursive(
    st.one_of(
        words.map(lambda word: b"+" + word + b"\r\n"),
        words.map(_bulk),
        st.integers(-2, 70_000).map(lambda n: b":%d\r\n" % n),
        st.integers().map(lambda n: b":%d\r\n" % n),
        st.binary(max_size=20).map(_bulk),
        st.sampled_from(
            [
                b"$-1\r\n",
                b"*-1\r\n",
                b"*0\r\n",
                b"-ERR no\r\n",
                b"-MOVED 1 127.0.0.1:1\r\n",
                b"-ASK x\r\n",
                b"-EXECABORT\r\n",
                b"-\r\n",
            ]
        ),
    ),
    lambda inner: st.lists(inner, max_size=4).map(_array),
    max_leaves=12,
)
nonsense = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b">3\r\n+message\r\n+a\r\n+b\r\n",
            b"%1\r\n+a\r\n+b\r\n",
            b"_\r\n",
            b"#t\r\n",
            b",1.5\r\n",
            b"*1\r\n" * 100_000,
            b"$99999999999999999999\r\n",
            b"$999999999\r\nabc",
            b"*999999999\r\n" + b":1\r\n" * 1000,
            b":" + b"9" * 10_000 + b"\r\n",
            b"$-5\r\n",
            b"*-5\r\n",
            b"$1_0\r\n0123456789\r\n",
            b": 1\r\n",
            b"+OK\r\n+OK\r\n",
            b"$3\r\nabcdef\r\n",
            b"\r\n",
            b"",
        ]
    ),
)
scripts = st.lists(values | nonsense, min_size=1, max_size=8)


def _look_again(cache: RedisCache) -> object:
    with suppress(StaleCacheError, InvalidConfigError):
        cache.peek()
    cache.link.silent = False
    return cache.peek()


OPERATIONS: dict[str, Callable[[RedisCache], object]] = {
    "peek": lambda cache: cache.peek(),
    "peek again": _look_again,
    "lease": lambda cache: cache.lease(),
    "fill": lambda cache: cache.fill("token ", 1),
    "release": lambda cache: cache.release("token x"),
    "forget": lambda cache: cache.forget(),
    "invalidate": lambda cache: cache.invalidate(0.3),
    "server_id": lambda cache: cache.server_id(),
    "keys": lambda cache: cache.keys(),
}
URLS = (
    "redis://127.0.0.1:{}",
    "redis://u:p@127.0.0.1:{}/2",
    "redis+sentinel://127.0.0.1:{}/m",
    "redis+cluster://127.0.0.1:{}",
)


def _cache(url: str, timeout: float = FAST) -> RedisCache:
    return RedisCache(
        Config(
            DatabaseConfig("postgresql://nobody@localhost/none"),
            RedisConfig(url, timeout=timeout),
            CacheConfig(),
        )
    )


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@given(url=st.sampled_from(URLS), script=scripts)
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
def test_any_answer_is_an_answer_or_an_error_of_redis(
    fake: FakeRedis, operation: Callable[[RedisCache], object], url: str, script: list[bytes]
) -> None:
    """Any bytes from the server give a result or one of the errors that callers expect."""
    fake.answers = script
    cache = _cache(url.format(fake.port))
    with at_most(8 * FAST):
        with suppress(StaleCacheError, InvalidConfigError):
            operation(cache)
        cache.close()


@given(script=scripts)
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
def test_a_deletion_is_believed_only_in_words_that_say_so(
    fake: FakeRedis, script: list[bytes]
) -> None:
    """DEL answers a whole number; whatever else comes is no delivery."""
    fake.answers = [b"-ERR unknown command\r\n", *script]
    cache = _cache(f"redis://127.0.0.1:{fake.port}")
    try:
        cache.forget()
    except ModelctlError:
        pass
    else:
        assert re.fullmatch(rb":[+-]?[0-9]{1,19}\r\n", script[0])
    cache.close()


SENTENCES: dict[str, bytes] = {
    "an integer": b":1\r\n",
    "nested": b"*1\r\n" * 100_000,
    "endless": b"*2000000000\r\n" + b":1\r\n" * 1000,
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a push": b">2\r\n+a\r\n+b\r\n",
    "a map": b"%1\r\n+a\r\n+b\r\n",
    "a huge string": b"$9999999999\r\nabc",
    "an empty array": b"*0\r\n",
    "strings": b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n",
    "OK": b"+OK\r\n",
}


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
@pytest.mark.parametrize("kind", ["redis://{}", "redis+sentinel://{}/main", "redis+cluster://{}"])
def test_the_command_line_never_ends_in_a_traceback(
    fake: FakeRedis,
    pg_database: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    sentence: bytes,
) -> None:
    """A count is exit 0, a change 0 or 6, doctor 1 in words, the cache commands 0, 3 or 6."""
    fake.answers = [sentence]
    monkeypatch.setenv("MODELCTL_DATABASE_URL", pg_database)
    monkeypatch.setenv("MODELCTL_REDIS_URL", kind.format(f"127.0.0.1:{fake.port}"))
    monkeypatch.setenv("MODELCTL_REDIS_TIMEOUT", "0.1s")
    monkeypatch.setattr("modelctl.count.protocol.INVALIDATE_SECONDS", 0.2)
    for command, codes in (
        ("count", {0}),
        ("count --strong", {0}),
        ("count --fresh", {0}),
        ("add a", {0, 6}),
        ("disable a", {0, 6}),
        ("cache show", {0, 3, 6}),
        ("cache drain", {0, 3, 6}),
        ("cache clear", {0, 3, 6}),
        ("count --verify", {0, 6}),
    ):
        assert main([*command.split(), "-o", "json"]) in codes, command
        shown = capfd.readouterr()
        json.loads(shown.out)
        assert "Traceback" not in shown.err
    assert main(["doctor", "-o", "json"]) in {0, 1}
    shown = capfd.readouterr()
    assert "checks" in json.loads(shown.out)
    assert "this is a bug" not in shown.out


# ── A server that is slow ───────────────────────────────────────────────────────────────────────


class Proxy(Listener):
    """Stands between us and Redis: passes *whole* bytes of the answers, then *then* happens."""

    def __init__(self, server: int) -> None:
        self.whole = 1 << 60
        self.then = "cut"
        self._server = server
        super().__init__()

    def _serve(self, client: socket.socket) -> None:
        with (
            suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._server)) as server,
        ):
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    data = client.recv(65536)
                    if not data:
                        return
                    server.sendall(data)
                if server in ready:
                    data = server.recv(65536)
                    if not data:
                        return
                    now, later = data[: self.whole], data[self.whole :]
                    self.whole -= len(now)
                    client.sendall(now)
                    if later and self.then == "cut":
                        return
                    for byte in later if self.then != "stop" else b"":
                        time.sleep(0.05)
                        client.sendall(bytes([byte]))
                    if later and self.then == "stop":
                        while client.recv(65536):
                            pass
                        return


@pytest.mark.parametrize("then", ["cut", "stop", "drip"])
def test_the_answer_ends_or_slows_at_any_byte(then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit, a fill and an invalidation are done or an error in time, wherever it happens."""
    monkeypatch.setattr(redis_link, "SKIP_SECONDS", (0.0, 0.0))
    each = [(operation, then) for operation in ("peek", "fill", "invalidate")]
    side_by_side(_ending_everywhere, each)


def _ending_everywhere(operation: str, then: str) -> None:
    """Carry out an operation behind a proxy, once for each of many places where *then* happens."""
    with Redis() as server, contextlib.closing(Proxy(server.port)) as proxy:
        proxy.then = then
        with server.client() as client:
            length = len(client.execute_command("INFO", "server")["run_id"]) + 1000
        steps = (*range(0, 40, 3), *range(40, length, 97), *range(length, length + 160, 9))
        for whole in steps:
            proxy.whole = 1 << 60
            server.ask("FLUSHALL")
            with contextlib.closing(_cache(f"redis://127.0.0.1:{proxy.port}", 5)) as patient:
                token = patient.lease()
                assert token
                if operation == "peek":
                    patient.fill(token, 7)
            proxy.whole = whole
            cache = _cache(f"redis://127.0.0.1:{proxy.port}")
            with at_most(6 * FAST), suppress(StaleCacheError):
                if operation == "fill":
                    cache.fill(token, 7)
                elif operation == "peek":
                    hit = cache.peek()
                    assert isinstance(hit, Hit)
                    assert hit.active == 7
                else:
                    cache.invalidate(0.3)
                    assert server.ask("DBSIZE") == 0
            cache.close()


@contextmanager
def silent(kind: str) -> Iterator[str]:
    """Give the URL of a Redis that takes connections and says nothing."""
    with servers.silent_server() as port, contextlib.ExitStack() as others:
        places = [f"127.0.0.1:{port}"]
        if kind != "redis":
            for host in ("127.0.0.2", "127.0.0.3"):
                others.enter_context(socket.create_server((host, port)))
                places.append(f"{host}:{port}")
        yield f"{kind}://{','.join(places)}" + ("/main" if kind == "redis+sentinel" else "")


@pytest.mark.parametrize("kind", ["redis", "redis+sentinel", "redis+cluster"])
def test_a_silent_redis_costs_a_second_at_most(pg_database: str, kind: str) -> None:
    """The first count waits once, those after it do not; a change waits three seconds at most."""
    with silent(kind) as url:
        fleet = Fleet(Config(DatabaseConfig(pg_database), RedisConfig(url)))
        warnings: list[str] = []
        fleet.on_warning = warnings.append
        fleet.count(fresh=True)
        with at_most(1):
            for _ in range(20):
                assert fleet.count().source == "database"
        assert len(warnings) == 1
        with at_most(3):
            assert fleet.add("a").cache == CacheState.QUEUED
        fleet.close()


def test_after_a_silence_one_read_in_a_while_tries_again(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a timeout reads skip Redis for a moment, then a single read tries it for all."""
    cache = _cache(redis_server.url(), 1)
    token = cache.lease()
    assert token
    cache.fill(token, 7)
    now = time.monotonic()
    monkeypatch.setattr(redis_link, "SKIP_SECONDS", (3600.0, 3600.0))
    redis_server.pause()
    with pytest.raises(StaleCacheError, match="no answer within"):
        cache.peek()
    redis_server.resume()
    for _ in range(3):
        with pytest.raises(StaleCacheError, match="did not answer just now"):
            cache.peek()
    monkeypatch.setattr("modelctl.count.redis_link.time.monotonic", lambda: now + 7200)
    hit = cache.peek()
    assert hit
    monkeypatch.undo()
    assert cache.peek()
    cache.close()


def test_a_silent_name_server_is_not_waited_for(
    pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is not resolved in time is an error in time; concurrent callers share one lookup."""
    asked, answer = [], threading.Event()
    real = socket.getaddrinfo

    def slow(host: str, *rest: object, **how: object) -> object:
        if host != "cache.test":
            return real(host, *rest, **how)  # type: ignore[arg-type]
        asked.append(host)
        answer.wait(30)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    fleet = Fleet(Config(DatabaseConfig(pg_database), RedisConfig("redis://cache.test:6379")))
    fleet.on_warning = lambda _: None
    fleet.count(fresh=True)
    with at_most(1):
        assert fleet.count().source == "database"
    with at_most(3):
        assert fleet.add("a").cache == CacheState.QUEUED
    assert len(asked) == 1
    answer.set()
    fleet.close()


@pytest.mark.parametrize("last", [10**15, 2**63 - 1, -1, 16384])
def test_a_map_of_a_cluster_that_makes_no_sense(fake: FakeRedis, last: int) -> None:
    """Slots that there are not are refused before anybody goes through them."""
    node = b"*2\r\n$0\r\n\r\n:%d\r\n" % fake.port
    fake.answers = [_array([_array([b":0\r\n", b":%d\r\n" % last, node])])]
    with at_most(2.0):
        cache = _cache(f"redis+cluster://127.0.0.1:{fake.port}", 2.0)
        with pytest.raises(StaleCacheError, match="no slots of a cluster"):
            cache.peek()
    cache.close()


def test_a_scan_that_never_ends_is_left(fake: FakeRedis) -> None:
    """A cursor that does not move is no answer, also where a sweep may go on to the end."""
    info, page = b"-ERR unknown command\r\n", b"*2\r\n$1\r\n7\r\n*0\r\n"
    fake.answers = [info, b":0\r\n", b":0\r\n", page]
    cache = _cache(f"redis://127.0.0.1:{fake.port}", 2)
    with pytest.raises(StaleCacheError, match="does not move on"):
        cache.invalidate()
    cache.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_does_not_share_connections(redis_server: Redis) -> None:
    """A child of a process that used Redis opens connections of its own."""
    cache = _cache(redis_server.url(), 5)
    token = cache.lease()
    assert token
    cache.fill(token, 7)
    child = os.fork()
    if not child:
        good = False
        try:
            good = all((hit := cache.peek()) and hit.active == 7 for _ in range(50))
        finally:
            os._exit(0 if good else 1)
    assert all(cache.peek() for _ in range(50))
    assert os.waitpid(child, 0)[1] == 0
    cache.close()
