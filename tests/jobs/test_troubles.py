"""What goes wrong is said when it begins and when it is over, and not again and again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelctl.errors import (
    DatabaseUnavailableError,
    MissingSchemaError,
    ModelctlError,
    StaleCacheError,
)
from modelctl.jobs.troubles import Troubles

AWAY = DatabaseUnavailableError("cannot connect to db:5432")
REDIS = StaleCacheError("cannot connect to Redis")
SCHEMA = MissingSchemaError("the table is missing", hint="run: modelctl db upgrade")


def test_a_database_that_is_away() -> None:
    """All jobs fail, often: one line when it begins, and one when the first job works again."""
    said: list[str] = []
    troubles = Troubles(said.append)
    for _ in range(1000):
        for job in ("drain", "recover", "metrics"):
            troubles.failed(job, AWAY)
    assert said == ["warning: cannot connect to db:5432; trying again"]
    assert troubles.status() == "cannot connect to db:5432"
    troubles.worked("drain")
    troubles.failed("recover", AWAY)  # it had begun before
    troubles.worked("recover")
    troubles.worked("metrics")
    assert said[1:] == ["the database is back"]
    assert troubles.status() == "all is well"


def test_each_job_has_its_own_errors() -> None:
    """An error that is no server's is said for each job, with its hint; one that changes, again."""
    said: list[str] = []
    troubles = Troubles(said.append)
    troubles.failed("drain", AWAY)
    troubles.failed("drain", SCHEMA)
    troubles.failed("recover", SCHEMA)
    troubles.failed("drain", REDIS)
    troubles.worked("drain")
    troubles.worked("recover")
    assert said == [
        "warning: cannot connect to db:5432; trying again",
        "error: drain: the table is missing; trying again",
        "hint: run: modelctl db upgrade",
        "error: recover: the table is missing; trying again",
        "hint: run: modelctl db upgrade",
        "warning: cannot connect to Redis; trying again",
        "Redis is back",
        "recover works again",
    ]


def test_a_warning_is_repeated_once_an_hour() -> None:
    """The same warning comes once an hour, and no number of different ones fills the memory."""
    said: list[str] = []
    now = 0.0
    troubles = Troubles(said.append, lambda: now)
    for now in range(0, 7200, 60):  # noqa: B007 - read by the clock
        troubles.warn("Redis cannot be reached")
    assert said == ["warning: Redis cannot be reached"] * 2
    for number in range(5000):
        troubles.warn(f"model {number}")
    assert len(troubles._warned) <= 1000


ERRORS = st.sampled_from([None, AWAY, REDIS, SCHEMA])


@given(st.lists(st.tuples(st.sampled_from("abc"), ERRORS), max_size=60))
def test_every_trouble_ends(passes: list[tuple[str, ModelctlError | None]]) -> None:
    """When all jobs work again, nothing is left, and what was said to begin was not said twice."""
    said: list[str] = []
    troubles = Troubles(said.append)
    for job, error in passes:
        before = len(said)
        news = troubles.failed(job, error) if error else troubles.worked(job)
        assert news == (len(said) > before)
    for job in "abc":
        troubles.worked(job)
    assert (troubles.status(), troubles._open, troubles._of_jobs) == ("all is well", {}, {})
