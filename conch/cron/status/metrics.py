"""The metrics, in the text format of Prometheus."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from conch import __version__
from conch.cron import on_failure, ping
from conch.cron.runner import LAGS_S
from conch.cron.values import STATES

JobRow = tuple[str, tuple[int, ...], int, float | None, float | None, float | None]
# Classes of errors of etcd; further ones appear when they happen.
_ERRORS = ("Unreachable", "Refused", "Rejected", "Unfit", "LeaseGone", "Compacted", "StoreError")
_OUTCOMES = (
    ("claims", "conch_claims", "Claims that this host has tried", ("won", "lost")),
    (on_failure.METRIC, "conch_on_failure_commands", "Commands that were told of failures", on_failure.OUTCOMES),
    (ping.METRIC, "conch_pings", "Pings that were sent for runs", ping.OUTCOMES),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the scheduler has counted so far, by metric and label, and its gauges; durations in seconds."""

    counts: Mapping[tuple[str, str], int]
    lags: Mapping[float, int]
    lag_sum: float
    lease_left_s: float
    running: int
    max_runs: int
    jobs: int
    backlog: int
    skew_s: float
    clock_off: bool
    registered: bool
    watching: bool
    healthy: bool
    of_jobs: Sequence[JobRow] = ()


def text_of(figures: Figures) -> bytes:
    """Format the metrics as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_FiguresCollector(figures))
    return generate_latest(registry) + "".join(_job_lines(figures.of_jobs)).encode()


def _job_lines(rows: Sequence[JobRow]) -> Iterator[str]:
    """Format what is known of each job. The names of jobs need no escapes; the library takes ten times as long."""
    yield from _head("conch_job_runs_total", "counter", "Ticks of a job that this host has ended, by state")
    for name, counts, *_ in rows:
        for state, count in zip(STATES, counts, strict=True):
            yield f'conch_job_runs_total{{job="{name}",state="{state}"}} {count}\n'
    for at, metric, text in (
        (2, "conch_job_running", "Runs of a job on this host now"),
        (3, "conch_job_last_success_timestamp_seconds", "When the last good run of a job on this host ended"),
        (4, "conch_job_last_failure_timestamp_seconds", "When the last bad run of a job on this host ended"),
        (5, "conch_job_last_duration_seconds", "How long the last run of a job on this host took"),
    ):
        yield from _head(metric, "gauge", text)
        for row in rows:
            if row[at] is not None:
                yield f'{metric}{{job="{row[0]}"}} {row[at]!r}\n'


def _head(metric: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {metric} {text}\n# TYPE {metric} {kind}\n"


class _FiguresCollector(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of these figures."""
        counts = self._figures.counts
        build = GaugeMetricFamily("conch_build_info", "1, with the version of this conchd", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        runs = CounterMetricFamily("conch_runs", "Ticks that this host has ended, by state", labels=["state"])
        for state in STATES:
            runs.add_metric([state], counts.get(("runs", state), 0))
        yield runs
        for metric, name, text, outcomes in _OUTCOMES:
            family = CounterMetricFamily(name, f"{text}, by outcome", labels=["outcome"])
            for outcome in outcomes:
                family.add_metric([outcome], counts.get((metric, outcome), 0))
            yield family
        missed = counts.get(("missed", ""), 0)
        yield CounterMetricFamily("conch_ticks_missed", "Ticks that nobody claimed in time", missed)
        yield self._lags()
        errors = CounterMetricFamily("conch_etcd_errors", "Requests to etcd that failed, by kind", labels=["kind"])
        for kind in sorted({*_ERRORS, *(kind for metric, kind in counts if metric == "etcd_errors")}):
            errors.add_metric([kind], counts.get(("etcd_errors", kind), 0))
        yield errors
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        figures = self._figures
        for name, text, value in (
            ("conch_running", "Runs of this host now", figures.running),
            ("conch_max_runs", "How many runs this host has at most", figures.max_runs),
            ("conch_jobs", "Jobs that this host knows", figures.jobs),
            ("conch_lease_left_seconds", "How long our lease lasts without a renewal", figures.lease_left_s),
            ("conch_journal_backlog", "Results that wait to be delivered to etcd", figures.backlog),
            ("conch_clock_skew_seconds", "How far our clock is ahead of the others'", figures.skew_s),
            ("conch_clock_off", "1 if our clock is wrong, and nothing is claimed", figures.clock_off),
            ("conch_registered", "1 if this host is registered in etcd", figures.registered),
            ("conch_watch_up", "1 if the watch of etcd works", figures.watching),
            ("conch_healthy", "1 if a tick could be claimed now", figures.healthy),
        ):
            yield GaugeMetricFamily(name, text, float(value))

    def _lags(self) -> Metric:
        lag = HistogramMetricFamily("conch_start_lag_seconds", "From the scheduled instant to the start of the run")
        buckets = [(str(bound), float(self._figures.lags.get(bound, 0))) for bound in LAGS_S]
        total = self._figures.counts.get(("lags", ""), 0)
        lag.add_metric([], [*buckets, ("+Inf", total)], self._figures.lag_sum)
        return lag
