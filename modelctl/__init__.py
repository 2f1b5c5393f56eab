"""Administer a fleet of LLM models kept as rows in a database.

    from modelctl import Fleet

    with Fleet.open() as fleet:
        print(fleet.count().active)

The names below are loaded on first use: ``import modelctl`` alone costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; loading typing takes longer than all of this
if TYPE_CHECKING:
    from typing import Any

    from modelctl.config.config import Config as Config
    from modelctl.errors import (
        DatabaseUnavailableError as DatabaseUnavailableError,
    )
    from modelctl.errors import (
        ExitCode as ExitCode,
    )
    from modelctl.errors import (
        InvalidConfigError as InvalidConfigError,
    )
    from modelctl.errors import (
        MissingSchemaError as MissingSchemaError,
    )
    from modelctl.errors import (
        ModelctlError as ModelctlError,
    )
    from modelctl.errors import (
        ModelNotFoundError as ModelNotFoundError,
    )
    from modelctl.errors import (
        RefusedError as RefusedError,
    )
    from modelctl.errors import (
        StaleCacheError as StaleCacheError,
    )
    from modelctl.errors import (
        UsageError as UsageError,
    )
    from modelctl.fleet.fleet import Fleet as Fleet
    from modelctl.health import Outcome as Outcome
    from modelctl.model import (
        CacheState as CacheState,
    )
    from modelctl.model import (
        Count as Count,
    )
    from modelctl.model import (
        FailureType as FailureType,
    )
    from modelctl.model import (
        ModelStatus as ModelStatus,
    )
    from modelctl.model import (
        VerifiedCount as VerifiedCount,
    )
    from modelctl.models.results import BatchResult as BatchResult
    from modelctl.models.results import Changes as Changes
    from modelctl.models.results import Event as Event
    from modelctl.models.results import ExplainedModel as ExplainedModel
    from modelctl.models.results import KeptChange as KeptChange
    from modelctl.models.results import LeaderboardEntry as LeaderboardEntry
    from modelctl.models.results import Model as Model
    from modelctl.models.results import OutcomeChange as OutcomeChange
    from modelctl.models.results import Stats as Stats
    from modelctl.models.results import StatusChange as StatusChange
    from modelctl.reports import CacheReport as CacheReport
    from modelctl.reports import Diagnosis as Diagnosis
    from modelctl.reports import DrainResult as DrainResult
    from modelctl.reports import Hold as Hold
    from modelctl.reports import ImportResult as ImportResult
    from modelctl.reports import Pause as Pause
    from modelctl.reports import Recovery as Recovery
    from modelctl.reports import SchemaStatus as SchemaStatus
    from modelctl.reports import Waiting as Waiting

__version__ = "0.1.0"

_MODULE_OF = {
    "Config": "config.config",
    "DatabaseUnavailableError": "errors",
    "ExitCode": "errors",
    "InvalidConfigError": "errors",
    "MissingSchemaError": "errors",
    "ModelNotFoundError": "errors",
    "ModelctlError": "errors",
    "RefusedError": "errors",
    "StaleCacheError": "errors",
    "UsageError": "errors",
    "Fleet": "fleet.fleet",
    "Outcome": "health",
    "BatchResult": "models.results",
    "CacheReport": "reports",
    "CacheState": "model",
    "Changes": "models.results",
    "Count": "model",
    "Diagnosis": "reports",
    "DrainResult": "reports",
    "Event": "models.results",
    "ExplainedModel": "models.results",
    "FailureType": "model",
    "Hold": "reports",
    "ImportResult": "reports",
    "KeptChange": "models.results",
    "LeaderboardEntry": "models.results",
    "Model": "models.results",
    "ModelStatus": "model",
    "OutcomeChange": "models.results",
    "Pause": "reports",
    "Recovery": "reports",
    "SchemaStatus": "reports",
    "Stats": "models.results",
    "StatusChange": "models.results",
    "VerifiedCount": "model",
    "Waiting": "reports",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        from importlib import import_module

        return getattr(import_module(f"modelctl.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'modelctl' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
