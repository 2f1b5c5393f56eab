"""Follow the history: give new events as they come, each of them once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from modelctl.errors import DatabaseUnavailableError
from modelctl.history.reading import Horizon, iter_events

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.database.database import Database
    from modelctl.history.reading import EventFilter
    from modelctl.models.results import Event

SECONDS_BETWEEN_LOOKS = 1.0
# How many events are read at once, and how often a listing looks for the end of a transaction.
_PAGE = 1000
_LOOKS, _SECONDS_BETWEEN_THEM = 5, 0.1


def up_to_the_horizon(database: Database, wanted: EventFilter) -> EventFilter:
    """Limit events after an id to those up to which the history is complete.

    Where a transaction that may have written an earlier event is still running, a listing waits for
    it, but not long: the next listing after the last id has the rest.
    """
    horizon = Horizon(database, wanted.after or 0)
    for look in range(_LOOKS):
        if look:
            time.sleep(_SECONDS_BETWEEN_THEM)
        if horizon.advance():
            break
    return replace(wanted, up_to=horizon.id)


class Following(Iterator["list[Event]"]):
    """The new events as they come, in lists of at least one. It never ends."""

    def __init__(self, looks: Iterator[list[Event]]) -> None:
        """*looks*: that of the function `looks`; whoever waits in another way asks it directly."""
        self.looks = looks

    def __next__(self) -> list[Event]:
        """Return the next events; wait until there are some."""
        while not (found := next(self.looks)):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return found


def looks(
    database: Database, wanted: EventFilter, warn: Callable[[str], None]
) -> Iterator[list[Event]]:
    """Give the events after ``wanted.after`` or since ``wanted.since``, else those from now on.

    An empty list says that there are no more for now. It never ends. If the database cannot be reached
    at the beginning, that is an error; later *warn* is called when it cannot be reached any more, and
    when it can be again.
    """
    horizon = Horizon(database, wanted.after or 0)
    horizon.advance()
    done = horizon.id if wanted.after is None and wanted.since is None else wanted.after or 0
    away = False
    while True:
        try:
            horizon.advance()
            if away:
                warn("the database is back")
            away = False
            while done < horizon.id:
                part = replace(wanted, after=done, up_to=horizon.id)
                found = [*iter_events(database, part, oldest_first=True, limit=_PAGE)]
                done = found[-1].id if len(found) == _PAGE else horizon.id
                if found:
                    yield found
        except DatabaseUnavailableError as exc:
            if not away:
                warn(f"{exc.message}; trying again every second")
            away = True
        yield []
