"""The metrics, in the text format of Prometheus."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from conch.cron.runner import LAGS_S
from conch.cron.values import STATES


@dataclass(frozen=True, slots=True)
class Figures:
    """What the scheduler has counted so far, by metric and label, and its gauges; durations in seconds."""

    counts: Mapping[tuple[str, str], int]
    lags: Mapping[float, int]
    lag_sum: float
    lease_left_s: float
    running: int
    backlog: int
    healthy: bool


def text_of(figures: Figures) -> bytes:
    """Format the metrics as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_FiguresCollector(figures))
    return generate_latest(registry)


class _FiguresCollector(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of these figures."""
        counts = self._figures.counts
        runs = CounterMetricFamily("conch_runs", "Ticks that this host has ended, by state", labels=["state"])
        for state in STATES:
            runs.add_metric([state], counts.get(("runs", state), 0))
        yield runs
        claims = CounterMetricFamily("conch_claims", "Claims that this host has tried, by outcome", labels=["outcome"])
        for outcome in ("won", "lost"):
            claims.add_metric([outcome], counts.get(("claims", outcome), 0))
        yield claims
        missed = counts.get(("missed", ""), 0)
        yield CounterMetricFamily("conch_ticks_missed", "Ticks that nobody claimed in time", missed)
        yield self._lags()
        errors = CounterMetricFamily("conch_etcd_errors", "Requests to etcd that failed, by kind", labels=["kind"])
        for (metric, kind), amount in sorted(counts.items()):
            if metric == "etcd_errors":
                errors.add_metric([kind], amount)
        yield errors
        for name, text, value in (
            ("conch_running", "Runs of this host now", self._figures.running),
            ("conch_lease_left_seconds", "How long our lease lasts without a renewal", self._figures.lease_left_s),
            ("conch_journal_backlog", "Results that wait to be delivered to etcd", self._figures.backlog),
            ("conch_healthy", "1 if a tick could be claimed now", 1 if self._figures.healthy else 0),
        ):
            yield GaugeMetricFamily(name, text, value)

    def _lags(self) -> Metric:
        lag = HistogramMetricFamily("conch_start_lag_seconds", "From the scheduled instant to the start of the run")
        buckets = [(str(bound), float(self._figures.lags.get(bound, 0))) for bound in LAGS_S]
        total = self._figures.counts.get(("lags", ""), 0)
        lag.add_metric([], [*buckets, ("+Inf", total)], self._figures.lag_sum)
        return lag
