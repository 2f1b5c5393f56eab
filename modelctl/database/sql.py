"""Where the SQL of PostgreSQL and SQLite differs, and what every statement uses.

A statement is written once, with the properties and methods of `Sql` where the databases differ.
Most of these take an expression or the name of a column and return an expression.
"""

from __future__ import annotations

import functools
import json
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from modelctl.globs import Glob

# The same object for the same text, so that SQLAlchemy parses each statement once.
text = functools.cache(sa.text)

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Sql(ABC):
    """The SQL of one database: what differs between the two is abstract."""

    now: str  # the time at which it is evaluated
    cooldown: str  # seconds; the element of the list :cooldowns for this row's number of ejections
    collation: str  # compare texts by code points, whatever collation the database has
    # After a column of the application that is compared with a column of ours: the index of ours is
    # used only for the collation that it has, which is that of the database.
    our_collation: str
    lock: str  # after ORDER BY: lock the rows until the transaction ends, in this order
    lock_to_delete: str  # the same, before a DELETE
    skip_locked: str  # the same, without the rows that other transactions have locked

    # What the arithmetic on seconds is exact to: the digits that the database stores of a second.
    digits_of_a_second: int

    @property
    def by_id(self) -> str:
        """The sort key of models, in the same order on both databases."""
        return f"id{self.collation}"

    @property
    def ids(self) -> str:
        """Whether the id of a row is one of :ids."""
        return self.is_among("id")

    @abstractmethod
    def seconds_from_now(self, seconds: str) -> str:
        """The time this many seconds from now."""

    @abstractmethod
    def epoch(self, time: str) -> str:
        """A time as seconds since 1970."""

    @abstractmethod
    def time(self, epoch: str) -> str:
        """Seconds since 1970 as a time."""

    @abstractmethod
    def is_finite(self, column: str) -> str:
        """Whether a column holds a time that will come: not infinity, and not unreadable text."""

    @abstractmethod
    def greater(self, one: str, other: str) -> str:
        """The greater of two numbers."""

    @abstractmethod
    def lesser(self, one: str, other: str) -> str:
        """The lesser of two numbers."""

    @abstractmethod
    def units(self, time: str) -> str:
        """A time as a whole number since 1970, in units of the last of `digits_of_a_second`."""

    @abstractmethod
    def text_in_json(self, document: str, *path: str) -> str:
        """The text at this path of a JSON object; NULL where there is none."""

    @abstractmethod
    def list_of_lists(self, *columns: str) -> str:
        """An aggregate: a JSON list with a list of the numbers of each row, in any order."""

    @abstractmethod
    def json_object(self, members: Mapping[str, str]) -> str:
        """A JSON object with these members: each a name, and an expression."""

    @abstractmethod
    def time_as_text(self, time: str) -> str:
        """A time as the API writes it, with a Z at the end."""

    @abstractmethod
    def differs(self, one: str, other: str) -> str:
        """Whether two values differ, where NULL equals NULL."""

    @abstractmethod
    def text_at(self, document: str, *path: str) -> str:
        """The text at a path in a JSON document; NULL if there is none, or if it is not JSON."""

    @abstractmethod
    def is_among(self, expression: str, parameter: str = "ids") -> str:
        """Whether a text is one of this parameter, which `list_of_texts` makes."""

    @abstractmethod
    def has_all(self, column: str, parameter: str) -> str:
        """Whether a list of texts has all texts of this parameter, which `list_of_texts` makes."""

    @abstractmethod
    def matches(self, expression: str, parameter: str) -> str:
        """Whether a text matches the pattern that is the value of this parameter."""

    @abstractmethod
    def pattern(self, glob: Glob) -> str:
        """The value of the parameter of `matches`."""

    @abstractmethod
    def matches_any(self, expression: str, parameter: str) -> str:
        """Whether a text matches one of the patterns of this parameter, which `patterns` makes."""

    @abstractmethod
    def patterns(self, globs: Iterable[Glob]) -> str:
        """The value of the parameter of `matches_any`."""

    @abstractmethod
    def list_of_texts(self, texts: Iterable[str]) -> str:
        """The value of the parameter :ids."""

    @abstractmethod
    def list_of_numbers(self, numbers: Sequence[float]) -> Any:
        """The value of the parameter :cooldowns."""

    @abstractmethod
    def rows(self, name: str, columns: dict[str, str]) -> str:
        """A relation called *name*, of the parameters that `values` makes.

        *columns*: the name of each column, and its type on PostgreSQL.
        """

    @abstractmethod
    def values(self, columns: Collection[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The parameters of `rows`."""


class Postgres(Sql):
    """The SQL of PostgreSQL 13 or newer."""

    now = "clock_timestamp()"
    cooldown = (
        "(CAST(:cooldowns AS double precision[]))"
        "[least(greatest(coalesce(ejections, 0), 1), :steps)]"
    )
    collation = ' COLLATE "C"'
    our_collation = ' COLLATE "default"'
    # Not FOR UPDATE: an application that inserts a row with a foreign key to a model holds FOR KEY
    # SHARE on the model until its transaction ends. Only a DELETE has to wait for that.
    lock = " FOR NO KEY UPDATE OF models"
    lock_to_delete = " FOR UPDATE OF models"
    skip_locked = " FOR NO KEY UPDATE SKIP LOCKED"
    digits_of_a_second = 6

    def seconds_from_now(self, seconds: str) -> str:
        # statement_timestamp(), because clock_timestamp() may change during the statement: a
        # comparison with it cannot use an index.
        return (
            f"(statement_timestamp() + make_interval(secs => CAST({seconds} AS double precision)))"
        )

    def epoch(self, time: str) -> str:
        return f"CAST(extract(epoch FROM {time}) AS double precision)"

    def time(self, epoch: str) -> str:
        return f"to_timestamp({epoch})"

    def is_finite(self, column: str) -> str:
        return f"isfinite({column})"

    def greater(self, one: str, other: str) -> str:
        return f"greatest({one}, {other})"

    def lesser(self, one: str, other: str) -> str:
        return f"least({one}, {other})"

    def units(self, time: str) -> str:
        # extract is numeric since PostgreSQL 14, and a double before, which is exact enough to round.
        return f"CAST(round(extract(epoch FROM {time}) * 1000000) AS bigint)"

    def text_in_json(self, document: str, *path: str) -> str:
        return f"({document} #>> '{{{','.join(path)}}}')"

    def list_of_lists(self, *columns: str) -> str:
        return f"json_agg(json_build_array({', '.join(columns)}))"

    def json_object(self, members: Mapping[str, str]) -> str:
        return f"jsonb_build_object({_members(members)})"

    def time_as_text(self, time: str) -> str:
        return f"to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"

    def differs(self, one: str, other: str) -> str:
        return f"{one} IS DISTINCT FROM {other}"

    def text_at(self, document: str, *path: str) -> str:
        return f"{document} #>> '{{{','.join(path)}}}'"

    def is_among(self, expression: str, parameter: str = "ids") -> str:
        return f"{expression} = ANY(CAST(:{parameter} AS text[]))"

    def has_all(self, column: str, parameter: str) -> str:
        return f"{column} @> CAST(:{parameter} AS text[])"

    def matches(self, expression: str, parameter: str) -> str:
        # By code points: an application's column may have a collation that takes no patterns.
        return f"{expression}{self.collation} ~ :{parameter}"

    def pattern(self, glob: Glob) -> str:
        return glob.for_postgresql()

    def matches_any(self, expression: str, parameter: str) -> str:
        patterns = f"unnest(CAST(:{parameter} AS text[])) AS pattern"
        return f"EXISTS (SELECT 1 FROM {patterns} WHERE {expression}{self.collation} ~ pattern)"

    def patterns(self, globs: Iterable[Glob]) -> str:
        # PostgreSQL keeps 32 compiled expressions; with more of them each row would compile all anew.
        expressions = [glob.for_postgresql() for glob in globs]
        size = max(1, -(-len(expressions) // 16))
        groups = (expressions[at : at + size] for at in range(0, len(expressions), size))
        return self.list_of_texts("|".join(group) for group in groups)

    def list_of_texts(self, texts: Iterable[str]) -> str:
        # An array literal, because psycopg takes ten times as long to make one of a list.
        quoted = (text.replace("\\", r"\\").replace('"', r"\"") for text in texts)
        return "{" + ",".join(f'"{text}"' for text in quoted) + "}"

    def list_of_numbers(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def rows(self, name: str, columns: dict[str, str]) -> str:
        # One JSON list for each column. One list of rows and json_to_recordset takes three times as
        # long, in the server and in Python.
        lists = ", ".join(f"json_array_elements_text(CAST(:rows_{c} AS json))" for c in columns)
        typed = ", ".join(
            f"CAST({column} AS {kind}) AS {column}" for column, kind in columns.items()
        )
        return (
            f"(SELECT {typed} FROM ROWS FROM ({lists}) AS lists ({', '.join(columns)})) AS {name}"
        )

    def values(self, columns: Collection[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        lists = [*zip(*rows, strict=True)] if rows else [()] * len(columns)
        return {f"rows_{c}": json_text(values) for c, values in zip(columns, lists, strict=True)}


class Sqlite(Sql):
    """The SQL of SQLite. Times are text. BEGIN IMMEDIATE locks the whole file, so no row is locked."""

    now = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    cooldown = (
        "json_extract(:cooldowns,"
        " '$[' || (min(max(CAST(coalesce(ejections, 0) AS integer), 1), :steps) - 1) || ']')"
    )
    collation = our_collation = " COLLATE BINARY"
    lock = lock_to_delete = skip_locked = ""
    digits_of_a_second = 3

    def seconds_from_now(self, seconds: str) -> str:
        return f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ({seconds}) || ' seconds')"

    def epoch(self, time: str) -> str:
        return f"((julianday({time}) - 2440587.5) * 86400.0)"

    def time(self, epoch: str) -> str:
        return f"strftime('%Y-%m-%dT%H:%M:%fZ', {epoch}, 'unixepoch')"

    def is_finite(self, column: str) -> str:
        # julianday alone reads "12:00" as a time of the year 2000.
        return f"({column} GLOB '[0-9][0-9][0-9][0-9]-*' AND julianday({column}) IS NOT NULL)"

    def greater(self, one: str, other: str) -> str:
        return f"max({one}, {other})"

    def lesser(self, one: str, other: str) -> str:
        return f"min({one}, {other})"

    def units(self, time: str) -> str:
        return f"CAST(round((julianday({time}) - 2440587.5) * 86400000.0) AS integer)"

    def text_in_json(self, document: str, *path: str) -> str:
        found = f"json_extract({document}, '$.{'.'.join(path)}')"
        return f"CASE WHEN json_valid({document}) THEN {found} END"

    def list_of_lists(self, *columns: str) -> str:
        return f"json_group_array(json_array({', '.join(columns)}))"

    def json_object(self, members: Mapping[str, str]) -> str:
        return f"json_object({_members(members)})"

    def time_as_text(self, time: str) -> str:
        return f"CAST({time} AS text)"

    def differs(self, one: str, other: str) -> str:
        return f"{one} IS NOT {other}"

    def text_at(self, document: str, *path: str) -> str:
        found = f"json_extract({document}, '$.{'.'.join(path)}')"
        return f"CASE WHEN json_valid({document}) THEN {found} END"

    def is_among(self, expression: str, parameter: str = "ids") -> str:
        return f"{expression} IN (SELECT value FROM json_each(:{parameter}))"

    def has_all(self, column: str, parameter: str) -> str:
        texts = f"CASE WHEN json_valid({column}) THEN {column} ELSE '[]' END"
        return (
            f"NOT EXISTS (SELECT 1 FROM json_each(:{parameter}) AS wanted"
            f" WHERE wanted.value NOT IN (SELECT value FROM json_each({texts})))"
        )

    def matches(self, expression: str, parameter: str) -> str:
        return f"{expression} GLOB :{parameter}"

    def pattern(self, glob: Glob) -> str:
        return glob.for_sqlite()

    def matches_any(self, expression: str, parameter: str) -> str:
        patterns = f"(SELECT value AS pattern FROM json_each(:{parameter}))"  # which has an id, too
        return f"EXISTS (SELECT 1 FROM {patterns} WHERE {expression} GLOB pattern)"

    def patterns(self, globs: Iterable[Glob]) -> str:
        return self.list_of_texts(glob.for_sqlite() for glob in globs)

    def list_of_texts(self, texts: Iterable[str]) -> str:
        return json.dumps(list(texts))

    def list_of_numbers(self, numbers: Sequence[float]) -> str:
        return json.dumps(numbers)

    def rows(self, name: str, columns: dict[str, str]) -> str:
        fields = (f"json_extract(value, '$[{i}]') AS {column}" for i, column in enumerate(columns))
        return f"(SELECT {', '.join(fields)} FROM json_each(:rows)) AS {name}"

    def values(self, columns: Collection[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        return {"rows": json_text([*map(tuple, rows)])}


def _members(members: Mapping[str, str]) -> str:
    return ", ".join(f"'{name}', {value}" for name, value in members.items())


def json_text(value: Any) -> str:
    r"""JSON for PostgreSQL, which takes \u escapes of no character that its encoding lacks."""
    written = json.dumps(value, ensure_ascii=False)
    return written if written.isascii() else LONE_SURROGATE.sub("\ufffd", written)
