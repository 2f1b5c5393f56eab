"""A pattern such as gpt-4* means the same on both databases."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from modelctl import Fleet, UsageError
from modelctl.globs import matcher, parse

# Characters that have a meaning in a pattern, in a regular expression or in SQL, and some others.
TEXTS = st.text("ab-Z9*?[]!^\\.$+(){}|%_:'\"é☃ \n", max_size=8)


def matches(fleet: Fleet, text: str, pattern: str) -> bool:
    """Ask the database whether a text matches a pattern."""
    database_sql = fleet._store.database.sql
    query = f"SELECT {database_sql.matches('CAST(:text AS text)', 'pattern')}"
    values = {"text": text, "pattern": database_sql.pattern(parse(pattern))}
    with fleet._store.database.reading() as connection:
        return bool(connection.scalar(sa.text(query), values))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, pattern=TEXTS)
@example(text="^", pattern="[!^]")
@example(text="-", pattern="[]-a]")
@example(text="]", pattern="[!]-a]")
@example(text="^", pattern="[]^-]")
@example(text="\\", pattern="[\\]")
@example(text="a\nb", pattern="a?b")
@example(text="[x]", pattern="[[]*]")
def test_patterns_mean_what_they_do_in_python(fleet: Fleet, text: str, pattern: str) -> None:
    """Any text matches any pattern exactly if Python's fnmatchcase says so."""
    assume("[^" not in pattern)  # there, but not in Python, the same as [!
    try:
        parse(pattern)
    except UsageError:
        assume(False)
    assert matches(fleet, text, pattern) == fnmatchcase(text, pattern)
    assert matcher(["x", pattern])(text) == (text == "x" or fnmatchcase(text, pattern))


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("gpt-4*", "gpt-4o", "openai/gpt-4o"),  # the whole id
        ("GPT*", "GPT-4", "gpt-4"),  # case counts
        ("[^a-c]x", "dx", "ax"),
        ("*/gpt-?", "openai/gpt-5", "openai/gpt-51"),
        ("50%_*", "50%_off", "50 xoff"),  # no wildcards of SQL
    ],
)
def test_examples(fleet: Fleet, pattern: str, matching: str, other: str) -> None:
    """A pattern is matched against the whole id, and case counts."""
    assert matches(fleet, matching, pattern)
    assert not matches(fleet, other, pattern)
    assert [*map(matcher([pattern]), (matching, other))] == [True, False]


def test_a_pattern_with_many_stars_ends_soon(fleet: Fleet) -> None:
    """No pattern that is accepted keeps the database, or this process, busy."""
    assert not matches(fleet, "a" * 200, "*a" * 249 + "b")
    assert not matcher(["*a" * 249 + "b"])("a" * 200)
    assert not matcher([])("a")


@pytest.mark.parametrize("pattern", ["[", "gpt[", "[!", "[]", "[z-a]", "a" * 501])
def test_patterns_without_a_meaning(pattern: str) -> None:
    """A set that does not end, a range that runs backwards and an endless pattern are refused."""
    with pytest.raises(UsageError):
        parse(pattern)
