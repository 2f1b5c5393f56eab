"""Where models come from: the sources that offer them, and since when one does not any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from modelctl.model import SYNC
from modelctl.models.returning import is_paused
from modelctl.spool import Spool
from modelctl.sync.collect import clash
from modelctl.sync.stage import CHUNK
from modelctl.tables.columns import STATUS
from modelctl.tables.odd_values import readable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from modelctl.database.database import Database
    from modelctl.sync.results import PlannedChange
    from modelctl.sync.stage import Stage


def reason_gone(source: str) -> str:
    """Return why `sync` switches a model off."""
    return f"gone from {source}"


class Gone(NamedTuple):
    """A model that its source does not offer any more.

    *is_new*: no earlier sync has missed it. *switched_off*: an earlier sync has switched it off.
    """

    id: str
    source: str
    status: str
    is_new: bool
    is_paused: bool
    switched_off: bool


class Returning(NamedTuple):
    """A model of a source whose origin says that it was gone, or of another source, or still to enable.

    *was_gone*: it is back. *is_ours*: it is still off as an earlier sync switched it off.
    """

    id: str
    source: str
    status: str
    was_gone: bool
    is_ours: bool
    is_paused: bool
    disabled_by: str
    disabled_reason: str


class Origins:
    """The tables of sources and origins, beside a stage, in one transaction."""

    def __init__(self, database: Database, stage: Stage, sources: Sequence[str]) -> None:
        self._database, self._stage = database, stage
        self._sources = {"ids": database.sql.list_of_texts(sources)}
        self._names = sources
        self._table = f"{database.own}modelctl_origins"
        self._synced = f"{database.own}modelctl_sources"

    def clean(self) -> None:
        """Delete the origins of models that are not in the fleet."""
        sources = self._database.sql.is_among("source")
        self._stage.run(
            f"DELETE FROM {self._table} WHERE {sources}"
            f" AND NOT EXISTS (SELECT 1 FROM models WHERE models.id = {self._table}.model_id)",
            self._sources,
        )

    def leave_out_others(self, order: Sequence[str]) -> Spool[PlannedChange]:
        """Leave out the entries whose models belong to a source that comes earlier and is not synced now.

        *order*: the names of all sources, the first wins.
        """
        others = [
            (mine, other)
            for mine in self._names
            if mine in order
            for other in order[: order.index(mine)]
            if other not in self._names
        ]
        if not others:
            return Spool()
        columns = {"mine": "text", "other": "text"}
        belong = (
            f"{self._database.sql.rows('earlier', columns)}, models, {self._table} AS origin"
            " WHERE origin.model_id = entry.id AND models.id = entry.id AND origin.gone_since IS NULL"
            " AND earlier.mine = entry.source AND earlier.other = origin.source"
            " AND entry.left_out IS NULL"
        )
        values = self._database.sql.values(columns, others)
        select = (
            "SELECT entry.id, entry.source, origin.source"
            f" FROM {self._stage.entries}, {belong} ORDER BY entry.n"
        )
        clashes = Spool(clash(*row) for row in self._stage.pages(select, values))
        if clashes:
            self._stage.run(
                f"UPDATE {self._stage.entries} SET left_out = 'clash' FROM {belong}", values
            )
        return clashes

    def find_gone(self, *, locks: bool) -> Iterable[Gone]:
        """Give the models of the sources that no source offers any more, in the order of their ids."""
        sql = (
            f"SELECT models.id, origin.source, {STATUS}, origin.gone_since IS NULL,"
            f" {is_paused(self._database)}, origin.switched_off_at IS NOT NULL"
            f" FROM models, {self._table} AS origin WHERE origin.model_id = models.id AND {self._of_sources()}"
            f" AND NOT EXISTS (SELECT 1 FROM {self._stage.entries} WHERE entry.id = origin.model_id)"
            f" ORDER BY models.id{self._database.sql.lock if locks else ''}"
        )
        return (
            Gone(*row[:3], *map(bool, row[3:])) for row in self._stage.pages(sql, self._sources)
        )

    def number_there(self) -> dict[str, int]:
        """Return how many models each source has in the fleet that are not gone."""
        sql = (
            f"SELECT origin.source, count(*) FROM models, {self._table} AS origin"
            f" WHERE origin.model_id = models.id AND {self._of_sources()} AND origin.gone_since IS NULL"
            " GROUP BY origin.source"
        )
        return dict(tuple(row) for row in self._stage.rows(sql, self._sources))

    def mark_gone(self) -> None:
        """Note since when the models that no source offers are gone, and when they were last seen."""
        self._stage.run(
            f"UPDATE {self._table} AS origin SET gone_since = {self._database.sql.now}, last_seen_at ="
            f" (SELECT synced_at FROM {self._synced} AS synced WHERE synced.name = origin.source)"
            f" WHERE {self._of_sources()} AND origin.gone_since IS NULL"
            f" AND NOT EXISTS (SELECT 1 FROM {self._stage.entries} WHERE entry.id = origin.model_id)",
            self._sources,
        )

    def note_switched_off(self, ids: Sequence[str]) -> None:
        """Note with which disabled_at these models were switched off, to recognise it later."""
        sql, columns = self._database.sql, {"id": "text"}
        self._stage.run(
            f"UPDATE {self._table} AS origin SET switched_off_at = models.disabled_at"
            f" FROM models, {sql.rows('changed', columns)}"
            " WHERE origin.model_id = changed.id AND models.id = changed.id",
            sql.values(columns, [(model_id,) for model_id in ids]),
        )

    def find_returning(self, chunk: Mapping[str, int]) -> list[Returning]:
        """Lock and return the models of a chunk whose origin has to change."""
        reason = f"'{reason_gone('')}' || origin.source"
        is_ours = (
            "models.disabled_at = origin.switched_off_at AND models.disabled_until IS NULL"
            f" AND coalesce(models.disabled_by, '') = '{SYNC}' AND coalesce(models.disabled_reason, '') <> ''"
            # The column of an application may have cut the reason.
            f" AND models.disabled_reason = substr({reason}, 1, length(models.disabled_reason))"
        )
        sql = (
            f"SELECT models.id, entry.source, {STATUS}, origin.gone_since IS NOT NULL,"
            f" coalesce({is_ours}, FALSE), {is_paused(self._database)}, models.disabled_by, models.disabled_reason"
            f" FROM {self._stage.entries}, {self._table} AS origin, models"
            f" WHERE origin.model_id = entry.id AND models.id = entry.id AND {CHUNK} AND ({self._to_change()})"
            f" ORDER BY models.id{self._database.sql.lock}"
        )
        return [
            Returning(*row[:3], *map(bool, row[3:6]), *map(readable, row[6:]))
            for row in self._stage.rows(sql, chunk)
        ]

    def offer_again(self, chunk: Mapping[str, int], waiting: Sequence[str]) -> None:
        """Write the origins of what `find_returning` found; *waiting*: to be enabled by a later sync."""
        sql = self._database.sql
        self._stage.run(
            f"UPDATE {self._table} AS origin SET first_seen_at = CASE WHEN origin.source <> entry.source"
            f" THEN {sql.now} ELSE origin.first_seen_at END, source = entry.source, gone_since = NULL,"
            " last_seen_at = NULL, switched_off_at ="
            f" CASE WHEN {sql.is_among('entry.id')} THEN origin.switched_off_at END"
            f" FROM {self._stage.entries} WHERE origin.model_id = entry.id AND {CHUNK}"
            f" AND ({self._to_change()})",
            {**chunk, "ids": sql.list_of_texts(waiting)},
        )

    def add(self, chunk: Mapping[str, int]) -> int:
        """Write the source of the models of a chunk that have none yet; return how many they are."""
        sql = (
            f"INSERT INTO {self._table} (model_id, source, first_seen_at)"
            f" SELECT entry.id, entry.source, {self._database.sql.now} FROM {self._stage.entries}"
            f" WHERE {CHUNK} AND NOT EXISTS"
            f" (SELECT 1 FROM {self._table} AS origin WHERE origin.model_id = entry.id)"
        )
        return self._stage.run(sql, chunk)

    def synced(self) -> None:
        """Note when these sources were synced."""
        columns = {"name": "text"}
        self._stage.run(
            f"INSERT INTO {self._synced} (name, synced_at) SELECT name, {self._database.sql.now}"
            f" FROM {self._database.sql.rows('given', columns)} WHERE name <> ''"
            " ON CONFLICT (name) DO UPDATE SET synced_at = excluded.synced_at",
            self._database.sql.values(columns, [(name,) for name in self._names]),
        )

    def _of_sources(self) -> str:
        return self._database.sql.is_among("origin.source")

    def _to_change(self) -> str:
        return (
            "origin.gone_since IS NOT NULL OR origin.switched_off_at IS NOT NULL"
            " OR origin.source <> entry.source"
        )
