"""What a host knows of the runs of each job, for the metrics: how many, and when the last ones ended."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from conch.cron.values import FAILED, STATES, Result


@dataclass(slots=True)
class JobFigures:
    """The ended runs of a job by state since conchd began, and the last ones: Unix seconds, and a duration in seconds.

    None is unknown: there was none, or an earlier conchd ended it and it is not read from etcd.
    """

    runs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    running: int = 0
    last_success: float | None = None
    last_failure: float | None = None
    last_duration_s: float | None = None
    _newest: float = 0.0

    def ended(self, result: Result, at: float) -> None:
        """Count a run that ended at this time."""
        self.runs[result.state] = self.runs.get(result.state, 0) + 1
        self.take(result.state, at, result.duration_s)

    def take(self, state: str, at: float, duration_s: float) -> None:
        """Note a run of any conchd that ended at this time; results may come in any order."""
        if state == "ok":
            self.last_success = max(at, self.last_success or 0.0)
        elif state in FAILED:
            self.last_failure = max(at, self.last_failure or 0.0)
        else:
            return
        if at >= self._newest:
            self._newest, self.last_duration_s = at, duration_s


class JobCounts:
    """The figures of the jobs that this host has run; they belong to the scheduler's thread."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobFigures] = {}

    def of(self, name: str) -> JobFigures:
        """Return the figures of a job."""
        return self._jobs.setdefault(name, JobFigures())

    def ended(self, name: str, result: Result, now: float) -> None:
        """Count a run of a job; `now` is the time in Unix seconds, where the result does not tell its end."""
        self.of(name).ended(result, now if result.started is None else result.started + result.duration_s)

    def keep(self, names: Collection[str], running: Collection[str]) -> None:
        """Forget the jobs that are neither among `names` nor `running`, and note which run (a name each run)."""
        for name in [name for name in self._jobs if name not in names and name not in running]:
            del self._jobs[name]
        for figures in self._jobs.values():
            figures.running = 0
        for name in running:
            self.of(name).running += 1

    def rows(self) -> Iterator[tuple[str, tuple[int, ...], int, float | None, float | None, float | None]]:
        """Yield each job: its name, its runs as in `STATES`, how many run, last success, failure and duration."""
        for name, of in self._jobs.items():
            counts = tuple(of.runs.get(state, 0) for state in STATES)
            yield name, counts, of.running, of.last_success, of.last_failure, of.last_duration_s
