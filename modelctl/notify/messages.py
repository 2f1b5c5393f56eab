"""Messages: what the receiver gets of some events, as JSON with a text that Slack shows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from modelctl.errors import clean
from modelctl.model import numbered
from modelctl.times import written

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from modelctl.models.results import Event

# Many servers take no more than 100 kB; a message with one event may be longer.
_MOST_BYTES = 90_000
# Slack recommends at most 4,000 characters.
_MOST_LINES = 20
_LONGEST_LINE = 160


class Notice(NamedTuple):
    """The number of active models fell below *min_active*, or is not below it any more."""

    at: datetime
    below: bool
    active: int
    min_active: int


class Message(NamedTuple):
    """A message: its *text*, its *content*, which is JSON, and how many *events* and *items* it has.

    The notice is an item, but not an event.
    """

    text: str
    content: bytes
    events: int
    items: int


def message(
    events: Sequence[Event], notice: Notice | None, dropped: int, max_ejections: int
) -> Message:
    """Return the message with as many of *events* as have room, and the notice if all have.

    *dropped*: how many earlier events were given up, which the receiver does not know yet.
    """
    items: list[dict[str, Any]] = []
    size = 0
    for event in events:
        item = asdict(event) | {"at": event.at and written(event.at)}
        size += len(_json(item))
        if items and size > _MOST_BYTES:
            break
        items.append(item)
    number = len(items)
    lines = [_line(event, max_ejections) for event in events[: min(number, _MOST_LINES)]]
    if number > len(lines):
        lines.append(f"... and {number - len(lines)} more")
    if notice and number == len(events):
        items.append(_item(notice))
        lines.append(_notice_line(notice))
    if dropped:
        lines.append(
            f"{numbered(dropped, 'earlier event')} could not be delivered for a day;"
            " the history has them (modelctl events)"
        )
    text = _escaped("\n".join([_heading(items), *lines]))
    document = {"text": text, "events": items, "dropped": dropped}
    return Message(text, _json(document).encode(), number, len(items))


def ejected(event: Event, max_ejections: int) -> bool:
    """Whether a model waits for a person after this event: it was auto-disabled too often."""
    new = _detail(event, "new")
    times = new.get("ejections") if isinstance(new, dict) else None
    return event.event == "auto-disabled" and type(times) is int and 0 < max_ejections <= times


def _detail(event: Event, name: str) -> Any:
    """Return a detail; another program may have written anything."""
    return event.details.get(name) if isinstance(event.details, dict) else None


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _heading(items: Sequence[dict[str, Any]]) -> str:
    kinds = Counter(clean(str(item["event"])) for item in items)
    return "modelctl: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def _line(event: Event, max_ejections: int) -> str:
    """Return a line of the text; control characters are escaped, so it is one line."""
    of = event.model_id or (f"provider {event.provider}" if event.provider else "the fleet")
    why = [word for word in (event.reason, event.failure_type) if word]
    guard = _detail(event, "guard")
    if event.event == "would-disable" and isinstance(guard, str):
        why.insert(0, f"kept active by the guard {guard}")
    by = f" by {event.actor}" if event.actor else ""
    words = f"{of} {event.event}{by}" + (f": {', '.join(why)}" if why else "")
    # The id comes first, so that a long reason is cut and not the id.
    line = clean(words, longest=_LONGEST_LINE)
    at = f"{event.at:%m-%d %H:%MZ} " if event.at else ""
    return f"- {at}{line}" + ("; it waits for a person" if ejected(event, max_ejections) else "")


def _item(notice: Notice) -> dict[str, Any]:
    """Return a notice in the form of an event."""
    return {
        "id": None,
        "at": written(notice.at),
        "model_id": None,
        "event": _name(notice),
        "details": {"active": notice.active, "min_active": notice.min_active},
    }


def _name(notice: Notice) -> str:
    return "below-min-active" if notice.below else "min-active-restored"


def _notice_line(notice: Notice) -> str:
    now = "fewer than" if notice.below else "again at least"
    return f"- {numbered(notice.active)} active, {now} the {notice.min_active} of notify.min_active"


def _escaped(text: str) -> str:
    """Escape what Slack reads as markup: a name must not mention a channel or hide a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
