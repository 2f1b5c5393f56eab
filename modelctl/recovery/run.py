"""RecoverRun: one run of `recover`, or what it would do."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from modelctl import operation
from modelctl.model import numbered
from modelctl.recovery.bring_back import UNREADABLE
from modelctl.recovery.results import Recovery, Waiting
from modelctl.spool import Spool
from modelctl.tables.ids import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from modelctl.health import Hold
    from modelctl.model import CacheState
    from modelctl.recovery.bring_back import BringBack
    from modelctl.recovery.candidates import Candidates
    from modelctl.recovery.probing import Prober
    from modelctl.recovery.results import Candidate

# How many reasons of the database a warning quotes; for the other reasons it only counts the models.
_REASONS = 3


class RecoverRun:
    """Brings back the models that are due, and says why the other candidates stay off."""

    def __init__(
        self,
        candidates: Candidates,
        bring_back: BringBack,
        prober: Prober | None,
        *,
        limit: int | None,
        cooldowns: Sequence[float] | None,
        actor: str,
        paused: Hold | None,
        progress: Callable[[int], None],
    ) -> None:
        """*prober*: asks models before they come back; None: no model is asked.

        *limit*: how many models come back at most. *cooldowns*: seconds, instead of the configured
        ones. *paused*: the pause of the whole fleet. *progress* is called with the number of models
        that came back.
        """
        self._candidates = candidates
        self._bring_back = bring_back
        self._prober = prober
        self._limit = limit
        self._cooldowns = cooldowns
        self._actor = actor
        self._paused = paused
        self._progress = progress
        self._number_recovered = 0
        self._another_run = False  # another run of recover, or of its probes, is at work
        self._refused: dict[str, str] = {}  # ids that the database did not let change, and why

    def run(self, finished: Callable[[], None], invalidate: Callable[..., CacheState]) -> Recovery:
        """Bring models back, then invalidate the caches.

        *finished* is called at the end of a run that no other run stopped. *invalidate*: see
        `CachedCount.invalidate`.
        """
        try:
            recovered = Spool(self._recovered())
            if not self._another_run:
                finished()
        except BaseException:
            invalidate(owed=True)  # the chunks before the error are committed
            raise
        cache = invalidate(owed=True, changed=bool(recovered), to_the_end=True)
        waiting = Spool(map(self._waiting, self._candidates.plan(cooldowns=self._cooldowns)))
        asked = self._prober.answers.values() if self._prober else ()
        return Recovery(
            recovered=recovered,
            waiting=waiting,
            busy=self._another_run and not recovered,
            cache=cache,
            paused=self._paused,
            requests=len(asked),
            unhealthy=tuple(answer for answer in asked if not answer.healthy),
            operation=operation.written(),
        )

    def rehearse(self, cache: CacheState) -> Recovery:
        """Return what `run` would do now; nothing is changed and no model is asked.

        *cache*: the state of a cache that is not touched.
        """
        due: Spool[str] = Spool()
        waiting: Spool[Waiting] = Spool()
        requests = 0
        for candidate in self._candidates.plan(cooldowns=self._cooldowns):
            if candidate.waiting:
                waiting.append(self._waiting(candidate))
            elif self._limit is not None and len(due) >= self._limit:
                waiting.append(_due_but(candidate, "limit"))
            else:
                due.append(candidate.id)
                requests += self._is_asked(candidate)
        return Recovery(due, waiting, False, cache, True, self._paused, requests)

    def warnings(self) -> Iterator[str]:
        """Name the models that the database did not let change, by its reasons."""
        reasons: dict[str, list[str]] = {}
        for model_id, why in self._refused.items():
            reasons.setdefault(why, []).append(model_id)
        for why, ids in islice(reasons.items(), _REASONS):
            yield f"{quoted(ids)} did not come back: {why}"
        if len(reasons) > _REASONS:
            others = sum(map(len, [*reasons.values()][_REASONS:]))
            yield f"{numbered(others)} more did not come back"

    # ── Bringing back ──

    def _recovered(self) -> Iterator[str]:
        """Bring models back; give the id of each."""
        if self._prober is None:
            yield from self._in_chunks()
            return
        plan = self._candidates.plan(cooldowns=self._cooldowns)
        due = (candidate for candidate in plan if not candidate.waiting)
        room = self._limit
        while room is None or room > 0:
            refused_before = len(self._refused)
            trusted: Spool[str] = Spool()
            to_ask: Spool[str] = Spool()
            for candidate in islice(due, room):
                (to_ask if self._is_asked(candidate) else trusted).append(candidate.id)
            yield from self._in_chunks(trusted)
            if to_ask and not self._another_run:
                yield from self._asked_first(self._prober, to_ask)
            if room is None or self._another_run:
                return
            room = len(self._refused) - refused_before  # other models take the places of these

    def _in_chunks(self, ids: Sequence[str] | None = None) -> Iterator[str]:
        """Bring back all that is due, or these models if they are due."""
        how: dict[str, Any] = {"cooldowns": self._cooldowns, "limit": self._limit, "ids": ids}
        for chunk in self._bring_back.in_chunks(actor=self._actor, refused=self._refused, **how):
            if chunk is None:
                self._another_run = True
                return
            self._number_recovered += len(chunk)
            self._progress(self._number_recovered)
            yield from chunk

    def _asked_first(self, prober: Prober, ids: Iterable[str]) -> Iterator[str]:
        """Ask models, a few at a time; bring back those that are healthy."""
        with prober.claimed() as claim:
            source = iter(ids)
            while some := list(islice(source, prober.AT_ONCE)):
                if not claim():
                    self._another_run = True
                    return
                still = self._candidates.plan(ids=some, cooldowns=self._cooldowns)
                due = [(c.id, c.provider) for c in still if not c.waiting]
                healthy = [answer.id for answer in prober.ask(due) if answer.healthy]
                if healthy:
                    yield from self._in_chunks(healthy)

    def _is_asked(self, candidate: Candidate) -> bool:
        """Whether it is asked before it comes back; a timed disable says nothing about its health."""
        return bool(
            self._prober and not candidate.timed and candidate.provider in self._prober.probes
        )

    # ── What stays off ──

    def _waiting(self, candidate: Candidate) -> Waiting:
        """Why a candidate did not come back: it is not due, or this run left it off."""
        if candidate.waiting:
            if candidate.waiting.why == "unreadable":
                self._refused.setdefault(candidate.id, UNREADABLE)
            return candidate.waiting
        if candidate.id in self._refused:
            return _due_but(candidate, "refused")
        answer = self._prober.answers.get(candidate.id) if self._prober else None
        if answer is None:
            return _due_but(candidate, "limit")
        return _due_but(candidate, "probe" if answer.failure_type else "unasked")


def _due_but(candidate: Candidate, why: str) -> Waiting:
    return Waiting(candidate.id, candidate.due, 0.0, why)
