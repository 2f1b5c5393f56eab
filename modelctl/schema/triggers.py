"""The declaration of the triggers on ``models``, by which a change of any program reaches the cache.

`migrations` compares them with what is there, and creates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl.schema.declared import OUTBOX, TAGS

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Function:
    """A trigger function of PostgreSQL, in the schema of modelctl's own tables."""

    body: str
    settings: tuple[str, ...] = ("search_path=pg_catalog, pg_temp",)
    definer: bool = False
    # What the owner of a SECURITY DEFINER function must be allowed: (table, right).
    needs: tuple[tuple[str, str], ...] = ()


# For all functions:
# - Only a trigger can execute them: that takes no right to execute, and nobody has one.
# - A missing name never fails the statement of the application: other tools drop tables and columns
#   that they do not know, and people rename them. `db status` and `doctor` report what was not done
#   then. For every other reason (a full disk) the statement fails: a change must not commit if its
#   invalidation cannot be queued.
#
# modelctl_enqueue: writes one row into the outbox per statement that changed the count.
# - SECURITY DEFINER: other programs need no right on the outbox.
# - The outbox is looked up beside the function, whatever their schema is called now: a dump that was
#   restored under another name must not queue into the old outbox. (PG_ROUTINE_OID exists only since
#   PostgreSQL 16.) The lookup has no joins: without nested loops they would read whole catalogues.
# - The INSERT is outside the block with EXCEPTION. Inside, it would use a transaction id for a
#   subtransaction; and only a missing name may be ignored, not an error of the INSERT.
# - enable_nestloop = off: EXISTS is planned as if it ended at the first row, and a session keeps the
#   plan that it made for one row. Both give a nested loop, which is quadratic: 30 s for 22,000 rows.
# - Only id and active are compared: whole rows cannot be compared if a column is json.
# - The IFs are nested: an expression that names a transition table of another event fails.
#
# modelctl_trust: a model is switched on, so it is trusted again. A later active = false by hand is then
# a plain disable: recover leaves it alone, and it shows no old reason.
#
# modelctl_forget: a model is switched off. What would bring it back must come from the same statement:
# an active row may still have such values from before modelctl, or from an unusual INSERT. modelctl
# writes disabled_at whenever it switches a model off. If that has not changed, the other values are old.
# - Each column is in a block of its own, so that a missing column does not keep the others as they are.
#
# modelctl_untag: deletes the tags of models that were deleted, so that a new model with the same id has
# none. SECURITY DEFINER and the lookup of the table are as in modelctl_enqueue.
# - EXECUTE, so that each statement is planned for its number of rows: an index for one, a hash for many.
# - The collation is that of modelctl_tags: the application's column may have another one.
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
        needs=((OUTBOX, "INSERT"),),
    ),
    "modelctl_trust": Function("""
    BEGIN
        -- Skip rows in which modelctl has cleared these itself: it may be very many.
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
        -- Nothing tells whether the flag is old. A model that stays off is the safe choice.
        BEGIN NEW.auto_disabled := false; EXCEPTION WHEN undefined_column THEN END;
        BEGIN NEW.disabled_until := NULL; EXCEPTION WHEN undefined_column THEN END;
        BEGIN NEW.would_disable := NULL; EXCEPTION WHEN undefined_column THEN END;
        RETURN NEW;
    END
    """),
    "modelctl_untag": Function(
        """
    DECLARE
        tags regclass := to_regclass((
            SELECT pronamespace FROM pg_proc WHERE oid = (
                SELECT tgfoid FROM pg_trigger WHERE tgrelid = TG_RELID AND tgname = TG_NAME
            )
        )::regnamespace || '.modelctl_tags');
    BEGIN
        IF tags IS NULL THEN
            RETURN NULL;
        ELSIF TG_OP = 'TRUNCATE' THEN
            EXECUTE 'DELETE FROM ' || tags;
        ELSE
            EXECUTE 'DELETE FROM ' || tags || ' t USING old_rows o'
                ' WHERE t.model_id = o.id COLLATE "default"';
        END IF;
        RETURN NULL;
    EXCEPTION WHEN undefined_column THEN
        RETURN NULL;
    END
    """,
        definer=True,
        needs=((TAGS, "SELECT"), (TAGS, "DELETE")),
    ),
}


def emptying(definition: str, required: Iterable[str]) -> str:
    """Return the definition with '' in place of NULL for the columns that are NOT NULL."""
    for name in required:
        definition = definition.replace(f"{name} := NULL", f"{name} := ''")
        definition = definition.replace(f"{name} = NULL", f"{name} = ''")
    return definition


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger of PostgreSQL: the SQL before and after ON models, and the function that it executes.

    It is ENABLE ALWAYS, so that it fires with session_replication_role = replica as well.
    """

    event: str
    how: str
    function: str


# A trigger with transition tables can have only one event, and no list of columns.
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
    "modelctl_untag": Trigger(
        "AFTER DELETE", f"REFERENCING OLD TABLE AS old_rows {_STATEMENT}", "modelctl_untag"
    ),
    "modelctl_untag_all": Trigger("AFTER TRUNCATE", _STATEMENT, "modelctl_untag"),
    # WHEN names only active: the type of a column that is named there can no longer be changed.
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

# The SQL after CREATE TRIGGER and the name. The cache is in the same file, so the change itself empties
# it. A lease is a row of the cache as well: a reader that counted before the change cannot fill the
# cache afterwards. REPLACE fires the trigger for INSERT.
SQLITE = {
    "modelctl_insert": """AFTER INSERT ON models
    BEGIN DELETE FROM modelctl_cache; END""",
    "modelctl_update": """AFTER UPDATE ON models
    WHEN NEW.active IS NOT OLD.active OR NEW.id IS NOT OLD.id
    BEGIN DELETE FROM modelctl_cache; END""",
    "modelctl_delete": """AFTER DELETE ON models
    BEGIN DELETE FROM modelctl_cache; END""",
    "modelctl_untag": """AFTER DELETE ON models
    BEGIN DELETE FROM modelctl_tags WHERE model_id = OLD.id; END""",
    "modelctl_untag_renamed": """AFTER UPDATE OF id ON models WHEN NEW.id IS NOT OLD.id
    BEGIN DELETE FROM modelctl_tags WHERE model_id = OLD.id; END""",
    # As on PostgreSQL. The UPDATE inside does not name active, so the trigger does not fire itself.
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
