"""Named points between the steps of a change, of a count and of `notify`, where a test stops or kills the process.

Nothing sets `hook` in production; then a point costs one comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS = (
    "before-commit",  # a change is made or decided, but not committed
    "after-commit",  # it is committed
    "after-due",  # the change has read the outbox
    "after-del",  # it has deleted the count, its vouch and the lease
    "in-sweep",  # it has deleted one page of other keys
    "before-settle",  # all caches are clear, but the rows of the outbox are still there
    "after-lease",  # a reader knows whether it holds the lease
    "after-snapshot",  # it has counted
    "in-fill",  # it has checked its lease, but not yet stored the count
    "after-send",  # the receiver of a notification said yes, but that is not yet stored
)

hook: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Call the hook of a test, if there is one: the process is at the point called *name*."""
    if hook is not None:
        hook(name)
