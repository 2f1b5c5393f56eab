"""The commands that change models: by hand, by outcomes."""

from __future__ import annotations

from functools import partial as with_arguments
from typing import TYPE_CHECKING, Any

from modelctl.errors import UsageError
from modelctl.model import check_id, name_the_text, storable
from modelctl.opened import arguments
from modelctl.opened.opened_fleet import OpenedFleet, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from modelctl.health import Outcome
    from modelctl.model import FailureType
    from modelctl.models.results import BatchResult, Changes, StatusChange
    from modelctl.tables.selection import Selection


class ChangeCommands(OpenedFleet):
    """What changes models. Each change is committed first, then the caches are invalidated.

    *actor*: who makes this change, in place of the actor of the fleet.
    """

    def disable(
        self,
        *ids: str,
        select: Selection | None = None,
        limit_to: int | None = None,
        reason: str | None = None,
        duration: float | None = None,
        until: datetime | None = None,
        force: bool = False,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> Changes:
        """Switch models off by hand, all or none. Nothing automatic switches them on again.

        *duration* (seconds) or *until* (a time with its zone) gives the disable an end: then
        `recover` brings the models back. A model that is disabled without an end does not get one.
        A model that is off already keeps the time since when it is off, and its reason unless a
        new *reason* is given. *force*: ignore the floor of ``recovery.min_active``, and give an end
        also to models that are disabled without one.

        *select*: the models of a `Selection`, instead of ids. Of these, each model that is disabled
        for at least as long already stays as it is, also its reason, unless *force*. *limit_to*:
        change nothing if more models of the selection would change.

        Raises:
            ModelNotFoundError: an id is unknown, or the selection has no model; nothing is changed.
            RefusedError: fewer active models than the floor would remain, or more than *limit_to*
                would change; nothing is changed.
            UsageError: the end is in the past, or is not a time.
        """

        floor = self.config.recovery.min_active
        end = arguments.end(duration, until, lambda: self._store.candidates.clock())
        disable = with_arguments(self._store.changes.disable, until=end, floor=floor, force=force)
        return self._switch(disable, ids, select, limit_to, reason, dry_run, actor)

    def enable(
        self,
        *ids: str,
        select: Selection | None = None,
        limit_to: int | None = None,
        reason: str | None = None,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> Changes:
        """Switch models on as healthy ones: without failures and ejections. All or none.

        *select*, *limit_to*: as of `disable`.

        Raises:
            ModelNotFoundError: an id is unknown, or the selection has no model; nothing is changed.
            RefusedError: more than *limit_to* would change; nothing is changed.
        """
        enable = self._store.changes.enable
        return self._switch(enable, ids, select, limit_to, reason, dry_run, actor)

    def remove(
        self,
        *ids: str,
        select: Selection | None = None,
        limit_to: int | None = None,
        reason: str | None = None,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> Changes:
        """Delete models, all or none; their history stays.

        A model that was removed before is no error: its change says that nothing changed.
        *select*, *limit_to*: as of `disable`.

        Raises:
            ModelNotFoundError: an id is unknown, also in the history, or the selection has no
                model; nothing is changed.
            RefusedError: more than *limit_to* would be removed; nothing is changed.
        """
        remove = self._store.changes.remove
        return self._switch(remove, ids, select, limit_to, reason, dry_run, actor)

    def _switch(
        self,
        change: Callable[..., Sequence[StatusChange]],
        ids: Sequence[str],
        select: Selection | None,
        limit_to: int | None,
        reason: str | None,
        dry_run: bool,
        actor: str | None,
    ) -> Changes:
        from modelctl import operation
        from modelctl.models.results import Changes
        from modelctl.models.status_changes import Selected

        which = arguments.models(ids, select, limit_to)
        changes = change(
            which if isinstance(which, list) else Selected(which, limit_to),
            actor=self._acting(actor),
            reason=self._reason(reason),
            dry_run=dry_run,
        )
        # Also if nothing changed: an earlier process may have died before its invalidation.
        changed = any(change.changed for change in changes)
        cache = self._invalidate(owed=not dry_run, changed=changed)
        return Changes(changes, cache, dry_run, None if dry_run else operation.written())

    def add(
        self,
        id: str,  # noqa: A002 - its usual name
        *,
        name: str | None = None,
        provider: str = "",
        actor: str | None = None,
    ) -> Changes:
        """Add one active model. A model that exists already stays as it is.

        If that model has another name or provider, the change is a `KeptChange` whose note says
        so; `import_models` can change them.

        Raises:
            UsageError: the id is not valid (1-200 characters, no control characters, no blanks at
                its ends).
        """
        from modelctl import operation
        from modelctl.models.add import add
        from modelctl.models.results import Changes

        entry = (check_id(id), storable(name or "", 200), storable(provider or "", 200))
        change = add(self._store.database, entry, actor=self._acting(actor))
        cache = self._invalidate(owed=True, changed=change.changed)
        return Changes((change,), cache, operation=operation.written())

    def record_success(
        self,
        id: str,  # noqa: A002 - its usual name
        *,
        actor: str | None = None,
    ) -> Changes:
        """Record a successful call: the failures in a row are 0 again, and an auto-disabled model
        comes back.

        Raises:
            ModelNotFoundError: the id is unknown.
        """
        from modelctl import health

        arguments.distinct([id])
        return self._record(health.Outcome(id, None), actor)

    def record_failure(
        self,
        id: str,  # noqa: A002 - its usual name
        type: FailureType | str | BaseException | None = "unknown",  # noqa: A002 - its usual name
        *,
        http_status: int | None = None,
        reason: str | None = None,
        actor: str | None = None,
    ) -> Changes:
        """Record a failed call; the 5th counted failure in a row switches the model off.

        *type*: one of `FailureType`, or the exception that the call raised, for `classify`. Only
        ``parse-error`` and ``client-error`` count. *http_status*: 400 to 599, instead of a type.
        *reason*: cut to 500 characters, without keys; by default the text of the exception.

        Nothing is recorded, and the change says ``recorded=False``, if the failure says nothing about
        the model: the type is None, the status is 499 (the caller went away), or `classify` says so.

        Raises:
            ModelNotFoundError: the id is unknown.
            UsageError: the type is unknown; the status is not 400 to 599; both are given.
        """
        from modelctl import health

        arguments.distinct([id])
        kind = arguments.failure(type, http_status)
        if kind is None:
            return self._not_recorded(id)
        if reason is None and isinstance(type, BaseException):
            from modelctl.failures.facts import reason as reason_of

            reason = reason_of(type)
        return self._record(health.Outcome(id, kind, self._reason(reason)), actor)

    def _not_recorded(self, model_id: str) -> Changes:
        from modelctl.models.results import Changes, OutcomeChange

        with self._warning_if_unknown():
            model = self._store.models.get(model_id)
        change = OutcomeChange(
            *(model_id, model.status, model.status, False, model.consecutive_failures),
            threshold=self.config.health.threshold,
            would_disable=model.would_disable,
            recorded=False,
        )
        return Changes((change,), self._cached_count.cache.state_when_untouched)

    def _record(self, outcome: Outcome, actor: str | None) -> Changes:
        from modelctl import operation
        from modelctl.models.results import Changes

        with self._warning_if_unknown():
            change = self._store.outcomes.record(outcome, actor=self._acting(actor))
        cache = self._invalidate(owed=change.changed)
        return Changes((change,), cache, operation=operation.written())

    def record_batch(
        self,
        outcomes: Iterable[Outcome | Mapping[str, Any]],
        *,
        unknown: str = "fail",
        progress: Callable[[int], None] = ignore_progress,
        actor: str | None = None,
    ) -> BatchResult:
        """Record many outcomes in their order, in one transaction: all or none.

        *outcomes*: ``{"id", "outcome": "success"|"failure", "type"?, "reason"?}`` each. All are
        read and checked before anything is written; on the way they are kept on disk.
        *unknown*: what to do if an id is unknown: ``fail``, or ``skip`` its outcomes, which the
        result counts and names. *progress* is called with the number of recorded outcomes.

        Raises:
            UsageError: an outcome is wrong; the message gives its number (from 1).
            ModelNotFoundError: an id is unknown, and *unknown* is ``fail``.
        """
        from modelctl import operation
        from modelctl.fleet.batch import checked, texts
        from modelctl.models.results import BatchResult

        skip_unknown = arguments.policy(unknown, ("fail", "skip")) == "skip"
        arguments.iterable(outcomes, "outcomes")
        self._warn_if_nothing_is_configured()
        spool = checked(outcomes, self.config.health.reason_length)
        try:
            done = self._store.outcomes.record_batch(
                lambda: iter(spool),
                actor=self._acting(actor),
                skip_unknown=skip_unknown,
                progress=progress,
            )
        except UsageError as exc:
            raise name_the_text(exc, texts(spool)) from None
        cache = self._invalidate(owed=bool(done.changes))
        return BatchResult(
            done.recorded, done.changes, cache, done.skipped, done.unknown, operation.written()
        )
