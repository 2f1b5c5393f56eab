"""Frozen dataclasses that are cheap to define: a command that takes 0.1 s defines thirty of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar, cast, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make *cls* what ``@dataclass(frozen=True, slots=True)`` makes of it, in half the time.

    Comparing, hashing and printing are the same for all of them, instead of written and compiled
    for each. Every field counts for that: there is no ``compare=False``.
    """
    made: Any = dataclass(frozen=True, slots=True, eq=False, repr=False)(cls)
    made._values = attrgetter(*(f.name for f in fields(made)))
    made.__eq__, made.__hash__, made.__repr__ = _eq, _hash, _repr
    return cast("type[T]", made)


def _eq(self: Any, other: Any) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return self._values(self) == other._values(other)


def _hash(self: Any) -> int:
    return hash(self._values(self))


def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"
