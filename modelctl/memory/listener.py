"""Listener: a thread that hears when any process invalidates the count in Redis."""

from __future__ import annotations

import random
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from modelctl.count.redis_link import RedisLink
from modelctl.errors import InvalidConfigError, ModelctlError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelctl.config.config import Config
    from modelctl.redis_client.servers import Talk

# How long to wait before the next attempt to connect (seconds): doubled each time, up to the second.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_END_SECONDS = 2.0


class Listener:
    """Listens on a connection of its own; without it a remembered count is older, but not wrong.

    What it needs of Redis (version 6, the right ``+client|tracking``) may be missing: then it ends,
    and says so at the level debug. The child of a fork has no such thread and starts one of its own.
    """

    def __init__(
        self, config: Config, forget: Callable[[], None], wanted: Callable[[], object]
    ) -> None:
        """*forget* is called for each change, and when the connection is lost.

        *wanted* returns None once nobody needs the listener; it is asked at least every minute.
        """
        self._link = RedisLink(config)
        key = config.cache.count_key
        self._prefixes = (key, f"{{{key}}}:")  # the count; its vouch and its lease
        self._forget = forget
        self._wanted = wanted
        # `close` may be called by a signal handler: a SimpleQueue and a reentrant lock allow that.
        self._end: SimpleQueue[None] = SimpleQueue()
        self._ended = False
        self._lock = threading.RLock()
        self._talk: Talk | None = None  # set while its connection is open
        self._thread = threading.Thread(target=self._run, name="modelctl-count", daemon=True)

    def start(self) -> None:
        """Start to listen, in a thread; it connects by itself, again and again."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and its connection. Not in the child of a fork, which shares the connection."""
        self._ended = True
        self._end.put(None)
        with self._lock:
            if self._talk is not None:
                self._talk.interrupt()
        if self._thread is not threading.current_thread():
            self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        pause, told = _FIRST_PAUSE, False
        while not self._ended and self._wanted() is not None:
            try:
                for _ in self._changes():
                    self._forget()
                    pause, told = _FIRST_PAUSE, False
            except ModelctlError as exc:
                self._forget()  # nobody tells what changes from now on
                if not told and not self._ended:
                    _say(exc)
                    told = True
                if isinstance(exc, InvalidConfigError):  # to ask again would fill its log
                    break
            try:
                self._end.get(timeout=pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
            except Empty:
                pause = min(2 * pause, _LONGEST_PAUSE)
        self._link.close()

    def _changes(self) -> Iterator[None]:
        """Give a value for each change, until the connection fails or the listener is to end."""
        with self._link.talk(once=True) as talk:
            with self._lock:
                self._talk = talk
            try:
                for change in talk.follow(*self._prefixes):
                    if self._ended or self._wanted() is None:
                        return
                    yield change
            finally:
                with self._lock:  # `close` does not touch the connection any more
                    self._talk = None


def _say(exc: ModelctlError) -> None:
    import logging

    text = "changes of other processes show after max_age: Redis does not tell of them (%s)"
    logging.getLogger("modelctl").debug(text, exc.message)
