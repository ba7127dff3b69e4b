"""What a tick does when a run of its job is alive: the overlap policies."""

from dataclasses import dataclass
from typing import Protocol

from conch.cron.job import Job
from conch.cron.ticks import PendingTick
from conch.cron.values import fields_of, whole_tick
from conch.etcd.store import KeyValue
from conch.times import rfc3339


@dataclass(frozen=True, slots=True)
class ClaimToRun:
    """Claim the tick, with the job's run key where the job needs one."""


@dataclass(frozen=True, slots=True)
class ClaimToWait:
    """Claim the tick while the run under the key `busy` is being ended for it."""

    busy: KeyValue


@dataclass(frozen=True, slots=True)
class ClaimToSkip:
    """Claim the tick and record in the same transaction that it is skipped; `busy` is the run key to compare."""

    reason: str
    busy: KeyValue | None = None


Decision = ClaimToRun | ClaimToWait | ClaimToSkip


class OverlapPolicy(Protocol):
    """Decides how to claim a tick while the job's run key is `busy` (None: no run is known to be alive)."""

    def decide(self, tick: PendingTick, busy: KeyValue | None) -> Decision:
        """How to claim this tick."""
        ...


class Allow:
    """Runs of one job may overlap: there is no run key."""

    def decide(self, tick: PendingTick, busy: KeyValue | None) -> Decision:  # noqa: ARG002
        """Run it."""
        return ClaimToRun()


class Forbid:
    """A tick that falls due while a run of its job is alive is skipped."""

    def decide(self, tick: PendingTick, busy: KeyValue | None) -> Decision:  # noqa: ARG002
        """Run it, or skip it and say which run is alive."""
        if busy is None:
            return ClaimToRun()
        running, host = running_tick(busy), fields_of(busy.value).get("host")
        reason = "a run is alive" if running is None else f"the run of {rfc3339(running)} on {host} is alive"
        return ClaimToSkip(reason, busy)


class Replace:
    """A newer tick ends the run of an older one and takes its place; an older tick than the run's is skipped."""

    def decide(self, tick: PendingTick, busy: KeyValue | None) -> Decision:
        """Run it, wait for the older run to end, or skip it."""
        if busy is not None:
            running = running_tick(busy)
            if running is None or running < tick.tick:
                return ClaimToWait(busy)
        return Forbid().decide(tick, busy)


def running_tick(run: KeyValue) -> int | None:
    """The tick that a run key says it is for; None if it does not say."""
    return whole_tick(fields_of(run.value).get("tick"))


_POLICIES: dict[str, OverlapPolicy] = {"allow": Allow(), "forbid": Forbid(), "replace": Replace()}


def policy_of(job: Job) -> OverlapPolicy:
    """The policy of a job."""
    return _POLICIES[job.overlap]
