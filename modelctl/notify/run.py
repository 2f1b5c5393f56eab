"""NotifyRun: one run of `notify`, or what it would do."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from modelctl import crash_points, deadline
from modelctl.config.notify import EJECTED
from modelctl.database.lease import claim
from modelctl.database.sql import text
from modelctl.errors import DatabaseUnavailableError, ModelctlError
from modelctl.history.follow import up_to_the_horizon
from modelctl.history.reading import EventFilter, iter_events
from modelctl.model import numbered
from modelctl.notify.cursor import Cursor, Progress
from modelctl.notify.messages import Notice, ejected, message
from modelctl.notify.results import Notified
from modelctl.notify.send import NotDeliveredError, Sender

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.config.notify import NotifyConfig
    from modelctl.database.database import Database
    from modelctl.models.results import Event
    from modelctl.notify.cursor import Stored
    from modelctl.notify.messages import Message

# How long an event that the receiver does not accept stays in the way of the later ones.
_A_DAY = 86400.0
# How many events are read at once.
_PAGE = 500
# A run that finds nothing to do stores its time only if the stored one is older.
_SECONDS_BETWEEN_NOTES = 60.0
# How long a run begins new messages while the receiver accepts them; the next run sends the rest.
_LONGEST_WORK = 10.0
_LEASE = "notify lease"


class _Next(NamedTuple):
    """What comes next: events in order, the id up to which nothing else is wanted, and the notice."""

    events: list[Event]
    upto: int
    notice: Notice | None

    @property
    def is_empty(self) -> bool:
        return not self.events and self.notice is None


class NotifyRun:
    """Tells the receiver what is new since the last run."""

    def __init__(
        self,
        database: Database,
        config: NotifyConfig,
        *,
        max_ejections: int,
        count: Callable[[], int],
        patience: float,
        warn: Callable[[str], None],
    ) -> None:
        """*count* returns the number of active models. *patience*: for how many seconds a message
        that was not accepted is tried again. *warn* is told about dropped events.
        """
        self._database = database
        self._config = config
        self._max_ejections = max_ejections
        self._count = count
        self._patience = patience
        self._warn = warn
        self._cursor = Cursor(database)
        # A model that is ejected is auto-disabled, and its event says so.
        names = dict.fromkeys("auto-disabled" if n == EJECTED else n for n in config.events)
        self._names = tuple(names)
        self._only_ejected = EJECTED in config.events and "auto-disabled" not in config.events

    def run(self) -> Notified:
        """Send what is new."""
        secrets = self._config.address(), self._config.token()
        stored = self._cursor.read()
        if self._has_nothing_to_do(stored):
            assert stored.progress  # noqa: S101 - for the type checker
            return Notified(0, 0, 0, stored.progress.cursor)
        owner = str(uuid4())
        if not self._claim(owner):
            cursor = stored.progress.cursor if stored.progress else None
            return Notified(0, 0, 0, cursor, busy=True)
        try:
            return self._send_all(self._cursor.read(), secrets, owner)
        finally:
            with suppress(ModelctlError):
                claim(self._database, _LEASE, 0, owner)

    def rehearse(self) -> Notified:
        """Return what `run` would do; nothing is stored or sent."""
        stored = self._cursor.read()
        progress = stored.progress
        if progress is None:
            return Notified(0, 0, 0, None, began=True, dry_run=True)
        upto = self._horizon(progress.cursor)
        found = self._next(progress, upto, stored.now)
        shown = None if found.is_empty else self._message(found, progress).text
        waiting = self._waiting(progress.cursor, upto)
        return Notified(0, waiting, 0, progress.cursor, dry_run=True, text=shown)

    def _has_nothing_to_do(self, stored: Stored) -> bool:
        """Whether neither a message nor the time of the run has to be written."""
        if stored.progress is None or not 0 <= stored.seconds_ago < _SECONDS_BETWEEN_NOTES:
            return False
        upto = self._horizon(stored.progress.cursor)
        found = self._next(stored.progress, upto, stored.now)
        return found.is_empty and found.upto >= upto

    def _claim(self, owner: str) -> bool:
        """Claim, or prolong, the right to send: two runs never send at the same time.

        It lasts for one try and the longest wait between two.
        """
        return claim(self._database, _LEASE, self._config.timeout + self._patience + 15, owner)

    # ── Sending ──

    def _send_all(self, stored: Stored, secrets: tuple[str, str], owner: str) -> Notified:
        progress = stored.progress or Progress(self._horizon(0))
        upto = self._horizon(progress.cursor)
        sent, failure = 0, None
        sender: Sender | None = None
        started = time.monotonic()
        while True:
            found = self._next(progress, upto, stored.now)
            if found.is_empty:
                progress = replace(progress, cursor=found.upto)
                if found.upto < upto:
                    continue
                break
            if stored.now < (progress.retry_at or 0):
                failure = NotDeliveredError(
                    progress.problem or "the receiver wants to be left alone"
                )
                break
            elapsed = time.monotonic() - started
            if sent and elapsed > max(self._patience, _LONGEST_WORK):
                break
            ready = self._message(found, progress)
            try:
                sender = sender or Sender(self._config, *secrets)
                sender.send(ready.content, self._patience - elapsed, lambda: self._prolong(owner))
            except NotDeliveredError as exc:
                failure = exc
                progress = _failed(progress, exc, stored.now)
                break
            crash_points.reach("after-send")
            progress = self._accepted(progress, found, ready)
            self._cursor.save(progress)
            deadline.renew()
            sent += ready.items
        dropped = 0
        if failure:
            progress, dropped = self._drop(progress, upto, stored.now)
        self._cursor.save(progress)
        return Notified(
            sent,
            self._waiting(progress.cursor, upto),
            dropped,
            progress.cursor,
            began=stored.progress is None,
            problem=str(failure) if failure else None,
            permanent=bool(failure and failure.permanent),
        )

    def _prolong(self, owner: str) -> None:
        deadline.renew()
        if not self._claim(owner):
            raise DatabaseUnavailableError(
                "another notify took over, because this one was too slow"
            )

    def _accepted(self, progress: Progress, found: _Next, ready: Message) -> Progress:
        whole = ready.events == len(found.events)
        return replace(
            progress,
            cursor=found.upto if whole else found.events[ready.events - 1].id,
            below=found.notice.below if whole and found.notice else progress.below,
            failing_since=None,
            problem=None,
            retry_at=None,
            told=progress.dropped,
        )

    def _drop(self, progress: Progress, upto: int, now: float) -> tuple[Progress, int]:
        """Give up events that are older than a day if the receiver failed for all of a day."""
        if progress.failing_since is None or now - progress.failing_since < _A_DAY:
            return progress, 0
        old = datetime.fromtimestamp(now - _A_DAY, UTC)
        wanted = self._wanted(progress.cursor, upto)
        newer = next(
            iter_events(self._database, replace(wanted, since=old), oldest_first=True, limit=1),
            None,
        )
        cursor = newer.id - 1 if newer else upto
        dropped = self._waiting(progress.cursor, cursor)
        if not dropped:
            return progress, 0
        self._warn(
            f"{numbered(dropped, 'event')} could not be delivered for a day, and will not be tried"
            f" again; see: modelctl events --after {progress.cursor}"
        )
        total = progress.dropped + dropped
        return replace(progress, cursor=cursor, dropped=total, dropped_at=now), dropped

    # ── What is new ──

    def _horizon(self, after: int) -> int:
        """Return the id up to which the history is complete."""
        return up_to_the_horizon(self._database, EventFilter(after=after)).up_to or 0

    def _wanted(self, after: int, upto: int) -> EventFilter:
        return EventFilter(events=self._names, after=after, up_to=upto)

    def _next(self, progress: Progress, upto: int, now: float) -> _Next:
        """Return the next events; and the notice, if they are the last."""
        found: list[Event] = []
        if self._names:
            wanted = self._wanted(progress.cursor, upto)
            found = [*iter_events(self._database, wanted, oldest_first=True, limit=_PAGE)]
        events = [event for event in found if self._is_wanted(event)]
        if len(found) == _PAGE:
            return _Next(events, found[-1].id, None)
        return _Next(events, upto, self._notice(progress, now))

    def _is_wanted(self, event: Event) -> bool:
        if event.event != "auto-disabled" or not self._only_ejected:
            return True
        return ejected(event, self._max_ejections)

    def _notice(self, progress: Progress, now: float) -> Notice | None:
        """Return what changed about ``min_active``; None: nothing."""
        least = self._config.min_active
        active = self._count() if least else 0
        below = active < least
        if below == progress.below or not least:
            return None
        return Notice(datetime.fromtimestamp(now, UTC), below, active, least)

    def _message(self, found: _Next, progress: Progress) -> Message:
        untold = progress.dropped - progress.told
        return message(found.events, found.notice, untold, self._max_ejections)

    def _waiting(self, after: int, upto: int) -> int:
        """Return how many events are wanted after one id and up to another."""
        if not self._names or upto <= after:
            return 0
        if self._only_ejected:
            wanted = self._wanted(after, upto)
            events = iter_events(self._database, wanted, oldest_first=True, limit=None)
            return sum(map(self._is_wanted, events))
        sql = (
            f"SELECT count(*) FROM {self._database.own}modelctl_events"
            f" WHERE id > :after AND id <= :upto AND {self._database.sql.is_among('event')}"
        )
        names = self._database.sql.list_of_texts(self._names)
        values = {"after": after, "upto": upto, "ids": names}
        with self._database.reading() as connection:
            return int(connection.execute(text(sql), values).scalar_one())


def _failed(progress: Progress, error: NotDeliveredError, now: float) -> Progress:
    retry_at = now + error.retry_after if error.retry_after else None
    since = progress.failing_since if progress.failing_since is not None else now
    return replace(progress, failing_since=since, problem=str(error), retry_at=retry_at)
