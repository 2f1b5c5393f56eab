"""Fleet: the library. One method for each command; each calls the wing that does the work."""

from __future__ import annotations

from modelctl.fleet.catalogs import CatalogCommands
from modelctl.fleet.changes import ChangeCommands
from modelctl.fleet.counting import CountCommands
from modelctl.fleet.edits import EditCommands
from modelctl.fleet.history import HistoryCommands
from modelctl.fleet.ignoring import IgnoreCommands
from modelctl.fleet.reads import ReadCommands
from modelctl.fleet.recording import RecordingCommands
from modelctl.fleet.recovery import RecoveryCommands
from modelctl.opened.calls import public_methods_in_time
from modelctl.upkeep.backup import BackupCommands
from modelctl.upkeep.installation import UpkeepCommands
from modelctl.upkeep.notifying import NotifyCommands


# A count that this process remembers is answered in less time than the wrapping takes.
@public_methods_in_time(besides=("count",))
class Fleet(
    CountCommands,
    ReadCommands,
    HistoryCommands,
    RecordingCommands,
    ChangeCommands,
    CatalogCommands,
    IgnoreCommands,
    EditCommands,
    RecoveryCommands,
    NotifyCommands,
    UpkeepCommands,
    BackupCommands,
):
    """The models of one database, their count and its cache.

    Open a fleet with `Fleet.open`; use it as a context manager, or `close` it. Threads may share
    it, and it may live as long as the application: it connects on first use and keeps its
    connections. A process may fork at any time: the child makes connections of its own.

    Text that the database cannot store as it is gets changed: longer text is cut, NUL and lone
    surrogates become U+FFFD. An id is never changed like that: no such model exists.

    Every method raises a child of `ModelctlError`: `DatabaseUnavailableError` (try again later),
    `InvalidConfigError`, `MissingSchemaError`; each method names the others. A method waits at most
    ``database.timeout`` for the database. An invalidation that could not be delivered is not an
    exception: the result's ``cache`` is ``"queued"``, and the next change, recover or drain
    delivers it.
    """
