"""How long a conversation with Redis may wait, and how a socket is connected within that time.

Every wait ends, whatever is at the other end: a name server that does not answer, a port that accepts
connections and sends nothing, a server that sends one byte a second.
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
    """When the current wait of this thread has to end (monotonic seconds)."""

    end = 0.0


_now = _Now()


def left() -> float:
    """Return how many seconds this thread may still wait; TimeoutError if none are left."""
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
    """In this block, wait for at most one of *parts* equal parts of the time that is left."""
    return _until(monotonic() + left() / parts)


@contextmanager
def acquired(lock: threading.RLock) -> Iterator[None]:
    """Hold *lock* in this block; TimeoutError if it is not free within the time that is left."""
    if not lock.acquire(timeout=left()):
        raise TimeoutError("no answer in time")
    try:
        yield
    finally:
        lock.release()


class Wait:
    """Seconds that may be spent waiting for Redis, at most what the *outer* limit has left.

    Only the time inside of the ``with`` blocks of a `Wait` counts; when the seconds are used up, waiting
    inside of a block fails with TimeoutError. The time between the blocks does not count.
    """

    def __init__(self, seconds: float, outer: Wait | None = None) -> None:
        self.left: float = seconds if outer is None else min(seconds, outer.left)
        self._outer = outer
        # When the outermost limit began: that of the count, or of the change.
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
    """Connect to a host and port, at the first address that answers, or to a unix socket.

    Raises:
        OSError: no address accepts the connection; TimeoutError: none answered in time.
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
            # An address that does not answer leaves time for those after it.
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
    """One question to the name server, in a thread of its own: getaddrinfo has no time limit.

    All threads of this process that need the same name share the question.
    """

    _asked: dict[tuple[int, str, int], _Lookup] = {}  # noqa: RUF012 - shared on purpose

    def __init__(self, key: tuple[int, str, int]) -> None:
        super().__init__(name="modelctl-resolve", daemon=True)
        self._key = key
        self._found: list[Any] | Exception | None = None
        self._done = threading.Event()

    @classmethod
    def of(cls, host: str, port: int) -> _Lookup:
        """Return the running question for this name, or start one."""
        mine = cls((os.getpid(), host, port))
        lookup = cls._asked.setdefault(mine._key, mine)
        if lookup is mine:
            mine.start()
        return lookup

    def run(self) -> None:
        """Ask the name server."""
        _, host, port = self._key
        try:
            self._found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as exc:
            self._found = exc
        self._asked.pop(self._key, None)
        self._done.set()

    def result(self) -> list[Any]:
        """Return the addresses, or raise the name server's error."""
        self._done.wait(left())
        if self._found is None:
            raise TimeoutError(f"the name {self._key[1]} was not resolved in time")
        if isinstance(self._found, list):
            return self._found
        raise self._found
