"""The SQLite database that modelctl creates on first use."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from modelctl.database import sqlite
from modelctl.migrations.migrate import upgrade
from modelctl.opened.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import sqlalchemy as sa

    from modelctl.config.config import Config

T = TypeVar("T")


def looked_at(work: Callable[[sa.Connection], T]) -> T:
    """Call *work* with an empty database in memory, in place of a file that is not there yet."""
    from sqlalchemy import create_engine

    engine = create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            return work(connection)
    finally:
        engine.dispose()


def create(config: Config, path: Path) -> None:
    """Create the database at *path* with its schema, complete or not at all."""

    def migrate(draft: Path) -> None:
        database = replace(config.database, url=f"sqlite:///{quote(os.fsencode(draft))}")
        store = Storage(replace(config, database=database), pool_size=1)
        store.schema(upgrade)
        store.close()

    sqlite.create(path, migrate)
