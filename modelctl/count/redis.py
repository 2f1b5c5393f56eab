"""RedisCache: the steps of the count's protocol that send commands to Redis.

The steps have the names that docs/decisions.md gives them, in its order: peek, lease, fill, forget,
invalidate. That page says why each step stands where it does.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

from modelctl import crash_points
from modelctl.count.cache import LEASE_SECONDS, Hit
from modelctl.count.redis_link import RedisLink
from modelctl.count.sweep import Sweep, is_pattern
from modelctl.model import CacheState
from modelctl.redis_client import answers
from modelctl.redis_client.answers import Command
from modelctl.redis_client.url import identity_of
from modelctl.urls.url import mask_url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from modelctl.config.config import Config
    from modelctl.count.reports import CacheKey
    from modelctl.redis_client.servers import Talk

# What one count may wait for Redis in all, as a multiple of redis.timeout.
COUNT_TIMEOUTS = 1.5
_COUNT = re.compile(rb"[0-9]{1,18}")


class RedisCache:
    """The count in Redis, where other programs GET, SETEX and DEL it as they like.

    Three keys: the count itself; the *lease* of the process that may fill it; the *vouch*, which
    repeats the number that modelctl stored and names the server that it was stored on. The count is
    believed only while the vouch of the server that answers says the same number.
    """

    name = "redis"
    needs_delivery = True
    state_when_untouched = CacheState.UNCHANGED
    state_when_changed = CacheState.INVALIDATED
    polls = 3

    def __init__(self, config: Config) -> None:
        """Nothing is connected yet."""
        self._url = config.redis.url
        self.address = mask_url(self._url)
        self.server = ""
        self._ttl_ms = round(config.cache.ttl * 1000)
        self.count_key = config.cache.count_key
        # The braces put all three keys into one slot of a cluster.
        self.lease_key = f"{{{self.count_key}}}:lease"
        self.vouch_key = f"{{{self.count_key}}}:vouch"
        self.look = (
            Command(("MGET", self.count_key, self.vouch_key), answers.is_pair),
            Command(("PTTL", self.vouch_key), answers.is_number),
        )
        self._clear = config.cache.clear
        self.link = RedisLink(config)
        self._sweep = Sweep(self.link, self._clear, cluster="+cluster://" in self._url)

    @property
    def identity(self) -> str:
        """The address of Redis and the key of the count."""
        return f"{identity_of(self._url)} {self.count_key}"

    # ── The steps of the protocol ──

    def peek(self) -> Hit | None:
        """Return the count if it expires in time and the server that answers vouches for it."""
        self.link.refuse_while_silent()
        found = self.link.first_look(self.look)
        if found is None:
            with self.link.talk() as talk:
                found = talk.ask(*self.look), talk.server_id
                if self.names_another(*found):
                    found = found[0], talk.server_id_now()
        return self.believed(*found)

    def names_another(self, look: Sequence[Any], server_id: str) -> bool:
        """Whether the vouch names another server, or this one before it was promoted."""
        (_, vouch), _ = look
        return bool(vouch) and not vouch.endswith(server_id.encode())

    def believed(self, look: Sequence[Any], server_id: str) -> Hit | None:
        """Return the count if the answers to `look` and the identity of the server allow that."""
        (value, vouch), left = look
        if value is None or not _COUNT.fullmatch(value) or not 0 < left <= self._ttl_ms:
            return None
        if vouch != _vouch(value.decode(), server_id).encode():
            return None
        return Hit(int(value), (self._ttl_ms - left) / 1000, left / 1000)

    def lease(self) -> str | None:
        """Take the lease if nobody has it; return its token.

        The token is a random number, because a counter would start again after Redis was wiped, and
        the server's name, so that a fill on another server after a failover finds it wrong.
        """
        px = str(round(LEASE_SECONDS * 1000))
        self.link.refuse_while_silent()
        with self.link.talk() as talk:
            token = f"{os.urandom(16).hex()} {talk.server_id_now()}"
            [got] = talk.ask(
                Command(("SET", self.lease_key, token, "NX", "PX", px), answers.is_ok_or_none)
            )
        return token if got else None

    def fill(self, token: str, active: int) -> None:
        """Store the number if the lease is still ours, on its server; else store nothing."""
        ttl = str(self._ttl_ms)
        with self.link.talk() as talk:
            vouch = _vouch(str(active), talk.server_id_now())
            self._with_lease(
                talk,
                token,
                Command(("SET", self.vouch_key, vouch, "PX", ttl), answers.is_queued),
                Command(("SET", self.count_key, str(active), "PX", ttl), answers.is_queued),
            )

    def release(self, token: str) -> None:
        """Delete the lease if it is still ours."""
        with self.link.talk() as talk:
            self._with_lease(talk, token)

    def _with_lease(self, talk: Talk, token: str, *also: Command) -> None:
        """In one transaction, if the lease is still ours on this server: do *also*, delete the lease."""
        if token.partition(" ")[2] != talk.server_id:
            return
        _, lease = talk.ask(
            Command(("WATCH", self.lease_key), answers.is_ok),
            Command(("GET", self.lease_key), answers.is_text_or_none),
        )
        if lease != token.encode():
            talk.ask(Command(("UNWATCH",), answers.is_ok))
            return
        crash_points.reach("in-fill")
        talk.ask(
            Command(("MULTI",), answers.is_ok),
            *also,
            Command(("DEL", self.lease_key), answers.is_queued),
            # The answer is None if the lease changed since the WATCH: then nothing was stored.
            Command(("EXEC",), answers.is_transaction),
        )

    def forget(self) -> None:
        """Delete the count, its vouch and the lease: nothing that was stored before is believed."""
        with self.link.talk() as talk:
            # One command, and one that Redis carries out even when it is out of memory.
            talk.ask(
                Command(("DEL", self.count_key, self.vouch_key, self.lease_key), answers.is_number)
            )
            self.server = talk.server_id
        crash_points.reach("after-del")

    def invalidate(self, budget: float | None = None) -> None:
        """Forget the count, then sweep what else the change made wrong, within *budget* seconds.

        Raises:
            StaleCacheError: not everything is cleared; do not count it as delivered.
        """
        deadline = None if budget is None else time.monotonic() + budget
        begun = self._sweep.begun
        self.forget()
        self._sweep.run(begun, deadline)

    # ── Time limits, and what a person looks at ──

    def reading(self) -> AbstractContextManager[None]:
        """In this block, one count, wait for Redis no longer than a count may."""
        return self.link.patience(COUNT_TIMEOUTS * self.link.timeout)

    def patience(self, seconds: float) -> AbstractContextManager[None]:
        """In this block wait for Redis no longer than *seconds*, all conversations together."""
        return self.link.patience(seconds)

    def server_id(self) -> str:
        """Return the identity of the server (see `answers.server_id`).

        Empty if the server does not give it: then a failover that loses writes is not noticed.
        """
        with self.link.talk() as talk:
            return talk.server_id

    def keys(self) -> tuple[CacheKey, ...]:
        """Return our three keys, and the keys of ``cache.clear`` that are no patterns."""
        names = [self.count_key, self.lease_key, self.vouch_key]
        names += [name for name in self._clear if not is_pattern(name)]
        return tuple(map(self._key_as_it_is, names))

    def _key_as_it_is(self, name: str) -> CacheKey:
        from modelctl.count.reports import CacheKey

        with self.link.talk(self.link.pool_of(name)) as talk:
            kind, left = talk.ask(
                Command(("TYPE", name), answers.is_text),
                Command(("PTTL", name), answers.is_number),
            )
            text = None
            if kind == b"string":
                [value] = talk.ask(Command(("GET", name), answers.is_text_or_none))
                text = value.decode("utf-8", "replace") if value is not None else None
            elif kind != b"none":
                text = f"({kind.decode('utf-8', 'replace')})"
        return CacheKey(name, text, left / 1000 if left >= 0 else None)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self.link.close()


def _vouch(number: str, server_id: str) -> str:
    return f"{number} {server_id}".rstrip()
