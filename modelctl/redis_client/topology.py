"""Which server of Redis to ask: the one there is, the master that Sentinels name, a cluster's node."""

from __future__ import annotations

import binascii
import functools
import math
import re
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import unquote

from modelctl.config import redis_parameters
from modelctl.redis_client.connections import Access, Address, Server, left
from modelctl.redis_client.wire import Command, NonsenseError, ReplyError, is_list

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

    from modelctl.config import RedisConfig

SENTINEL_SECONDS = 1.0
# A node may become the primary once more while our connection to it stays open. (A Sentinel
# closes the connections of a server whose role it changes.)
CLUSTER_HOME_SECONDS = 1.0
_SLOTS = 16384


class Topology(Protocol):
    """Knows the servers; each method is done before *end*."""

    def of(self, key: str, end: float) -> Server:
        """Return the server that has *key*."""

    def primaries(self, end: float) -> list[Server]:
        """Return the servers that have keys."""

    def failed(self) -> None:
        """Something went wrong with a server: what is known of them may be out of date."""

    def close(self) -> None:
        """Close all connections."""


class One:
    """A single server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def of(self, key: str, end: float) -> Server:
        """Return the only one."""
        return self._server

    def primaries(self, end: float) -> list[Server]:
        """Return the only one."""
        return [self._server]

    def failed(self) -> None:
        """There is no other."""

    def close(self) -> None:
        """Close its connections."""
        self._server.close()


class Sentinels:
    """The master of that name, as the Sentinels know it.

    Asked once a second: an old master goes on answering for a while after a failover.
    """

    def __init__(
        self, sentinels: list[Server], name: str, open_server: Callable[[Address], Server]
    ) -> None:
        self._sentinels = sentinels
        self._name = name
        self._open = open_server
        self._master: Server | None = None
        self._ask_at = 0.0
        self._asking = threading.RLock()

    def of(self, key: str, end: float) -> Server:
        """Return the master."""
        if self._master is None or monotonic() >= self._ask_at:
            if not self._asking.acquire(timeout=left(end)):
                raise TimeoutError("no answer in time")
            try:
                if self._master is None or monotonic() >= self._ask_at:
                    self._follow(self._asked(end))
                    self._ask_at = monotonic() + SENTINEL_SECONDS
            finally:
                self._asking.release()
        assert self._master is not None  # noqa: S101 - for the type checker
        return self._master

    def _follow(self, address: Address) -> None:
        if self._master is None or self._master.address != address:
            if self._master is not None:
                self._master.close()
            self._master = self._open(address)

    def _asked(self, end: float) -> Address:
        question = Command(("SENTINEL", "MASTER", self._name), is_list)
        for sentinel, answer in _first_of(self._sentinels, question, end):
            address = self._read(answer)
            if address is not None:
                self._sentinels = sorted(self._sentinels, key=lambda other: other is not sentinel)
                return address
        raise ConnectionError(f"no Sentinel knows a master '{self._name}' that is up")

    def _read(self, answer: list[Any]) -> Address | None:
        if len(answer) % 2 or not all(isinstance(word, bytes) for word in answer):
            raise NonsenseError(f"no answer to SENTINEL: {answer!r:.100}")
        fields = dict(zip(answer[::2], answer[1::2], strict=True))
        flags = fields.get(b"flags", b"").split(b",")
        if b"master" not in flags or b"s_down" in flags or b"o_down" in flags:
            return None
        return _address(fields.get(b"ip"), fields.get(b"port"))

    def primaries(self, end: float) -> list[Server]:
        """Return the master."""
        return [self.of("", end)]

    def failed(self) -> None:
        """Ask again the next time."""
        self._ask_at = 0.0

    def close(self) -> None:
        """Close all connections."""
        for server in (*self._sentinels, self._master):
            if server is not None:
                server.close()


class Cluster:
    """The nodes of a cluster. Nobody is redirected: after an error the map is read again."""

    def __init__(self, nodes: list[Address], open_server: Callable[[Address], Server]) -> None:
        self._open = open_server
        self._servers = {address: open_server(address) for address in nodes}
        self._nodes = nodes
        self._slots: list[tuple[int, int, Server]] | None = None

    def of(self, key: str, end: float) -> Server:
        """Return the primary of the key's slot."""
        slot = slot_of(key)
        for first, last, server in self._slots or self._read(end):
            if first <= slot <= last:
                return server
        self._slots = None
        raise ConnectionError(f"no node of the cluster has the slot {slot}")

    def primaries(self, end: float) -> list[Server]:
        """Return all primaries; asked each time, or one that joined since would be left out."""
        return list(dict.fromkeys(server for _, _, server in self._read(end)))

    def _read(self, end: float) -> list[tuple[int, int, Server]]:
        question = Command(("CLUSTER", "SLOTS"), is_list)
        servers = [self._servers[node] for node in self._nodes]
        for server, answer in _first_of(servers, question, end):
            found = [self._range(server, entry) for entry in answer]
            if found:
                self._slots = found
                return found
        raise ConnectionError("the cluster has no slots")

    def _range(self, asked: Server, entry: Any) -> tuple[int, int, Server]:
        match entry:
            case [int(first), int(last), [bytes() | None as host, int(port), *_], *_]:
                address = _address(host or asked.address.host.encode(), port)
                return first, last, self._servers.setdefault(address, self._open(address))
        raise NonsenseError(f"no answer to CLUSTER SLOTS: {entry!r:.100}")

    def failed(self) -> None:
        """Read the map again the next time."""
        self._slots = None

    def close(self) -> None:
        """Close all connections."""
        for server in self._servers.values():
            server.close()


def slot_of(key: str) -> int:
    """Return the slot of a key: of what stands between its first braces, if anything does."""
    start = key.find("{")
    end = key.find("}", start + 1)
    tag = key[start + 1 : end] if 0 <= start < end - 1 else key
    return binascii.crc_hqx(tag.encode(), 0) % _SLOTS


def _first_of(
    servers: Iterable[Server], question: Command, end: float
) -> Iterable[tuple[Server, list[Any]]]:
    """Give the answers, one server after the other; in the end raise what went wrong, if anything.

    One that is silent leaves time for those after it.
    """
    servers = list(servers)
    wrong: list[Exception] = []
    for number, server in enumerate(servers):
        try:
            until = monotonic() + left(end) / (len(servers) - number)
            with server.connection(until) as connection:
                [answer] = connection.ask([question], until)
        except (OSError, ValueError, ReplyError) as exc:
            wrong.append(exc)
        else:
            yield server, answer
    if wrong:
        raise max(wrong, key=_weight)


def _weight(exc: Exception) -> int:
    """Of several errors, which one tells most."""
    if isinstance(exc, ReplyError):
        return 2
    return isinstance(exc, TimeoutError)


def _address(host: Any, port: Any) -> Address:
    try:
        name, number = host.decode("ascii"), int(port)
    except (AttributeError, TypeError, ValueError):
        name, number = "", 0
    if not name or not 0 < number < 65536 or re.search(r"[^0-9A-Za-z_.:%-]", name):
        raise NonsenseError(f"no address of a server: {host!r:.60} {port!r:.10}")
    return Address(name, number)


class _Target(NamedTuple):
    """What a URL says."""

    kind: str  # empty, unix, sentinel or cluster
    tls: bool
    user: str
    password: str
    addresses: list[Address]
    master: str
    database: int
    parameters: dict[str, str]


def _target(url: str) -> _Target:
    given = redis_parameters(url)
    scheme, _, rest = url.partition("?")[0].partition("://")
    scheme, _, kind = scheme.partition("+")
    authority, _, path = rest.partition("/")
    login, _, hosts = authority.rpartition("@")
    user, _, password = login.partition(":")
    master = database = ""
    if scheme == "unix":
        kind, addresses = "unix", [Address(path=unquote(f"/{path}"))]
    else:
        port = 26379 if kind == "sentinel" else 6379
        addresses = list(dict.fromkeys(_place(host, port) for host in hosts.split(",")))
        master, _, database = path.partition("/") if kind == "sentinel" else ("", "", path)
    number = int(given.get("db") or database.strip("/") or "0")
    return _Target(
        kind, scheme == "rediss", user, password, addresses, unquote(master), number, given
    )


def identity_of(url: str) -> str:
    """Return which Redis a URL names, the same for all that name the same, without secrets."""
    target = _target(url)
    places = ",".join(sorted(map(str, target.addresses)))
    return "/".join(filter(None, (places, target.master, str(target.database))))


def open_topology(config: RedisConfig) -> Topology:
    """Return what *config.url* names; nothing is connected yet.

    Raises:
        UsageError: the URL has a parameter that makes no sense.
    """
    target = _target(config.url)
    given = target.parameters
    access = Access(
        given.get("username") or unquote(target.user),
        given.get("password") or unquote(target.password),
        target.database,
        functools.cache(lambda: _tls(given)) if target.tls else None,
        home_seconds=CLUSTER_HOME_SECONDS if target.kind == "cluster" else math.inf,
    )

    def server(address: Address) -> Server:
        return Server(address, access, config.pool_size)

    addresses = target.addresses
    if target.kind == "cluster":
        return Cluster(addresses, server)
    if target.kind != "sentinel":
        return One(server(addresses[0]))
    own = Access(
        given.get("sentinel_username", ""),
        given.get("sentinel_password", ""),
        tls=access.tls,
        asks_home=False,
    )
    sentinels = [Server(address, own, config.pool_size) for address in addresses]
    return Sentinels(sentinels, target.master, server)


def _place(text: str, port: int) -> Address:
    host, given = re.fullmatch(r"(.*?)(?::([0-9]+))?", text).groups()  # type: ignore[union-attr]
    return Address(unquote(host.strip("[]")) or "localhost", int(given or port))


def _tls(given: dict[str, str]) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context()
    need = given.get("ssl_cert_reqs", "required")
    checks = given.get("ssl_check_hostname", "true").lower() not in ("0", "f", "false", "n", "no")
    context.check_hostname = checks and need != "none"
    context.verify_mode = ssl.VerifyMode[f"CERT_{need.upper()}"]
    if certificate := given.get("ssl_certfile"):
        context.load_cert_chain(certificate, given.get("ssl_keyfile"), given.get("ssl_password"))
    if given.get("ssl_ca_certs") or given.get("ssl_ca_path"):
        context.load_verify_locations(given.get("ssl_ca_certs"), given.get("ssl_ca_path"))
    if version := given.get("ssl_min_version"):
        context.minimum_version = ssl.TLSVersion(int(version))
    return context


def timeout_of(config: RedisConfig) -> float:
    """Return how long a conversation may take (seconds): the shortest that is configured."""
    given = redis_parameters(config.url)
    names = ("socket_timeout", "socket_connect_timeout")
    return min([config.timeout, *(float(given[name]) for name in names if name in given)])
