"""Doctor: looks at everything once and says what is wrong and what to do; changes nothing."""

from __future__ import annotations

import functools
import time
from contextlib import closing
from typing import TYPE_CHECKING

from modelctl import deadline
from modelctl.config.config import Config
from modelctl.config.urls import mask_url
from modelctl.count import places
from modelctl.errors import (
    DatabaseUnavailableError,
    ModelctlError,
    RefusedError,
    UsageError,
    clean,
)
from modelctl.model import numbered
from modelctl.reports import Audit, Check, Diagnosis

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from modelctl.count.protocol import CachedCount
    from modelctl.doctor.rights import Rights, Table
    from modelctl.models.store import Survey
    from modelctl.storage import Storage

AUDIT_COMPARISONS = 2
AUDIT_PAUSE_SECONDS = 5.0
# How long one check waits for the database; all of them together: database.timeout.
CHECK_SECONDS = 10.0
LOCK_MILLISECONDS = 500
# Where one of these is wrong, trying the triggers would only say so again.
_NEEDED_TO_FIRE = ("schema", "table", "writing", "rights", "row security")
# This share of the active models may have failed last in a way that does not count.
FAILING_SHARE = 0.1


class Doctor:
    """The checks of ``modelctl doctor``, in the order in which they are shown.

    One that fails does not hide the others. It is a warning where all works as it should and a
    person should look at it, wrong where something fails or a number may be wrong.
    """

    def __init__(
        self, config: Config, store: Callable[[], Storage], cached_count: CachedCount
    ) -> None:
        """*store*: connects when it is called."""
        self._config = config
        self._open_store = store
        self._cached_count = cached_count
        self._checks: list[Check] = []
        self._locked: set[str] = set()  # tables, by their names without schema
        self._lockers = ""
        self._left = 0.0  # seconds that may be waited for the database
        self._reached = False  # the database, and its schema is there
        self._server = ""  # the run id of Redis

    @property
    def _store(self) -> Storage:
        return self._open_store()

    @property
    def _rights_in_database(self) -> Rights:
        from modelctl.doctor.rights import Rights

        return Rights(self._store.database)

    def look(self, *, audit: bool = False) -> Diagnosis:
        """Run all checks; *audit*: also compare the cached count with the database."""
        self._checks = []
        self._left = self._config.database.timeout
        found: Audit | None = None
        self._run("configuration", self._configuration)
        if self._is_new:
            self._run("database", self._new_database)
        else:
            self._look_at_database()
            if audit:
                found = self._look_for_differences()
        self._run("cache", self._cache)
        if self._reached:
            self._run("delivery", self._delivery, "modelctl_state")
        checks = tuple(self._checks)
        return Diagnosis(all(check.ok for check in checks), checks, found)

    def _run(self, name: str, look: Callable[[], Check | None], *tables: str) -> bool:
        """Note what *look* finds, and return whether it is well. *tables*: what it reads."""
        locked = self._locked.intersection(tables)
        if locked:
            which = ", ".join(sorted(locked))
            check: Check | None = Check(name, False, f"not looked at: {which} is locked")
        elif self._reached and name != "cache" and self._left <= 0:
            check = Check(name, False, "not looked at: the database is too slow")
        else:
            began = time.monotonic()
            try:
                with deadline.patience(min(CHECK_SECONDS, self._left)):
                    check = look()
            except ModelctlError as exc:
                check = Check(name, False, _told(exc))
            except Exception as exc:
                # A fault in one check, or odd data, must not hide what the others find.
                said = self._config.hide(f"{type(exc).__name__}: {exc}")
                check = Check(name, False, f"could not be looked at ({clean(said, longest=300)})")
            if name not in ("cache", "audit"):  # which wait for Redis, or just so
                self._left -= time.monotonic() - began
        if check:
            self._checks.append(check)
        return check is None or check.ok

    # ── Configuration and connection ──

    @functools.cached_property
    def _is_new(self) -> bool:
        """Whether the embedded database is not there yet; looking must not make it."""
        path = self._config.sqlite_path
        return path is not None and self._config.embedded and not path.exists()

    def _configuration(self) -> Check:
        return Check("configuration", True, str(self._config.file or "no file"))

    def _new_database(self) -> Check:
        detail = (
            f"no database is configured, and {self._config.sqlite_path} is not there yet: it is"
            " made, without a model, at the first use; is database.url (MODELCTL_DATABASE_URL) set?"
        )
        return Check("database", True, detail, warning=True)

    def _look_at_database(self) -> None:
        self._reached = self._run("database", self._connection)
        if not self._reached:
            return
        if not self._run("schema", self._schema) and self._checks[-1].detail.startswith("missing"):
            self._reached = False  # nothing below can be looked at without it
            return
        if self._config.sqlite_path:
            self._run("writing", self._writing_sqlite, "modelctl_state")
        else:
            self._run("table", self._table)
            self._run("writing", self._writing_postgres)
            self._run("rights", self._rights)
            self._run("row security", self._row_security)
        self._run("triggers", self._triggers, "models")
        self._run("queue", self._queue, "modelctl_outbox", "modelctl_state")
        self._run("rows", self._rows, "models")
        self._run("counters", self._counters, "models")
        self._run("fleet", self._fleet, "models")
        self._run("recover", self._recover, "modelctl_state")
        self._run("holds", self._holds, "modelctl_holds")
        self._run("spared", self._spared, "models")
        self._run("ejected", self._ejected, "models")
        self._run("guards", self._guards)

    def _connection(self) -> Check:
        where = mask_url(self._config.database.url) or str(self._config.sqlite_path)
        return Check("database", True, f"{self._store.version()}, {where}")

    def _schema(self) -> Check:
        from modelctl import migrations
        from modelctl.migrations.plan import NOTHING_INSTALLED

        status = self._store.inspect(migrations.status)
        # Triggers have a check of their own.
        found = [f for f in status.findings if not f.startswith("the trigger")]
        differs = [*status.obstacles, *found]
        if not differs:
            return Check("schema", True, f"{status.current}, as this release needs it")
        if NOTHING_INSTALLED in found:
            differs = ["missing: the database lacks modelctl's schema", *status.obstacles]
        return Check("schema", False, f"{'; '.join(differs)}; run: modelctl db upgrade")

    # ── What may be read and written ──

    @functools.cached_property
    def _tables(self) -> dict[str, Table]:
        return self._rights_in_database.tables()

    def _table(self) -> Check:
        """Name the table that is found, which may be another than the one that is watched."""
        rights = self._rights_in_database
        found, watched = self._tables.get("models"), rights.watched()
        elsewhere = [name for name in watched if found is None or name != found.name]
        path = rights.search_path()
        advice = "; set the search_path of modelctl's role, or options in database.url"
        if found is None:
            where = f"; modelctl's triggers are on {_some(elsewhere)}{advice}" if elsewhere else ""
            return Check("table", False, f"no table models is found in {path}{where}")
        if found.kind != "table":
            detail = f"{found.name} is a {found.kind}, which may show fewer rows than there are"
            return Check("table", False, detail + (advice if elsewhere else ""))
        if elsewhere:
            detail = (
                f"{found.name} is found first in {path}, but modelctl's triggers are also on"
                f" {_some(elsewhere)}: it may be the wrong table{advice}"
            )
            return Check("table", False, detail)
        return Check("table", True, found.name)

    def _writing_postgres(self) -> Check:
        if why := self._rights_in_database.read_only():
            return Check("writing", False, f"the database takes no changes: {why}")
        return Check("writing", True, "transactions can write")

    def _writing_sqlite(self) -> Check:
        from modelctl.doctor.rights import ROOM

        try:
            self._rights_in_database.write_much()
        except ModelctlError as exc:
            detail = (
                f"{exc.message}: the file and its folder must be writable, with room for"
                f" {ROOM >> 20} MB; a full disk, a quota or a limit on file sizes may be in the way"
            )
            return Check("writing", False, detail)
        return Check("writing", True, f"room for {ROOM >> 20} MB")

    def _rights(self) -> Check:
        rights = self._rights_in_database
        found = rights.lacking(self._tables)
        if found.locked:
            self._locked = {name.rpartition(".")[2].strip('"') for name in found.locked}
            lockers = "; ".join(rights.lockers(found.locked)) or "a session that is gone by now"
            locked = f"{_some(found.locked)} is locked by {lockers}: everything waits for that"
        if found.missing:
            tables: dict[str, list[str]] = {}
            for right, table in found.missing:
                tables.setdefault(table, []).append(right)
            missing = "; ".join(
                f"GRANT {', '.join(them)} ON {table} TO {found.role}"
                for table, them in tables.items()
            )
            detail = f"this role lacks rights, as the owner run: {missing}"
            return Check("rights", False, f"{detail}; {locked}" if found.locked else detail)
        if found.locked:
            return Check("rights", False, locked)
        return Check("rights", True, f"{found.role} has all that the README names")

    def _row_security(self) -> Check:
        hidden = [table.name for table in self._tables.values() if table.hides_rows]
        if not hidden:
            return Check("row security", True, "hides no row from this role")
        detail = (
            f"row level security hides rows of {_some(hidden)} from this role, so nothing can be"
            " counted: ALTER ROLE ... BYPASSRLS, or connect as the owner of the table"
        )
        return Check("row security", False, detail)

    def _triggers(self) -> Check:
        from modelctl import migrations

        broken = [
            name for name, well in self._store.inspect(migrations.triggers).items() if not well
        ]
        if broken:
            detail = f"missing or disabled: {', '.join(broken)}; run: modelctl db upgrade"
            return Check("triggers", False, detail)
        if not all(check.ok for check in self._checks if check.check in _NEEDED_TO_FIRE):
            return Check("triggers", True, "all there; not tried, see the lines above")
        try:
            wrong = self._store.inspect(self._fire)
        except DatabaseUnavailableError:
            # Somebody else holds the row, or the file, for longer than we wait.
            return Check("triggers", True, "all there; not tried, another program is writing")
        except (RefusedError, UsageError) as exc:
            # Words for a change of a person do not fit here.
            wrong = [f"a change of status fails: {exc.message}"]
        if wrong:
            return Check("triggers", False, f"{'; '.join(wrong)}; run: modelctl db upgrade")
        return Check("triggers", True, "all there, and they fire")

    def _fire(self, connection: Connection, schema: str) -> list[str]:
        from modelctl import migrations

        if not self._config.sqlite_path:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")
        return migrations.try_triggers(connection, schema)

    # ── What is queued ──

    def _queue(self) -> Check | None:
        queued, settling, age = self._store.outbox.queue()
        if self._config.sqlite_path:
            return None
        oldest = f", the oldest {age:.0f} s old" if age is not None else ""
        detail = f"{queued} queued{oldest}, {settling} settling"
        if self._cached_count.cache.needs_delivery:
            # The next change or recover would deliver them: older means that none could, or none came.
            if age is not None and age > self._config.cache.ttl:
                detail += "; run: modelctl cache drain (--follow where other programs write models)"
                return Check("queue", False, detail)
            return Check("queue", True, detail)
        # Where others deliver, another check tells.
        if (queued or settling) and not self._store.outbox.places():
            detail += (
                "; no Redis is configured here, and no process has delivered within a day. Set"
                " redis.url where the count is cached; if no program uses Redis, DELETE FROM"
                f" {self._config.database.schema}.modelctl_outbox"
            )
            return Check("queue", True, detail, warning=True)
        return None

    # ── The rows ──

    @functools.cached_property
    def _survey(self) -> Survey:
        return self._store.models.survey()

    def _rows(self) -> Check:
        odd = self._survey.contradictory
        if not odd and (unreadable := self._survey.unreadable):
            others = f" and {unreadable - 1} more" if unreadable > 1 else ""
            detail = (
                f"'{clean(self._survey.such_as, longest=200)}'{others}: values that cannot be read"
            )
            return Check("rows", True, f"{detail}; see: modelctl list", warning=True)
        if not odd:
            return Check("rows", True, "consistent")
        detail = f"{odd} both active and auto-disabled: UPDATE models SET auto_disabled = false WHERE active"
        return Check("rows", False, detail)

    def _counters(self) -> Check | None:
        """Name the counters of an application that are too small, before outcomes fail."""
        filling = self._survey.filling
        if not filling:
            return None
        widen = ", ".join(f"ALTER COLUMN {name} TYPE bigint" for name in filling.split(", "))
        detail = (
            f"full or nearly so, and outcomes fail at 2,147,483,647: {filling}; as the owner run:"
            f" ALTER TABLE models {widen}"
        )
        full = bool(self._survey.full)
        return Check("counters", not full, detail, warning=not full)

    def _fleet(self) -> Check:
        models, active, _, failing, *_ = self._survey
        detail = f"{active} active of {numbered(models)}"
        if not models:
            if self._config.embedded:
                detail += f": no database is configured, so {self._config.sqlite_path} is used"
                detail += "; is database.url (MODELCTL_DATABASE_URL) set?"
            else:
                detail += "; add some: modelctl add, modelctl import"
            return Check("fleet", True, detail, warning=True)
        if not active:
            detail += "; see: modelctl list, modelctl recover --dry-run"
            return Check("fleet", True, detail, warning=True)
        if failing and failing >= FAILING_SHARE * active:
            counted = ", ".join(self._config.health.counted)
            detail += (
                f"; the last call of {failing} failed in a way that counts against no model (only"
                f" {counted} do): see modelctl list --sort failures, and health.counted"
            )
            return Check("fleet", True, detail, warning=True)
        return Check("fleet", True, detail)

    # ── Recovery ──

    def _recover(self) -> Check:
        from modelctl.recovery.last_run import CLOCK_SKEW_SECONDS

        last, every = self._store.last_run.read(), self._config.recovery.expect_every
        ago = last.seconds_ago
        backwards = ago is not None and ago < -CLOCK_SKEW_SECONDS
        if ago is None:
            detail = "never ran"
        elif backwards:
            detail = f"last finished {-ago:.0f} s in the future: the database's clock was set back"
        else:
            detail = f"last finished {max(0.0, ago):.0f} s ago"
        detail += f", expected every {every:.0f} s" if every else ""
        return Check("recover", not last.overdue, detail, backwards and not last.overdue)

    def _holds(self) -> Check:
        from modelctl.recovery.explain import describe

        holds = "; ".join(map(describe, self._store.holds.current()))
        return Check("holds", True, holds or "nothing is paused, no incident")

    def _spared(self) -> Check:
        spared = [f"{model_id} ({why})" for model_id, why in self._store.candidates.spared()]
        return Check("spared", True, f"would be off: {_some(spared)}" if spared else "none")

    def _ejected(self) -> Check:
        waiting = self._store.candidates.for_a_person()
        detail = f"wait for a person: {_some(waiting)}" if waiting else "none"
        return Check("ejected", True, detail)

    def _guards(self) -> Check:
        rule = self._config.recovery
        guards = {
            "min_active": rule.min_active > 0,
            "max_auto_disabled_percent": rule.max_auto_disabled_percent < 100,
            "incident_models": rule.incident_models > 0,
            "max_ejections": rule.max_ejections > 0,
            "limit": rule.limit > 0,
            "cooldown_factor": rule.cooldown_factor > 1,
            "expect_every": rule.expect_every > 0,
        }
        off = ", ".join(name for name, on in guards.items() if not on)
        detail = f"off: {off}; config.example.toml has a recommended set" if off else "all are on"
        return Check("guards", True, detail)

    # ── The cache ──

    def _cache(self) -> Check:
        cache = self._cached_count.cache
        if not cache.needs_delivery:
            return Check("cache", True, cache.place)
        from modelctl.doctor.redis_rights import RedisRights

        with closing(RedisRights(self._config)) as redis:
            found = redis.refusals()
            wrong = [found.trouble] if found.trouble else []
            if found.rights:
                rights = f"ACL SETUSER {redis.user} {' '.join(found.rights)}"
                wrong.append(f"the ACL of this user lacks rights; run on each server: {rights}")
            if wrong:
                return Check("cache", False, f"{'; '.join(wrong)} (at {cache.place})")
            self._server = redis.home()
        detail = f"Redis answers, {cache.place}"
        if self._server:
            return Check("cache", True, detail)
        detail += "; it tells no run id (a proxy?), so a failover that loses writes is not noticed"
        return Check("cache", True, detail, warning=True)

    def _delivery(self) -> Check | None:
        """Whether other processes or other fleets use another Redis, or the same one."""
        if self._config.sqlite_path:
            return None
        if fleets := places.shared_with(
            self._store.outbox, self._cached_count.cache.identity, self._server
        ):
            detail = (
                f"the fleet in schema {_some(fleets)} of this database has its count under the same"
                " key of the same Redis, so each shows the other's: give each a cache.count_key"
            )
            return Check("delivery", False, detail)
        elsewhere, newer = places.elsewhere(
            self._store.outbox, self._cached_count.cache.identity, self._server
        )
        if not self._cached_count.cache.needs_delivery:
            if not elsewhere:
                return None
            detail = (
                f"other processes of this database cache the count ({_some(elsewhere)}), and what is"
                " changed here does not clear it at once: set redis.url here too"
            )
            return Check("delivery", False, detail)
        if not elsewhere:
            return Check("delivery", True, "all processes deliver here")
        detail = (
            f"{'the last' if newer else 'another'} process of this database that made a change"
            f" cleared the count in another place ({_some(elsewhere)}), where it is cached too:"
            " give all the same redis.url and cache.count_key; after a move this goes away by"
            " itself within a day"
        )
        return Check("delivery", not newer, detail, warning=not newer)

    def _look_for_differences(self) -> Audit | None:
        found: list[Audit] = []

        def look() -> Check:
            found.append(self._audit())
            differed = found[0].differed
            detail = f"{differed} of {AUDIT_COMPARISONS} comparisons differed"
            return Check("audit", differed < AUDIT_COMPARISONS, detail)

        self._run("audit", look)
        return found[0] if found else None

    def _audit(self) -> Audit:
        from modelctl import migrations

        differed = 0
        for comparison in range(AUDIT_COMPARISONS):
            if comparison:
                time.sleep(AUDIT_PAUSE_SECONDS)
            differed += not self._cached_count.verify().match
        well = all(self._store.inspect(migrations.triggers).values())
        return Audit(AUDIT_COMPARISONS, differed, self._store.outbox.queue()[2], well)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")


def _told(exc: ModelctlError) -> str:
    return f"{exc.message}; {exc.hint}" if exc.hint else exc.message
