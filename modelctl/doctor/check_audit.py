"""``doctor --audit``: the cached count compared with the database."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from modelctl.doctor.facts import Finding, well, wrong
from modelctl.doctor.results import Audit

if TYPE_CHECKING:
    from modelctl.doctor.facts import Facts

COMPARISONS = 2
PAUSE_SECONDS = 5.0


def audit(facts: Facts) -> Finding | None:
    """Compare several times: only a difference that stays is wrong, not one during a change."""
    from modelctl.migrations import migrate

    if not facts.audit_wanted or facts.database_is_new:
        return None
    differed = 0
    for comparison in range(COMPARISONS):
        if comparison:
            time.sleep(PAUSE_SECONDS)
        differed += not facts.cached_count.verify().match
    triggers = all(facts.storage.inspect(migrate.triggers).values())
    facts.audit = Audit(COMPARISONS, differed, facts.storage.outbox.queue()[2], triggers)
    detail = f"{differed} of {COMPARISONS} comparisons differed"
    return wrong(detail) if differed == COMPARISONS else well(detail)
