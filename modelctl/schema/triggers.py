"""The triggers on ``models``, which make changes by any program known to the cache.

Part of the declaration of what must exist; `postgresql` and `sqlite` compare and create it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Function:
    """A trigger function of PostgreSQL, in the schema of modelctl's own tables."""

    body: str
    settings: tuple[str, ...] = ("search_path=pg_catalog, pg_temp",)
    definer: bool = False


# All three: nobody but a trigger can execute them, because that takes no right to execute. And a
# name that is not found never fails the statement of the application: tools drop tables and columns
# that they do not know, and people rename them. What was not done then, `db status` and `doctor`
# say. For every other reason (a full disk) the statement fails: a change whose invalidation cannot
# be queued must not commit.
#
# modelctl_enqueue: one row in the outbox per statement that changed who is counted.
# - SECURITY DEFINER: other programs need no right on the outbox.
# - The outbox is the one beside the function itself, whatever their schema is called by now: a dump
#   that was restored under another name must not queue into the old outbox. (PG_ROUTINE_OID came
#   with PostgreSQL 16.) No joins: without nested loops they would read whole catalogues.
# - The INSERT is outside of the block with EXCEPTION: inside it would take a transaction id for a
#   subtransaction, and only names may be forgiven.
# - enable_nestloop = off: EXISTS is planned as if it ended at the first row, and a session keeps
#   the plan it made for one row. Both loop, which is quadratic: 30 s for 22,000 rows.
# - Only id and active are compared: whole rows cannot be, once a column is json.
# - The IFs are nested: an expression that names a transition table of another event fails.
#
# modelctl_trust: a model that is switched on is trusted again. A later active = false by hand is
# then a plain disable, which recover leaves alone, and shows no reason of long ago.
#
# modelctl_forget: a model is switched off. What would bring it back must come from the statement
# itself: an active row may carry such a thing from before modelctl, or from an odd INSERT. modelctl
# writes disabled_at whenever it switches off; where that stays, the rest is left over.
# - Each column in a block of its own: where one is gone, the others are still seen to.
FUNCTIONS = {
    "modelctl_enqueue": Function(
        """
    DECLARE
        changed boolean := true;  -- TRUNCATE does not say what it removed
        outbox regclass;
    BEGIN
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
        EXCEPTION WHEN undefined_column OR undefined_table THEN
            changed := true;
        END;
        IF changed THEN
            outbox := to_regclass((
                SELECT pronamespace FROM pg_proc WHERE oid = (
                    SELECT tgfoid FROM pg_trigger WHERE tgrelid = TG_RELID AND tgname = TG_NAME
                )
            )::regnamespace || '.modelctl_outbox');
            IF outbox IS NOT NULL THEN
                EXECUTE 'INSERT INTO ' || outbox || ' DEFAULT VALUES';
            END IF;
        END IF;
        RETURN NULL;
    END
    """,
        ("search_path=pg_catalog, pg_temp", "enable_nestloop=off"),
        definer=True,
    ),
    "modelctl_trust": Function("""
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
    EXCEPTION WHEN undefined_column THEN
        BEGIN NEW.auto_disabled := false; EXCEPTION WHEN undefined_column THEN END;
        BEGIN NEW.disabled_at := NULL; EXCEPTION WHEN undefined_column THEN END;
        BEGIN NEW.disabled_by := NULL; EXCEPTION WHEN undefined_column THEN END;
        BEGIN NEW.disabled_reason := NULL; EXCEPTION WHEN undefined_column THEN END;
        BEGIN NEW.disabled_until := NULL; EXCEPTION WHEN undefined_column THEN END;
        BEGIN NEW.would_disable := NULL; EXCEPTION WHEN undefined_column THEN END;
        RETURN NEW;
    END
    """),
    "modelctl_forget": Function("""
    BEGIN
        IF NEW.disabled_at IS NOT DISTINCT FROM OLD.disabled_at THEN
            IF OLD.auto_disabled THEN
                NEW.auto_disabled := false;
            END IF;
            IF NEW.disabled_until = OLD.disabled_until THEN
                NEW.disabled_until := NULL;
            END IF;
        END IF;
        NEW.would_disable := NULL;
        RETURN NEW;
    EXCEPTION WHEN undefined_column THEN
        -- It cannot be told whether the flag is left over; a model that stays off is the safe side.
        BEGIN NEW.auto_disabled := false; EXCEPTION WHEN undefined_column THEN END;
        BEGIN NEW.disabled_until := NULL; EXCEPTION WHEN undefined_column THEN END;
        BEGIN NEW.would_disable := NULL; EXCEPTION WHEN undefined_column THEN END;
        RETURN NEW;
    END
    """),
}


def emptying(definition: str, required: Iterable[str]) -> str:
    """A definition in which these columns, which are NOT NULL, get '' in the place of NULL."""
    for name in required:
        definition = definition.replace(f"{name} := NULL", f"{name} := ''")
        definition = definition.replace(f"{name} = NULL", f"{name} = ''")
    return definition


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger of PostgreSQL: what precedes ON models, what follows it, and what it executes.

    It is ENABLE ALWAYS: session_replication_role = replica does not get around it.
    """

    event: str
    how: str
    function: str


# Transition tables allow neither several events in one trigger nor a list of columns.
_STATEMENT = "FOR EACH STATEMENT"
TRIGGERS = {
    "modelctl_insert": Trigger(
        "AFTER INSERT", f"REFERENCING NEW TABLE AS new_rows {_STATEMENT}", "modelctl_enqueue"
    ),
    "modelctl_update": Trigger(
        "AFTER UPDATE",
        f"REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows {_STATEMENT}",
        "modelctl_enqueue",
    ),
    "modelctl_delete": Trigger(
        "AFTER DELETE", f"REFERENCING OLD TABLE AS old_rows {_STATEMENT}", "modelctl_enqueue"
    ),
    "modelctl_truncate": Trigger("AFTER TRUNCATE", _STATEMENT, "modelctl_enqueue"),
    # In WHEN only active: a column named there cannot change its type any more.
    "modelctl_enabled": Trigger(
        "BEFORE UPDATE",
        "FOR EACH ROW WHEN (NEW.active AND OLD.active IS NOT TRUE)",
        "modelctl_trust",
    ),
    "modelctl_disabled": Trigger(
        "BEFORE UPDATE",
        "FOR EACH ROW WHEN (OLD.active AND NEW.active IS NOT TRUE)",
        "modelctl_forget",
    ),
}

# What follows CREATE TRIGGER and the name. The cache is in the same file, so it is emptied by the
# change itself. A lease is a row as well: what counted before the change cannot fill it in
# afterwards. REPLACE fires the INSERT.
SQLITE = {
    "modelctl_insert": """AFTER INSERT ON models
    BEGIN DELETE FROM modelctl_cache; END""",
    "modelctl_update": """AFTER UPDATE ON models
    WHEN NEW.active IS NOT OLD.active OR NEW.id IS NOT OLD.id
    BEGIN DELETE FROM modelctl_cache; END""",
    "modelctl_delete": """AFTER DELETE ON models
    BEGIN DELETE FROM modelctl_cache; END""",
    # As on PostgreSQL. Its own UPDATE does not name active, so it cannot fire itself.
    "modelctl_enabled": """AFTER UPDATE OF active ON models
    WHEN NEW.active IS 1 AND OLD.active IS NOT 1
    BEGIN
        UPDATE models
        SET auto_disabled = 0, disabled_at = NULL, disabled_by = NULL, disabled_reason = NULL,
            disabled_until = NULL, would_disable = NULL
        WHERE id = NEW.id;
    END""",
    "modelctl_disabled": """AFTER UPDATE OF active ON models
    WHEN OLD.active IS 1 AND NEW.active IS NOT 1
        AND (OLD.auto_disabled OR OLD.disabled_until IS NOT NULL OR NEW.would_disable IS NOT NULL)
    BEGIN
        UPDATE models
        SET would_disable = NULL,
            auto_disabled = CASE WHEN NEW.disabled_at IS OLD.disabled_at AND OLD.auto_disabled
                THEN 0 ELSE auto_disabled END,
            disabled_until = CASE WHEN NEW.disabled_at IS OLD.disabled_at
                AND NEW.disabled_until = OLD.disabled_until THEN NULL ELSE disabled_until END
        WHERE id = NEW.id;
    END""",
}
