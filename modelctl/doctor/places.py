"""Where other processes cache the count: `doctor` warns where one database has several caches.

Each delivery of an invalidation stores its *place* (`Cache.identity`): the address of Redis and the
key of the count. A
change clears the count in the place that its process is configured with, and in no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelctl.count.outbox import Outbox


def elsewhere(outbox: Outbox, here: str, server_id: str) -> tuple[list[str], bool]:
    """Return the other places of the last day, newest first, and whether the first is newer than ours.

    *here*: the place of this process. *server_id*: the identity of the Redis server there. Another
    address with the same identity is the same server.
    """
    places = outbox.places()
    other = [place for place in places if not _is_same(place, places[place], here, server_id)]
    return other, bool(other) and other[0] == next(iter(places))


def shared_with(outbox: Outbox, here: str, server_id: str) -> list[str]:
    """Return the schemas of other fleets in this database that cache their count in our place."""
    return [
        schema
        for schema in outbox.other_fleets()
        if any(
            _is_same(place, there, here, server_id)
            for place, there in outbox.places(schema).items()
        )
    ]


def _is_same(place: str, there: str, here: str, server_id: str) -> bool:
    """Whether *place*, on the server with the identity *there*, is ours."""
    same_server = bool(server_id) and there == server_id
    return place == here or (same_server and _on_server(place) == _on_server(here))


def _on_server(place: str) -> tuple[str, str]:
    """What tells two places on one server apart: the number of the Redis database, and the key."""
    address, _, key = place.partition(" ")
    return address.rpartition("/")[2], key
