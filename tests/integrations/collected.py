"""A recorder that keeps what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl import classify

if TYPE_CHECKING:
    from modelctl import FailureType


class Collected:
    """Keeps each outcome as id and type; None: a success."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str | None]] = []
        self.reasons: list[str | None] = []

    def success(self, id: str) -> None:  # noqa: A002 - as the recorder calls it
        """Keep a success."""
        self.outcomes.append((id, None))

    def failure(
        self,
        id: str,  # noqa: A002
        type: FailureType | str | BaseException | None = "unknown",  # noqa: A002
        *,
        reason: str | None = None,
    ) -> None:
        """Keep a failure."""
        kind = classify(type) if isinstance(type, BaseException) else type
        self.outcomes.append((id, kind))
        self.reasons.append(reason)
