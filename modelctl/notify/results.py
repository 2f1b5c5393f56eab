"""What `notify` did. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notified:
    """What one run of ``notify`` did.

    *sent*: how many events the receiver accepted. *waiting*: how many wait for the next run. *dropped*:
    how many were given up, because the receiver accepted nothing for a day. *cursor*: the id of the
    last event that needs no more attention; None: `notify` never ran.
    *busy*: another run is at work, so this one did nothing. *began*: the first run, which sends nothing
    older. *problem*: why the receiver did not accept a message; *permanent*: to try again does not help.
    *text*: in a dry run, the text of the first message.
    """

    sent: int
    waiting: int
    dropped: int
    cursor: int | None
    busy: bool = False
    began: bool = False
    problem: str | None = None
    permanent: bool = False
    dry_run: bool = False
    text: str | None = None
