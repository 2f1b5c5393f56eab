"""The declaration of the triggers on ``models``, by which a change of any program reaches the cache.

`migrations` compares them with what is there, and creates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelctl.schema.declared import EVENTS, ORIGINS, OUTBOX, TAGS

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
# modelctl_enqueue: writes one row into the outbox per statement that changed the count, and, for a change
# by another program, one event per model into the history.
# - SECURITY DEFINER: other programs need no right on these tables.
# - The tables are looked up beside the function, whatever their schema is called now: a dump that was
#   restored under another name must not queue into the old outbox. (PG_ROUTINE_OID exists only since
#   PostgreSQL 16.) The lookup has no joins: without nested loops they would read whole catalogues.
# - The INSERTs are outside the block with EXCEPTION. Inside, they would use a transaction id for a
#   subtransaction; and only a missing name may be ignored, not an error of the INSERT.
# - So before it writes events, it looks whether it may, and whether their columns are as declared: what
#   is wrong with the history stops no change of another program. ON CONFLICT: rows of a dump may have
#   the next ids already.
# - enable_nestloop = off: EXISTS is planned as if it ended at the first row, and a session keeps the
#   plan that it made for one row. Both give a nested loop, which is quadratic: 30 s for 22,000 rows.
# - Only id and columns of the status are compared: whole rows cannot be compared if a column is json.
# - The IFs are nested: an expression that names a transition table of another event fails.
# - modelctl writes the events of its own changes, and names its transaction in a setting
#   (`database.database`). The id of a transaction, because a setting that is set for a session or a role
#   by mistake never equals it. At depth 1, because a trigger of the application may change further
#   models within modelctl's transaction. Those that a foreign key of the table to itself deletes with
#   others are in the same transition table, so there each model has an event, and a removed one two.
# - Such a trigger fires before ours, so its event is written before that of the statement that fired it.
#   From then on the status after a change is not the one that the statement left, but that of the row.
# - An id may be NULL in an adopted table, and too long for the index of the events.
# - TRUNCATE: before it, while the rows can be read.
#
# modelctl_trust: a model is switched on, so it is trusted again. A later active = false by hand is then
# a plain disable: recover leaves it alone, and it shows no old reason.
#
# modelctl_forget: a model is switched off. What would bring it back must come from the same statement:
# an active row may still have such values from before modelctl, or from an unusual INSERT. modelctl
# writes disabled_at whenever it switches a model off. If that has not changed, the other values are old.
# - Each column is in a block of its own, so that a missing column does not keep the others as they are.
#
# modelctl_untag: deletes the tags and the origins of models that were deleted, so that a new model with
# the same id has none. SECURITY DEFINER and the lookup of the tables are as in modelctl_enqueue.
# - EXECUTE, so that each statement is planned for its number of rows: an index for one, a hash for many.
# - The collation is that of our own tables: the application's column may have another one.
FUNCTIONS = {
    "modelctl_enqueue": Function(
        """
    DECLARE
        changed boolean := true;  -- whether the count may have changed; TRUNCATE does not say it
        told boolean := true;  -- whether a status may have changed, or which models there are
        place text;
        outbox regclass;
        history regclass;
        nested boolean;
    BEGIN
        BEGIN
            IF TG_OP = 'INSERT' THEN
                changed := EXISTS (SELECT FROM new_rows);
                told := changed;
            ELSIF TG_OP = 'DELETE' THEN
                changed := EXISTS (SELECT FROM old_rows);
                told := changed;
            ELSIF TG_OP = 'UPDATE' THEN
                changed := (SELECT count(*) FROM old_rows WHERE active)
                    <> (SELECT count(*) FROM new_rows WHERE active);
                IF NOT changed THEN  -- or as many were switched on as off
                    told := EXISTS (
                        SELECT FROM old_rows o LEFT JOIN new_rows n ON n.id = o.id
                        WHERE n.id IS NULL OR n.active IS DISTINCT FROM o.active
                            OR n.auto_disabled IS DISTINCT FROM o.auto_disabled
                    );
                    IF told THEN
                        changed := EXISTS (
                            SELECT FROM old_rows o LEFT JOIN new_rows n ON n.id = o.id
                            WHERE n.id IS NULL OR n.active IS DISTINCT FROM o.active
                        );
                    END IF;
                END IF;
            END IF;
        EXCEPTION WHEN undefined_column OR undefined_table THEN
            changed := true;
            told := false;
        END;
        IF NOT (changed OR told) THEN
            RETURN NULL;
        END IF;
        place := (
            SELECT pronamespace FROM pg_proc WHERE oid = (
                SELECT tgfoid FROM pg_trigger WHERE tgrelid = TG_RELID AND tgname = TG_NAME
            )
        )::regnamespace || '.modelctl_';
        IF changed THEN
            outbox := to_regclass(place || 'outbox');
            IF outbox IS NOT NULL THEN
                EXECUTE 'INSERT INTO ' || outbox || ' DEFAULT VALUES';
            END IF;
        END IF;
        IF NOT told OR pg_trigger_depth() = 1
            AND current_setting('modelctl.transaction', true) = pg_current_xact_id()::text
            AND NOT (TG_OP = 'DELETE' AND EXISTS (
                SELECT FROM pg_constraint
                WHERE conrelid = TG_RELID AND confrelid = TG_RELID AND confdeltype = 'c'
            ))
        THEN
            RETURN NULL;
        END IF;
        history := to_regclass(place || 'events');
        IF history IS NULL OR NOT has_table_privilege(history, 'INSERT') OR (
            SELECT count(*) FROM pg_attribute WHERE attrelid = history AND (
                attname IN ('model_id', 'event', 'before', 'after', 'actor')
                    AND atttypid = 'text'::regtype
                OR attname = 'details' AND atttypid = 'jsonb'::regtype
            )
        ) < 6 OR EXISTS (
            SELECT FROM pg_attribute WHERE attrelid = history AND attnum > 0 AND attnotnull
                AND NOT (atthasdef OR attidentity <> '' OR attname IN ('model_id', 'event'))
        ) OR EXISTS (
            SELECT FROM pg_constraint WHERE conrelid = history AND contype IN ('c', 'f', 'x')
        ) OR (
            SELECT count(*) FROM pg_attribute WHERE attrelid = TG_RELID AND (
                attname IN ('id', 'provider')
                OR attname IN ('active', 'auto_disabled') AND 'boolean'::regtype = (
                    SELECT coalesce(nullif(typbasetype, 0), oid) FROM pg_type WHERE oid = atttypid
                )
            )
        ) < 4 THEN
            RETURN NULL;
        END IF;
        nested := current_setting('modelctl.nested', true) = pg_current_xact_id()::text;
        IF (nested OR TG_OP = 'TRUNCATE') AND NOT (
            has_table_privilege(TG_RELID, 'SELECT') AND has_schema_privilege(
                (SELECT relnamespace FROM pg_class WHERE oid = TG_RELID), 'USAGE')
        ) THEN
            RETURN NULL;
        END IF;
        EXECUTE format($sql$
            INSERT INTO %1$s (model_id, event, before, after, actor, details)
            SELECT id,
                CASE WHEN before IS NULL THEN 'added' WHEN after IS NULL THEN 'removed'
                    WHEN after = 'active' THEN 'enabled' ELSE 'disabled' END,
                before, after, session_user,
                CASE WHEN old IS NULL AND new IS NULL OR before IS NOT NULL AND after IS NOT NULL
                    THEN $1
                    ELSE $1 || jsonb_build_object('old', jsonb_build_object('provider', old),
                        'new', jsonb_build_object('provider', new)) END
            FROM (
                SELECT CAST(coalesce(n.id, o.id) AS text) AS id,
                    CASE WHEN o.active THEN 'active' WHEN o.auto_disabled THEN 'auto-disabled'
                        WHEN o.id IS NOT NULL THEN 'disabled' END AS before,
                    %2$s AS after,
                    nullif(left(CAST(o.provider AS text), 200), '') AS old,
                    nullif(left(CAST(n.provider AS text), 200), '') AS new
                FROM %3$s
            ) AS changes
            WHERE before IS DISTINCT FROM after AND octet_length(id) <= 2000
            ON CONFLICT DO NOTHING
            $sql$,
            history,
            CASE WHEN nested THEN format($sql$(
                    SELECT CASE WHEN active THEN 'active' WHEN auto_disabled THEN 'auto-disabled'
                        ELSE 'disabled' END
                    FROM %s WHERE id = coalesce(n.id, o.id)
                )$sql$, TG_RELID::regclass)
            ELSE $sql$CASE WHEN n.active THEN 'active' WHEN n.auto_disabled THEN 'auto-disabled'
                WHEN n.id IS NOT NULL THEN 'disabled' END$sql$ END,
            CASE TG_OP WHEN 'INSERT' THEN 'new_rows n LEFT JOIN new_rows o ON false'
                WHEN 'DELETE' THEN 'old_rows o LEFT JOIN old_rows n ON false'
                WHEN 'UPDATE' THEN 'old_rows o FULL JOIN new_rows n ON n.id = o.id'
                ELSE format('%1$s o LEFT JOIN %1$s n ON false', TG_RELID::regclass) END
        ) USING jsonb_build_object('application_name', current_setting('application_name'));
        IF pg_trigger_depth() > 1 THEN
            PERFORM set_config('modelctl.nested', pg_current_xact_id()::text, true);
        END IF;
        RETURN NULL;
    END
    """,
        ("search_path=pg_catalog, pg_temp", "enable_nestloop=off"),
        definer=True,
        needs=((OUTBOX, "INSERT"), (EVENTS, "INSERT")),
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
        place text := (
            SELECT pronamespace FROM pg_proc WHERE oid = (
                SELECT tgfoid FROM pg_trigger WHERE tgrelid = TG_RELID AND tgname = TG_NAME
            )
        )::regnamespace || '.modelctl_';
        part text;
        owned regclass;
    BEGIN
        FOREACH part IN ARRAY ARRAY['tags', 'origins'] LOOP
            owned := to_regclass(place || part);
            CONTINUE WHEN owned IS NULL;
            BEGIN
                IF TG_OP = 'TRUNCATE' THEN
                    EXECUTE 'DELETE FROM ' || owned;
                ELSE
                    EXECUTE 'DELETE FROM ' || owned || ' r USING old_rows o'
                        ' WHERE r.model_id = o.id COLLATE "default"';
                END IF;
            EXCEPTION WHEN undefined_column THEN
            END;
        END LOOP;
        RETURN NULL;
    END
    """,
        definer=True,
        needs=tuple((table, right) for table in (TAGS, ORIGINS) for right in ("SELECT", "DELETE")),
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
    "modelctl_truncate": Trigger("BEFORE TRUNCATE", _STATEMENT, "modelctl_enqueue"),
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
    BEGIN
        DELETE FROM modelctl_tags WHERE model_id = OLD.id;
        DELETE FROM modelctl_origins WHERE model_id = OLD.id;
    END""",
    "modelctl_untag_renamed": """AFTER UPDATE OF id ON models WHEN NEW.id IS NOT OLD.id
    BEGIN
        DELETE FROM modelctl_tags WHERE model_id = OLD.id;
        DELETE FROM modelctl_origins WHERE model_id = OLD.id;
    END""",
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
