"""The public names and their modules; `__init__.py` reads this list too."""

from modelctl.availability.results import Availability as Availability
from modelctl.availability.results import ModelAvailability as ModelAvailability
from modelctl.availability.results import ProviderAvailability as ProviderAvailability
from modelctl.catalog.results import ImportResult as ImportResult
from modelctl.config.config import Config as Config
from modelctl.count.reports import CacheReport as CacheReport
from modelctl.count.reports import DrainResult as DrainResult
from modelctl.count.results import Count as Count
from modelctl.count.results import VerifiedCount as VerifiedCount
from modelctl.doctor.results import Diagnosis as Diagnosis
from modelctl.errors import DatabaseUnavailableError as DatabaseUnavailableError
from modelctl.errors import ExitCode as ExitCode
from modelctl.errors import InvalidConfigError as InvalidConfigError
from modelctl.errors import MissingSchemaError as MissingSchemaError
from modelctl.errors import ModelctlError as ModelctlError
from modelctl.errors import ModelNotFoundError as ModelNotFoundError
from modelctl.errors import RefusedError as RefusedError
from modelctl.errors import StaleCacheError as StaleCacheError
from modelctl.errors import UsageError as UsageError
from modelctl.fleet.fleet import Fleet as Fleet
from modelctl.health import Hold as Hold
from modelctl.health import Outcome as Outcome
from modelctl.history.results import LeftChange as LeftChange
from modelctl.history.results import Pruned as Pruned
from modelctl.history.results import Undone as Undone
from modelctl.metrics.results import FleetMetrics as FleetMetrics
from modelctl.migrations.results import SchemaStatus as SchemaStatus
from modelctl.model import CacheState as CacheState
from modelctl.model import FailureType as FailureType
from modelctl.model import ModelStatus as ModelStatus
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
from modelctl.recovery.results import Pause as Pause
from modelctl.recovery.results import Recovery as Recovery
from modelctl.recovery.results import Waiting as Waiting
from modelctl.tables.selection import Selection as Selection

__version__: str
