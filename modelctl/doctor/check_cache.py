"""The cache of the count: the queue of invalidations, Redis, and where other processes deliver."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from modelctl.count.outbox import COLLAPSED_ABOVE
from modelctl.doctor import places
from modelctl.doctor.facts import Finding, first_three, warning, well, wrong

if TYPE_CHECKING:
    from modelctl.doctor.facts import Facts


def queue(facts: Facts) -> Finding | None:
    """Find invalidations that no process delivers."""
    if facts.on_sqlite:
        return None
    outbox = facts.storage.outbox
    queued, settling, age = outbox.queue()
    facts.numbers |= {"queued": queued, "oldest_queued": float(age or 0)}
    oldest = f", the oldest {age:.0f} s old" if age is not None else ""
    detail = f"{queued} queued{oldest}, {settling} settling"
    if facts.cached_count.cache.needs_delivery:
        # Every change and every recover delivers. So an older row means that delivery failed, or that
        # modelctl did not run since another program changed a model.
        if age is not None and age > facts.config.cache.ttl:
            return wrong(
                f"{detail}; run: modelctl cache drain (modelctl run if other programs write models)"
            )
        return well(detail)
    # If other processes deliver, the check `delivery` says so.
    if not (queued or settling) or outbox.places():
        return None
    detail += (
        "; no Redis is configured here, and no process delivered an invalidation in the last day."
        " If the count is cached in Redis, set redis.url"
    )
    if queued <= 2 * COLLAPSED_ABOVE:
        return well(detail)
    return warning(f"{detail}; if not, run: modelctl cache drain (recover also makes few of them)")


def cache(facts: Facts) -> Finding:
    """Try what modelctl does in Redis, without reading or changing anything."""
    address = facts.cached_count.cache.address
    if not facts.cached_count.cache.needs_delivery:
        return well(address)
    from modelctl.doctor.redis_rights import RedisRights

    with closing(RedisRights(facts.config)) as redis:
        found = redis.refusals()
        problems = [found.trouble] if found.trouble else []
        if found.rights:
            command = f"ACL SETUSER {redis.user} {' '.join(found.rights)}"
            problems.append(f"the ACL of this user lacks rights; on each server, run: {command}")
        if problems:
            return wrong(f"{'; '.join(problems)} (at {address})")
        facts.redis_server_id = redis.server_id()
    if facts.redis_server_id:
        return well(f"Redis answers, {address}")
    return warning(
        f"Redis answers, {address}; it does not tell its run id (is there a proxy?), so modelctl cannot"
        " notice a failover that loses writes"
    )


def delivery(facts: Facts) -> Finding | None:
    """Find processes that clear another Redis, and other fleets that use the same key."""
    if facts.on_sqlite:
        return None
    outbox, here = facts.storage.outbox, facts.cached_count.cache.identity
    if fleets := places.shared_with(outbox, here, facts.redis_server_id):
        return wrong(
            f"the fleet in schema {first_three(fleets)} of this database keeps its count under the same"
            " key of the same Redis, so each fleet shows the other's count: give each its own"
            " cache.count_key"
        )
    elsewhere, newer = places.elsewhere(outbox, here, facts.redis_server_id)
    if not facts.cached_count.cache.needs_delivery:
        if not elsewhere:
            return None
        return wrong(
            f"other processes of this database cache the count ({first_three(elsewhere)}), and a change"
            " made here does not clear it at once: set redis.url here too"
        )
    if not elsewhere:
        return well("all processes deliver here")
    which = "the last" if newer else "another"
    detail = (
        f"{which} process of this database that made a change cleared the count in another place"
        f" ({first_three(elsewhere)}), where it is cached too: give all processes the same redis.url and"
        " cache.count_key. After a move to another Redis this message ends within a day"
    )
    return wrong(detail) if newer else warning(detail)
