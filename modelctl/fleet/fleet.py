"""Fleet: the core. A change is made, committed, and then the caches are invalidated."""

from __future__ import annotations

import functools
import os
import threading
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from modelctl import crash_points, deadline, forks
from modelctl.config.config import Config
from modelctl.config.load import default_actor
from modelctl.count.protocol import CachedCount
from modelctl.errors import (
    InvalidConfigError,
    ModelctlError,
    ModelNotFoundError,
    RefusedError,
    UsageError,
    clean,
)
from modelctl.model import ModelStatus, check_id, numbered, storable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path
    from typing import BinaryIO

    from modelctl.catalog.convert import CatalogModel
    from modelctl.catalog.formats import CatalogFormat
    from modelctl.config.probes import ProbeConfig
    from modelctl.health import Outcome
    from modelctl.model import CacheState, Count, FailureType, VerifiedCount
    from modelctl.models.results import (
        BatchResult,
        Changes,
        Event,
        ExplainedModel,
        LeaderboardEntry,
        Model,
        Stats,
        StatusChange,
    )
    from modelctl.reports import (
        CacheReport,
        Candidate,
        Diagnosis,
        DrainResult,
        Hold,
        ImportResult,
        LastRecover,
        Pause,
        ProbeReport,
        ProbeResult,
        Recovery,
        SchemaStatus,
        Waiting,
    )
    from modelctl.spool import Spool
    from modelctl.storage import Storage

_T = TypeVar("_T")

# The longest that `db upgrade` works once the database answers: an index on a large table.
UPGRADE_SECONDS = 600.0
LONGEST_COOLDOWN = 3650 * 86400.0
PROBES_AT_ONCE = 8


def _ignore(_: int) -> None:
    """Nobody watches."""


def _log(message: str) -> None:
    import logging

    logging.getLogger("modelctl").warning("%s", message)


def _in_time(cls: type[_T]) -> type[_T]:
    """Give each public method ``database.timeout`` to wait for the database in all."""

    def within(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with deadline.call(self.config.database.timeout):
                try:
                    return method(self, *args, **kwargs)
                except ModelNotFoundError as exc:
                    self._name_the_nearest(exc)
                    raise
                except UsageError as exc:
                    if exc.character is None:
                        raise
                    raise _naming(exc, _texts(self, method, args, kwargs)) from None

        return call

    for name, method in list(vars(cls).items()):
        if isinstance(method, FunctionType) and not name.startswith("_"):
            setattr(cls, name, within(method))
    return cls


def _texts(
    fleet: Fleet, method: Callable[..., Any], args: Any, kwargs: Any
) -> Iterator[tuple[str, object]]:
    """The texts that a method was given, each with what it is."""
    import inspect

    for name, value in inspect.signature(method).bind(fleet, *args, **kwargs).arguments.items():
        for text in value if isinstance(value, tuple) else (value,):
            yield f"the id '{text}'" if name in ("id", "ids") else f"the {name}", text
    yield "the actor", fleet._actor


def _naming(exc: UsageError, texts: Iterable[tuple[str, object]]) -> UsageError:
    """Say which of the *texts* has the character that the database cannot hold."""
    for what, text in texts:
        if isinstance(text, str) and exc.character and exc.character in text:
            return UsageError(f"{what}: {exc.message}", hint=exc.hint)
    return exc


@_in_time
class Fleet:
    """The models of one database, their count and its cache.

    Open it with `Fleet.open`, use it as a context manager or `close` it. It may be shared by
    threads and live as long as the application: it connects on first use and keeps its connections.
    A process may fork at any time: the child makes connections of its own.

    Text that a database cannot hold whole is kept as far as it can: longer text is cut, NUL and lone
    surrogates become U+FFFD. No id is changed like that: there is no such model.

    Every method raises a child of `ModelctlError`: `DatabaseUnavailableError` (try again later),
    `InvalidConfigError`, `MissingSchemaError`; the others are named with each method. An
    invalidation that could not be delivered is no exception: the result's ``cache`` is
    ``"queued"``, and the next change, recover or drain delivers it.
    """

    def __init__(
        self, config: Config, *, actor: str | None = None, pool_size: int | None = None
    ) -> None:
        """*actor*: who acts, for the history; *pool_size*: database connections at most."""
        self.config = config
        self._actor = storable(actor, 200) if actor else default_actor()
        self._pool_size = pool_size or config.database.pool_size
        self._begin()
        forks.watch(self, Fleet._begin)
        # Told what went wrong without failing the call.
        self.on_warning: Callable[[str], None] = _log
        self._cached_count = CachedCount(
            config, lambda: self._store.outbox, lambda message: self.on_warning(message)
        )

    def _name_the_nearest(self, error: ModelNotFoundError) -> None:
        """Let the hint name the ids that the first unknown one was perhaps meant to be."""
        if not error.missing:
            return
        first, error.missing = error.missing[0], ()
        with suppress(ModelctlError):
            near = self._store.models.nearest(first)
            if near:
                error.hint = clean(f"the nearest: {', '.join(near)}; {error.hint}")

    def _begin(self) -> None:
        """Begin with no connection; in the child of a fork again."""
        self._made: Storage | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, config: Config | str | Path | None = None, *, actor: str | None = None) -> Self:
        """Return a fleet, configured as the command line is; nothing is connected yet.

        *config*: a file, a `Config`, or None for the usual places (MODELCTL_CONFIG, the user's
        and the system's file) and the environment. *actor*: default MODELCTL_ACTOR or user@host.

        Raises:
            InvalidConfigError: the configuration is wrong.
        """
        if not isinstance(config, Config):
            config = Config.load(config)
        return cls(config, actor=actor)

    def close(self) -> None:
        """Close all connections; the fleet may be used again and then connects anew."""
        with self._lock:
            if self._made:
                self._made.close()
                self._made = None
        self._cached_count.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _store(self) -> Storage:
        with self._lock:
            if self._made is None:
                from modelctl.storage import Storage

                self._create_embedded()
                self._made = Storage(
                    self.config,
                    pool_size=self._pool_size,
                    warn=lambda message: self.on_warning(message),
                )
            return self._made

    def _create_embedded(self) -> None:
        """The database in the data folder appears on first use; a named one has to be there."""
        if self.config.embedded:
            self._create_file()

    def _create_file(self) -> None:
        """Create the SQLite database that is not there yet, with its schema."""
        path = self.config.sqlite_path
        if path is None:
            return
        from modelctl.database import sqlite

        if sqlite.exists(path):
            return
        from dataclasses import replace
        from urllib.parse import quote

        from modelctl.migrations.migrate import upgrade
        from modelctl.storage import Storage

        def migrate(draft: Path) -> None:
            database = replace(self.config.database, url=f"sqlite:///{quote(os.fsencode(draft))}")
            store = Storage(replace(self.config, database=database), pool_size=1)
            store.schema(upgrade)
            store.close()

        sqlite.create(path, migrate)

    def _warn_if_nothing_is_configured(self) -> None:
        """Warn where no database is configured and the embedded one has no models.

        The configuration is perhaps missing, as it is in the environment of cron.
        """
        path = self.config.sqlite_path
        if path is None or not self.config.embedded:
            return
        from modelctl.database import sqlite

        empty = False
        with suppress(ModelctlError):  # what is wrong with it is told by the call itself
            empty = not sqlite.has_models(path)
        if empty:
            self.on_warning(
                f"no database is configured, so {path} is used, and it has no models;"
                " MODELCTL_DATABASE_URL names another"
            )

    # ── The count ──

    def count(self, *, fresh: bool = False, strong: bool = False) -> Count:
        """Return how many models are active: cached for at most 60 s, never older than a change.

        *fresh*: COUNT(*), the cache not read, but filled if nobody else is filling it.
        *strong*: cached, but also right against every committed change of other programs.
        Redis being away fails no count: it comes from the database then.
        """
        self._create_embedded()
        count = self._cached_count.count(fresh=fresh, strong=strong)
        if not count.active:
            self._warn_if_nothing_is_configured()
        return count

    def verify(self) -> VerifiedCount:
        """Count from the database and compare with what a cached count would show now.

        Redis being away fails no read: nothing is cached then, as far as anybody can tell.
        """
        self._create_embedded()
        count = self._cached_count.verify()
        if not count.active:
            self._warn_if_nothing_is_configured()
        return count

    # ── Reads ──

    def list_models(
        self,
        *,
        status: ModelStatus | str | None = None,
        provider: str | None = None,
        sort: str = "id",
        limit: int | None = None,
    ) -> list[Model]:
        """Return the models that match.

        *sort*: ``id``, ``name``, ``provider``, ``status``, ``failures`` (most first) or
        ``updated`` (newest first). Text is sorted by code points, capitals first.

        Raises:
            UsageError: an unknown status or sort key, or a limit below 0 (0 and None: no limit).
        """
        found = self.iter_models(status=status, provider=provider, sort=sort, limit=limit)
        return list(found)

    def iter_models(
        self,
        *,
        status: ModelStatus | str | None = None,
        provider: str | None = None,
        sort: str = "id",
        limit: int | None = None,
    ) -> Iterator[Model]:
        """Give what `list_models` returns one by one, in constant memory.

        All are read at the first one, to disk if they are many: whoever works through them slowly
        holds no connection.
        """
        from modelctl.models.store import SORT_KEYS

        if sort not in SORT_KEYS:
            raise UsageError(f"no sort key '{sort}'", hint=f"one of: {', '.join(SORT_KEYS)}")
        wanted = None if status is None else _status(status)
        return self._store.models.iter_models(
            status=wanted, provider=provider, sort=sort, limit=_limit(limit or None)
        )

    def show(self, id: str) -> ExplainedModel:  # noqa: A002 - the word that everybody uses
        """Return one model and why it is as it is; `ModelNotFoundError` where there is none."""
        from dataclasses import fields

        from modelctl.models.results import ExplainedModel
        from modelctl.recovery.explain import explain

        store = self._store
        model = store.models.get(id)
        holds = store.holds.current()
        # Nothing is found where only a person brings it back.
        plan = None if model.active else next(store.candidates.plan(ids=[id]), None)
        limited = plan and not plan.waiting and self.config.recovery.limit
        ahead = store.candidates.ahead(id) if limited else 0
        sentences = explain(model, self.config, holds, plan, ahead)
        return ExplainedModel(
            **{f.name: getattr(model, f.name) for f in fields(model)}, explanation=sentences
        )

    def stats(self) -> Stats:
        """Return the totals by status and provider, and the holds that last, from the database."""
        from dataclasses import replace

        return replace(self._store.models.stats(), holds=self._store.holds.current())

    def holds(self) -> tuple[Hold, ...]:
        """Return the pauses and incidents that last."""
        return self._store.holds.current()

    def complete(self, prefix: str) -> list[str]:
        """Return ids that begin with *prefix*, for a shell: at most 100, and none that it could
        take for code.
        """
        path, prefix = self.config.sqlite_path, storable(prefix)
        if path is None:
            return self._store.models.complete(prefix)
        from modelctl.database import sqlite

        return sqlite.complete(path, prefix)

    def look_alikes(self, ids: Sequence[str]) -> list[tuple[str, str]]:
        """Return pairs of one of *ids* and another model whose id a person would take for it."""
        return self._store.models.look_alikes(list(dict.fromkeys(map(storable, ids))))

    def leaderboard(
        self, *, top: int | None = 10, provider: str | None = None, untested: bool = False
    ) -> tuple[LeaderboardEntry, ...]:
        """Return the *top* active models by success rate, from the database; 0 or None: all of them.

        Ranked by the lower bound of the rate with 95 % confidence, so that one success of one call
        is less than 420 of 421. *untested*: also the models without a call, last.
        """
        return self._store.models.leaderboard(
            top=_limit(top or None), provider=provider, untested=untested
        )

    def events(
        self,
        id: str | None = None,  # noqa: A002 - the word that everybody uses
        *,
        since: float | datetime | None = None,
        limit: int | None = 100,
    ) -> tuple[Event, ...]:
        """Return the history, newest first: of one model, not older than *since*.

        *since*: seconds, or a time with its zone. *limit*: at most so many; 0 or None: all of them.

        Raises:
            UsageError: *since* is neither a time nor from 0 s to ten years, or *limit* is below 0.
        """
        return tuple(self.iter_events(id, since=since, limit=limit))

    def iter_events(
        self,
        id: str | None = None,  # noqa: A002 - the word that everybody uses
        *,
        since: float | datetime | None = None,
        limit: int | None = 100,
    ) -> Iterator[Event]:
        """Give what `events` returns one by one, in constant memory, as `iter_models` does."""
        from datetime import datetime

        if isinstance(since, datetime):
            since = _in_utc(since, "since")
        elif since is not None:
            _check_seconds(since, "since")
        return self._store.models.iter_events(id, since=since, limit=_limit(limit or None))

    # ── Changes ──

    def disable(
        self,
        *ids: str,
        reason: str | None = None,
        duration: float | None = None,
        until: datetime | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Changes:
        """Switch models off by hand; nothing automatic brings them back. All or none.

        Unless it is said for how long: *duration* (seconds) or *until* (a time with its zone).
        Then `recover` brings them back when that is over; a model that is disabled without an
        end keeps that. A model that is off already keeps since when it is off, and why unless there
        is a new *reason*. *force*: also below the floor of ``recovery.min_active``, and give an
        end to what has none.

        Raises:
            ModelNotFoundError: an id is unknown; nothing is changed.
            RefusedError: fewer models than the floor would stay on; nothing is changed.
            UsageError: the time is over already, or is no time.
        """
        floor, end = self.config.recovery.min_active, self._until(duration, until)
        disable = functools.partial(self._store.models.disable, until=end, floor=floor, force=force)
        return self._switch(disable, ids, reason, dry_run)

    def _until(self, duration: float | None, until: datetime | None) -> float | None:
        """When a timed disable ends, in seconds since 1970, by the database's clock."""
        from datetime import datetime

        if duration is None and until is None:
            return None
        if duration is not None and until is not None:
            raise UsageError("give either a duration or an end, not both")
        if until is not None and not isinstance(until, datetime):
            raise UsageError("the end is not a datetime")
        if until is not None:
            until = _in_utc(until, "the end")
        if duration is not None:
            _check_seconds(duration, "a duration", positive=True)
        now = self._store.candidates.clock()
        end = until.timestamp() if until is not None else now + (duration or 0)
        if end <= now:
            raise UsageError("the end is in the past")
        return end

    def enable(self, *ids: str, reason: str | None = None, dry_run: bool = False) -> Changes:
        """Switch models on as healthy ones: no failures, no ejections. All or none.

        Raises:
            ModelNotFoundError: an id is unknown; nothing is changed.
        """
        return self._switch(self._store.models.enable, ids, reason, dry_run)

    def remove(self, *ids: str, reason: str | None = None, dry_run: bool = False) -> Changes:
        """Delete models; their history stays. All or none.

        A model that is gone already is no error: then nothing is changed, as with `disable`.

        Raises:
            ModelNotFoundError: an id is unknown, to the history too; nothing is changed.
        """
        return self._switch(self._store.models.remove, ids, reason, dry_run)

    def _switch(
        self,
        change: Callable[..., tuple[StatusChange, ...]],
        ids: Sequence[str],
        reason: str | None,
        dry_run: bool,
    ) -> Changes:
        from modelctl.models.results import Changes

        changes = change(
            _distinct(ids), actor=self._actor, reason=self._reason(reason), dry_run=dry_run
        )
        # Also when nothing changed: whoever changed it may have died before its invalidation.
        changed = any(change.changed for change in changes)
        return Changes(changes, self._invalidate(owed=not dry_run, changed=changed), dry_run)

    def add(
        self,
        id: str,  # noqa: A002 - the word that everybody uses
        *,
        name: str | None = None,
        provider: str = "",
    ) -> Changes:
        """Add one active model; one that is there stays as it is.

        Where that has another name or provider the change is a `KeptChange` and its note says so;
        `import_models` changes them.

        Raises:
            UsageError: the id is not one (1-200 characters, no control characters, no blanks at
                its ends).
        """
        from modelctl.models.results import Changes

        entry = (check_id(id), storable(name or "", 200), storable(provider or "", 200))
        change = self._store.batches.add(entry, actor=self._actor)
        return Changes((change,), self._invalidate(owed=True, changed=change.changed))

    def record_success(self, id: str) -> Changes:  # noqa: A002 - the word that everybody uses
        """Record a successful call: failures start again at 0, an auto-disabled model comes back.

        Raises:
            ModelNotFoundError: the id is unknown.
        """
        from modelctl import health

        _distinct([id])
        return self._record(health.Outcome(id, None))

    def record_failure(
        self,
        id: str,  # noqa: A002 - the word that everybody uses
        type: FailureType | str | None = "unknown",  # noqa: A002 - the word that everybody uses
        *,
        reason: str | None = None,
    ) -> Changes:
        """Record a failed call; the 5th counted one in a row switches the model off.

        *type*: one of `FailureType`; only ``parse-error`` and ``client-error`` count. None: the
        caller went away before the answer (HTTP status 499). That is no failure of the model, so
        nothing is recorded, and the change says ``recorded=False``.
        *reason* is cut to 500 characters.

        Raises:
            ModelNotFoundError: the id is unknown.
            UsageError: the type is unknown.
        """
        from modelctl import health

        _distinct([id])
        if type is None:
            return self._not_recorded(id)
        return self._record(health.Outcome(id, health.failure_type(type), self._reason(reason)))

    @contextmanager
    def _known(self) -> Iterator[None]:
        """An id that is unknown may be so because nothing is configured."""
        try:
            yield
        except ModelNotFoundError:
            self._warn_if_nothing_is_configured()
            raise

    def _not_recorded(self, model_id: str) -> Changes:
        from modelctl.models.results import Changes, OutcomeChange

        with self._known():
            model = self._store.models.get(model_id)
        change = OutcomeChange(
            *(model_id, model.status, model.status, False, model.consecutive_failures),
            threshold=self.config.health.threshold,
            would_disable=model.would_disable,
            recorded=False,
        )
        return Changes((change,), self._cached_count.cache.state_when_untouched)

    def _record(self, outcome: Outcome) -> Changes:
        from modelctl.models.results import Changes

        with self._known():
            change = self._store.outcomes.record(outcome, actor=self._actor)
        return Changes((change,), self._invalidate(owed=change.changed))

    def record_batch(
        self,
        outcomes: Iterable[Outcome | Mapping[str, Any]],
        *,
        unknown: str = "fail",
        progress: Callable[[int], None] = _ignore,
    ) -> BatchResult:
        """Record many outcomes in their order, all in one transaction or none.

        *outcomes*: ``{"id", "outcome": "success"|"failure", "type"?, "reason"?}`` each. They are
        read and checked to the end first, spooled to disk. *unknown*: what an id that names no
        model does: ``fail``, or ``skip`` its outcomes, which the result counts and names.
        *progress* is told how many are recorded.

        Raises:
            UsageError: an outcome is wrong; the message says which (from 1).
            ModelNotFoundError: an id is unknown, and *unknown* is ``fail``.
        """
        from modelctl import health
        from modelctl.models.results import BatchResult
        from modelctl.spool import Spool

        if unknown not in ("fail", "skip"):
            raise UsageError(f"no policy '{unknown}'", hint="one of: fail, skip")
        if not hasattr(outcomes, "__iter__"):
            raise UsageError(f"outcomes are a list or another iterable, not {outcomes!r}")
        self._warn_if_nothing_is_configured()
        length = self.config.health.reason_length

        def checked() -> Iterator[Outcome]:
            for number, outcome in enumerate(outcomes, 1):
                if isinstance(outcome, health.Outcome):
                    outcome = outcome.fields()
                try:
                    yield health.parse_outcome(outcome, length)
                except UsageError as exc:
                    raise UsageError(f"outcome {number}: {exc.message}", hint=exc.hint) from None

        spool = Spool(checked())
        try:
            done = self._store.outcomes.record_batch(
                lambda: iter(spool),
                actor=self._actor,
                skip_unknown=unknown == "skip",
                progress=progress,
            )
        except UsageError as exc:
            raise _naming(exc, _texts_of_outcomes(spool)) from None
        cache = self._invalidate(owed=bool(done.changes))
        return BatchResult(done.recorded, done.changes, cache, done.skipped, done.unknown)

    # ── Recovery ──

    def recover(
        self,
        *,
        limit: int | None = None,
        cooldown: float | None = None,
        probe: bool = False,
        dry_run: bool = False,
        progress: Callable[[int], None] = _ignore,
    ) -> Recovery:
        """Bring back the models whose cooldown, or timed disable, is over.

        *limit*: at most so many, the longest waiting (0: all; None: ``recovery.limit``). *cooldown*: seconds, for this
        run instead of the configured ones. *probe*: ask each auto-disabled model first, where a
        probe is configured for its provider; one that fails starts its cooldown again.
        A second run at the same time does nothing and says ``busy``. Models that a person
        disabled for good are never touched.

        Raises:
            InvalidConfigError: *probe*, and no probe is configured.
        """
        from modelctl.reports import Recovery
        from modelctl.spool import Spool

        rule = self.config.recovery
        if cooldown is not None:
            _check_seconds(cooldown, "a cooldown")
        most = _limit((rule.limit if limit is None else limit) or None)
        ladder = None if cooldown is None else (cooldown,)
        probes = self._probes() if probe else {}
        self._warn_if_nothing_is_configured()
        store = self._store
        paused = next((h for h in store.holds.current() if h.provider is None), None)
        if dry_run:
            return self._rehearse(ladder, most, probes, paused)
        run = _Run(most, ladder, progress)
        try:
            recovered = Spool(self._run(run, probes))
            if not run.lost:
                store.last_run.finished()
        except BaseException:
            self._invalidate(owed=True)  # what came back before is committed
            raise
        cache = self._invalidate(owed=True, changed=bool(recovered), to_the_end=True)
        waiting = Spool(map(run.left_out, store.candidates.plan(cooldowns=ladder)))
        for warning in run.refusals():
            self.on_warning(warning)
        return Recovery(
            recovered=recovered,
            waiting=waiting,
            busy=run.lost and not recovered,
            cache=cache,
            paused=paused,
            requests=len(run.asked),
            unhealthy=tuple(a for a in run.asked.values() if not a.healthy),
        )

    def _run(self, run: _Run, probes: Mapping[str, ProbeConfig]) -> Iterator[str]:
        """Bring models back; give the id of each."""
        from modelctl.spool import Spool

        candidates, bring_back = self._store.candidates, self._store.bring_back
        how: dict[str, Any] = {
            "cooldowns": run.ladder,
            "limit": run.most,
            "actor": self._actor,
            "refused": run.refused,
        }
        if not probes:
            yield from run.through(bring_back.in_chunks(**how))
            return
        due = (c for c in candidates.plan(cooldowns=run.ladder) if not c.waiting)
        room = run.most
        while room is None or room > 0:
            before = len(run.refused)
            trusted: Spool[str] = Spool()
            questionable: Spool[str] = Spool()
            for candidate in islice(due, room):
                asked = candidate.provider in probes and not candidate.timed
                (questionable if asked else trusted).append(candidate.id)
            yield from run.through(bring_back.in_chunks(ids=trusted, **how))
            if questionable and not run.lost:
                yield from self._run_probes(run, questionable, probes, how)
            if room is None or run.lost:
                return
            room = len(run.refused) - before  # others take the places of those

    def _run_probes(
        self,
        run: _Run,
        ids: Iterable[str],
        probes: Mapping[str, ProbeConfig],
        how: dict[str, Any],
    ) -> Iterator[str]:
        """Ask before they come back; those that were healthy do."""
        from uuid import uuid4

        store = self._store
        owner = f"{self._actor} {uuid4()}"
        longest = 2 * max(probe.timeout for probe in probes.values()) + 60
        source = iter(ids)
        try:
            while some := list(islice(source, PROBES_AT_ONCE)):
                if not store.probing.claim(longest, owner):
                    run.lost = True
                    return
                still = store.candidates.plan(ids=some, cooldowns=run.ladder)
                due = [(c.id, c.provider) for c in still if not c.waiting]
                if healthy := [a.id for a in self._ask(due, probes, run) if a.healthy]:
                    yield from run.through(store.bring_back.in_chunks(ids=healthy, **how))
        finally:
            if not run.lost:
                with suppress(ModelctlError):
                    store.probing.claim(0, owner)

    def _ask(
        self, models: Sequence[tuple[str, str]], probes: Mapping[str, ProbeConfig], run: _Run
    ) -> list[ProbeResult]:
        """Ask (id, provider) each once; those that fail start their cooldown again."""
        from modelctl.probe.ask import Target, ask

        answers: list[ProbeResult] = []
        for start in range(0, len(models), PROBES_AT_ONCE):
            targets = [Target(*model) for model in models[start : start + PROBES_AT_ONCE]]
            # All at once, so that each has its own time and none is cut off by another.
            deadline = max(probes[t.provider].timeout for t in targets) + 5
            asking = ask(targets, probes, concurrency=PROBES_AT_ONCE, deadline=deadline)
            with closing(asking):
                for answer in asking:
                    answers.append(answer)
                    run.asked[answer.id] = answer
                    run.told(len(run.asked))
        failed = []
        for answer in answers:
            if answer.failure_type is not None:
                failed.append((answer.id, str(answer.failure_type), answer.reason))
            elif not answer.healthy:  # the probe's fault, not the model's
                self.on_warning(f"{answer.id} could not be asked: {answer.reason}")
        if failed:
            self._store.probing.failed(failed, actor=self._actor)
        return answers

    def _probes(self) -> Mapping[str, ProbeConfig]:
        if not self.config.probes:
            hint = "see [probe.NAME] in config.example.toml"
            raise InvalidConfigError("no probe is configured", hint=hint)
        return self.config.probes

    def _rehearse(
        self,
        ladder: tuple[float, ...] | None,
        most: int | None,
        probes: Mapping[str, ProbeConfig],
        paused: Hold | None,
    ) -> Recovery:
        """What `recover` would do now, and why not more."""
        from modelctl.reports import Recovery
        from modelctl.spool import Spool

        due: Spool[str] = Spool()
        waiting: Spool[Waiting] = Spool()
        requests = 0
        run = _Run(most, ladder, _ignore)
        for candidate in self._store.candidates.plan(cooldowns=ladder):
            if candidate.waiting:
                waiting.append(run.left_out(candidate))
            elif most is not None and len(due) >= most:
                waiting.append(_later(candidate, "limit"))
            else:
                due.append(candidate.id)
                requests += not candidate.timed and candidate.provider in probes
        for warning in run.refusals():
            self.on_warning(warning)
        untouched = self._cached_count.cache.state_when_untouched
        return Recovery(due, waiting, False, untouched, True, paused, requests)

    def probe(
        self, *ids: str, dry_run: bool = False, progress: Callable[[int], None] = _ignore
    ) -> ProbeReport:
        """Ask models that are off, one small request each; nothing comes back by that.

        One that fails starts its cooldown again, and it is in the history. *dry_run*: ask nobody.

        Raises:
            InvalidConfigError: no probe is configured for the provider of one.
            ModelNotFoundError: an id is unknown; nobody is asked.
            RefusedError: a model is active; nobody is asked.
        """
        from modelctl.reports import ProbeReport

        wanted = _distinct(ids)
        probes = self._probes()
        models = self._store.probing.models(wanted)
        for model_id, provider, status in models:
            if status is ModelStatus.ACTIVE:
                raise RefusedError(
                    f"'{model_id}' is active, and only models that are off are asked",
                    hint="a probe costs money; an application's own calls tell how it is",
                )
            if provider not in probes:
                hint = "see [probe.NAME] in config.example.toml"
                wrong = f"no probe is configured for '{provider}', the provider of '{model_id}'"
                raise InvalidConfigError(wrong, hint=hint)
        if dry_run:
            return ProbeReport((), len(models), True)
        run = _Run(None, None, progress)
        answers = self._ask([(model_id, provider) for model_id, provider, _ in models], probes, run)
        return ProbeReport(tuple(answers), len(answers))

    def last_recover(self) -> LastRecover:
        """Say when a run of `recover` last finished, and whether that is too long ago."""
        return self._store.last_run.read()

    def pause(
        self, duration: float, *, provider: str | None = None, reason: str | None = None
    ) -> Pause:
        """Stop all automatic switching, off and on, for *duration* seconds; it ends by itself.

        *provider*: only its models. What people do goes on, and outcomes are recorded.
        """
        from modelctl.reports import Pause

        _check_seconds(duration, "a pause", positive=True)
        provider, reason = _provider(provider), self._reason(reason)
        if provider is not None and not self.list_models(provider=provider, limit=1):
            self.on_warning(f"no model has the provider '{provider}'")
        until = self._store.holds.pause(provider, duration, reason=reason, actor=self._actor)
        return Pause(provider, True, until, reason, True)

    def resume(self, *, provider: str | None = None, reason: str | None = None) -> Pause:
        """End the pause of the fleet, or of *provider*, before its time."""
        from modelctl.reports import Pause

        provider = _provider(provider)
        found = self._store.holds.resume(provider, reason=self._reason(reason), actor=self._actor)
        return Pause(provider, False, None, None, found)

    def import_models(
        self,
        catalog: bytes | BinaryIO,
        *,
        format: CatalogFormat | str | None = None,  # noqa: A002 - the word that everybody uses
        provider: str | None = None,
        on_conflict: str = "update",
        partial: bool = False,
        strict: bool = False,
        dry_run: bool = False,
        progress: Callable[[int], None] = _ignore,
    ) -> ImportResult:
        """Add and update models from a catalogue, in one transaction. Never a status.

        *catalog*: its bytes, or a stream of them: a JSON document of at most 16 MiB, or JSON Lines of any
        length, which are not held in memory.
        *format*: one of `CatalogFormat`, or None to tell by the shape.
        *provider*: of all its models, whatever the catalogue says.
        *on_conflict*: for a model whose name or provider differs: ``update`` it, ``skip`` it, or
        ``fail`` (then nothing is written, also when an entry is rejected).
        *partial*: take one page of a longer list. *strict*: write nothing if an entry is rejected.

        Raises:
            UsageError: this is not a catalogue, it has no model, it is one page of several, or an
                entry is rejected and *strict* or ``fail`` was asked for.
            RefusedError: ``fail`` and a model differs.
        """
        from modelctl.catalog.parse import parse
        from modelctl.reports import ImportResult

        if not isinstance(catalog, bytes) and not hasattr(catalog, "readline"):
            raise UsageError("a catalogue is bytes, or a stream of them")
        if on_conflict not in ("update", "skip", "fail"):
            raise UsageError(f"no policy '{on_conflict}'", hint="one of: update, skip, fail")
        found = parse(
            catalog, _catalog_format(format), provider=_provider(provider) or "", partial=partial
        )
        if found.rejected and (strict or on_conflict == "fail" or not found.models):
            first = found.rejected[0]
            what = (
                "1 entry is" if len(found.rejected) == 1 else f"{len(found.rejected)} entries are"
            )
            raise UsageError(
                f"{what} rejected; {first.id}: {first.why}",
                hint="nothing was written"
                + ("; without --strict the others are taken" if found.models and strict else ""),
            )
        if not found.models:
            raise UsageError("the catalogue has no models", hint="nothing was written")
        try:
            added, differing, ignored = self._store.batches.import_models(
                found.models.by_key,
                on_conflict=on_conflict,
                actor=self._actor,
                dry_run=dry_run,
                progress=progress,
            )
        except UsageError as exc:
            raise _naming(exc, _texts_of_entries(found.models)) from None
        updates = on_conflict == "update"
        return ImportResult(
            added=added,
            updated=differing if updates else 0,
            unchanged=len(found.models) - added - differing,
            skipped=0 if updates else differing,
            rejected=found.rejected,
            cache=self._invalidate(owed=not dry_run, changed=bool(added or differing)),
            dry_run=dry_run,
            ignored_status=ignored,
            notes=found.notes,
        )

    def _reason(self, reason: str | None) -> str | None:
        from modelctl.redact import storable_reason

        return storable_reason(reason, self.config.health.reason_length)

    # ── Invalidation ──

    def _invalidate(
        self, *, owed: bool, changed: bool = True, to_the_end: bool = False
    ) -> CacheState:
        crash_points.reach("after-commit")
        return self._cached_count.invalidate(owed=owed, changed=changed, to_the_end=to_the_end)

    def drain(self) -> DrainResult:
        """Deliver every queued invalidation that is due, to the end.

        Raises:
            StaleCacheError: Redis cannot be reached; what is queued stays queued.
        """
        return self._cached_count.drain()

    def clear_cache(self) -> DrainResult:
        """Invalidate now, whether or not something is queued.

        Raises:
            StaleCacheError: Redis cannot be reached.
        """
        return self._cached_count.clear()

    def cache_report(self) -> CacheReport:
        """Return the cache's keys as they are, and what waits in the queue.

        Raises:
            StaleCacheError: Redis cannot be reached.
        """
        return self._cached_count.report()

    # ── The schema, and how all is ──

    def upgrade(self, *, dry_run: bool = False) -> SchemaStatus:
        """Create the schema, adopt a table ``models`` that is there, repair what is missing.

        *dry_run*: only say what would be done, and what stands in the way.

        Raises:
            InvalidConfigError: that table cannot be adopted; says why. Nothing is changed.
        """
        from modelctl.migrations import migrate

        if dry_run:
            return self._store.schema(functools.partial(migrate.upgrade, dry_run=True))
        self._create_file()
        self._store.version()  # one that does not answer is noticed in the usual time
        with deadline.patience(UPGRADE_SECONDS):
            result = self._store.schema(migrate.upgrade)
        if result.repaired and self._cached_count.cache.needs_delivery:
            self._cached_count.invalidate(owed=True)
        return result

    def schema_status(self) -> SchemaStatus:
        """Say where the schema stands against this release; nothing is changed."""
        from modelctl.migrations import migrate

        return self._store.inspect(migrate.status)

    def detach(self) -> tuple[str, ...]:
        """Take triggers and functions off the database; tables and columns stay.

        Changes by other programs then reach the cached count only when it expires. `upgrade` puts
        them back. Returns what was taken off.
        """
        from modelctl.migrations import migrate

        removed = self._store.schema(migrate.detach)
        if self._cached_count.cache.needs_delivery:
            self._cached_count.invalidate(owed=True)
        return tuple(removed)

    def doctor(self, *, audit: bool = False) -> Diagnosis:
        """Look at everything once: database, schema, triggers, cache, queue, rows, recover.

        *audit*: also compare the cached count with the database, twice, 5 s apart. A difference
        that stays is wrong; one that went was a change on its way.
        """
        from modelctl.doctor.doctor import Doctor

        return Doctor(self.config, lambda: self._store, self._cached_count).diagnose(audit=audit)


def _texts_of_outcomes(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, object]]:
    for number, outcome in enumerate(outcomes, 1):
        yield f"outcome {number}: the id '{outcome.id}'", outcome.id
        yield f"outcome {number}, of '{outcome.id}': the reason", outcome.reason


def _texts_of_entries(entries: Iterable[CatalogModel]) -> Iterator[tuple[str, object]]:
    for model_id, name, provider, _ in entries:
        yield f"the id '{model_id}'", model_id
        yield f"the name of '{model_id}'", name
        yield f"the provider of '{model_id}'", provider


@dataclass(slots=True)
class _Run:
    """One run of recover: at most how many, with which cooldowns, who is told; what it did."""

    most: int | None
    ladder: tuple[float, ...] | None
    told: Callable[[int], None]
    done: int = 0
    lost: bool = False  # another run is at work
    refused: dict[str, str] = field(default_factory=dict)  # what the database kept off, and why
    asked: dict[str, ProbeResult] = field(default_factory=dict)

    def left_out(self, candidate: Candidate) -> Waiting:
        """Why it did not come back: it is not due, or not in this run."""
        if candidate.waiting:
            if candidate.waiting.why == "unreadable":
                self.refused.setdefault(candidate.id, "its id cannot be read")
            return candidate.waiting
        why = "limit"
        if answer := self.asked.get(candidate.id):
            why = "probe" if answer.failure_type else "unasked"
        if candidate.id in self.refused:
            why = "refused"
        return _later(candidate, why)

    def refusals(self) -> Iterator[str]:
        """Name what the database kept off, by its reason; the first three of them."""
        from modelctl.tables.ids import quoted

        reasons: dict[str, list[str]] = {}
        for model_id, why in self.refused.items():
            reasons.setdefault(why, []).append(model_id)
        for why, ids in islice(reasons.items(), 3):
            yield f"{quoted(ids)} did not come back: {why}"
        if len(reasons) > 3:
            yield f"{numbered(sum(map(len, [*reasons.values()][3:])))} more did not come back"

    def through(self, chunks: Iterable[list[str] | None]) -> Iterator[str]:
        for chunk in chunks:
            if chunk is None:
                self.lost = True
                return
            self.done += len(chunk)
            self.told(self.done)
            yield from chunk


def _later(candidate: Candidate, why: str) -> Waiting:
    from modelctl.reports import Waiting

    return Waiting(candidate.id, candidate.due, 0.0, why)


def _distinct(ids: Sequence[str]) -> list[str]:
    """Each id once, in their order."""
    if not ids:
        raise UsageError("no model is named")
    for model_id in ids:
        if not isinstance(model_id, str):
            hint = "give each id as an argument: disable(*ids)"
            several = isinstance(model_id, list | tuple | set | frozenset)
            raise UsageError(
                f"a model id is text, not {type(model_id).__name__}", hint=hint if several else None
            )
    return list(dict.fromkeys(ids))


def _provider(name: str | None) -> str | None:
    return None if name is None else storable(name, 200)


def _in_utc(time: datetime, what: str) -> datetime:
    from datetime import UTC

    if time.tzinfo is None:
        raise UsageError(f"{what} has no time zone", hint="write 2026-12-01T08:00Z")
    try:
        return time.astimezone(UTC)
    except OverflowError:  # in UTC it is beyond the last year that can be stored
        raise UsageError(f"{what} is beyond the calendar") from None


def _check_seconds(seconds: float, what: str, *, positive: bool = False) -> None:
    """Refuse what is no time, such as nan: comparing with it would say yes to anything."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 <= seconds <= LONGEST_COOLDOWN or (positive and not seconds):
        least = "more than 0 s and at most" if positive else "from 0 s to"
        raise UsageError(f"{what} is {least} ten years")


def _limit(limit: int | None) -> int | None:
    if limit is not None and (not isinstance(limit, int) or not 1 <= limit < 2**63):
        raise UsageError(f"a limit is 0 (no limit) or more and fits in 64 bits; {limit} does not")
    return limit


def _status(status: ModelStatus | str) -> ModelStatus:
    try:
        return ModelStatus(status)
    except ValueError:
        known = ", ".join(ModelStatus)
        raise UsageError(f"no status '{status}'", hint=f"one of: {known}") from None


def _catalog_format(name: CatalogFormat | str | None) -> CatalogFormat | None:
    from modelctl.catalog.formats import CatalogFormat

    try:
        return None if name is None else CatalogFormat(name)
    except ValueError:
        known = ", ".join(CatalogFormat)
        raise UsageError(f"no format '{name}'", hint=f"one of: {known}") from None
