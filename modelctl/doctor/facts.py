"""`Facts`, the argument of every check of doctor, and `Finding`, the result of a check."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelctl.config.config import Config
    from modelctl.count.protocol import CachedCount
    from modelctl.doctor.results import Audit
    from modelctl.doctor.rights import Rights, Table
    from modelctl.doctor.survey import Survey
    from modelctl.opened.storage import Storage


class Finding(NamedTuple):
    """What one check found; *detail*: in words, with what to do about it."""

    ok: bool
    detail: str
    warning: bool = False


def well(detail: str) -> Finding:
    """Everything is as it should be."""
    return Finding(True, detail)


def warning(detail: str) -> Finding:
    """Everything works, but a person should look at it."""
    return Finding(True, detail, warning=True)


def wrong(detail: str) -> Finding:
    """Something fails, or a number may be wrong."""
    return Finding(False, detail)


class Facts:
    """The opened fleet, and what earlier checks have found out for later ones."""

    def __init__(
        self,
        config: Config,
        open_storage: Callable[[], Storage],
        cached_count: CachedCount,
        *,
        audit_wanted: bool,
    ) -> None:
        """*open_storage* connects when it is called."""
        self.config = config
        self.cached_count = cached_count
        self.audit_wanted = audit_wanted
        self._open_storage = open_storage
        self.connected = False
        self.schema_missing = False
        # The names of the checks that found something wrong.
        self.failed: set[str] = set()
        # Tables that another session has locked, by their names without the schema.
        self.locked: set[str] = set()
        # The identity of the Redis server; empty: unknown.
        self.redis_server_id = ""
        self.audit: Audit | None = None
        # What the checks counted, for graphs; a number of seconds is a float.
        self.numbers: dict[str, float] = {}

    @property
    def storage(self) -> Storage:
        """The database; connects on first use."""
        return self._open_storage()

    @property
    def on_sqlite(self) -> bool:
        """Whether the database is a SQLite file."""
        return self.config.sqlite_path is not None

    @functools.cached_property
    def database_is_new(self) -> bool:
        """Whether the embedded database does not exist yet. A check must not create it."""
        path = self.config.sqlite_path
        return path is not None and self.config.embedded and not path.exists()

    @functools.cached_property
    def rights(self) -> Rights:
        """Tries what this process may do in the database."""
        from modelctl.doctor.rights import Rights

        return Rights(self.storage.database)

    @functools.cached_property
    def tables(self) -> dict[str, Table]:
        """The tables that PostgreSQL finds, by their names without the schema."""
        return self.rights.tables()

    @functools.cached_property
    def survey(self) -> Survey:
        """Counts of the models, and of what is odd about them."""
        from modelctl.doctor.survey import survey

        return survey(self.storage.database, self.config.health.counted)


def first_three(names: Sequence[str]) -> str:
    """Join at most three names."""
    return ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
