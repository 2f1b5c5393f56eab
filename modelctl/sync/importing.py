"""Import a catalogue: add and update models, in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from modelctl import deadline
from modelctl.spool import Spool
from modelctl.sync.apply import planned, write_chunk
from modelctl.sync.stage import Stage
from modelctl.tables.application import inserting, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import sqlalchemy as sa

    from modelctl.database.database import Database
    from modelctl.sync.results import PlannedChange
    from modelctl.sync.stage import Staged


class Imported(NamedTuple):
    """How many models were added, how many differ, and of how many the status differs, which stays.

    *changes*: each model that was added or differs, in a dry run.
    """

    added: int
    differing: int
    other_status: int
    changes: Spool[PlannedChange]


def import_models(
    database: Database,
    entries: Callable[[], Iterable[Staged]],
    *,
    on_conflict: str,
    actor: str,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Imported:
    """Add or update models, in one transaction.

    *entries* starts again from the first on every call, in the order of the ids, so that two
    imports of the same models lock them in the same order. The ids are unique.
    *on_conflict*: ``update``, ``skip`` or ``fail`` for a model that differs.

    Raises:
        RefusedError: ``fail``, and a model differs; nothing is written.
    """

    def work(connection: sa.Connection) -> Imported:
        stage = Stage(database, connection)
        stage.fill(entries())
        added = differing = other_status = 0
        changes: Spool[PlannedChange] = Spool()
        for chunk in stage.chunks():
            written = write_chunk(database, connection, stage, chunk, on_conflict, actor)
            added += written.added
            differing += len(written.differing)
            other_status += written.other_status
            for change in planned(stage, chunk, written, on_conflict) if dry_run else ():
                changes.append(change)
            deadline.renew()
            progress(chunk["last"] + 1)
        return Imported(added, differing, other_status, changes)

    return inserting(database, lambda: write(database, work, dry_run=dry_run))
