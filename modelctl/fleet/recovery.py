"""The commands around recovery: recover, probe, pause and resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.errors import ModelctlError, RefusedError
from modelctl.model import numbered
from modelctl.opened import arguments
from modelctl.opened.opened_fleet import OpenedFleet, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.probe.results import ProbeReport
    from modelctl.recovery.probing import Prober
    from modelctl.recovery.results import LastRecover, Pause, Recovery
    from modelctl.tables.selection import Selection


class RecoveryCommands(OpenedFleet):
    """What brings models back automatically, and what stops that.

    *actor*: who makes this change, in place of the actor of the fleet.
    """

    def recover(
        self,
        *,
        limit: int | None = None,
        cooldown: float | None = None,
        probe: bool = False,
        select: Selection | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] = ignore_progress,
        actor: str | None = None,
    ) -> Recovery:
        """Bring back the models whose cooldown, or timed disable, is over.

        *limit*: at most so many, the longest waiting first (0: no limit; None:
        ``recovery.limit``). *cooldown*: seconds, in this run instead of the configured ones.
        *probe*: ask each auto-disabled model first if a probe is configured for its provider; if
        that fails, its cooldown starts again. *select*: only the models of a `Selection`; such a
        run does not count for ``recovery.expect_every``.
        If another run is at work, this run does nothing and says ``busy``. A model that a person
        disabled without an end is never touched.

        Raises:
            InvalidConfigError: *probe*, and no probe is configured.
            ModelNotFoundError: no model has the provider or matches the pattern of the selection.
            UsageError: *limit* or *cooldown* makes no sense.
        """
        from modelctl.recovery.run import RecoverRun

        if cooldown is not None:
            arguments.seconds(cooldown, "a cooldown")
        limit = arguments.limit(self.config.recovery.limit if limit is None else limit)
        who = self._acting(actor)
        prober = self._prober(progress, who) if probe else None
        self._warn_if_nothing_is_configured()
        store = self._store
        candidates, bring_back = store.candidates, store.bring_back
        finished = store.last_run.finished
        if select is not None:
            candidates, bring_back = store.recovery_of(arguments.selection(select))
            finished = lambda: None  # noqa: E731 - there are models that this run does not look at
        run = RecoverRun(
            candidates,
            bring_back,
            prober,
            limit=limit,
            cooldowns=None if cooldown is None else (cooldown,),
            actor=who,
            paused=store.holds.pause_of_the_fleet(),
            progress=progress,
        )
        if dry_run:
            result = run.rehearse(self._cached_count.cache.state_when_untouched)
        else:
            result = run.run(finished, self._invalidate)
            if not result.busy:
                self._prune_some()
        for warning in run.warnings():
            self._warn(warning)
        return result

    def _prune_some(self) -> None:
        """Delete some events that are older than ``history.keep``; a failure is only a warning."""
        from modelctl.history.prune import IN_ONE_RUN, prune

        keep = self.config.history.keep
        if not keep:
            return
        try:
            before = self._store.candidates.clock() - keep
            prune(self._store.database, before, limit=IN_ONE_RUN)
        except ModelctlError as exc:
            why = f"{exc.message}; {exc.hint}" if exc.hint else exc.message
            self._warn(f"old events could not be deleted: {why}")

    def probe(
        self,
        *ids: str,
        select: Selection | None = None,
        limit_to: int | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] = ignore_progress,
        actor: str | None = None,
    ) -> ProbeReport:
        """Ask models that are off whether they work, with one small request each.

        No model comes back by this. If a model fails, its cooldown starts again, and the history
        says so. *dry_run*: ask no model. *progress* is called with the number of answers.
        *select*: the models of a `Selection` that are off, instead of ids. *limit_to*: ask none if
        these are more.

        Raises:
            InvalidConfigError: no probe is configured for the provider of a model.
            ModelNotFoundError: an id is unknown, or no model of the selection is off; no model is
                asked.
            RefusedError: a model that is named is active, or there are more than *limit_to*; no
                model is asked.
        """
        from modelctl.probe.results import ProbeReport

        which = arguments.models(ids, select, limit_to)
        prober = self._prober(progress, self._acting(actor))
        models = prober.models(which) if isinstance(which, list) else prober.off(which)
        if limit_to is not None and len(models) > limit_to:
            raise RefusedError(
                f"{numbered(len(models), 'request')} would be made, more than {limit_to};"
                " no model was asked",
                hint="narrow the selection, or raise the limit",
            )
        if dry_run:
            return ProbeReport((), len(models), True)
        answers = prober.ask(models)
        return ProbeReport(tuple(answers), len(answers))

    def _prober(self, progress: Callable[[int], None], actor: str) -> Prober:
        from modelctl.recovery.probing import Prober, configured

        probes = configured(self.config)
        return Prober(
            self._store.probing,
            probes,
            actor=actor,
            warn=self._warn,
            progress=progress,
        )

    def last_recover(self) -> LastRecover:
        """Return when a run of `recover` last finished, and whether that is too long ago."""
        return self._store.last_run.read()

    def pause(
        self,
        duration: float,
        *,
        provider: str | None = None,
        reason: str | None = None,
        actor: str | None = None,
    ) -> Pause:
        """Stop all automatic switching, off and on, for *duration* seconds.

        *provider*: only its models. People can still switch models, and outcomes are recorded.

        Raises:
            UsageError: *duration* is not more than 0 s and at most ten years.
        """
        from modelctl import operation
        from modelctl.recovery.results import Pause
        from modelctl.tables.selection import Selection

        arguments.seconds(duration, "a pause", positive=True)
        provider, reason = arguments.provider(provider), self._reason(reason)
        store = self._store
        of_provider = Selection(provider=provider)
        if provider is not None and not [*store.models.iter_models(of_provider, limit=1)]:
            self._warn(f"no model has the provider '{provider}'")
        who = self._acting(actor)
        until = store.holds.pause(provider, duration, reason=reason, actor=who)
        return Pause(provider, True, until, reason, True, operation.written())

    def resume(
        self,
        *,
        provider: str | None = None,
        reason: str | None = None,
        actor: str | None = None,
    ) -> Pause:
        """End the pause of the fleet, or of *provider*, before its time."""
        from modelctl import operation
        from modelctl.recovery.results import Pause

        provider, reason = arguments.provider(provider), self._reason(reason)
        found = self._store.holds.resume(provider, reason=reason, actor=self._acting(actor))
        return Pause(provider, False, None, None, found, operation.written())
