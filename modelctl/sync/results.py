"""What a catalogue changes in the fleet. Frozen data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelctl.model import CacheState


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """What a catalogue changes of one model, or what stays although the catalogue differs.

    *kind*: ``added``, ``changed``, ``gone`` (its source does not offer it any more), ``back`` (it does
    again), ``kept`` (it stays as it is, and *note* says why) or ``clash`` (an earlier source has it, too).
    *old*, *new*: the values that differ; of a new model, what it has.
    *source*: the name of the source; None of an import.
    """

    kind: str
    id: str
    old: Mapping[str, str]
    new: Mapping[str, str]
    source: str | None = None
    note: str | None = None

    @property
    def changed(self) -> bool:
        """Whether the model is new, differs, is gone or is back; not if it stays as it is."""
        return self.kind not in ("kept", "clash")


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What `sync` did, or would do in a dry run, in numbers of models; *changes* names each.

    *unchanged*: equal in the fleet. *kept*, *clashes*: as the kinds of `PlannedChange`.
    *ignored*: entries that `ignore` leaves out. *adopted*: models that were in the fleet already, and
    whose source is known from now on.
    *sources*: their names, in order. *changes*: on disk if they are many.
    *operation*: what the events of this sync have in common; None if it wrote none.
    *notes*: what else a person should know about the catalogues, in sentences.
    """

    sources: tuple[str, ...]
    added: int
    changed: int
    gone: int
    back: int
    kept: int
    clashes: int
    unchanged: int
    ignored: int
    adopted: int
    cache: CacheState
    dry_run: bool = False
    operation: str | None = None
    changes: Sequence[PlannedChange] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_silent(self) -> bool:
        """Whether the fleet is, or stays, as it was: nothing is new, differs, is gone or is back."""
        return not (self.added or self.changed or self.gone or self.back)
