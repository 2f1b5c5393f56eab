"""One key of the configuration: its default, its type, its check, and how its value is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import Field, field
from typing import Any, NamedTuple, TypeVar

from modelctl.config.durations import format_duration, parse_duration
from modelctl.errors import CONTROLS, UsageError

_T = TypeVar("_T")


def key(default: _T, about: str, unit: str, check: Callable[[Any], Any]) -> _T:
    """Describe a key of a section, as the value of a dataclass field.

    *default*: its type is the type of the key; a float is a duration, unless *unit* is "number".
    *about*: one line for the example file. *unit*: what the value counts; a key whose unit is "URL"
    may hold a password. *check*: returns the value to use, or raises a `UsageError` that says what
    is wrong with it but not where it stands.
    """
    metadata = {"help": about, "unit": unit, "check": check}
    return field(default=default, repr=unit != "URL", metadata=metadata)


def between(low: float, high: float, show: Callable[[Any], str] = str) -> Callable[[Any], Any]:
    """Return a check that a number is at least *low* and at most *high*."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise UsageError(f"must be {show(low)} to {show(high)}")
        return value

    return check


def duration_between(low: float, high: float) -> Callable[[Any], Any]:
    """Return a check that a duration is at least *low* and at most *high* seconds."""
    return between(low, high, format_duration)


def read_value(raw: object, default: object) -> Any:
    """Convert *raw*, as TOML gives it, to the type of *default*; a float is a duration.

    Raises:
        UsageError: *raw* has another type, or control characters.
    """
    if isinstance(default, bool):
        if not isinstance(raw, bool):
            raise UsageError("must be true or false")
        return raw
    if isinstance(default, int):
        # Not isinstance: true is an int, too.
        if type(raw) is not int:
            raise UsageError("must be a whole number")
        return raw
    if isinstance(default, tuple):
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise UsageError("must be a list of strings")
        return tuple(raw)
    if not isinstance(raw, str):
        is_duration = isinstance(default, float)
        wanted = 'a duration with its unit, such as "90s"' if is_duration else "a string"
        raise UsageError(f"must be {wanted}")
    if CONTROLS.search(raw):
        raise UsageError("must not contain control characters")
    return parse_duration(raw) if isinstance(default, float) else raw


def check_program(command: tuple[str, ...]) -> None:
    """Check that a command begins with a program.

    Raises:
        UsageError: it does not.
    """
    if not command[0].strip() or "\0" in "".join(command):
        raise UsageError("command must begin with a program and have no NUL character")


class Key(NamedTuple):
    """One key of a section, such as ``ttl`` of ``[cache]``."""

    section: str
    field: Field[Any]

    def __str__(self) -> str:
        return f"{self.section}.{self.field.name}"

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"MODELCTL_{self.section}_{self.field.name}".upper()

    @property
    def secret(self) -> bool:
        """Whether its value may hold a password and must not be shown."""
        return not self.field.repr

    @property
    def number(self) -> bool:
        """Whether it is a plain number; any other float is a duration."""
        return bool(self.field.metadata["unit"] == "number")

    def read(self, raw: object) -> Any:
        """Return the checked value of *raw*, as TOML gives it.

        Raises:
            UsageError: the value is wrong; says what is wrong, not where it stands.
        """
        check = self.field.metadata["check"]
        if not self.number:
            return check(read_value(raw, self.field.default))
        if type(raw) not in (int, float):
            raise UsageError("must be a number")
        return check(float(raw))  # type: ignore[arg-type]  # the line above

    def read_text(self, text: str) -> Any:
        """Return the checked value of *text*, from the environment; raises as `read` does."""
        text = text.strip()
        if not text and not self.secret:
            raise UsageError("is empty", hint="unset it to use the default")
        if isinstance(self.field.default, tuple):
            return self.read([item.strip() for item in text.split(",")])
        # Text that is no number goes to `read`, which refuses it. int() takes no more digits.
        if self.number and re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", text):
            return self.read(float(text))
        if isinstance(self.field.default, int) and re.fullmatch("-?[0-9]{1,18}", text):
            return self.read(int(text))
        return self.read(text)
