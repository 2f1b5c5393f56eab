"""Bring due models back: chunks of them, each in a short transaction of its own."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from modelctl import deadline
from modelctl.database import bulk
from modelctl.database.locks import RECOVER_LOCK, lock_key
from modelctl.database.sql import text
from modelctl.errors import RefusedError, UsageError
from modelctl.models.changes import bring_back
from modelctl.models.status_changes import change_rows
from modelctl.recovery.candidates import Candidates
from modelctl.tables.application import KeptError, adapting, keeper
from modelctl.tables.ids import is_storable
from modelctl.tables.odd_values import readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import sqlalchemy as sa

    from modelctl.config.config import Config
    from modelctl.database.database import Database

UNREADABLE = "its id cannot be read"

# Models that come back in one transaction. Each takes some 2 KB until its event is written, and a run
# may take at most 16 MiB more than one of a small fleet.
_LARGEST_CHUNK = 4000


class BringBack:
    """Switches due models on; only one run at a time does so."""

    def __init__(self, config: Config, database: Database, candidates: Candidates) -> None:
        self._config = config
        self._database = database
        self._candidates = candidates

    def in_chunks(
        self,
        *,
        cooldowns: Sequence[float] | None,
        limit: int | None,
        actor: str,
        refused: dict[str, str],
        ids: Sequence[str] | None = None,
    ) -> Iterator[list[str] | None]:
        """Bring back what is due; yield the ids of each chunk, the longest waiting first.

        Each chunk takes the lock of the run and checks again that its models are still due. If
        another run holds the lock, None is yielded and nothing more.
        *ids*: only these models, in this order. *refused*: receives the models that the database
        did not let change, each with the reason; other models come back in their place.
        """
        # The clock is read once: a model that fails again during this run waits for the next run.
        parameters = self._candidates.parameters(cooldowns, self._candidates.clock())
        room = limit
        while True:
            before = len(refused)
            size = None if room is None else room + before
            due = self._candidates.due_ids(parameters, size) if ids is None else ids
            source = (model_id for model_id in due if _can_come_back(model_id, refused))
            chunk = list(islice(source, min(bulk.CHUNK, _LARGEST_CHUNK)))
            while True:  # also with an empty chunk: it finds out whether another run is at work
                done = self._chunk(chunk, parameters, actor, refused)
                deadline.renew()
                yield done
                if done is None:
                    return
                chunk = list(islice(source, min(bulk.CHUNK, _LARGEST_CHUNK)))
                if not chunk:
                    break
            room = len(refused) - before
            if limit is None or ids is not None or not room:
                return

    def _chunk(
        self, ids: list[str], parameters: dict[str, Any], actor: str, refused: dict[str, str]
    ) -> list[str] | None:
        """Bring back those of *ids* that are still due, in one transaction; return their ids.

        If the database refuses some of them, the others are tried again without these. If it does
        not say which ones, each half is tried alone.
        """
        try:
            return adapting(
                self._database,
                lambda: self._database.write(
                    lambda connection: self._transaction(connection, ids, parameters, actor)
                ),
            )
        except KeptError as exc:
            why = f"the database kept it as it was ({keeper(self._database)})"
            refused |= dict.fromkeys(exc.ids, why)
            parts = [[model_id for model_id in ids if model_id not in refused]]
        except (RefusedError, UsageError) as exc:
            if len(ids) == 1:
                refused[ids[0]] = exc.message
                return []
            middle = len(ids) // 2
            parts = [ids[:middle], ids[middle:]]
        done: list[str] = []
        for part in filter(None, parts):
            some = self._chunk(part, parameters, actor, refused)
            deadline.renew()
            if some is None:
                return done or None
            done += some
        return done

    def _transaction(
        self, connection: sa.Connection, ids: list[str], parameters: dict[str, Any], actor: str
    ) -> list[str] | None:
        """Lock the run, then the rows that are still due, and switch these on."""
        if not self._database.on_sqlite:
            key = lock_key(RECOVER_LOCK, self._database.schema)
            if not connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({key})")):
                return None
        sql = self._database.sql
        still_due = f"{sql.ids} AND {self._candidates.may_return} AND ({self._candidates.why_waiting}) IS NULL"
        change = bring_back(self._database, self._config.recovery.restart_failures)
        wanted = parameters | {"ids": sql.list_of_texts(ids)}
        changes = change_rows(
            self._database, connection, change, still_due, sql.skip_locked, wanted, actor
        )
        done = {change.id for change in changes}
        return [model_id for model_id in ids if model_id in done]


def _can_come_back(model_id: Any, refused: dict[str, str]) -> bool:
    """Whether the id can be read and the model is not in *refused*; add an unreadable id to that."""
    if not isinstance(model_id, str) or not is_storable(model_id):
        refused[readable(model_id)] = UNREADABLE
        return False
    return model_id not in refused
