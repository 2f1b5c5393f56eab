"""What this process may read and write in the database, and whether the triggers fire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.doctor.facts import Finding, first_three, well, wrong
from modelctl.errors import DatabaseUnavailableError, ModelctlError, RefusedError, UsageError
from modelctl.tables.application import count_rows

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from modelctl.doctor.facts import Facts

LOCK_TIMEOUT_MILLISECONDS = 500
# If one of these checks fails, a test of the triggers would only report the same problem again.
_NEEDED_TO_FIRE = {"schema", "table", "writing", "rights", "row security"}


def table(facts: Facts) -> Finding | None:
    """Name the table ``models`` that PostgreSQL finds; the triggers may be on another one."""
    if facts.on_sqlite:
        return None
    found, watched = facts.tables.get("models"), facts.rights.tables_with_triggers()
    elsewhere = [name for name in watched if found is None or name != found.name]
    path = facts.rights.search_path()
    advice = "; set the search_path of modelctl's role, or options in database.url"
    if found is None:
        detail = f"no table models is found in {path or 'the search path'}"
        if elsewhere:
            detail += f"; modelctl's triggers are on {first_three(elsewhere)}{advice}"
        return wrong(detail)
    if found.kind != "table":
        detail = f"{found.name} is a {found.kind}, which may show fewer rows than there are"
        return wrong(detail + (advice if elsewhere else ""))
    if elsewhere:
        return wrong(
            f"{found.name} is found first in {path}, but modelctl's triggers are also on"
            f" {first_three(elsewhere)}: it may be the wrong table{advice}"
        )
    _, rows = facts.storage.inspect(lambda connection, _: count_rows(connection))
    return well(f"{found.name} of owner {found.owner}" + (f", {rows}" if rows else ""))


def writing(facts: Facts) -> Finding:
    """Try whether the database accepts changes."""
    return _writing_sqlite(facts) if facts.on_sqlite else _writing_postgres(facts)


def _writing_postgres(facts: Facts) -> Finding:
    if reason := facts.rights.why_read_only():
        return wrong(f"the database accepts no changes: {reason}")
    return well("transactions can write")


def _writing_sqlite(facts: Facts) -> Finding:
    from modelctl.doctor.rights import ROOM

    try:
        facts.rights.write_much()
    except ModelctlError as exc:
        return wrong(
            f"{exc.message}: the file and its folder must be writable, with room for {ROOM >> 20} MB;"
            " look for a full disk, a quota or a limit on file sizes"
        )
    return well(f"room for {ROOM >> 20} MB")


def rights(facts: Facts) -> Finding | None:
    """Try every right that docs/postgresql.md grants, and find tables that other sessions have locked."""
    if facts.on_sqlite:
        return None
    prunes = facts.config.history.keep > 0
    found = facts.rights.try_all(facts.tables, prunes=prunes)
    problems = []
    if found.missing:
        rights_on: dict[str, list[str]] = {}
        for right, name in found.missing:
            rights_on.setdefault(name, []).append(right)
        grants = "; ".join(
            f"GRANT {', '.join(names)} ON {name} TO {found.role}"
            for name, names in rights_on.items()
        )
        problems.append(f"this role lacks rights; as the owner, run: {grants}")
    if found.locked:
        facts.locked = {name.rpartition(".")[2].strip('"') for name in found.locked}
        sessions = facts.rights.sessions_that_lock(found.locked)
        by = "; ".join(sessions) or "a session that has ended meanwhile"
        problems.append(
            f"{first_three(found.locked)} is locked by {by}: every command waits for it"
        )
    return wrong("; ".join(problems)) if problems else well(f"{found.role} has all rights it needs")


def row_security(facts: Facts) -> Finding | None:
    """Find row level security, which would make every count too low."""
    if facts.on_sqlite:
        return None
    hidden = [found.name for found in facts.tables.values() if found.hides_rows]
    if not hidden:
        return well("hides no row from this role")
    return wrong(
        f"row level security hides rows of {first_three(hidden)} from this role, so modelctl cannot"
        " count: ALTER ROLE ... BYPASSRLS, or connect as the owner of the table"
    )


def triggers(facts: Facts) -> Finding:
    """Look whether all triggers are present, and change a status in a transaction that is undone."""
    from modelctl.migrations import migrate

    present = facts.storage.inspect(migrate.triggers)
    if broken := [name for name, is_well in present.items() if not is_well]:
        return wrong(f"missing or disabled: {', '.join(broken)}; run: modelctl db upgrade")
    if facts.failed & _NEEDED_TO_FIRE:
        return well("all present; not tested, because of the problems above")
    try:
        problems = facts.storage.inspect(
            lambda connection, schema: _fire(connection, schema, on_sqlite=facts.on_sqlite)
        )
    except DatabaseUnavailableError:
        return well("all present; not tested, because another program is writing")
    except (RefusedError, UsageError) as exc:
        # The hint of such an error is about a change that a person made.
        problems = [f"a change of status fails: {exc.message}"]
    if problems:
        return wrong(f"{'; '.join(problems)}; run: modelctl db upgrade")
    return well("all present, and they fire")


def _fire(connection: Connection, schema: str, *, on_sqlite: bool) -> list[str]:
    from modelctl.doctor.trial import try_triggers

    if not on_sqlite:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MILLISECONDS}")
    return try_triggers(connection, schema)
