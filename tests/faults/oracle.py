"""The plain model of a fleet that the state machine compares with, and the strategies for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from modelctl import crash_points
from tests.fleets import ACTOR, is_sqlite
from tests.servers import Redis
from tests.world import World

IDS = ("a", "A", "hf:org/\u00fc m")
COUNTED = ("parse-error", "client-error")


class MachineWorld(World):
    """A world in which the same models have a fleet for each floor (``recovery.min_active``).

    *server* is the Redis of the world, None: SQLite, without Redis.
    """

    def __init__(self, database: str, server: Redis | None = None) -> None:
        super().__init__(database, server.url() if server else "")
        self.server = server
        self.fleets = {0: self.fleet, 1: self.another(recovery_min_active=1)}

    def seconds(self, column: str) -> str:
        """Return a column of times in seconds, as an expression."""
        if is_sqlite(self.database):
            return f"((julianday({column}) - 2440587.5) * 86400.0)"
        return f"extract(epoch FROM {column})"

    def clear(self) -> None:
        """Forget everything that an example did."""
        crash_points.hook = None
        for table in ("models", "modelctl_events", "modelctl_holds"):
            self.sql(f"DELETE FROM {table}")
        self.forget()
        if self.server is not None:
            self.server.recover()
            self.ask("FLUSHALL")
        self.warnings.clear()


@dataclass
class Row:
    """What is promised of one model."""

    name: str = ""
    provider: str = ""
    active: bool = True
    automatic: bool = False
    in_a_row: int = 0
    ejections: int = 0
    successes: int = 0
    failures: int = 0
    failure_type: str | None = None
    failure_reason: str | None = None
    disabled_by: str | None = None
    disabled_reason: str | None = None
    would_disable: str | None = None
    timed: bool = False  # it was disabled for a time, which
    over: bool = field(default=False, compare=False)  # is over
    rested: bool = field(default=False, compare=False)  # its last failure was hours ago
    trusted: bool = field(default=True, compare=False)  # it has been back for hours
    switches: int = field(default=0, compare=False)  # how often it was switched, on or off

    @property
    def status(self) -> str:
        """Active wins, then auto-disabled."""
        return "active" if self.active else "auto-disabled" if self.automatic else "disabled"

    def on(self, in_a_row: int | None = None) -> None:
        """Switch it on, by hand or by the rule; None: the failures stay."""
        self.active, self.automatic, self.would_disable, self.timed = True, False, None, False
        self.disabled_by = self.disabled_reason = None
        self.switches += 1
        if in_a_row is not None:
            self.in_a_row = in_a_row

    def healthy(self) -> None:
        """Switch it on as one that never failed."""
        self.on(in_a_row=0)
        self.ejections, self.trusted = 0, False

    def off(self, by: str | None, reason: str | None, *, automatic: bool = False) -> None:
        """Switch it off."""
        self.active, self.automatic, self.would_disable, self.timed = False, automatic, None, False
        self.disabled_by, self.disabled_reason = by, reason
        self.switches += 1

    def enable(self) -> str | None:
        """Switch it on by hand, or let it start afresh; return the event, if any."""
        if self.active:
            self.in_a_row, self.ejections, self.would_disable = 0, 0, None
            return None
        self.healthy()
        return "enabled"

    def disable(self, reason: str | None, *, timed: bool, force: bool) -> str | None:
        """Switch it off by hand; return the event, if any."""
        reason = reason or None  # an empty reason is none
        was, why = self.status, self.disabled_reason
        if was == "disabled" and timed and not self.timed and not force:
            return None
        if was == "active":
            self.off(ACTOR, reason)
        elif was == "auto-disabled":
            self.automatic, self.disabled_by, self.would_disable = False, ACTOR, None
        if reason is not None:
            self.disabled_reason = reason
        moved = timed or self.timed
        self.timed, self.over = timed, False
        if was == "disabled" and not moved:
            return "updated" if self.disabled_reason != why else None
        return "disabled"

    def outcome(self, failure: str | None, reason: str | None, against: str | None) -> str | None:
        """Record a success (None) or a failure; return the event, if any.

        *against*: why it is not to be switched now.
        """
        reason = reason or None
        if failure is None:
            self.successes += 1
            self.in_a_row, self.failure_reason, self.would_disable = 0, None, None
            if self.active and self.trusted:
                self.ejections = 0
            if self.status != "auto-disabled" or against == "paused":
                return None
            self.on()
            self.trusted = False
            return "recovered"
        self.failures += 1
        self.failure_type, self.failure_reason, self.rested = failure, reason, False
        if failure not in COUNTED:
            return None
        self.in_a_row += 1
        if not self.active or self.in_a_row < 5:
            return None
        if against:
            news = self.would_disable is None
            self.would_disable = against
            return "would-disable" if news else None
        why = failure if reason is None else reason
        self.off("health rule", why, automatic=True)
        self.ejections += 1
        return "auto-disabled"


@dataclass
class Foreign:
    """Another program that has counted and not written yet."""

    number: int
    old: bool = False  # an invalidation happened since


@dataclass
class Reader:
    """One of our own readers that holds, or held, the lease; None: it has not counted yet."""

    token: str
    number: int | None = None


ROWS = (
    "SELECT id, display_name, provider, active, auto_disabled, consecutive_failures, ejections,"
    " success_count, failure_count, failure_type, failure_reason, disabled_by, disabled_reason,"
    " would_disable, disabled_until IS NOT NULL FROM models"
)
# Those of other programs have no operation; what they say is held by `replayed`.
EVENTS = "SELECT model_id, event, before, after FROM modelctl_events WHERE operation IS NOT NULL ORDER BY id"
KNOWN = "SELECT DISTINCT model_id FROM modelctl_events"


ids = st.sampled_from(IDS)
rarely = st.sampled_from([False, False, False, True])
deliveries = st.sampled_from(["drain", "clear_cache"])
