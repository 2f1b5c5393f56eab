"""Which Redis server to ask, a conversation with it, and what its errors mean; built on redis-py."""

# mypy: disable-error-code="no-untyped-call, misc"
# (redis-py's cluster and Sentinel have few types)

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, NodesManager
from redis.connection import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from modelctl.redis_client import connections, waiting
from modelctl.redis_client.answers import INFO, Command, NonsenseError, checked, is_ok, server_id
from modelctl.redis_client.url import target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from modelctl.config.sections import RedisConfig
    from modelctl.redis_client.url import RedisTarget

_T = TypeVar("_T")
_Place = TypeVar("_Place")
# Errors that say what happened. redis-py raises some of them inside of others.
_REFUSALS = (AuthenticationError, NoPermissionError)
_TELLING = (OSError, ResponseError, *_REFUSALS)
_REFUSED_DATABASE = re.compile("DB index is out of range|invalid DB index")
_SENTINEL_SECONDS = 1.0
# How often a node of a cluster is asked for its identity: it may become the primary again while our
# connection to it stays open. (A Sentinel closes the connections of a server whose role it changes.)
_SERVER_ID_SECONDS = 1.0
# After so much silence a server that ought to tell of changes is asked something.
_QUIET_SECONDS = 20.0
_RESP3: tuple[str, ...] = ("HELLO", "3")
_SETTINGS: dict[str, Any] = {
    # RESP2 and no CLIENT SETINFO: a hit is one round trip after the connection.
    "protocol": 2,
    "legacy_responses": False,
    "driver_info": None,
    # No retries in here: the caller has a time limit and retries itself.
    "retry": Retry(NoBackoff(), 0),
    # No limit in here: `RedisLink` limits the connections in use, over all servers together.
    "max_connections": 2**31,
}


# ── A conversation, and its errors ──


class Talk:
    """A conversation with one server on one connection."""

    def __init__(self, connection: Any, wait: waiting.Wait) -> None:
        self._connection = connection
        self._wait = wait

    @property
    def server_id(self) -> str:
        """The identity of the server (see `answers.server_id`); empty if it gives none."""
        if monotonic() >= self._connection.ask_server_id_at:
            self.ask()
        return str(self._connection.server_id)

    def server_id_now(self) -> str:
        """As `server_id`, but asked after this count or change began.

        A server may be promoted while the connection stays open.
        """
        if self._connection.server_id_asked_at < self._wait.since:
            self._connection.ask_server_id_at = 0.0
        return self.server_id

    def ask(self, *commands: Command) -> list[Any]:
        """Send all commands in one message; return the answer to each.

        INFO goes ahead of them on a new connection, and again when `server_id` is to be asked anew.

        Raises:
            RedisError: the server answered with an error, or cannot be reached.
            NonsenseError: an answer does not fit its command.
        """
        connection = self._connection
        words = [command.words for command in commands]
        asks_server_id = monotonic() >= connection.ask_server_id_at
        if asks_server_id:
            words.insert(0, INFO.words)
        with self._wait:
            connection.send_packed_command(connection.pack_commands(words))
            answers = [_answer(connection) for _ in words]
        if connection.has_more():
            raise NonsenseError("more answers than questions")
        if asks_server_id:
            connection.server_id = server_id(answers.pop(0))
            connection.server_id_asked_at = monotonic()
            connection.ask_server_id_at = (
                connection.server_id_asked_at + connection.server_id_seconds
            )
        return checked(commands, answers)

    def follow(self, *prefixes: str) -> Iterator[None]:
        """Give a value each time that a key with one of these prefixes may have changed.

        The server tells of them (CLIENT TRACKING, in RESP3), until the connection fails: it raises
        then as `ask` does. Nothing here reads RESP3, and nothing has to: whatever arrives counts as a
        change, also the answer to HELLO and, after a while without changes, that to a question.
        """
        connection = self._connection
        each = [word for prefix in prefixes for word in ("PREFIX", prefix)]
        self.ask(Command(("CLIENT", "TRACKING", "ON", "BCAST", *each), is_ok))
        question = _RESP3
        while True:
            try:
                with waiting.Wait(_QUIET_SECONDS):
                    if question:
                        connection.send_packed_command(connection.pack_command(*question))
                    part = connection._sock.recv(65_536)
            except TimeoutError:
                if question:
                    raise
                question = ("GET", prefixes[0])
                continue
            if not part:
                raise ConnectionError("the server closed the connection")
            if question == _RESP3 and part.startswith(b"-"):
                raise NonsenseError("the server does not speak RESP3")
            question = ()
            yield

    def interrupt(self) -> None:
        """Let `follow` fail, in another thread that is waiting in it."""
        with suppress(OSError):
            self._connection._sock.shutdown(socket.SHUT_RDWR)


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as exc:
        return exc


class Trouble(NamedTuple):
    """What an error means."""

    where: str  # with ": " behind it, or empty
    text: str
    silence: bool  # nothing came in time
    refusal: bool  # the user may not do this


def trouble(error: BaseException) -> Trouble:
    """Return what an error in a conversation means.

    redis-py wraps errors, so the error that says what happened may be a cause of *error*.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    said = next((exc for exc in chain if isinstance(exc, _TELLING)), error)
    note = next((note for exc in chain for note in getattr(exc, "__notes__", ())), "")
    text = getattr(said, "strerror", None) or str(said) or type(said).__name__
    return Trouble(
        f"{note}: " if note else "",
        text,
        any(isinstance(exc, TimeoutError | RedisTimeoutError) for exc in chain),
        isinstance(said, _REFUSALS) or bool(_REFUSED_DATABASE.search(text)),
    )


def _first(ask: Callable[[_Place], _T], places: Sequence[_Place]) -> _T:
    """Ask one place after the other; return the first answer, or raise the most specific error.

    A place that does not answer leaves time for those after it.
    """
    wrong: list[Exception] = []
    for number, place in enumerate(places):
        try:
            with waiting.share(len(places) - number):
                return ask(place)
        except Exception as exc:  # whatever it is, the next place may answer
            wrong.append(exc)

    def weight(exc: Exception) -> int:
        found = trouble(exc)
        return 2 * found.refusal + found.silence

    raise max(wrong, key=weight)


# ── Which server ──


class Server:
    """A single server."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def pool_of(self, key: str) -> ConnectionPool:
        """Return the connections to the server that has *key*."""
        return self._pool

    def pools(self) -> list[ConnectionPool]:
        """Return the connections to each server that has keys."""
        return [self.pool_of("")]

    def failed(self) -> bool:
        """Note that a conversation failed; return whether to open everything anew from the URL."""
        return False

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.disconnect(inuse_connections=False)


class _Sentinels(Server):
    """The master that the Sentinels name.

    They are asked once a second, because an old master still answers for a while after a failover.
    """

    _pool: SentinelConnectionPool

    def __init__(self, pool: SentinelConnectionPool) -> None:
        super().__init__(pool)
        self._ask_at = 0.0
        self._asking = threading.RLock()

    def pool_of(self, key: str) -> ConnectionPool:
        if monotonic() >= self._ask_at:
            with waiting.acquired(self._asking):
                if monotonic() >= self._ask_at:
                    self._pool.get_master_address()  # closes the connections to another
                    self._ask_at = monotonic() + _SENTINEL_SECONDS
        return self._pool

    def failed(self) -> bool:
        self._ask_at = 0.0
        return False

    def close(self) -> None:
        super().close()
        for client in self._pool.sentinel_manager.sentinels:
            client.connection_pool.disconnect(inuse_connections=False)


class _Sentinel(Sentinel):
    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Ask one Sentinel after the other; one that does not answer leaves time for those after it."""

        def ask(client: Redis) -> tuple[str, int]:
            state: Any = client.sentinel_master(service_name)
            if not self.check_master_state(state, service_name):
                raise ConnectionError(f"the master '{service_name}' is down")
            host, port = state["ip"], state["port"]
            if not isinstance(host, str) or type(port) is not int or not 0 < port < 65536:
                raise NonsenseError(f"no address of a server: {host!r:.60} {port!r:.10}")
            self.sentinels = sorted(self.sentinels, key=lambda other: other is not client)
            return host, port

        return _first(ask, self.sentinels)


class _Cluster(Server):
    """The nodes of a cluster. A redirection is an error, after which the map of slots is read again."""

    def __init__(self, target: RedisTarget, settings: dict[str, Any]) -> None:
        def read(address: tuple[str, int]) -> NodesManager:
            nodes = [ClusterNode(*address)]
            # From a URL: that is how it takes our class of connections.
            return NodesManager(nodes, from_url=True, dynamic_startup_nodes=False, **settings)

        self._nodes = _first(read, target.addresses)

    def pool_of(self, key: str) -> ConnectionPool:
        node = self._nodes.get_node_from_slot(key_slot(key.encode()))
        return node.redis_connection.connection_pool  # type: ignore[no-any-return]

    def pools(self) -> list[ConnectionPool]:
        # A SCAN is never redirected, so read the map anew: a node that joined would be left out.
        self._nodes.initialize(disconnect_startup_nodes_pools=False)
        nodes = self._nodes.get_nodes_by_server_type("primary")
        return [node.redis_connection.connection_pool for node in nodes]

    def failed(self) -> bool:
        return True

    def close(self) -> None:
        for node in (*self._nodes.nodes_cache.values(), *self._nodes.startup_nodes.values()):
            if node.redis_connection:
                node.redis_connection.connection_pool.disconnect(inuse_connections=False)


def open_servers(config: RedisConfig) -> Server:
    """Return the server or servers that *config.url* names; a cluster is asked for its nodes at once.

    Raises:
        UsageError: the URL has a parameter that makes no sense.
    """
    target = target_of(config.url)
    tls = target.tls_settings()
    settings = _SETTINGS | tls
    login = {"username": target.username or None, "password": target.password or None}
    if target.kind == "cluster":
        how = settings | login | {"server_id_seconds": _SERVER_ID_SECONDS}
        how["connection_class"] = connections.Tls if target.tls else connections.Plain
        return _Cluster(target, how)
    settings_of_server = settings | login | {"db": target.database}
    if target.kind == "unix":
        return Server(ConnectionPool(connections.Unix, path=target.path, **settings_of_server))
    usual = connections.Tls if target.tls else connections.Plain
    if target.kind != "sentinel":
        [(host, port)] = target.addresses
        return Server(ConnectionPool(usual, host=host, port=port, **settings_of_server))
    sentinel = _Sentinel([])
    given = target.parameters
    own: dict[str, Any] = {n: given.get(f"sentinel_{n}") for n in ("username", "password")}
    sentinel.sentinels = [
        Redis(connection_pool=ConnectionPool(usual, host=host, port=port, **settings, **own))
        for host, port in target.addresses
    ]
    master = connections.TlsMaster if target.tls else connections.PlainMaster
    return _Sentinels(
        SentinelConnectionPool(
            target.master, sentinel, connection_class=master, **settings_of_server
        )
    )
