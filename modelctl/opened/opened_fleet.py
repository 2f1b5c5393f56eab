"""OpenedFleet: the configuration and the connections that all commands share."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, Self
from weakref import WeakSet

from modelctl import crash_points, forks
from modelctl.config.config import Config
from modelctl.config.load import default_actor
from modelctl.count.protocol import INVALIDATE_SECONDS, CachedCount
from modelctl.errors import MissingSchemaError, ModelctlError, ModelNotFoundError, clean
from modelctl.model import storable
from modelctl.opened import arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelctl.memory.memory import Memory
    from modelctl.model import CacheState
    from modelctl.opened.storage import Storage


def ignore_progress(_: int) -> None:
    """Report progress to nobody."""


def _log(message: str, name: str = "fleet", **fields: str | None) -> None:
    from modelctl import logs

    logs.logger(name).warning("%s", message, extra=logs.fields(**fields))


class Closeable(Protocol):
    """What uses the connections of a fleet on its own."""

    def close(self) -> None:
        """Stop using them."""


class OpenedFleet:
    """Opens and closes a fleet; connects on first use."""

    def __init__(
        self, config: Config, *, actor: str | None = None, pool_size: int | None = None
    ) -> None:
        """*actor*: the name in the history, unless a call gives another; *pool_size*: the maximum of database connections."""
        self.config = config
        self._actor = storable(actor, 200) if actor else default_actor()
        self._pool_size = pool_size or config.database.pool_size
        self._begin()
        forks.watch(self, OpenedFleet._begin)
        # What must be closed before the connections are.
        self._before_closing: WeakSet[Closeable] = WeakSet()
        # Receives the text of a warning: something went wrong that fails no call. By default the logger.
        self.on_warning: Callable[[str], None] = _log
        self._cached_count = CachedCount(config, lambda: self._store.outbox, self._warn)

    def _begin(self) -> None:
        """Start without a connection; the child of a fork starts again."""
        self._made: Storage | None = None
        self._memory: Memory | None = None  # opened by the first `count` with max_age
        self._lock = threading.Lock()

    @classmethod
    def open(cls, config: Config | str | Path | None = None, *, actor: str | None = None) -> Self:
        """Return a fleet, configured as the command line is; nothing is connected yet.

        *config*: a file, a `Config`, or None: the usual places (MODELCTL_CONFIG, the user's file,
        the system's file) and the environment. *actor*: the name in the history; None:
        MODELCTL_ACTOR, else user@host (under sudo: the user who called it).

        Raises:
            InvalidConfigError: the configuration is wrong.
        """
        if not isinstance(config, Config):
            config = Config.load(config)
        return cls(config, actor=actor)

    def close(self) -> None:
        """Close its recorders and all connections. The fleet may be used again: then it connects again."""
        for each in list(self._before_closing):
            each.close()
        with self._lock:
            if self._made:
                self._made.close()
                self._made = None
            memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
        self._cached_count.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _store(self) -> Storage:
        """The opened database. The embedded one is created first, a configured one must exist."""
        with self._lock:
            if self._made is None:
                from modelctl.opened.storage import Storage

                self._create_embedded()
                self._made = Storage(
                    self.config,
                    pool_size=self._pool_size,
                    warn=self._warn,
                )
            return self._made

    def _create_embedded(self) -> None:
        if self.config.embedded:
            self._create_file()

    def _create_file(self) -> None:
        """Create the SQLite database with its schema, if it does not exist."""
        path = self.config.sqlite_path
        if path is None:
            return
        from modelctl.database import sqlite

        if not sqlite.exists(path):
            from modelctl.opened import embedded

            embedded.create(self.config, path)

    def _is_there(self) -> bool:
        """Whether the database can be asked: it is on a server, or its SQLite file is there."""
        from modelctl.database import sqlite

        path = self.config.sqlite_path
        return path is None or sqlite.exists(path)

    def _check_that_it_is_there(self) -> None:
        """Raise MissingSchemaError if the SQLite file is missing: this call does not create it."""
        if not self._is_there():
            raise MissingSchemaError(
                f"there is no database at {self.config.sqlite_path}",
                hint="create it: modelctl db upgrade",
            )

    def _warn_if_nothing_is_configured(self) -> None:
        """Warn if the embedded database is used and has no models.

        Perhaps the configuration is missing, as it often is in the environment of cron.
        """
        path = self.config.sqlite_path
        if path is None or not self.config.embedded:
            return
        from modelctl.database import sqlite

        empty = False
        with suppress(ModelctlError):  # the call itself reports what is wrong with the database
            empty = not sqlite.has_models(path)
        if empty:
            self._warn(
                f"no database is configured, so {path} is used, and it has no models;"
                " MODELCTL_DATABASE_URL names another"
            )

    def _warn(
        self,
        message: str,
        *,
        logger: str = "fleet",
        model_id: str | None = None,
        cache: str | None = None,
    ) -> None:
        """Tell `on_warning`. A log record also has fields, and the operation of the running call."""
        from modelctl import operation

        if self.on_warning is not _log:
            self.on_warning(message)
            return
        written = operation.written()
        _log(message, logger, model_id=model_id, operation=written, cache=cache)

    @contextmanager
    def _warning_if_unknown(self) -> Iterator[None]:
        """Around reads of a model: perhaps its id is unknown because no database is configured."""
        try:
            yield
        except ModelNotFoundError:
            self._warn_if_nothing_is_configured()
            raise

    def _name_the_nearest(self, error: ModelNotFoundError) -> None:
        """Add to the hint the ids that are most like the first unknown id."""
        if not error.missing:
            return
        first, error.missing = error.missing[0], ()
        with suppress(ModelctlError):
            from modelctl.tables.similar import nearest

            near = nearest(self._store.database, first)
            if near:
                error.hint = clean(f"the nearest: {', '.join(near)}; {error.hint}")

    def _acting(self, actor: str | None) -> str:
        """Return who acts in a call: the *actor* that it names, else that of the fleet."""
        return arguments.actor(actor) or self._actor

    def _reason(self, reason: str | None) -> str | None:
        """Return a reason as it is stored: without keys, and not too long."""
        from modelctl.redact import storable_reason

        return storable_reason(reason, self.config.health.reason_length)

    def _invalidate(
        self, *, owed: bool, changed: bool = True, to_the_end: bool = False
    ) -> CacheState:
        """Invalidate the caches after a commit, then what this process remembers.

        See `CachedCount.invalidate`. The memory comes last: a reader that finds the old number in the
        cache must have begun before the memory forgot.
        """
        crash_points.reach("after-commit")
        try:
            return self._cached_count.invalidate(owed=owed, changed=changed, to_the_end=to_the_end)
        finally:
            if owed:
                self._forget()

    def _invalidate_after_schema_change(self) -> None:
        """Clear a count that was cached while no trigger reported changes, or will report none."""
        if self._cached_count.cache.needs_delivery:
            self._cached_count.invalidate(owed=True)
        self._forget()

    def _forget_cached_count(self) -> None:
        """Remove the cached count; `_forgetting_the_count` tells if that fails."""
        cache = self._cached_count.cache
        if cache.needs_delivery:
            with suppress(ModelctlError), cache.patience(INVALIDATE_SECONDS):
                cache.forget()

    @contextmanager
    def _forgetting_the_count(self) -> Iterator[None]:
        """Afterwards clear what is cached: the database has lost modelctl's tables."""
        yield
        try:
            if self._cached_count.cache.needs_delivery:
                self._cached_count.cache.invalidate()
        except ModelctlError as exc:
            self._warn(f"the cached count stays for up to a minute: {exc.message}")
        self._forget()

    @staticmethod
    def _forget() -> None:
        """Let every fleet of this process read the count anew."""
        from modelctl.memory import memory

        memory.forget()
