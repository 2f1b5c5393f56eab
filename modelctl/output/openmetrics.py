"""The text of metrics, for Prometheus and others that read its formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from modelctl.errors import clean

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from modelctl.metrics.results import FleetMetrics


class ExpositionFormat(StrEnum):
    """OpenMetrics 1.0, or the older text format of Prometheus, which node_exporter reads."""

    OPENMETRICS = "openmetrics"
    PROMETHEUS = "prometheus"


def exposition(metrics: FleetMetrics, form: ExpositionFormat) -> str:
    """Write metrics in a format."""
    from prometheus_client import exposition as prometheus
    from prometheus_client.openmetrics import exposition as openmetrics

    families = _Families([*_models(metrics), *_count(metrics), *_upkeep(metrics)])
    if form is ExpositionFormat.PROMETHEUS:
        return prometheus.generate_latest(families).decode()
    text: bytes = openmetrics.generate_latest(families)  # type: ignore[no-untyped-call]
    return text.decode()


class _Families:
    """The collector that prometheus_client asks for the metric families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        return self._families


def _models(metrics: FleetMetrics) -> Iterator[Metric]:
    numbers: dict[tuple[str, ...], float] = {}
    for of in metrics.providers:
        by_status = {
            "active": of.active,
            "disabled": of.disabled,
            "auto-disabled": of.auto_disabled,
        }
        for status, number in by_status.items():
            key = (status, _label(of.provider))
            numbers[key] = numbers.get(key, 0) + number
    about = "Models, by status and provider."
    yield _gauge("modelctl_models", about, numbers, ("status", "provider"))


def _count(metrics: FleetMetrics) -> Iterator[Metric]:
    from prometheus_client.metrics_core import StateSetMetricFamily

    about = "Active models, as modelctl count would print the number."
    yield _gauge("modelctl_active_models", about, metrics.active)
    yield StateSetMetricFamily(
        "modelctl_count_source",
        "Where modelctl_active_models comes from.",
        {source: metrics.source == source for source in ("cache", "database")},
    )
    about = "The age of a cached count; 0 if the count comes from the database."
    yield _gauge("modelctl_count_age_seconds", about, metrics.age_seconds)
    about = "Invalidations that are not delivered to Redis yet."
    yield _gauge("modelctl_outbox_undelivered", about, metrics.queued)
    about = "The age of the oldest of them; 0 if there is none."
    oldest = metrics.oldest_queued_seconds
    yield _gauge("modelctl_outbox_oldest_undelivered_seconds", about, oldest)
    about = "Invalidations that were delivered, and are delivered once more after 15 s."
    yield _gauge("modelctl_outbox_settling", about, metrics.settling)


def _upkeep(metrics: FleetMetrics) -> Iterator[Metric]:
    from prometheus_client.metrics_core import CounterMetricFamily

    if metrics.recovered_at is not None:
        about = "When recover last finished, in seconds since 1970."
        yield _gauge("modelctl_recover_timestamp_seconds", about, metrics.recovered_at)
        about = "The time since recover last finished, by the clock of the database."
        yield _gauge("modelctl_recover_age_seconds", about, metrics.recovered_seconds_ago)
    about = "Pauses and incidents that are not over."
    holds: dict[tuple[str, ...], float] = {
        ("pause",): metrics.pauses,
        ("incident",): metrics.incidents,
    }
    yield _gauge("modelctl_holds", about, holds, ("kind",))
    about = "Events in the history, by kind, also those that prune has deleted."
    events = CounterMetricFamily("modelctl_events", about, labels=("event",))
    for kind, number in metrics.events.items():
        events.add_metric([_label(kind)], number)
    yield events


def _gauge(
    name: str,
    about: str,
    numbers: Mapping[tuple[str, ...], float] | float | None,
    labels: tuple[str, ...] = (),
) -> Metric:
    from prometheus_client.metrics_core import GaugeMetricFamily

    unit = "seconds" if name.endswith("_seconds") else ""
    family = GaugeMetricFamily(name, about, labels=labels, unit=unit)
    by_labels: Any = numbers if isinstance(numbers, Mapping) else {(): numbers}
    for values, number in by_labels.items():
        family.add_metric(values, number)
    return family


def _label(value: str) -> str:
    """Return a value of a label that is safe on a terminal, and is UTF-8."""
    return clean(value).encode("utf-8", "replace").decode()
