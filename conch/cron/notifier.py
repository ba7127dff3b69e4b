"""Tells people how runs end: by the commands of `--on-failure`, of a job and of this host, and by the job's pings."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from conch.core.messages import Finished
from conch.cron.active_run import ActiveRun
from conch.cron.job import Job
from conch.cron.on_failure import Notice, OnFailure
from conch.cron.ping import METRIC, Ping, Pinger, Send, send_by_http
from conch.cron.scheduler_spec import SchedulerPort
from conch.cron.ticks import TrackedJob
from conch.cron.values import FAILED, Result
from conch.cron.workers import Tasks, Workers, call_in
from conch.cron.writes import Faults
from conch.log import escape
from conch.times import rfc3339

Log = Callable[..., None]

# How long a run of an earlier conchd waits for its job to be read from etcd, and how often it asks.
_JOB_S, _ASK_S = 60.0, 0.2


def make_notifier(
    port: SchedulerPort, workers: Workers, faults: Faults, tracked: Callable[[str], TrackedJob | None]
) -> "Notifier":
    """Make the notifier of this host."""
    spec = port.spec
    commands = OnFailure(spec.outputs, spec.watchdog, port.tasks, workers, faults, port.counts)
    return Notifier(
        *(commands, port.tasks, faults, port.log, port.counts),
        tracked=tracked,
        host_command=spec.on_failure,
        job_key=spec.job_key,
    )


class Notifier:
    """Has people told of each run once, without ever delaying or changing one."""

    def __init__(
        self,
        commands: OnFailure,
        tasks: Tasks,
        faults: Faults,
        log: Log,
        counts: Counter[tuple[str, str]],
        *,
        tracked: Callable[[str], TrackedJob | None],
        host_command: str | None,
        job_key: bytes | None,
        send: Send = send_by_http,
    ) -> None:
        """`host_command` is told of the failures of every job; with a `job_key` a job's own must be signed by it."""
        self._commands = commands
        self._tasks = tasks
        self._faults = faults
        self._log = log
        self._counts = counts
        self._tracked = tracked
        self._host_command = host_command
        self._job_key = job_key
        self.pinger = Pinger(self._on_ping_done, send)

    def started(self, run: ActiveRun | None) -> None:
        """The first attempt of this run, if there is one, has begun."""
        if run is not None and run.job is not None and run.job.ping is not None:
            run.pinged = True
            self._ping(run, run.job, "start", "")

    def on_finished(self, message: Finished) -> bool:
        """The supervisor has seen the end of a run; return whether it was a command's."""
        return self._commands.on_finished(message)

    def ended(self, run: ActiveRun, result: Result, then: Callable[[], None]) -> None:
        """A run has ended. Call `then` once the supervisor has been asked to run what the failure is told to.

        The supervisor ends when it knows of no run: until then it must not forget this one.
        """
        job = run.job
        if job is not None:
            self._ping_end(run, job, result)
        elif result.started is not None or result.state in FAILED:
            self._tasks.spawn(self._tell_later(run, result))
        if result.state not in FAILED:
            then()
            return
        commands: list[tuple[str | None, Mapping[str, str]]] = [(self._host_command, {})]
        if job is not None:
            commands.append((job.on_failure, job.env))
        notices = [_notice(command, run, result, env) for command, env in commands if command]
        if notices:
            self._tasks.spawn(self._run(notices, then))
        else:
            then()

    async def _run(self, notices: list[Notice], then: Callable[[], None] = lambda: None) -> None:
        for notice in notices:
            await self._commands.run(notice)
        then()

    async def _tell_later(self, run: ActiveRun, result: Result) -> None:
        """Tell as the job says, which an earlier conchd or keeper knew: as it is now, once it is read."""
        job = await self._find_job(run.entry.name)
        if job is None:
            return
        self._ping_end(run, job, result)
        if job.on_failure is not None and result.state in FAILED:
            await self._commands.run(_notice(job.on_failure, run, result, job.env))

    async def _find_job(self, name: str) -> Job | None:
        waited_s = 0.0
        while (tracked := self._tracked(name)) is None and waited_s < _JOB_S:
            await asyncio.sleep(_ASK_S)
            waited_s += _ASK_S
        if tracked is None or (self._job_key is not None and not tracked.job.is_signed_by(self._job_key)):
            return None
        return tracked.job

    def missed(self, name: str, first: int, last: int, ticks: int) -> None:
        """So many ticks of a job, from `first` to `last`, were not run by anybody."""
        if self._host_command is None:
            return
        reason = "nobody claimed it in time" if ticks == 1 else f"{ticks} ticks until {rfc3339(last)} were not claimed"
        about = {"CONCH_NAME": name, "CONCH_TICK": str(first), "CONCH_STATE": "missed", "CONCH_REASON": reason}
        environment = {**about, "CONCH_EXIT": "", "CONCH_DURATION": ""}
        self._tasks.spawn(self._run([Notice(self._host_command, name, rfc3339(first), environment)]))

    def close(self, limit_s: float) -> None:
        """Wait so long for the pings that are under way; blocks."""
        self._commands.close()
        left = self.pinger.wait(limit_s)
        if left:
            self._log("warning", "pings-dropped", pings=left, msg="conchd ends before they were sent")

    # -- pings --------------------------------------------------------------------------------------------

    def _ping_end(self, run: ActiveRun, job: Job, result: Result) -> None:
        """Tell how the run ended, if it began, or if we do not know whether it did."""
        if job.ping is None:
            return
        if result.state == "ok":
            self._ping(run, job, "", result.output)
        elif run.pinged or result.state in FAILED:
            self._ping(run, job, "fail", result.output or result.reason)

    def _ping(self, run: ActiveRun, job: Job, end: str, body: str) -> None:
        assert job.ping is not None  # noqa: S101 - the callers have looked
        self.pinger.put(Ping(run.entry.run, job.name, rfc3339(run.entry.tick), job.ping, end, body))

    def _on_ping_done(self, ping: Ping, outcome: str, why: str) -> None:
        """For any thread."""
        call_in(self._tasks.loop, self._count_ping, ping, outcome, why)

    def _count_ping(self, ping: Ping, outcome: str, why: str) -> None:
        self._counts[METRIC, outcome] += 1
        fault = self._faults("ping-failed")
        if outcome == "ok":
            fault.over()
        else:
            fault.failed(job=ping.job, tick=ping.tick, ping=ping.end or "success", msg=why)


def _notice(command: str, run: ActiveRun, result: Result, env: Mapping[str, str]) -> Notice:
    environment = {
        **env,
        "CONCH_NAME": run.entry.name,
        "CONCH_TICK": str(run.entry.tick),
        "CONCH_STATE": result.state,
        "CONCH_EXIT": "" if result.exit is None else str(result.exit),
        "CONCH_REASON": escape(result.reason),
        "CONCH_DURATION": "" if result.started is None else f"{result.duration_s:g}",
    }
    return Notice(command, run.entry.name, rfc3339(run.entry.tick), environment, result.output)
