"""Catalogues: many models added or updated in one transaction."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from modelctl import deadline
from modelctl.database import bulk
from modelctl.database.sql import text
from modelctl.errors import RefusedError
from modelctl.model import ModelStatus
from modelctl.models.changes import Changes
from modelctl.models.events import NewEvent, differences, log
from modelctl.models.results import KeptChange, StatusChange
from modelctl.tables.application import (
    KeptError,
    NewColumnsError,
    defaults_to_insert,
    explain_refused_insert,
    look_at_columns,
)
from modelctl.tables.columns import STATUS
from modelctl.tables.ids import quoted
from modelctl.tables.odd_values import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import sqlalchemy as sa


T = TypeVar("T")

_TRIES = 3
_ENTRY = {"id": "text", "display_name": "text", "provider": "text"}
# What a catalogue leaves empty it does not know: it is no reason to forget what the row says.
_DIFFERS = (
    "(incoming.display_name <> '' AND incoming.display_name <> coalesce(models.display_name, ''))"
    " OR (incoming.provider <> '' AND incoming.provider <> coalesce(models.provider, ''))"
)
_TEXTS = ("display_name", "provider")


class Batches(Changes):
    """Changes many models at once, in chunks; every method is one transaction."""

    def import_models(
        self,
        entries: Callable[[], Iterable[tuple[str, str, str, bool | None]]],
        *,
        on_conflict: str,
        actor: str,
        dry_run: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> tuple[int, int, int]:
        """Add or update models from (id, display name, provider, active), in one transaction.

        The ids are unique. *active* is whether the catalogue says that the model is on, or None.

        *entries* starts again from the first on every call, in the order of the ids: two imports
        of the same models lock them in the same order.
        *on_conflict*: ``update``, ``skip`` or ``fail`` for a model that differs.
        Return how many were added, how many differ, and of how many the status differs, which stays.

        Raises:
            RefusedError: ``fail``, and a model differs; nothing is written.
        """

        def work(connection: sa.Connection) -> tuple[int, int, int]:
            return self._import(connection, entries(), on_conflict, actor, progress)

        return self._inserting(lambda: self.write(work, dry_run=dry_run))

    def add(self, entry: tuple[str, str, str], *, actor: str) -> StatusChange:
        """Add one model as (id, display name, provider), or leave the one that is there.

        Raises:
            RefusedError: the database kept it out.
        """

        def work(connection: sa.Connection) -> StatusChange:
            new, differing, status = self._import_chunk(connection, [entry], "skip", actor)
            after = ModelStatus(status[entry[0]])
            if old := differing.get(entry[0]):
                pairs = zip(("name", "provider"), old[1:], entry[1:], strict=True)
                kept = [
                    f"its {what} is '{is_now}', not '{asked}'"
                    for what, is_now, asked in pairs
                    if asked and asked != is_now
                ]
                note = f"{' and '.join(kept)}; modelctl import changes that"
                return KeptChange(entry[0], after, after, False, note)
            return StatusChange(entry[0], None if new else after, after, bool(new))

        return self._inserting(lambda: self.write(work))

    def _inserting(self, transaction: Callable[[], T]) -> T:
        try:
            return transaction()
        except RefusedError as exc:
            raise explain_refused_insert(self.database, exc) from exc

    def _import(
        self,
        connection: sa.Connection,
        entries: Iterable[tuple[str, str, str, bool | None]],
        on_conflict: str,
        actor: str,
        progress: Callable[[int], None],
    ) -> tuple[int, int, int]:
        added = differs = ignored = done = 0
        source = iter(entries)
        while chunk := list(islice(source, bulk.CHUNK)):
            rows = [entry[:3] for entry in chunk]
            new, changed, status = self._import_chunk(connection, rows, on_conflict, actor)
            added += new
            differs += len(changed)
            for model_id, _, _, active in chunk:
                ignored += active is not None and active != (status[model_id] == ModelStatus.ACTIVE)
            done += len(chunk)
            deadline.renew()
            progress(done)
        return added, differs, ignored

    def _cut(self, chunk: Sequence[tuple[str, str, str]]) -> Sequence[tuple[str, str, str]]:
        """Cut the texts to what the columns of an application take."""
        name, provider = (self.database.columns.get(column) for column in _TEXTS)
        if not (name and provider):
            return chunk
        return [(e[0], name.fit(e[1]), provider.fit(e[2])) for e in chunk]

    def _is_cut(self, entry: tuple[str, str, str], changed: dict[str, Sequence[Any]]) -> bool:
        """Whether all that differs of a model looks as if a column had cut it."""
        if entry[0] not in changed:
            return False
        pairs = [*zip(entry[1:], changed[entry[0]][1:], strict=True)]
        return all(new.startswith(old) for new, old in pairs if new) and any(
            old for _, old in pairs
        )

    def _not_active(self, connection: sa.Connection, new: dict[str, str]) -> list[str]:
        """Return which of the *new* models are off although new ones are active in this table."""
        off = [model_id for model_id, status in new.items() if status != ModelStatus.ACTIVE]
        if off and not self.database.columns:
            look_at_columns(self.database, connection)
            if defaults_to_insert(self.database):
                raise NewColumnsError
        active = self.database.columns.get("active")
        default = (active and active.default) or "true"
        return off if default.lower() in ("true", "1") else []

    def _import_chunk(
        self,
        connection: sa.Connection,
        chunk: Sequence[tuple[str, str, str]],
        on_conflict: str,
        actor: str,
    ) -> tuple[int, dict[str, Sequence[Any]], dict[str, str]]:
        """Return how many were added, those that differ (status, name, provider), and each status."""
        incoming = self.sql.rows("incoming", _ENTRY)
        texts = "coalesce(models.display_name, ''), coalesce(models.provider, '')"
        differing = (
            f"SELECT models.id, {STATUS} AS status, {texts} FROM models, {incoming}"
            f" WHERE models.id = incoming.id AND ({_DIFFERS}) ORDER BY models.id{self.sql.lock}"
        )
        update = (
            "UPDATE models SET"
            " display_name = coalesce(nullif(incoming.display_name, ''), models.display_name),"
            " provider = coalesce(nullif(incoming.provider, ''), models.provider),"
            f" updated_at = {self.sql.now} FROM {incoming} WHERE models.id = incoming.id"
        )
        # Not ON CONFLICT alone: an application's NOT NULL column would refuse even what is there.
        more = defaults_to_insert(self.database)
        names, given = ("".join(f", {part}" for part in parts) for parts in (more, more.values()))
        insert = (
            f"INSERT INTO models (id, display_name, provider{names})"
            f" SELECT id, display_name, provider{given}"
            f" FROM {incoming} WHERE NOT EXISTS (SELECT 1 FROM models WHERE id = incoming.id)"
            f" ORDER BY {self.sql.by_id} ON CONFLICT (id) DO NOTHING"
            f" RETURNING id, {STATUS} AS status"
        )
        standing = f"SELECT id, {STATUS}, {texts} FROM models WHERE {self.sql.ids}"

        chunk = self._cut(chunk)
        values = self.sql.values(_ENTRY, chunk)
        found = connection.execute(text(differing), values)
        changed: dict[str, Sequence[Any]] = {
            row[0]: (row[1], *map(readable, row[2:]))
            for row in sorted(found, key=lambda row: row[0])
        }
        if not self.database.columns and any(self._is_cut(e, changed) for e in chunk):
            look_at_columns(self.database, connection)
            if self._cut(chunk) != chunk:
                raise NewColumnsError
        if changed and on_conflict == "fail":
            raise RefusedError(
                f"{quoted(list(changed))} differ from the catalogue",
                hint="nothing was written; see --on-conflict",
            )
        events: list[NewEvent] = []
        # Only what is locked: others may have written since the SELECT.
        ours = [e for e in chunk if e[0] in changed] if on_conflict == "update" else []
        if ours:
            connection.execute(text(update), self.sql.values(_ENTRY, ours))
        for model_id, name, provider in ours:
            status, *old = changed[model_id]
            details = differences(_TEXTS, old, (name or old[0], provider or old[1]))
            events.append(NewEvent(model_id, "updated", status, status, details=details))
        new: dict[str, str] = {}
        ids = {"ids": self.ids(entry[0] for entry in chunk)}
        # What others remove in between can be added now, once or twice; a trigger removes it always.
        for _ in range(_TRIES):
            new |= {row[0]: row[1] for row in connection.execute(text(insert), values)}
            rows = connection.execute(text(standing), ids)
            now = {row[0]: (row[1], *map(readable, row[2:])) for row in rows}
            kept = [entry[0] for entry in chunk if entry[0] not in now]
            if not kept:
                break
        kept += self._not_active(connection, new)
        # A name in another form than ours is the application's matter, the old one is not.
        kept += [i for i, status in new.items() if i in now and now[i][0] != status]
        for model_id, *_ in ours:
            status, *texts_then = now.get(model_id, (None,))
            before, *texts_before = changed[model_id]
            if status is not None and (status != before or texts_then == texts_before):
                kept.append(model_id)
        if kept:
            raise KeptError(sorted(kept))
        of_new = {model_id: words for model_id, *words in chunk if model_id in new}
        for model_id, status in sorted(new.items()):
            words = [word or None for word in of_new[model_id]]
            details = differences(_TEXTS, (None, None), words)
            events.append(NewEvent(model_id, "added", None, status, details=details))
        log(self.database, connection, events, actor)
        return len(new), changed, {i: row[0] for i, row in now.items()}
