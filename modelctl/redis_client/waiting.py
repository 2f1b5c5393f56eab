"""How long a conversation with Redis may wait, and connections that are made in that time.

Every wait has to end whatever is at the other end: a name server that is silent, a port that takes
connections and says nothing, a server that sends a byte a second.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMERIC = re.compile(r"[0-9.]+|.*:.*")  # an IP address needs no name server


class _Now(threading.local):
    """When the wait of this thread has to end."""

    end = 0.0


_now = _Now()


def left() -> float:
    """Return how many seconds this thread may still wait; TimeoutError where it is over."""
    seconds = _now.end - monotonic()
    if seconds <= 0:
        raise TimeoutError("no answer in time")
    return seconds


@contextmanager
def _until(end: float) -> Iterator[None]:
    outer, _now.end = _now.end, end
    try:
        yield
    finally:
        _now.end = outer


def share(parts: int) -> Any:
    """In this block wait for one part of the time that is left."""
    return _until(monotonic() + left() / parts)


@contextmanager
def acquired(lock: threading.RLock) -> Iterator[None]:
    """Hold the lock in this block; wait for it no longer than there is time."""
    if not lock.acquire(timeout=left()):
        raise TimeoutError("no answer in time")
    try:
        yield
    finally:
        lock.release()


class Wait:
    """Seconds that may be spent waiting for Redis, at most those of an outer one; ours are free.

    In a ``with`` block the waiting ends in time, and what the block takes is taken off.
    """

    def __init__(self, seconds: float, outer: Wait | None = None) -> None:
        self.left: float = seconds if outer is None else min(seconds, outer.left)
        self._outer = outer
        # Since when the outermost one runs: a count, a change.
        self.since: float = monotonic() if outer is None else outer.since

    def __enter__(self) -> None:
        self._began = monotonic()
        self._before, _now.end = _now.end, self._began + self.left

    def __exit__(self, *_: object) -> None:
        _now.end = self._before
        self._spend(monotonic() - self._began)

    def _spend(self, seconds: float) -> None:
        self.left -= seconds
        if self._outer is not None:
            self._outer._spend(seconds)


def connect(place: tuple[str, int] | str) -> socket.socket:
    """Connect to a host and port, or to a unix socket; to the first address that answers.

    Raises:
        OSError: there is nobody; a TimeoutError: nobody answered in time.
    """
    if isinstance(place, str):
        addresses: list[Any] = [(socket.AF_UNIX, 0, 0, "", place)]
    elif _NUMERIC.fullmatch(place[0]):
        flags = socket.AI_NUMERICHOST
        addresses = socket.getaddrinfo(*place, type=socket.SOCK_STREAM, flags=flags)
    else:
        addresses = _Lookup.of(*place).result()
    for number, (family, _, _, _, address) in enumerate(addresses):
        connection = socket.socket(family)
        try:
            # Those that are silent leave time for the others.
            connection.settimeout(left() / (len(addresses) - number))
            connection.connect(address)
            if family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException as exc:
            connection.close()
            if number + 1 == len(addresses) or not isinstance(exc, OSError):
                raise
        else:
            return connection
    raise OSError("the name has no address")


class _Lookup(threading.Thread):
    """One question to the name server, in a thread; all who wait for it share it."""

    _asked: dict[tuple[int, str, int], _Lookup] = {}  # noqa: RUF012 - shared on purpose

    def __init__(self, key: tuple[int, str, int]) -> None:
        super().__init__(name="modelctl-resolve", daemon=True)
        self._key = key
        self._found: list[Any] | Exception | None = None
        self._done = threading.Event()

    @classmethod
    def of(cls, host: str, port: int) -> _Lookup:
        """Ask, unless the same question waits for its answer in this process."""
        mine = cls((os.getpid(), host, port))
        lookup = cls._asked.setdefault(mine._key, mine)
        if lookup is mine:
            mine.start()
        return lookup

    def run(self) -> None:
        """Ask."""
        _, host, port = self._key
        try:
            self._found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as exc:
            self._found = exc
        self._asked.pop(self._key, None)
        self._done.set()

    def result(self) -> list[Any]:
        """Return the addresses, or raise what the name server said."""
        self._done.wait(left())
        if self._found is None:
            raise TimeoutError(f"the name {self._key[1]} was not resolved in time")
        if isinstance(self._found, list):
            return self._found
        raise self._found
