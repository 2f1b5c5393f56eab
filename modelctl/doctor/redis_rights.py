"""Whether Redis allows this user every command that the cache needs. Each is tried, none is executed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelctl.count.redis import RedisCache
from modelctl.count.sweep import is_pattern
from modelctl.redis_client.answers import Command
from modelctl.redis_client.url import target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import ConnectionPool, ResponseError

    from modelctl.config.config import Config
    from modelctl.redis_client.servers import Talk

# How long the check may take, all servers together.
SECONDS = 5.0
# What Redis answers if the ACL lacks the key, not the command.
_KEY = re.compile("access (a|one of the) key")
_FULL = (
    "Redis is out of memory, so nothing can be cached and every count asks the database:"
    " raise maxmemory, or allow it to evict keys (maxmemory-policy allkeys-lru)"
)
_REPLICA = (
    "this Redis is a read-only replica, so a change cannot clear the cache: name the primary in"
    " redis.url, or use redis+sentinel://"
)
# A command, and the pattern of its key in an ACL.
_Try = tuple[tuple[str, ...], str]


@dataclass(frozen=True, slots=True)
class Refusals:
    """What Redis refuses.

    *rights*: what the user lacks, as an ACL writes it (``+unlink``, ``~name``). *trouble*: another
    reason why modelctl cannot use this Redis.
    """

    rights: tuple[str, ...]
    trouble: str | None


class RedisRights:
    """Tries the commands of the cache, with the same keys and on the same servers.

    Redis checks a command of a transaction when it is queued: whether the user may use the command
    and the key, whether there is memory for it, and whether this server accepts writes. Closing the
    connection discards the transaction, so nothing is read, written or deleted.
    """

    def __init__(self, config: Config) -> None:
        """Nothing is connected yet."""
        self._config = config
        self._cache = RedisCache(config)

    def close(self) -> None:
        """Close the connections."""
        self._cache.close()

    def server_id(self) -> str:
        """Return the identity of the server; see `RedisCache.server_id`."""
        return self._cache.server_id()

    @property
    def user(self) -> str:
        """The name of the user who is logged in."""
        return target_of(self._config.redis.url).username or "default"

    def refusals(self) -> Refusals:
        """Try everything on every primary.

        Raises:
            StaleCacheError: Redis cannot be reached.
            InvalidConfigError: it refuses the connection.
        """
        from redis import exceptions as said

        rights: dict[str, None] = {}  # a set that keeps the order
        trouble = None
        with self._cache.patience(SECONDS):
            refused = [found for pool in self._cache.link.pools() for found in self._refused(pool)]
        for (words, pattern), error in refused:
            match error:
                case said.NoPermissionError():
                    right = (
                        pattern if pattern and _KEY.search(str(error)) else f"+{words[0].lower()}"
                    )
                    rights[right] = None
                case said.OutOfMemoryError():
                    trouble = trouble or _FULL
                case said.ReadOnlyError():
                    trouble = trouble or _REPLICA
                case said.MovedError() | said.AskError():
                    pass  # another node has the key; the ACL was checked before that
                case _:
                    trouble = trouble or self._config.hide(f"Redis refuses {words[0]} ({error})")
        return Refusals(tuple(rights), trouble)

    def _refused(self, pool: ConnectionPool) -> list[tuple[_Try, ResponseError]]:
        """Return each command that failed on the servers of *pool*, and the error."""
        from redis import ResponseError

        refused: list[tuple[_Try, ResponseError]] = []

        def alone(ask: Callable[..., Any]) -> None:
            commands: list[_Try] = [
                (("INFO", "server"), ""),
                (("WATCH", self._cache.lease_key), self._beside),
            ]
            for this in (*commands, (("UNWATCH",), ""), (("MULTI",), ""), (("EXEC",), "")):
                answer = ask(*this[0])
                if isinstance(answer, ResponseError):
                    refused.append((this, answer))
                    if this[0] == ("MULTI",):
                        return

        def in_transaction(ask: Callable[..., Any]) -> None:
            # Without a transaction the server would execute the commands below.
            if ask("MULTI") != b"OK":
                return
            for this in self._commands():
                answer = ask(*this[0])
                if isinstance(answer, ResponseError):
                    refused.append((this, answer))
                elif answer != b"QUEUED":  # stop: so far there were only harmless reads
                    refused.append((this, ResponseError("it does not queue commands")))
                    return

        for work in (alone, in_transaction):
            with self._cache.link.talk(pool, once=True) as talk:

                def ask(*words: str, talk: Talk = talk) -> Any:
                    try:
                        return talk.ask(Command(words, lambda _: True))[0]
                    except ResponseError as exc:
                        return exc

                work(ask)
        return refused

    @property
    def _beside(self) -> str:
        return f"~{{{self._cache.count_key}}}:*"

    def _commands(self) -> Iterator[_Try]:
        """Give every command, with one key at a time, and the pattern of that key in an ACL."""
        own = [(self._cache.count_key, f"~{self._cache.count_key}")]
        own += [(key, self._beside) for key in (self._cache.lease_key, self._cache.vouch_key)]
        plain = [(name, f"~{name}") for name in self._config.cache.clear if not is_pattern(name)]
        for key, pattern in own:
            yield ("MGET", key), pattern
        for key, pattern in (*own, *plain):
            for command in ("GET", "PTTL", "TYPE", "DEL"):
                yield (command, key), pattern
        for key, pattern in own:
            yield ("SET", key, "0", "PX", "1"), pattern
        for name in self._config.cache.clear:
            if is_pattern(name):
                yield ("SCAN", "0", "MATCH", name, "COUNT", "1"), ""
                yield ("UNLINK", _matching(name)), f"~{name}"


def _matching(pattern: str) -> str:
    """Return a key that a pattern of Redis matches and that no program would use."""
    name = re.sub(r"\[\^?(\\?.)[^]]*\]", lambda found: found[1][-1], pattern)
    name = name.replace("*", "modelctl-doctor").replace("?", "x")
    return re.sub(r"\\(.)", r"\1", name)
