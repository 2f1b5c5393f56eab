"""Patterns such as ``gpt-4*``, for each database and for Python: of a whole text, case-sensitive."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable
from typing import NamedTuple

from modelctl.errors import UsageError

_LONGEST = 500
_SPECIAL_IN_SETS = "]^-"  # in the sets of SQLite these have a meaning that depends on their place


class _Set(NamedTuple):
    """One character of these, or (*negated*) any other; *ranges*: first and last character of each."""

    negated: bool
    ranges: tuple[tuple[str, str], ...]


class Glob(NamedTuple):
    """A pattern: texts, None for ``*``, and sets; ``?`` is a set that leaves out nothing."""

    parts: tuple[str | _Set | None, ...]

    def for_postgresql(self) -> str:
        """Return the regular expression."""
        return f"^{''.join(map(_regex, self.parts))}$"

    def for_python(self) -> str:
        """Return the regular expression, for `re.DOTALL`; its time grows no faster than the text."""
        first, *others = "".join(map(_regex, self.parts)).split(".*")
        if not others:
            return first
        # Each star takes as little as it can, for good: then nothing is tried twice.
        *middle, last = others
        return f"{first}{''.join(f'(?>.*?{text})' for text in middle)}.*{last}"

    def for_sqlite(self) -> str:
        """Return the pattern of GLOB."""
        return "".join(map(_sqlite, self.parts))


def parse(pattern: str) -> Glob:
    """Read a pattern: ``*`` any text, ``?`` any character, ``[abc]``, ``[a-z]``, ``[!a]`` one of a set.

    Raises:
        UsageError: a set does not end, or a range runs backwards.
    """
    if len(pattern) > _LONGEST:
        raise UsageError(f"a pattern has at most {_LONGEST} characters")
    parts: list[str | _Set | None] = []
    place = 0
    while place < len(pattern):
        char = pattern[place]
        place += 1
        if char == "*":
            if parts[-1:] != [None]:
                parts.append(None)
        elif char == "?":
            parts.append(_Set(True, ()))
        elif char == "[":
            found, place = _parse_set(pattern, place)
            parts.append(found)
        else:
            parts.append(char)
    return Glob(tuple(parts))


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that says whether a text matches one of *patterns*; raises as `parse` does."""
    expressions = [f"(?:{parse(pattern).for_python()})" for pattern in patterns]
    if not expressions:
        return lambda _: False
    # One expression for all of them: 200 expressions for 200 patterns take 70 times as long.
    compiled = re.compile("|".join(expressions), re.DOTALL)
    return lambda text: compiled.fullmatch(text) is not None


def is_glob(text: str) -> bool:
    """Whether a text has characters with a meaning in a pattern."""
    return any(char in text for char in "*?[")


def escape(text: str) -> str:
    """Return the pattern that matches exactly this text."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _parse_set(pattern: str, start: int) -> tuple[_Set, int]:
    """Read a set; *start*: behind its ``[``. Return it, and the place behind its ``]``."""
    negated = pattern[start : start + 1] in ("!", "^")
    start += negated
    end = pattern.find("]", start + 1)  # a ] that comes first is one of the characters
    if end < 0:
        raise UsageError(
            f"'{pattern}': the [ has no ]", hint="for the character [ itself write [[]"
        )
    ranges = []
    place = start
    while place < end:
        first = last = pattern[place]
        place += 1
        if pattern[place : place + 1] == "-" and place + 1 < end:
            last = pattern[place + 1]
            place += 2
        if last < first:
            raise UsageError(f"'{pattern}': the range {first}-{last} runs backwards")
        ranges.append((first, last))
    return _Set(negated, tuple(ranges)), end + 1


def _regex(part: str | _Set | None) -> str:
    if part is None:
        return ".*"
    if isinstance(part, str):
        return _escaped(part)
    if not part.ranges:
        return "."
    ranges = "".join(f"{_escaped(first)}-{_escaped(last)}" for first, last in part.ranges)
    return f"[{'^' * part.negated}{ranges}]"


def _escaped(char: str) -> str:
    return f"\\{char}" if char in string.punctuation else char


def _sqlite(part: str | _Set | None) -> str:
    if part is None:
        return "*"
    if isinstance(part, str):
        return part
    if not part.ranges:
        return "?"
    special = [c for c in _SPECIAL_IN_SETS if any(a <= c <= b for a, b in part.ranges)]
    ranges = "".join(f"{a}-{b}" for pair in part.ranges for a, b in _without_special(*pair))
    if special == ["^"] and not (part.negated or ranges):
        return "^"
    # Where each special character means itself: ] first, then -, and ^ at the end.
    first = "".join(c for c in "]-" if c in special)
    return f"[{'^' * part.negated}{first}{ranges}{'^' * ('^' in special)}]"


def _without_special(first: str, last: str) -> list[tuple[str, str]]:
    """Split a range at the special characters, which are left out."""
    ranges, start = [], ord(first)
    for char in sorted(_SPECIAL_IN_SETS):
        if start <= ord(char) <= ord(last):
            if start < ord(char):
                ranges.append((chr(start), chr(ord(char) - 1)))
            start = ord(char) + 1
    if start <= ord(last):
        ranges.append((chr(start), last))
    return ranges
