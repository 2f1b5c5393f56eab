"""How the schema compares with the one that this release needs. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """How the schema compares with the one that this release needs.

    *current*, *head*: the revision of the database, and that of this release. *table*: the table
    ``models`` of an application, with its schema. *findings*: differences that `db upgrade`
    repairs. *obstacles*: differences that only a person can remove. *repaired*: what this run did.
    *owner*: of the table, on PostgreSQL; *rows*: of the table, an estimate above 100,000.
    *summary*: the table, and what an upgrade adds, or has added. *sql*: the statements of a dry run.
    """

    database: str
    current: str | None
    head: str
    up_to_date: bool
    table: str | None = None
    findings: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    dry_run: bool = False
    owner: str | None = None
    rows: int | None = None
    summary: str = ""
    sql: tuple[str, ...] = ()
