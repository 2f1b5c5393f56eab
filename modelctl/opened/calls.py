"""What happens around each public method of `Fleet`: its deadline, more helpful errors, telemetry."""

from __future__ import annotations

import functools
import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from modelctl import deadline
from modelctl.errors import ModelNotFoundError, UsageError
from modelctl.model import name_the_text
from modelctl.opened.telemetry import observed

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from modelctl.opened.opened_fleet import OpenedFleet

_IDS = ("id", "ids", "old", "new")  # the parameters of methods that are ids of models
_T = TypeVar("_T", bound="type[OpenedFleet]")
_Method = TypeVar("_Method", bound="Callable[..., Any]")


def public_methods_in_time(*, besides: Container[str] = ()) -> Callable[[_T], _T]:
    """Wrap each public method of a class by `in_time`, also the inherited ones.

    *besides*: names of methods that wrap what they do themselves.
    """

    def wrap(cls: _T) -> _T:
        for name in dir(cls):
            method = inspect.getattr_static(cls, name)
            public = isinstance(method, FunctionType) and not name.startswith("_")
            if public and name not in besides:
                setattr(cls, name, in_time(method))
        return cls

    return wrap


def in_time(method: _Method) -> _Method:
    """Give each call of *method* a time limit, more helpful errors, and its span and log record.

    A call waits at most ``database.timeout`` for the database. The error of an unknown id names the
    nearest ids; that of a character that the database cannot store names the text that has it.
    """
    watched = observed(method)

    @functools.wraps(method)
    def call(self: OpenedFleet, *args: Any, **kwargs: Any) -> Any:
        with deadline.call(self.config.database.timeout):
            try:
                return watched(self, *args, **kwargs)
            except ModelNotFoundError as exc:
                self._name_the_nearest(exc)
                raise
            except UsageError as exc:
                if exc.character is None:
                    raise
                raise name_the_text(exc, _texts(self, method, args, kwargs)) from None

    return cast("_Method", call)


def _texts(
    fleet: OpenedFleet, method: Callable[..., Any], args: Any, kwargs: Any
) -> Iterator[tuple[str, object]]:
    """Give each argument of a call with a description of it, at last the actor."""
    for name, value in inspect.signature(method).bind(fleet, *args, **kwargs).arguments.items():
        for text in value if isinstance(value, tuple) else (value,):
            yield f"the id '{text}'" if name in _IDS else f"the {name}", text
    yield "the actor", fleet._actor
