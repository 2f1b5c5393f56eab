"""What the tests of calls share: a sink that keeps what it is told, in the order."""

from __future__ import annotations

import pytest

from modelctl.calls.call import Call, Sink
from modelctl.calls.unrecorded import Unrecorded


class Kept:
    """Keeps outcomes in memory; *warnings* has what could not be recorded."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str | None]] = []
        self.reasons: list[str | None] = []
        self.warnings: list[str] = []
        self.unrecorded = Unrecorded(lambda text, **_: self.warnings.append(text))
        self.sink = Sink(self._success, self._failure, self.unrecorded, None)

    def call(self, model_id: str | None) -> Call:
        """Return a call that is recorded here."""
        return Call(self.sink, model_id)

    def _success(self, model_id: str) -> None:
        self.outcomes.append((model_id, None))

    def _failure(self, model_id: str, type_: str, *, reason: str | None) -> None:
        self.outcomes.append((model_id, str(type_)))
        self.reasons.append(reason)


@pytest.fixture
def kept() -> Kept:
    """Give a sink that keeps outcomes in memory."""
    return Kept()
