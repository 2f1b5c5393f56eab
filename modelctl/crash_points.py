"""Named points between the steps of a change and a count, where a test stops or kills the process.

Nothing sets `hook` in production; then a point costs one comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS = (
    "before-commit",  # a change is made, not committed
    "after-commit",
    "after-due",  # the outbox is read
    "after-del",  # the count, its vouch and the lease are deleted
    "in-sweep",  # one page of other keys is deleted
    "before-settle",  # all caches are clear, the outbox does not say so
    "after-lease",  # a reader knows whether it may fill
    "after-snapshot",  # it has counted
    "in-fill",  # it has seen its lease, and not yet stored the count
)

hook: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Tell whoever listens that the process is at the point called *name*."""
    if hook is not None:
        hook(name)
