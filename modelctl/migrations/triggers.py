"""The triggers on ``models``, which make changes by any program known to the cache.

They are code rather than data, so they are not part of a revision: every upgrade brings them to
the shape below. A new shape needs nothing but a new (empty) revision that makes it run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection

# {own} is the schema of modelctl's own tables, where the functions are as well: the search_path of
# whoever fires the trigger is foreign.
#
# modelctl_enqueue: one row in the outbox per statement that changed who is counted.
# - SECURITY DEFINER, and executable by nobody: other programs need no right on the outbox, and
#   cannot call it (firing a trigger needs no right to execute).
# - enable_nestloop = off: EXISTS is planned as if it ended at the first row, and a session keeps
#   the plan it made for one row. Both loop, which is quadratic: 30 s for 22,000 rows.
# - Only id and active are compared: whole rows cannot be, once a column is json.
# - The IFs are nested: an expression that names a transition table of another event fails.
# - No EXCEPTION block: a change whose invalidation cannot be queued must not commit.
#
# ENABLE ALWAYS: session_replication_role = replica does not get around them.
POSTGRESQL = (
    """
    CREATE OR REPLACE FUNCTION {own}modelctl_enqueue() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = off
    AS $modelctl$
    DECLARE
        changed boolean := true;  -- TRUNCATE does not say what it removed
    BEGIN
        IF TG_OP = 'INSERT' THEN
            changed := EXISTS (SELECT FROM new_rows);
        ELSIF TG_OP = 'DELETE' THEN
            changed := EXISTS (SELECT FROM old_rows);
        ELSIF TG_OP = 'UPDATE' THEN
            changed := (SELECT count(*) FROM old_rows WHERE active)
                <> (SELECT count(*) FROM new_rows WHERE active);
            IF NOT changed THEN  -- or as many were switched on as off
                changed := EXISTS (
                    SELECT FROM old_rows o LEFT JOIN new_rows n ON n.id = o.id
                    WHERE n.id IS NULL OR n.active IS DISTINCT FROM o.active
                );
            END IF;
        END IF;
        IF changed THEN
            INSERT INTO {own}modelctl_outbox DEFAULT VALUES;
        END IF;
        RETURN NULL;
    END
    $modelctl$
    """,
    "REVOKE ALL ON FUNCTION {own}modelctl_enqueue() FROM PUBLIC",
    # Transition tables allow neither several events in one trigger nor a list of columns.
    """
    CREATE TRIGGER modelctl_insert AFTER INSERT ON models
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION {own}modelctl_enqueue()
    """,
    """
    CREATE TRIGGER modelctl_update AFTER UPDATE ON models
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION {own}modelctl_enqueue()
    """,
    """
    CREATE TRIGGER modelctl_delete AFTER DELETE ON models
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION {own}modelctl_enqueue()
    """,
    """
    CREATE TRIGGER modelctl_truncate AFTER TRUNCATE ON models
    FOR EACH STATEMENT EXECUTE FUNCTION {own}modelctl_enqueue()
    """,
    # Whoever switches a model on: it is trusted again. A later active = false by hand is then a
    # plain disable, which recover leaves alone, and shows no reason of long ago.
    """
    CREATE OR REPLACE FUNCTION {own}modelctl_trust() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $modelctl$
    BEGIN
        -- modelctl has seen to it itself, perhaps for very many rows.
        IF NEW.auto_disabled OR num_nonnulls(NEW.disabled_at, NEW.disabled_by,
            NEW.disabled_reason, NEW.disabled_until, NEW.would_disable) > 0
        THEN
            NEW.auto_disabled := false;
            NEW.disabled_at := NULL;
            NEW.disabled_by := NULL;
            NEW.disabled_reason := NULL;
            NEW.disabled_until := NULL;
            NEW.would_disable := NULL;
        END IF;
        RETURN NEW;
    END
    $modelctl$
    """,
    "REVOKE ALL ON FUNCTION {own}modelctl_trust() FROM PUBLIC",
    """
    CREATE TRIGGER modelctl_enabled BEFORE UPDATE ON models
    FOR EACH ROW WHEN (NEW.active AND OLD.active IS NOT TRUE)
    EXECUTE FUNCTION {own}modelctl_trust()
    """,
    # Whoever switches a model off. What would bring it back must come from the statement itself:
    # an active row may carry such a thing from before modelctl, or from an odd INSERT. modelctl
    # writes disabled_at whenever it switches off; where that stays, the rest is left over.
    # Not in WHEN: a column named there cannot change its type any more.
    """
    CREATE OR REPLACE FUNCTION {own}modelctl_forget() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $modelctl$
    BEGIN
        NEW.would_disable := NULL;
        IF NEW.disabled_at IS NOT DISTINCT FROM OLD.disabled_at THEN
            IF OLD.auto_disabled THEN
                NEW.auto_disabled := false;
            END IF;
            IF NEW.disabled_until = OLD.disabled_until THEN
                NEW.disabled_until := NULL;
            END IF;
        END IF;
        RETURN NEW;
    END
    $modelctl$
    """,
    "REVOKE ALL ON FUNCTION {own}modelctl_forget() FROM PUBLIC",
    """
    CREATE TRIGGER modelctl_disabled BEFORE UPDATE ON models
    FOR EACH ROW WHEN (OLD.active AND NEW.active IS NOT TRUE)
    EXECUTE FUNCTION {own}modelctl_forget()
    """,
)

# The cache is in the same file, so it is emptied by the change itself. A lease is a row as well:
# whoever counted before the change cannot fill it in afterwards. REPLACE fires the INSERT.
SQLITE = (
    """
    CREATE TRIGGER modelctl_insert AFTER INSERT ON models
    BEGIN DELETE FROM modelctl_cache; END
    """,
    """
    CREATE TRIGGER modelctl_update AFTER UPDATE ON models
    WHEN NEW.active IS NOT OLD.active OR NEW.id IS NOT OLD.id
    BEGIN DELETE FROM modelctl_cache; END
    """,
    """
    CREATE TRIGGER modelctl_delete AFTER DELETE ON models
    BEGIN DELETE FROM modelctl_cache; END
    """,
    # As on PostgreSQL. Its own UPDATE does not name active, so it cannot fire itself.
    """
    CREATE TRIGGER modelctl_enabled AFTER UPDATE OF active ON models
    WHEN NEW.active AND NOT coalesce(OLD.active, 0)
    BEGIN
        UPDATE models
        SET auto_disabled = 0, disabled_at = NULL, disabled_by = NULL, disabled_reason = NULL,
            disabled_until = NULL, would_disable = NULL
        WHERE id = NEW.id;
    END
    """,
    """
    CREATE TRIGGER modelctl_disabled AFTER UPDATE OF active ON models
    WHEN OLD.active AND NOT coalesce(NEW.active, 0)
        AND (OLD.auto_disabled OR OLD.disabled_until IS NOT NULL OR NEW.would_disable IS NOT NULL)
    BEGIN
        UPDATE models
        SET would_disable = NULL,
            auto_disabled = CASE WHEN NEW.disabled_at IS OLD.disabled_at AND OLD.auto_disabled
                THEN 0 ELSE auto_disabled END,
            disabled_until = CASE WHEN NEW.disabled_at IS OLD.disabled_at
                AND NEW.disabled_until = OLD.disabled_until THEN NULL ELSE disabled_until END
        WHERE id = NEW.id;
    END
    """,
)

NAMES = {
    "postgresql": (
        "modelctl_insert",
        "modelctl_update",
        "modelctl_delete",
        "modelctl_truncate",
        "modelctl_enabled",
        "modelctl_disabled",
    ),
    "sqlite": (
        "modelctl_insert",
        "modelctl_update",
        "modelctl_delete",
        "modelctl_enabled",
        "modelctl_disabled",
    ),
}


def install_triggers(connection: Connection, own: str) -> None:
    """Create the triggers, in place of older ones of the same names.

    *own*: what precedes the names of modelctl's tables.
    """
    names = NAMES[connection.dialect.name]
    if connection.dialect.name == "postgresql":
        # DROP first: it takes the strongest lock, and a lock that grows can deadlock.
        for name in names:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name} ON models")
        for statement in POSTGRESQL:
            connection.exec_driver_sql(statement.replace("{own}", own))
        for name in names:
            connection.exec_driver_sql(f"ALTER TABLE models ENABLE ALWAYS TRIGGER {name}")
    else:
        for name in names:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
        for statement in SQLITE:
            connection.exec_driver_sql(statement)


def installed_triggers(connection: Connection) -> dict[str, bool]:
    """Map each trigger that must exist to whether it is there and fires for everybody."""
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT tgname FROM pg_trigger"
            " WHERE tgrelid = to_regclass('models') AND tgenabled = 'A'"
        )
    else:
        query = (
            "SELECT name FROM sqlite_master"
            " WHERE type = 'trigger' AND tbl_name = 'models' COLLATE NOCASE"
        )
    found = set(connection.exec_driver_sql(query).scalars())
    return {name: name in found for name in NAMES[connection.dialect.name]}
