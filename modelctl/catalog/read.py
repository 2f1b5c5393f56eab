"""The bytes of a catalogue become values: JSON, JSON Lines, or YAML for a LiteLLM proxy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from modelctl.catalog.entries import Entry
from modelctl.catalog_format import CatalogFormat
from modelctl.errors import UsageError, clean
from modelctl.model import ID_LENGTH

if TYPE_CHECKING:
    from typing import BinaryIO

# A JSON document, or a line of JSON Lines, is read into memory whole. LiteLLM's price list has 3 MB.
LARGEST_VALUE = 16 << 20
# The configuration of a proxy has about 10 KiB, and YAML takes a hundred times as long to read.
LARGEST_YAML = 1 << 20
KNOWN_FORMATS = f"formats known: {', '.join(CatalogFormat)}"
# How many repeated keys a note names.
_MOST_KEYS = 5


def load(stream: BinaryIO, repeated: RepeatedKeys) -> tuple[object, Iterator[Entry] | None]:
    """Return the document, JSON or YAML; or else, for JSON Lines, None and the objects of the lines."""
    lines = _lines(stream)
    number, first = next(lines, (0, b""))
    if not first:
        raise UsageError("the catalogue is empty")
    place = f"line {number}"
    try:
        value = _json(first, place, repeated)
    except UsageError as exc:
        if len(first) > LARGEST_VALUE:
            raise
        # Either the value goes on in the next line, or the line is broken. A value that is printed on
        # several lines begins with a bracket alone; then "line 1 is not JSON" would not help.
        whole = b"\n" * (number - 1) + first + stream.read(LARGEST_VALUE + 1)
        try:
            return _json(whole, "the catalogue", repeated), None
        except UsageError:
            if first.strip() in (b"{", b"[") or len(whole) > LARGEST_VALUE:
                raise
        if _YAML.search(whole):
            return _yaml(whole), None
        raise exc from None
    following = next(lines, None)
    if following is None:
        return value, None

    def objects() -> Iterator[Entry]:
        yield place, _object(value, place)
        for n, line in chain([following], lines):
            yield f"line {n}", _object(_json(line, f"line {n}", repeated), f"line {n}")

    return None, objects()


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Give the lines that are not blank, with their numbers."""
    # Split at line feeds only: U+2028 and its like may stand in a JSON string.
    for number, line in enumerate(iter(lambda: stream.readline(LARGEST_VALUE + 1), b""), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


# The key that makes a YAML file the configuration of a LiteLLM proxy.
_YAML = re.compile(rb"^model_list[ \t]*:", re.MULTILINE)


def _yaml(source: bytes) -> object:
    """Read the configuration of a LiteLLM proxy. No message quotes it, because it may hold keys."""
    import yaml

    if len(source) > LARGEST_YAML:
        raise UsageError("a YAML catalogue has at most 1 MiB", hint="write JSON Lines instead")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(source, loader)  # noqa: S506 - it is a safe loader
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(exc, "problem", None) or "it cannot be read"
        raise UsageError(f"the catalogue is not YAML: {problem}{place}") from None
    except (ValueError, RecursionError, TypeError) as exc:
        # For example an invalid date, or a list as a key.
        raise UsageError(f"the catalogue is not YAML: {type(exc).__name__}") from None


def _json(source: bytes, place: str, repeated: RepeatedKeys) -> object:
    if len(source) > LARGEST_VALUE:
        raise UsageError(
            f"{place} is a JSON value of more than 16 MiB",
            hint="write JSON Lines, with one model on each line; their number is not limited",
        )
    try:
        text = source.decode()
    except UnicodeDecodeError as exc:
        raise UsageError(f"{place} is not UTF-8 text") from exc
    if "\0" in text:  # JSON has no NUL, but UTF-16 text has
        raise UsageError(f"{place} is not UTF-8 text")
    text = text.rstrip("\r\n")
    try:
        return repeated.decode(text)
    except json.JSONDecodeError as exc:
        line = f"line {exc.lineno}, " if "\n" in text else ""
        raise UsageError(
            f"{place} is not JSON: {exc.msg} ({line}column {exc.colno})", hint=KNOWN_FORMATS
        ) from exc
    except ValueError as exc:  # Python refuses an integer of more than 4300 digits
        raise UsageError(f"{place} has a number that is too long") from exc
    except RecursionError as exc:
        raise UsageError(f"{place} is nested too deeply") from exc


def _object(value: object, place: str) -> object:
    if not isinstance(value, dict):
        raise UsageError(f"{place} is not a JSON object", hint=KNOWN_FORMATS)
    return value


class RepeatedKeys:
    """The keys that stand twice in a JSON object: the hook of the JSON reader notices them."""

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}  # a set that keeps the order
        self._times = 0
        # One decoder for all lines of JSON Lines: to make one takes as long as to read a line.
        self.decode = json.JSONDecoder(object_pairs_hook=self.object).decode

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Make an object of its pairs, and note the keys that stand twice."""
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    self._times += 1
                    if len(self._keys) < _MOST_KEYS:
                        self._keys[key] = None
                seen.add(key)
        return made

    def notes(self) -> Iterator[str]:
        """Give the note for the person who imports the catalogue, if there is any."""
        if self._times:
            keys = ", ".join(f"'{clean(key, longest=ID_LENGTH)}'" for key in self._keys)
            more = ", and more" if self._times > len(self._keys) else ""
            yield f"the last of repeated keys counts: {keys}{more}"
