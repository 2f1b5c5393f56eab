"""Storage: the opened database of one fleet, with all groups of statements that use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from modelctl.database.database import Database
from modelctl.forks import cached_property

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy as sa

    from modelctl.config.config import Config
    from modelctl.count.outbox import Outbox
    from modelctl.history.undo import Undo
    from modelctl.models.reads import Models
    from modelctl.models.status_changes import StatusChanges
    from modelctl.outcomes.record import Outcomes
    from modelctl.recovery.bring_back import BringBack
    from modelctl.recovery.candidates import Candidates
    from modelctl.recovery.holds import Holds
    from modelctl.recovery.last_run import LastRun
    from modelctl.recovery.probing import Probing
    from modelctl.tables.selection import Selection

T = TypeVar("T")


class Storage:
    """One database, PostgreSQL or SQLite, with one pool of connections.

    Each group of statements is made on first use. Their methods raise `DatabaseUnavailableError`,
    `InvalidConfigError` and `MissingSchemaError`.
    """

    def __init__(
        self, config: Config, *, pool_size: int, warn: Callable[[str], None] | None = None
    ) -> None:
        """*pool_size*: the maximum of connections. *warn* receives warnings that fail no call."""
        self._config = config
        self.database = Database(config, pool_size)
        if warn:
            self.database.warn = warn

    @cached_property
    def models(self) -> Models:
        """Reads of models."""
        from modelctl.models.reads import Models

        return Models(self._config, self.database)

    @cached_property
    def changes(self) -> StatusChanges:
        """Changes of status by a person."""
        from modelctl.models.status_changes import StatusChanges

        return StatusChanges(self._config, self.database)

    @cached_property
    def undo(self) -> Undo:
        """Undoes operations."""
        from modelctl.history.undo import Undo

        return Undo(self._config, self.database)

    @cached_property
    def outcomes(self) -> Outcomes:
        """Recording outcomes, one or many."""
        from modelctl.outcomes.record import Outcomes

        return Outcomes(self._config, self.database)

    @cached_property
    def outbox(self) -> Outbox:
        """The count, and the invalidations that are queued for its cache."""
        from modelctl.count.outbox import Outbox

        return Outbox(self._config, self.database)

    @cached_property
    def candidates(self) -> Candidates:
        """The models that may come back by themselves."""
        from modelctl.recovery.candidates import Candidates

        return Candidates(self._config, self.database)

    @cached_property
    def bring_back(self) -> BringBack:
        """Brings due models back."""
        from modelctl.recovery.bring_back import BringBack

        return BringBack(self._config, self.database, self.candidates)

    def recovery_of(self, selection: Selection) -> tuple[Candidates, BringBack]:
        """Return the candidates of a selection, and what brings these back.

        Raises:
            ModelNotFoundError: no model has the provider or matches the pattern of the selection.
        """
        from modelctl.recovery.bring_back import BringBack
        from modelctl.recovery.candidates import Candidates
        from modelctl.tables.selection import check_named

        check_named(self.database, selection)
        candidates = Candidates(self._config, self.database, selection)
        return candidates, BringBack(self._config, self.database, candidates)

    @cached_property
    def holds(self) -> Holds:
        """Pauses and incidents."""
        from modelctl.recovery.holds import Holds

        return Holds(self.database)

    @cached_property
    def last_run(self) -> LastRun:
        """When `recover` last finished."""
        from modelctl.recovery.last_run import LastRun

        return LastRun(self._config, self.database)

    @cached_property
    def probing(self) -> Probing:
        """The models that probes ask, and the failures of these."""
        from modelctl.recovery.probing import Probing

        return Probing(self.database)

    def close(self) -> None:
        """Close the pooled connections."""
        self.database.close()

    def schema(self, work: Callable[[sa.Connection, str], T]) -> T:
        """Call *work* with a connection and the name of the schema that has modelctl's own tables."""
        with self.database.connect() as connection:
            return work(connection, self._config.database.schema)

    def inspect(self, work: Callable[[sa.Connection, str], T]) -> T:
        """Like `schema`, for *work* that only reads: it does not wait for a writer of a SQLite file."""
        on_sqlite = self._config.sqlite_path is not None
        look = self.database.reading if on_sqlite else self.database.connect
        with look() as connection:
            return work(connection, self._config.database.schema)

    def version(self) -> str:
        """Return the database's name and version."""
        on_sqlite = self._config.sqlite_path is not None
        ask = "SELECT sqlite_version()" if on_sqlite else "SHOW server_version"
        with self.database.reading() as connection:
            version = connection.exec_driver_sql(ask).scalar()
        return f"{'SQLite' if on_sqlite else 'PostgreSQL'} {version}"
