"""Outcomes of a batch, checked to the end before any of them is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelctl import health
from modelctl.errors import UsageError
from modelctl.health import Outcome
from modelctl.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def checked(outcomes: Iterable[Outcome | Mapping[str, Any]], reason_length: int) -> Spool[Outcome]:
    """Return the outcomes, on disk if they are many.

    Raises:
        UsageError: an outcome is wrong; the message gives its number (from 1).
    """
    return Spool(_parsed(outcomes, reason_length))


def _parsed(
    outcomes: Iterable[Outcome | Mapping[str, Any]], reason_length: int
) -> Iterator[Outcome]:
    for number, outcome in enumerate(outcomes, 1):
        fields = outcome.fields() if isinstance(outcome, Outcome) else outcome
        try:
            yield health.parse_outcome(fields, reason_length)
        except UsageError as exc:
            raise UsageError(f"outcome {number}: {exc.message}", hint=exc.hint) from None


def texts(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, object]]:
    """Give each text of the outcomes with a description of it, for `name_the_text`."""
    for number, outcome in enumerate(outcomes, 1):
        yield f"outcome {number}: the id '{outcome.id}'", outcome.id
        yield f"outcome {number}, of '{outcome.id}': the reason", outcome.reason
