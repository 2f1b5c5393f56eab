"""Whether Redis lets this user do what the cache needs: each command is tried, none is carried out."""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from modelctl.count.redis import RedisCache, Talk
from modelctl.record import record
from modelctl.redis_client.wire import Command, ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelctl.redis_client.connections import Connection, Server

# For all servers together.
SECONDS = 5.0
_WILD = re.compile(r"[*?[\\]")
# What Redis says where the key is missing in the ACL, and not the command.
_KEY = re.compile("access (a|one of the) key")
_FULL = (
    "Redis is out of memory, so nothing can be cached and every count asks the database:"
    " raise maxmemory, or let it evict keys (maxmemory-policy allkeys-lru)"
)
_REPLICA = (
    "this Redis is a read-only replica, so a change cannot clear the cache: name the primary in"
    " redis.url, or use redis+sentinel://"
)
# A command, and what its key is called in an ACL.
_Try = tuple[tuple[str, ...], str]


@record
class Refusals:
    """What Redis refuses: rights as in an ACL (``+unlink``, ``~name``), and why it cannot write."""

    rights: tuple[str, ...]
    trouble: str | None


class _ThrownAwayError(Exception):
    """So that a connection is not used again."""


class RedisRights(RedisCache):
    """Tries what the cache does, with the same keys and on the same servers.

    A command in a transaction is checked when it is queued: its name, its key, whether there is
    memory for it and whether this server may write. The transaction is thrown away with its
    connection, so nothing is read, written or deleted.
    """

    @property
    def user(self) -> str:
        """Who is logged in."""
        start, _, query = self._config.redis.url.partition("?")
        name, _, _ = start.partition("://")[2].rpartition("@")[0].partition(":")
        return parse_qs(query).get("username", [unquote(name) or "default"])[0]

    def refusals(self) -> Refusals:
        """Try everything on every primary.

        Raises:
            StaleCacheError: Redis cannot be reached.
            InvalidConfigError: it refuses the connection.
        """
        rights: dict[str, None] = {}  # in the order in which they are found
        trouble = None
        with self.patience(SECONDS):
            with self._found() as topology, self._wait().now() as end:
                servers = topology.primaries(end)
            refused = [found for server in servers for found in self._refused(server)]
        for (words, pattern), said in refused:
            match said.partition(" ")[0]:
                case "NOPERM":
                    right = pattern if pattern and _KEY.search(said) else f"+{words[0].lower()}"
                    rights[right] = None
                case "OOM":
                    trouble = trouble or _FULL
                case "READONLY":
                    trouble = trouble or _REPLICA
                case "MOVED" | "ASK":  # the key of another node; its rights were looked at before
                    pass
                case _:
                    trouble = trouble or self._config.hide(f"Redis refuses {words[0]} ({said})")
        return Refusals(tuple(rights), trouble)

    def _refused(self, server: Server) -> list[tuple[_Try, str]]:
        """Return each command that failed, and what the server said."""
        refused: list[tuple[_Try, str]] = []

        def alone(ask: Callable[..., Any]) -> None:
            commands: list[_Try] = [
                (("INFO", "server"), ""),
                (("WATCH", self._lease), self._beside),
            ]
            for this in (*commands, (("UNWATCH",), ""), (("MULTI",), ""), (("EXEC",), "")):
                answer = ask(*this[0])
                if isinstance(answer, ReplyError):
                    refused.append((this, str(answer)))
                    if this[0] == ("MULTI",):
                        return

        def in_transaction(ask: Callable[..., Any]) -> None:
            # Or all that follows would be carried out.
            if ask("MULTI") != b"OK":
                return
            for this in self._commands():
                answer = ask(*this[0])
                if isinstance(answer, ReplyError):
                    refused.append((this, str(answer)))
                elif answer != b"QUEUED":  # the first are harmless reads
                    refused.append((this, "it is no transaction"))
                    return

        for work in (alone, in_transaction):
            self._on_its_own(server, work)
        return refused

    def _on_its_own(self, server: Server, work: Callable[[Callable[..., Any]], None]) -> None:
        """Let *work* ask, on a connection that is closed then."""
        with self._found(), suppress(_ThrownAwayError), self._connection(server) as connection:
            _ = Talk(connection, self._wait()).home  # logs in

            def ask(*words: str) -> Any:
                try:
                    return Talk(connection, self._wait()).ask(Command(words, lambda _: True))[0]
                except ReplyError as exc:
                    return exc

            work(ask)
            raise _ThrownAwayError

    @contextmanager
    def _connection(self, server: Server) -> Iterator[Connection]:
        with self._wait().now() as end, server.connection(end) as connection:
            yield connection

    @property
    def _beside(self) -> str:
        return f"~{{{self._key}}}:*"

    def _commands(self) -> Iterator[_Try]:
        """Give every command, one key at a time, and what that key is called in an ACL."""
        own = [(self._key, f"~{self._key}")]
        own += [(key, self._beside) for key in (self._lease, self._vouch)]
        plain = [(name, f"~{name}") for name in self._config.cache.clear if not _WILD.search(name)]
        for key, pattern in own:
            yield ("MGET", key), pattern
        for key, pattern in (*own, *plain):
            for command in ("GET", "PTTL", "TYPE", "DEL"):
                yield (command, key), pattern
        for key, pattern in own:
            yield ("SET", key, "0", "PX", "1"), pattern
        for name in self._config.cache.clear:
            if _WILD.search(name):
                yield ("SCAN", "0", "MATCH", name, "COUNT", "1"), ""
                yield ("UNLINK", _matching(name)), f"~{name}"


def _matching(pattern: str) -> str:
    """Return a name that a pattern of Redis matches and that no program would use."""
    name = re.sub(r"\[\^?(\\?.)[^]]*\]", lambda found: found[1][-1], pattern)
    name = name.replace("*", "modelctl-doctor").replace("?", "x")
    return re.sub(r"\\(.)", r"\1", name)
