"""Checks of the arguments of `Fleet`; each raises `UsageError` and says what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from modelctl.errors import UsageError
from modelctl.model import ModelStatus, check_tags, storable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelctl.model import FailureType
    from modelctl.tables.selection import Selection

LONGEST_SECONDS = 3650 * 86400.0


def distinct(ids: Sequence[str]) -> list[str]:
    """Return each id once, in their order."""
    if not ids:
        raise UsageError("no model is named")
    for model_id in ids:
        if not isinstance(model_id, str):
            hint = "give each id as an argument: disable(*ids)"
            several = isinstance(model_id, list | tuple | set | frozenset)
            raise UsageError(
                f"a model id is text, not {type(model_id).__name__}", hint=hint if several else None
            )
    return list(dict.fromkeys(ids))


def failure(
    type_: FailureType | str | BaseException | None, http_status: int | None
) -> FailureType | None:
    """Return the type of a failure: given, or that of an HTTP status or of an exception.

    None: nothing is to be recorded.
    """
    from modelctl import health

    if http_status is not None:
        if isinstance(type_, BaseException) or type_ != "unknown":
            raise UsageError("give either a type (or an exception) or http_status, not both")
        if not isinstance(http_status, int) or isinstance(http_status, bool):
            raise UsageError(f"http_status is a number, not {type(http_status).__name__}")
        return health.failure_type_of_status(http_status)
    if isinstance(type_, BaseException):
        from modelctl.failures.classification import classify

        return classify(type_)
    return None if type_ is None else health.failure_type(type_)


def selection(value: Selection) -> Selection:
    """Return a selection whose values are as the database has them."""
    from dataclasses import replace

    from modelctl.globs import parse
    from modelctl.tables.selection import Selection

    if not isinstance(value, Selection):
        raise UsageError(f"a selection is a Selection, not {type(value).__name__}")
    given = value.given()
    if not given:
        raise UsageError("the selection names nothing", hint="all models are Selection(all=True)")
    if value.all and len(given) > 1:
        raise UsageError("all models, or those of a selection: give one of them")
    texts: dict[str, Any] = {
        name: storable(getattr(value, name))
        for name in ("provider", "match", "by", "source")
        if name in given
    }
    if value.match is not None:
        parse(texts["match"])
    if "tag" in given:
        texts["tag"] = check_tags([value.tag] if isinstance(value.tag, str) else value.tag)
    return replace(value, status=value.status and status(value.status), **texts)


def tags_to_change(
    add: str | Sequence[str], remove: str | Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return tags to add and to remove, as they are stored."""
    to_add, to_remove = (check_tags([t] if isinstance(t, str) else t) for t in (add, remove))
    if both := {*to_add} & {*to_remove}:
        raise UsageError(f"the tag '{min(both)}' is both to be added and to be removed")
    return to_add, to_remove


def models(
    ids: Sequence[str], select: Selection | None, limit_to: int | None
) -> list[str] | Selection:
    """Return the models that a call is about: ids, each once, or a selection."""
    if limit_to is not None and (not isinstance(limit_to, int) or not 0 <= limit_to < 2**63):
        raise UsageError(f"limit_to is 0 or more; {limit_to} is not")
    if select is None:
        if limit_to is not None and ids:
            raise UsageError("limit_to is for a selection, not for ids")
        return distinct(ids)
    if ids:
        raise UsageError("give either ids or a selection, not both")
    return selection(select)


def status(value: ModelStatus | str) -> ModelStatus:
    """Return the status of this name."""
    try:
        return ModelStatus(value)
    except ValueError:
        known = ", ".join(ModelStatus)
        raise UsageError(f"no status '{value}'", hint=f"one of: {known}") from None


def sort_key(name: str) -> str:
    """Return a key by which models can be sorted."""
    from modelctl.models.reads import SORT_KEYS

    if name not in SORT_KEYS:
        raise UsageError(f"no sort key '{name}'", hint=f"one of: {', '.join(SORT_KEYS)}")
    return name


def policy(name: str, known: tuple[str, ...]) -> str:
    """Return one of the *known* policies."""
    if name not in known:
        raise UsageError(f"no policy '{name}'", hint=f"one of: {', '.join(known)}")
    return name


def iterable(value: object, what: str) -> None:
    """Refuse what cannot be iterated over."""
    if not hasattr(value, "__iter__"):
        raise UsageError(f"{what} are a list or another iterable, not {value!r}")


def provider(name: str | None) -> str | None:
    """Return a provider as the database can store it."""
    return None if name is None else storable(name, 200)


def actor(name: str | None) -> str | None:
    """Return the name of who acts, as the database can store it."""
    if name is not None and not isinstance(name, str):
        raise UsageError(f"an actor is text, not {type(name).__name__}")
    return storable(name, 200) if name else None


def limit(value: int | None) -> int | None:
    """Return a limit; None and 0: there is none."""
    value = value or None
    if value is not None and (not isinstance(value, int) or not 1 <= value < 2**63):
        raise UsageError(f"a limit is 0 (no limit) or more and fits in 64 bits; {value} does not")
    return value


def seconds(value: float, what: str, *, positive: bool = False) -> None:
    """Refuse anything but 0 s to ten years. NaN too: every comparison with it is false."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= LONGEST_SECONDS or (positive and not value):
        least = "more than 0 s and at most" if positive else "from 0 s to"
        raise UsageError(f"{what} is {least} ten years")


def in_utc(time: datetime, what: str) -> datetime:
    """Return a time with a zone, in UTC."""
    if time.tzinfo is None:
        raise UsageError(f"{what} has no time zone", hint="write 2026-12-01T08:00Z")
    try:
        return time.astimezone(UTC)
    except OverflowError:  # in UTC it is beyond the last year that can be stored
        raise UsageError(f"{what} is beyond the calendar") from None


def moment(value: float | datetime | None, what: str) -> float | datetime | None:
    """Return an end of a listing: seconds ago, or a time in UTC."""
    if isinstance(value, datetime):
        return in_utc(value, what)
    if value is not None:
        seconds(value, what)
    return value


def time_or_age(value: datetime | float, clock: Callable[[], float]) -> datetime:
    """Return a time in UTC, or that of so many seconds ago; *clock*: now, in seconds since 1970."""
    if isinstance(value, datetime):
        return in_utc(value, "the time")
    seconds(value, "an age")
    return datetime.fromtimestamp(clock() - value, UTC)


def operation(text: str) -> str:
    """Return an operation as it is stored."""
    from modelctl.operation import is_operation

    if not isinstance(text, str) or not is_operation(text.upper()):
        raise UsageError(
            f"'{text}' is not an operation",
            hint="an operation has 26 characters, as in the field of that name of an event",
        )
    return text.upper()


def cursor(value: int) -> int:
    """Return the id of an event, or 0 for that before the first."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise UsageError(f"the id of an event is a whole number from 0 on, not {value!r}")
    return value


def time(value: datetime, what: str) -> datetime:
    """Return a time in UTC."""
    if not isinstance(value, datetime):
        raise UsageError(f"{what} is not a datetime")
    return in_utc(value, what)


def parts(number: int) -> int:
    """Return into how many parts a period is divided."""
    if not isinstance(number, int) or not 1 <= number <= 1000:
        raise UsageError(f"a period is divided into 1 to 1000 parts, not {number}")
    return number


def end(duration: float | None, until: datetime | None, clock: Callable[[], float]) -> float | None:
    """Return when a timed disable ends (seconds since 1970), None: it has no end.

    *clock*: the database's, in seconds since 1970.
    """
    if duration is None and until is None:
        return None
    if duration is not None and until is not None:
        raise UsageError("give either a duration or an end, not both")
    if until is not None:
        until = time(until, "the end")
    if duration is not None:
        seconds(duration, "a duration", positive=True)
    now = clock()
    ends_at = until.timestamp() if until is not None else now + (duration or 0)
    if ends_at <= now:
        raise UsageError("the end is in the past")
    return ends_at
