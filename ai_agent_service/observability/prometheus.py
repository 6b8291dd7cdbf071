"""Render metrics in the formats that Prometheus reads."""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ai_agent_service.observability.metrics import (
    FAMILIES,
    BucketCounts,
    Family,
    Snapshot,
    Values,
)

_process = ProcessCollector(registry=None)


def collect_process_values() -> dict[str, Values]:
    """Return what the operating system reports about this process."""
    return {
        sample.name: {(): sample.value}
        for metric in _process.collect()
        for sample in metric.samples
    }


def render_metrics(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """Return the metrics as text and its content type: OpenMetrics if `accept` has it, else
    Prometheus' own format. Takes long enough to need a thread."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # an invalid version
        encode, content_type = choose_encoder("")
    return encode(_SnapshotCollector(snapshot)), content_type


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            if family.kind == "histogram":
                yield _build_histogram(family, self._snapshot.histograms.get(family.name, {}))
                continue
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in self._snapshot.values.get(family.name, {}).items():
                metric.add_metric(labels, value)
            yield metric


def _build_histogram(family: Family, counted: BucketCounts) -> HistogramMetricFamily:
    histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    bounds = [*map(repr, family.buckets), "+Inf"]
    for labels, counts in counted.items():
        histogram.add_metric(
            labels, list(zip(bounds, accumulate(counts[:-1]), strict=True)), counts[-1]
        )
    return histogram
