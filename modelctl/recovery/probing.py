"""What probes need of the database: the models to ask, the right to ask them, and their failures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.database.sql import text
from modelctl.model import ModelStatus
from modelctl.models.events import NewEvent, log
from modelctl.tables.application import assignments, write
from modelctl.tables.columns import STATUS
from modelctl.tables.ids import check_found, check_storable
from modelctl.tables.odd_values import readable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import sqlalchemy as sa

    from modelctl.database.database import Database

_FAILED = {"id": "text", "failure_type": "text", "reason": "text"}


class Probing:
    """Reads the models to ask and records what failed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = database.sql

    def models(self, ids: Sequence[str]) -> list[tuple[str, str, ModelStatus]]:
        """Return id, provider and status of each; `ModelNotFoundError` names the missing ones."""
        check_storable(ids)
        sql = f"SELECT id, coalesce(provider, ''), {STATUS} FROM models WHERE {self._sql.ids}"
        wanted = {"ids": self._sql.list_of_texts(ids)}
        with self._database.reading() as connection:
            found = {row[0]: row for row in connection.execute(text(sql), wanted)}
        check_found(ids, found)
        return [(i, readable(found[i][1]), ModelStatus(found[i][2])) for i in ids]

    def claim(self, seconds: float, owner: str) -> bool:
        """Claim the right to send probes for *seconds*; return whether *owner* has it now.

        The same *owner* may prolong its claim, or end it with 0 seconds.
        """
        sql = (
            f"INSERT INTO {self._database.own}modelctl_state (name, at, value)"
            f" VALUES ('probe', {self._sql.seconds_from_now(':seconds')}, :owner)"
            " ON CONFLICT (name) DO UPDATE SET at = excluded.at, value = excluded.value"
            f" WHERE modelctl_state.at <= {self._sql.now} OR modelctl_state.value = excluded.value"
            " RETURNING name"
        )
        parameters = {"seconds": seconds, "owner": owner}
        return self._database.write(
            lambda connection: connection.execute(text(sql), parameters).first() is not None
        )

    def failed(self, failures: Iterable[tuple[str, str, str | None]], *, actor: str) -> None:
        """Record failed probes as (id, failure type, reason): the cooldown of each starts again.

        A model that was switched on in the meantime is left alone.
        """
        answers = {model_id: (kind, reason) for model_id, kind, reason in failures}
        lock = (
            f"SELECT id, {STATUS} FROM models WHERE {self._sql.ids} AND active IS NOT TRUE"
            f" ORDER BY id{self._sql.lock}"
        )

        def work(connection: sa.Connection) -> None:
            wanted = {"ids": self._sql.list_of_texts(answers)}
            off = connection.execute(text(lock), wanted).all()
            rows = [
                (model_id, kind, reason and self._database.storable(reason))
                for model_id, _ in off
                for kind, reason in [answers[model_id]]
            ]
            values = assignments(
                self._database,
                failure_count="coalesce(failure_count, 0) + 1",
                last_failure_at=self._sql.now,
                failure_type="failed.failure_type",
                failure_reason="failed.reason",
                updated_at=self._sql.now,
            )
            update = (
                f"UPDATE models SET {values} FROM {self._sql.rows('failed', _FAILED)}"
                " WHERE models.id = failed.id RETURNING models.id"
            )
            # A trigger of the application may have left some rows as they were.
            written = {*connection.execute(text(update), self._sql.values(_FAILED, rows)).scalars()}
            events = [
                NewEvent(model_id, "probe-failed", status, status, reason, kind)
                for model_id, status in off
                if model_id in written
                for kind, reason in [answers[model_id]]
            ]
            log(self._database, connection, sorted(events), actor)

        write(self._database, work)
