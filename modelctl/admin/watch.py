"""The command watch: the fleet on the whole terminal, as it is now."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from modelctl.arguments.invocation import open_fleet
from modelctl.errors import ModelctlError, UsageError, clean
from modelctl.output import full_screen
from modelctl.signals import unwinding_on_signals

if TYPE_CHECKING:
    from modelctl.fleet.fleet import Fleet
    from modelctl.output.full_screen import FullScreen

_SECONDS_BETWEEN_READS = 1.0
_SECONDS_BETWEEN_LOOKS = 0.2  # at the keyboard and the size of the terminal
# A read that takes longer than this is said.
_SLOW_SECONDS = 2.5
_MOST_ROWS = 1000


def watch(ctx: typer.Context) -> None:
    """Watch the fleet on the whole terminal, refreshed each second; q quits.

    The count and its source, totals, pauses and incidents, what is off and why, the last events, and
    the queued invalidations. It changes nothing. While the database is unavailable, the last data
    stay, with their age. In a pipe use events --follow or metrics.
    """
    if not full_screen.is_possible():
        raise UsageError(
            "watch needs a terminal that can move the cursor",
            hint="elsewhere use: modelctl events --follow, modelctl list --off, modelctl metrics",
        )
    with unwinding_on_signals(), open_fleet(ctx) as fleet:
        watcher = _Watcher(fleet)
        with full_screen.FullScreen() as screen, suppress(_Quit):
            watcher.run(screen)
        if watcher.interrupted:
            raise KeyboardInterrupt


class _Quit(BaseException):
    """A key asks for the end. Like KeyboardInterrupt, it passes every `except Exception`."""


class _Watcher:
    """Reads the fleet each second, and draws it."""

    def __init__(self, fleet: Fleet) -> None:
        """Read it once; an error now is the error of the command, because there is nothing to show."""
        from modelctl.urls.url import mask_url

        config = fleet.config
        self._place = mask_url(config.database.url) or str(config.sqlite_path)
        self._fleet = fleet
        self._error = self._warning = ""
        self._drawn: tuple[object, ...] = ()
        self._quit = self.interrupted = False
        fleet.on_warning = self._note_warning
        self._read()

    def run(self, screen: FullScreen) -> None:
        """Draw and read until a key ends it."""
        while True:
            again = time.monotonic() + _SECONDS_BETWEEN_READS
            while (left := again - time.monotonic()) > 0:
                self._look(screen, min(left, _SECONDS_BETWEEN_LOOKS))
            with screen.calling(lambda: self._look(screen, 0), _SECONDS_BETWEEN_LOOKS):
                try:
                    self._read()
                except ModelctlError as exc:
                    self._error = exc.message
            self._look(screen, 0)

    def _read(self) -> None:
        rows = min(full_screen.size()[1], _MOST_ROWS)
        self._warning, warned = "", self._warning
        try:
            self._snapshot = self._fleet.snapshot(rows=rows)
        except ModelctlError:
            self._warning = warned
            raise
        self._read_at = time.monotonic()
        self._error = ""

    def _note_warning(self, text: str) -> None:
        self._warning = self._warning or clean(text)

    def _look(self, screen: FullScreen, seconds: float) -> None:
        """Draw if something is new, and wait so long for a key."""
        if self._quit:
            return
        self._draw(screen)
        keys = screen.keys(seconds)
        if keys and full_screen.CTRL_L in keys:
            self._drawn = ()
        self.interrupted = keys == full_screen.CTRL_C
        if keys is None or self.interrupted or "q" in keys.lower():
            self._quit = True
            raise _Quit

    def _draw(self, screen: FullScreen) -> None:
        from modelctl.output.dashboard import dashboard

        (columns, lines), problem = full_screen.size(), self._problem()
        new = (self._read_at, columns, lines, problem)
        if new == self._drawn:
            return
        keys = "q: quit" if screen.has_keys else "Ctrl-C: quit"
        text = dashboard(
            self._snapshot,
            place=self._place,
            keys=keys,
            problem=problem,
            width=columns,
            height=lines,
        )
        screen.draw(text, columns, lines)
        self._drawn = new

    def _problem(self) -> str:
        """Say what is wrong with what is shown, in one line: the beginning of it fits everywhere."""
        age = time.monotonic() - self._read_at
        if self._error:
            return f"data of {age:.0f} s ago, trying again: {self._error}"
        if age > _SLOW_SECONDS:
            return f"data of {age:.0f} s ago, waiting for an answer"
        if self._snapshot.cache_problem:
            return f"{self._snapshot.cache_problem}; counted in the database"
        return self._warning
