"""Bring the fleet to what its sources offer, in one transaction."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from modelctl import deadline
from modelctl.database.locks import SYNC_LOCK, take_guard_lock, take_lock
from modelctl.errors import RefusedError
from modelctl.spool import Spool
from modelctl.sync.apply import planned, write_chunk
from modelctl.sync.gone import apply_gone, plan_gone, take_back
from modelctl.sync.origins import Origins
from modelctl.sync.stage import Stage
from modelctl.tables.application import inserting, write
from modelctl.tables.tags import set_tags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database
    from modelctl.sync.collect import Collected
    from modelctl.sync.results import PlannedChange


class Rules(NamedTuple):
    """How to sync.

    *gone*: what becomes of models that no source offers any more: ``keep``, ``disable`` or ``remove``.
    *max_gone*: the share of the models of a source that may go, 0 to 1. *order*: the names of all
    sources, those that win first. *floor*: how many models must stay on. *guarded*: whether other
    changes depend on how many models are on. *tags*: of new models, by source.
    """

    gone: str
    max_gone: float
    order: Sequence[str]
    floor: int
    guarded: bool
    tags: Mapping[str, Sequence[str]]


class Synced(NamedTuple):
    """What became of the entries: the number of models of each kind of change, and all changes.

    *fingerprint*: of the changes; two plans with the same one are the same.
    """

    kinds: Counter[str]
    unchanged: int
    adopted: int
    changes: Spool[PlannedChange]
    fingerprint: bytes


def sync(
    database: Database,
    collected: Collected,
    rules: Rules,
    *,
    actor: str,
    dry_run: bool = False,
    confirmed: bytes | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Synced:
    """Add, update, mark, disable, enable and remove models, all or none.

    *confirmed*: the fingerprint of the plan that a person has seen.

    Raises:
        RefusedError: too many models would be gone, too few would stay on, the plan is another than
            the one that was *confirmed*, or the database kept rows as they were.
    """

    def work(connection: sa.Connection) -> Synced:
        take_lock(connection, database, SYNC_LOCK)
        if rules.guarded and rules.gone != "keep":
            take_guard_lock(connection, database)
        done = _work(database, connection, collected, rules, actor, progress)
        if confirmed not in (None, done.fingerprint):
            raise RefusedError(
                "the plan has changed since it was shown; nothing was changed",
                hint="run sync again, and look at the new plan",
            )
        return done

    return inserting(database, lambda: write(database, work, dry_run=dry_run))


def _work(
    database: Database,
    connection: sa.Connection,
    collected: Collected,
    rules: Rules,
    actor: str,
    progress: Callable[[int], None],
) -> Synced:
    stage = Stage(database, connection)
    stage.fill(collected.entries.by_key())
    origins = Origins(database, stage, collected.sources)
    origins.clean()
    clashes = origins.leave_out_others(rules.order)
    gone = plan_gone(origins, rules.gone, rules.max_gone)
    changes: Spool[PlannedChange] = Spool()
    adopted = written_or_new = 0
    for chunk in stage.chunks():
        written = write_chunk(database, connection, stage, chunk, "update", actor)
        written_or_new += written.added + len(written.differing)
        tags: dict[str, Sequence[str]] = {}
        for change in planned(stage, chunk, written, "update"):
            changes.append(change)
            if change.kind == "added" and (of_source := rules.tags.get(change.source or "")):
                tags[change.id] = of_source
        if tags:
            set_tags(database, connection, tags)
        for change in take_back(database, connection, origins, chunk, actor):
            changes.append(change)
        adopted += origins.add(chunk) - written.added
        deadline.renew()
        progress(chunk["last"] + 1)
    apply_gone(database, connection, origins, gone, rules.floor, actor)
    for change in chain(gone.changes, collected.clashes, clashes):
        changes.append(change)
    origins.synced()
    kinds = Counter(change.kind for change in changes)
    unchanged = stage.length - collected.ignored - len(clashes) - written_or_new
    return Synced(kinds, unchanged, adopted, changes, _fingerprint(changes))


def _fingerprint(changes: Spool[PlannedChange]) -> bytes:
    found = hashlib.sha256()
    for change in changes:
        found.update(repr(change).encode("utf-8", "surrogatepass"))
    return found.digest()
