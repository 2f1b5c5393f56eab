"""What becomes of models that their source does not offer any more, and of those that are back."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from modelctl import deadline
from modelctl.database.bulk import chunks
from modelctl.errors import RefusedError
from modelctl.model import SYNC, ModelStatus, numbered
from modelctl.models.changes import disable, enable, remove
from modelctl.models.status_changes import change_rows, check_floor
from modelctl.spool import Spool
from modelctl.sync.origins import reason_gone
from modelctl.sync.results import PlannedChange
from modelctl.tables.columns import ON

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sqlalchemy as sa

    from modelctl.database.database import Database
    from modelctl.sync.origins import Gone, Origins, Returning

POLICIES = ("keep", "disable", "remove")


class GonePlan(NamedTuple):
    """What becomes of the models that are gone: *to_change*: the ids to disable or to remove, by source.

    *is_new*: whether there are models that no earlier sync has missed. *fewer_on*: whether fewer
    models stay on.
    """

    policy: str
    changes: Spool[PlannedChange]
    to_change: Mapping[str, Spool[str]]
    is_new: bool
    fewer_on: bool


def plan_gone(origins: Origins, policy: str, max_gone: float) -> GonePlan:
    """Decide about the models that are gone.

    Raises:
        RefusedError: more than *max_gone* (0 to 1) of the models of a source would go.
    """
    changes: Spool[PlannedChange] = Spool()
    to_change: dict[str, Spool[str]] = {}
    there, going = Counter(origins.number_there()), Counter[str]()
    is_new = fewer_on = False
    for gone in origins.find_gone(locks=policy != "keep"):
        acts, note = _decide(gone, policy)
        is_new = is_new or gone.is_new
        if acts:
            to_change.setdefault(gone.source, Spool()).append(gone.id)
            fewer_on = fewer_on or gone.status == ModelStatus.ACTIVE
        if acts or gone.is_new:
            going[gone.source] += 1
            there[gone.source] += not gone.is_new
            changes.append(_planned(gone, policy, acts, note))
    for source, number in going.items():
        _check_share(source, number, there[source], max_gone)
    return GonePlan(policy, changes, to_change, is_new, fewer_on)


def _decide(gone: Gone, policy: str) -> tuple[bool, str]:
    """Return whether the policy changes a model that is gone, and what becomes of it."""
    if policy == "remove":
        return True, "removed"
    if policy == "keep":
        return False, "stays as it is"
    if gone.status != ModelStatus.ACTIVE:
        return False, f"already {gone.status}"
    if gone.is_paused:
        return False, "automatic changes are paused"
    if gone.switched_off:
        return False, "somebody enabled it since"
    return True, "disabled"


def _planned(gone: Gone, policy: str, acts: bool, note: str) -> PlannedChange:
    if not acts and policy != "keep":
        return PlannedChange(
            "kept", gone.id, {}, {}, gone.source, f"{reason_gone(gone.source)}; {note}"
        )
    old = {"status": gone.status} if acts else {}
    new = {"status": ModelStatus.DISABLED.value} if acts and policy == "disable" else {}
    return PlannedChange(
        "gone", gone.id, old, new, gone.source, f"{reason_gone(gone.source)}; {note}"
    )


def _check_share(source: str, going: int, there: int, max_gone: float) -> None:
    """Refuse if more than this share would go. One model may go, but never the last of the source."""
    # A share such as 0.29 is a little less than 29%.
    if going <= there * max_gone + 1e-6 or (going == 1 and there > 1 and max_gone > 0):
        return
    raise RefusedError(
        f"{going} of the {numbered(there)} of {source} would be gone, and at most {100 * max_gone:g}% may;"
        " nothing was changed",
        hint="look whether the answer of the source is whole, and what the configuration takes of it;"
        " --max-gone sets another limit",
    )


def apply_gone(
    database: Database,
    connection: sa.Connection,
    origins: Origins,
    plan: GonePlan,
    floor: int,
    actor: str,
) -> None:
    """Mark the models that are gone, and disable or remove those of the plan.

    Raises:
        RefusedError: fewer models than the *floor* would stay on.
    """
    if plan.is_new and plan.policy != "remove":
        origins.mark_gone()
    removes = plan.policy == "remove"
    lock = database.sql.lock_to_delete if removes else database.sql.lock
    which = database.sql.ids if removes else f"{database.sql.ids} AND {ON}"
    for source, ids in plan.to_change.items():
        reason = reason_gone(source)
        change = (
            remove(database, reason)
            if removes
            else disable(database, SYNC, reason, None, force=False, names_holder=True)
        )
        for chunk in chunks(ids):
            values = {"ids": database.sql.list_of_texts(chunk)}
            change_rows(database, connection, change, which, lock, values, actor)
            if not removes:
                origins.note_switched_off(chunk)
            deadline.renew()
    if floor and plan.fewer_on:
        check_floor(connection, floor, hint="run sync with --gone keep")


def take_back(
    database: Database,
    connection: sa.Connection,
    origins: Origins,
    chunk: Mapping[str, int],
    actor: str,
) -> list[PlannedChange]:
    """Note that the models of a chunk are offered, and enable those that only `sync` switched off."""
    found = origins.find_returning(chunk)
    if not found:
        return []
    waiting = [each.id for each in found if each.is_ours and each.is_paused]
    origins.offer_again(chunk, waiting)
    to_enable: dict[str, list[str]] = {}
    for each in found:
        if each.is_ours and not each.is_paused:
            to_enable.setdefault(each.source, []).append(each.id)
    for source, ids in to_enable.items():
        values = {"ids": database.sql.list_of_texts(ids)}
        change = enable(database, _reason_back(source))
        change_rows(
            database, connection, change, database.sql.ids, database.sql.lock, values, actor
        )
    return [planned for each in found if (planned := _returned(each))]


def _reason_back(source: str) -> str:
    return f"back in {source}"


def _returned(model: Returning) -> PlannedChange | None:
    """Return what becomes of a model that may be back; None: it was not gone."""
    reason = _reason_back(model.source)
    if model.is_ours and not model.is_paused:
        old, new = {"status": model.status}, {"status": ModelStatus.ACTIVE.value}
        return PlannedChange("back", model.id, old, new, model.source, f"{reason}; enabled")
    if not model.was_gone:
        return None
    if model.status == ModelStatus.ACTIVE:
        return PlannedChange("back", model.id, {}, {}, model.source, reason)
    by = f" by {model.disabled_by}" if model.disabled_by else ""
    by += f": {model.disabled_reason}" if model.disabled_reason else ""
    why = "automatic changes are paused" if model.is_ours else f"{model.status}{by}"
    return PlannedChange("kept", model.id, {}, {}, model.source, f"{reason}; {why}")
