"""What was taken out of a database. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Uninstalled:
    """What `db uninstall` removed, or would remove.

    *kept*: what stays that modelctl may have made, each with its reason. *refused*: what prevents it,
    in a dry run. *sql*: the statements of a dry run.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...] = ()
    dry_run: bool = False
    refused: tuple[str, ...] = ()
    sql: tuple[str, ...] = ()
