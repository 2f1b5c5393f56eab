"""Tags: which texts they are, what reads them, what selects by them, and when they go."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl import Fleet, Selection, UsageError
from modelctl.model import check_tag, check_tags
from modelctl.tables.tags import read_tags, set_tags
from tests import fleets
from tests.fleets import is_sqlite, seed, sql


def tag(fleet: Fleet, tags: Mapping[str, Sequence[str]]) -> None:
    """Give models these tags."""
    database = fleet._store.database
    checked = {model_id: check_tags(its) for model_id, its in tags.items()}
    database.write(lambda connection: set_tags(database, connection, checked))


def tags_of(fleet: Fleet) -> dict[str, tuple[str, ...]]:
    """Return the tags of each model, as a listing has them."""
    return {model.id: model.tags for model in fleet.list_models()}


def rows(url: str) -> list[str]:
    """Return the ids in the table of the tags."""
    return sorted(row[0] for row in sql(url, "SELECT model_id FROM modelctl_tags"))


@pytest.mark.parametrize(
    "wrong",
    ["", "x" * 101, " a", "a ", "\xa0a", "a,b", ",", "a\nb", "a\0", "\x1b[31m", "\ud800", 7, None],
)
def test_what_is_no_tag(wrong: object) -> None:
    """Empty and long texts, commas, blanks at the ends and control characters are refused."""
    with pytest.raises(UsageError, match="a tag "):
        check_tag(wrong)
    with pytest.raises(UsageError, match="tag"):
        check_tags([wrong])


def test_the_same_tag_is_one_tag() -> None:
    """A tag that is written in two ways of Unicode is the same; tags are sorted by code points."""
    assert check_tags(["b", "Z", "re\u0301gion", "r\xe9gion", "b"]) == ("Z", "b", "r\xe9gion")
    assert check_tags(f"t{number}" for number in range(50))
    for wrong in ([f"t{number}" for number in range(51)], "abc", 7):
        with pytest.raises(UsageError):
            check_tags(wrong)  # type: ignore[arg-type]


@given(st.text())
def test_every_text_is_stored_as_it_is_or_refused(text: str) -> None:
    """What `check_tag` returns is a tag itself, and comes back from JSON as it was."""
    try:
        stored = check_tag(text)
    except UsageError:
        return
    assert check_tag(stored) == stored
    assert read_tags(json.dumps([stored])) == (stored,)


def test_tags_are_read_back_and_selected(fleet: Fleet) -> None:
    """A listing and `show` have the tags; a selection has the models with all tags it names."""
    seed(fleet, "abcd")
    odd = ('"q"', "back\\slash", "{x}", "é ü", "null", "NULL", "'", "%s :tag")
    tag(fleet, {"a": ["eu", "prod"], "b": odd, "c": ["eu"]})
    tag(fleet, {"c": ["eu", "test"]})
    expected = {"a": ("eu", "prod"), "b": tuple(sorted(odd)), "c": ("eu", "test"), "d": ()}
    assert tags_of(fleet) == expected
    assert fleet.show("b").tags == expected["b"]

    def selected(*wanted: str) -> list[str]:
        return [model.id for model in fleet.list_models(select=Selection(tag=wanted))]

    assert selected("eu") == ["a", "c"]
    assert selected("eu", "test") == ["c"]
    assert selected("eu", "prod", "test") == selected("EU") == []
    for each in odd:
        assert selected(each) == ["b"]
    both = Selection(tag="eu", match="[ab]")
    assert [change.id for change in fleet.disable(select=both).changes] == ["a"]
    assert fleet.recover(select=Selection(tag="eu")).recovered == []
    tag(fleet, {"a": [], "d": []})
    assert tags_of(fleet) == expected | {"a": ()}
    for wrong in ("", "a,b", ["ok", 7]):
        with pytest.raises(UsageError):
            fleet.list_models(select=Selection(tag=wrong))  # type: ignore[arg-type]


def test_tags_go_with_the_model(fleet: Fleet, fleet_url: str) -> None:
    """Whoever deletes a model deletes its tags, so that a new model with its id has none."""
    seed(fleet, "abcd")
    tag(fleet, dict.fromkeys("abcd", ("eu",)))
    fleet.remove("a")
    sql(fleet_url, "DELETE FROM models WHERE id IN ('b', 'never')")
    assert rows(fleet_url) == ["c", "d"]
    fleets.put(fleet_url, "a", "b")
    assert tags_of(fleet) == {"a": (), "b": (), "c": ("eu",), "d": ("eu",)}
    if is_sqlite(fleet_url):
        sql(fleet_url, "UPDATE models SET id = 'x' || id WHERE id IN ('c', 'd')")
    else:
        sql(fleet_url, "TRUNCATE models")
    assert rows(fleet_url) == []


def test_tags_that_another_program_wrote(fleet: Fleet, fleet_url: str) -> None:
    """What is no list of texts is shown as no tags, with a warning, and selects nothing."""
    seed(fleet, "ab")
    tag(fleet, {"a": ["eu"], "b": ["eu"]})
    warnings: list[str] = []
    fleet.on_warning = warnings.append
    if not is_sqlite(fleet_url):
        sql(fleet_url, "UPDATE modelctl_tags SET tags = ARRAY['eu', NULL] WHERE model_id = 'a'")
        assert tags_of(fleet) == {"a": (), "b": ("eu",)}
        assert warnings == ["'a' has values that cannot be read: tags"]
        return
    for odd in ("", "eu", '{"eu": 1}', "[1]", "[" * 100_000):
        sql(fleet_url, "UPDATE modelctl_tags SET tags = ? WHERE model_id = 'a'", odd)
        assert tags_of(fleet) == {"a": (), "b": ("eu",)}
        assert warnings.pop() == "'a' has values that cannot be read: tags"
        found = fleet.list_models(select=Selection(tag="eu"))
        assert "b" in [model.id for model in found]


def test_an_id_with_another_collation(pg_database: str) -> None:
    """The tags of an application's table are found and deleted, whatever collation its ids have."""
    with fleets.opened(pg_database) as fleet:
        sql(pg_database, 'ALTER TABLE models ALTER COLUMN id TYPE varchar(90) COLLATE "C"')
        seed(fleet, "ab")
        tag(fleet, {"a": ["eu"], "b": ["eu"]})
        assert tags_of(fleet) == {"a": ("eu",), "b": ("eu",)}
        assert len(fleet.list_models(select=Selection(tag="eu"))) == 2
        sql(pg_database, "DELETE FROM models WHERE id = 'a'")
        assert rows(pg_database) == ["b"]


def test_a_deletion_never_fails_because_of_tags(pg_database: str) -> None:
    """Where another tool dropped or renamed the table of the tags, an application still deletes."""
    fleets.put(pg_database, "a", "b", "c")
    sql(pg_database, "ALTER TABLE modelctl_tags RENAME COLUMN model_id TO other")
    sql(pg_database, "DELETE FROM models WHERE id = 'a'")
    sql(pg_database, "DROP TABLE modelctl_tags")
    sql(pg_database, "DELETE FROM models WHERE id = 'b'")
    sql(pg_database, "TRUNCATE models")
    with psycopg.connect(pg_database, autocommit=True) as connection:
        connection.execute("INSERT INTO models (id) VALUES ('a')")
    with fleets.opened(pg_database) as fleet:
        fleet.upgrade()
        assert tags_of(fleet) == {"a": ()}
