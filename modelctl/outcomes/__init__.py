"""Records outcomes, and classifies the exceptions of SDKs."""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; loading typing takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from modelctl.failures.classification import classify as classify


def __getattr__(name: str) -> Any:
    # Loaded on first use: recording an outcome from the command line does not need it.
    if name == "classify":
        from modelctl.failures.classification import classify

        return classify
    raise AttributeError(f"module 'modelctl.outcomes' has no attribute '{name}'")
