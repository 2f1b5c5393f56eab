"""Reads redis.url: which servers, the login, and what TLS has to check."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from modelctl.urls.accepted import redis_parameters

if TYPE_CHECKING:
    from modelctl.config.sections import RedisConfig


class RedisTarget(NamedTuple):
    """The parts of a URL of Redis."""

    kind: str  # empty, unix, sentinel or cluster
    tls: bool
    addresses: list[tuple[str, int]]
    path: str  # of a unix socket
    master: str
    database: int
    username: str
    password: str
    parameters: dict[str, str]

    def tls_settings(self) -> dict[str, Any]:
        """Return the arguments of redis-py's connection that are about TLS."""
        found: dict[str, Any] = {n: v for n, v in self.parameters.items() if n.startswith("ssl_")}
        if checks := found.get("ssl_check_hostname"):
            found["ssl_check_hostname"] = checks.lower() not in ("0", "f", "false", "n", "no")
        if version := found.get("ssl_min_version"):
            found["ssl_min_version"] = int(version)
        return found


def target_of(url: str) -> RedisTarget:
    """Read a URL that the configuration has checked.

    Raises:
        UsageError: it has a parameter that makes no sense.
    """
    given = redis_parameters(url)
    scheme, _, rest = url.partition("?")[0].partition("://")
    scheme, _, kind = scheme.partition("+")
    authority, _, path = rest.partition("/")
    login, _, hosts = authority.rpartition("@")
    username, _, password = login.partition(":")
    addresses: list[tuple[str, int]] = []
    place = master = database = ""
    if scheme == "unix":
        kind, place = "unix", unquote(f"/{path}")
    else:
        port = 26379 if kind == "sentinel" else 6379
        addresses = list(dict.fromkeys(_address(host, port) for host in hosts.split(",")))
        master, _, database = path.partition("/") if kind == "sentinel" else ("", "", path)
    return RedisTarget(
        kind,
        scheme == "rediss",
        addresses,
        place,
        unquote(master),
        int(given.get("db") or database.strip("/") or "0"),
        given.get("username") or unquote(username),
        given.get("password") or unquote(password),
        given,
    )


def _address(text: str, port: int) -> tuple[str, int]:
    host, given = re.fullmatch(r"(.*?)(?::([0-9]+))?", text).groups()  # type: ignore[union-attr]
    return unquote(host.strip("[]")) or "localhost", int(given or port)


def identity_of(url: str) -> str:
    """Return a text that is equal for all URLs that name the same Redis database; without secrets."""
    found = target_of(url)
    places = sorted(f"{host}:{port}" for host, port in found.addresses) or [found.path]
    return "/".join(filter(None, (",".join(places), found.master, str(found.database))))


def timeout_of(config: RedisConfig) -> float:
    """Return how long a conversation may take (seconds): the shortest that is configured."""
    given = redis_parameters(config.url)
    names = ("socket_timeout", "socket_connect_timeout")
    return min([config.timeout, *(float(given[name]) for name in names if name in given)])
