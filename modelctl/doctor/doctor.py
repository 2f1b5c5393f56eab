"""``modelctl doctor``: runs all checks and says what is wrong and what to do. It changes nothing.

A new check is a function in the ``check_`` file of its subject, which takes `Facts` and returns a
`Finding` (None: nothing to say), and one line in `CHECKS`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from modelctl import deadline
from modelctl.doctor import (
    check_audit,
    check_cache,
    check_connection,
    check_notify,
    check_recovery,
    check_rights,
    check_rows,
    check_updates,
)
from modelctl.doctor.facts import Facts, Finding, wrong
from modelctl.doctor.results import Check, Diagnosis
from modelctl.errors import ModelctlError, clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelctl.config.config import Config
    from modelctl.count.protocol import CachedCount
    from modelctl.opened.storage import Storage

# The most that one check may wait for the database. All together may wait for database.timeout.
CHECK_SECONDS = 10.0


class NamedCheck(NamedTuple):
    """One check: its name and its function.

    *reads*: the tables that it reads; it is left out if one of them is locked. *needs_schema*: leave
    it out if the database cannot be reached or has no schema of modelctl. *own_time*: it waits for
    something other than the database, so its time does not count against database.timeout.
    """

    name: str
    check: Callable[[Facts], Finding | None]
    reads: tuple[str, ...] = ()
    needs_schema: bool = True
    own_time: bool = False


# In the order in which they run and are shown.
CHECKS = (
    NamedCheck("configuration", check_connection.configuration, needs_schema=False),
    NamedCheck("database", check_connection.database, needs_schema=False),
    NamedCheck("schema", check_connection.schema),
    NamedCheck("table", check_rights.table),
    NamedCheck("writing", check_rights.writing),
    NamedCheck("rights", check_rights.rights),
    NamedCheck("row security", check_rights.row_security),
    NamedCheck("triggers", check_rights.triggers, reads=("models",)),
    NamedCheck("queue", check_cache.queue, reads=("modelctl_outbox", "modelctl_state")),
    NamedCheck("rows", check_rows.rows, reads=("models",)),
    NamedCheck("counters", check_rows.counters, reads=("models",)),
    NamedCheck("updates", check_updates.updates),
    NamedCheck("fleet", check_rows.fleet, reads=("models",)),
    NamedCheck("recover", check_recovery.recover, reads=("modelctl_state",)),
    NamedCheck("notify", check_notify.notify, reads=("modelctl_state",)),
    NamedCheck("holds", check_recovery.holds, reads=("modelctl_holds",)),
    NamedCheck("spared", check_recovery.spared, reads=("models",)),
    NamedCheck("ejected", check_recovery.ejected, reads=("models",)),
    NamedCheck("guards", check_recovery.guards),
    NamedCheck("audit", check_audit.audit, needs_schema=False, own_time=True),
    NamedCheck("cache", check_cache.cache, needs_schema=False, own_time=True),
    NamedCheck("delivery", check_cache.delivery, reads=("modelctl_state",)),
)


class Doctor:
    """Runs the checks in order; a check that fails does not stop the others."""

    def __init__(
        self, config: Config, open_storage: Callable[[], Storage], cached_count: CachedCount
    ) -> None:
        """*open_storage* connects when it is called."""
        self._config = config
        self._open_storage = open_storage
        self._cached_count = cached_count

    def diagnose(self, *, audit: bool = False) -> Diagnosis:
        """Run all checks; *audit*: also compare the cached count with the database."""
        facts = Facts(self._config, self._open_storage, self._cached_count, audit_wanted=audit)
        left = self._config.database.timeout  # how long all checks may still wait for the database
        checks = []
        for named in CHECKS:
            if named.needs_schema and (not facts.connected or facts.schema_missing):
                continue
            began = time.monotonic()
            finding = self._why_skipped(named, facts, left) or self._run(named, facts, left)
            if not named.own_time:
                left -= time.monotonic() - began
            if finding is None:
                continue
            if not finding.ok:
                facts.failed.add(named.name)
            checks.append(Check(named.name, *finding))
        well = all(check.ok for check in checks)
        return Diagnosis(well, tuple(checks), facts.audit, facts.numbers)

    def _why_skipped(self, named: NamedCheck, facts: Facts, left: float) -> Finding | None:
        if locked := facts.locked.intersection(named.reads):
            return wrong(f"not checked: {', '.join(sorted(locked))} is locked")
        if left <= 0 and facts.connected and not named.own_time:
            return wrong("not checked: the database is too slow")
        return None

    def _run(self, named: NamedCheck, facts: Facts, left: float) -> Finding | None:
        try:
            with deadline.patience(min(CHECK_SECONDS, left)):
                return named.check(facts)
        except ModelctlError as exc:
            hint = exc.hint or ""
            if "modelctl doctor" in hint:  # this is doctor: another check says more
                hint = ""
            return wrong(f"{exc.message}; {hint}" if hint else exc.message)
        except Exception as exc:
            # A bug in one check, or odd data, must not hide what the other checks find.
            text = self._config.hide(f"{type(exc).__name__}: {exc}")
            return wrong(f"the check failed ({clean(text, longest=300)})")
