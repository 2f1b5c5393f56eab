"""Which view each type of result has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelctl.views import availability as views_availability
from modelctl.views import backup as views_backup
from modelctl.views import ignored as views_ignored
from modelctl.views import models as views_models
from modelctl.views import recovery as views_recovery
from modelctl.views import sync as views_sync
from modelctl.views import upkeep as views_upkeep

if TYPE_CHECKING:
    from modelctl.views.view import View

# By the names of the types, because importing all the types would slow every command down.
VIEWS: dict[str, Callable[[Any], View]] = {
    "Count": views_upkeep.count_view,
    "VerifiedCount": views_upkeep.verified_count_view,
    "ExplainedModel": views_models.model_view,
    "Changes": views_models.changes_view,
    "BatchResult": views_models.batch_view,
    "ImportResult": views_sync.import_view,
    "IgnoreResult": views_ignored.ignore_view,
    "ImportPlan": views_sync.import_plan_view,
    "SyncResult": views_sync.sync_view,
    "Stats": views_models.stats_view,
    "Recovery": views_recovery.recovery_view,
    "LastRecover": views_recovery.last_recover_view,
    "ProbeReport": views_recovery.probes_view,
    "Pause": views_recovery.pause_view,
    "Availability": views_availability.availability_view,
    "Restored": views_backup.restored_view,
    "CacheReport": views_upkeep.cache_view,
    "DrainResult": views_upkeep.drain_view,
    "Uninstalled": views_upkeep.uninstalled_view,
    "SchemaStatus": views_upkeep.schema_view,
    "Diagnosis": views_upkeep.diagnosis_view,
    "Pruned": views_upkeep.pruned_view,
    "Notified": views_upkeep.notified_view,
}


def view_of(result: object) -> View:
    """Return the view of a result."""
    return VIEWS[type(result).__name__](result)
