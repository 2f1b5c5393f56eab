"""What a recorder says about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecorderStats:
    """How many outcomes a recorder has been given in this process, and what became of them.

    *recorded*: committed. *waiting*: in memory, not committed. *dropped*: not recorded and not tried
    again, because the recorder was full, because the database refused the outcome, or because the
    recorder was closed: while the database was away, or before a `Recorder.call` ended. *unknown*: their ids name no model. *retries*: how
    often a batch was tried again.
    """

    recorded: int
    waiting: int
    dropped: int
    unknown: int
    retries: int
