"""Ticks of `replace` jobs that wait for the run before them to end, and run keys that go."""

from conch.cron.actor import PAUSE_MOST_S, PAUSE_S, Base
from conch.cron.claim_store import Busy, NodeGone, Outcome, PendingTick, Taken, Won
from conch.cron.run_log import Entry
from conch.cron.runs import ActiveRun, Runs, TrackedJob
from conch.etcd.store import Full, KeyValue, StoreError
from conch.times import rfc3339

_STOPPING = "conchd is stopping"


class Replacing(Runs):
    """Gives way to newer ticks; of several that wait for a run to end, the newest gets its turn."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._busy_claiming = 0  # claims under way: they count as runs, and nothing is given back before they end

    def _replace(self, known: TrackedJob, tick: int) -> None:
        """A newer tick of the job is claimed: what runs or waits here gives way."""
        known.newest = max(known.newest, tick)
        reason = f"replaced by the tick of {rfc3339(tick)}"
        for one in self._runs():
            if one.entry.name == known.job.name and one.entry.run_rev is not None and one.entry.tick < tick:
                self._end_run(one, reason)
        if known.waiting is not None and known.waiting[0].tick < tick:
            self._stop_waiting(known, reason)

    def _stop_waiting(self, known: TrackedJob, reason: str) -> None:
        """The tick that waits is recorded as skipped."""
        if known.waiting is not None:
            due, rev = known.waiting
            known.waiting = None
            self._record(Entry(due.run, due.job.name, due.tick, rev), "skipped", reason)
            if due.unclear and not due.taking:
                self._release_unclear(due)

    def _wait_for_run(self, due: PendingTick, rev: int) -> None:
        """A claimed tick waits until the run before it is gone."""
        entry = Entry(due.run, due.job.name, due.tick, rev)
        known = self.jobs.get(due.job.name)
        if known is None or self._draining:
            self._record(entry, "skipped", "the job was removed" if known is None else _STOPPING)
            return
        if due.tick < known.newest:
            self._record(entry, "skipped", f"replaced by the tick of {rfc3339(known.newest)}")
            return
        self._stop_waiting(known, f"replaced by the tick of {rfc3339(due.tick)}")
        due.unclear = False  # the claim is known; from now on it is about the run key
        known.waiting = (due, rev)
        self._replace(known, due.tick)
        self._later(max(0.0, due.late_at - self._clock.now()), lambda: self._waited_too_long(due))
        if known.run is None:
            self._take_run(due.job.name)

    def _waited_too_long(self, due: PendingTick) -> None:
        known = self.jobs.get(due.job.name)
        if known is not None and known.waiting is not None and known.waiting[0] is due and not due.taking:
            self._stop_waiting(known, "the run before it did not end in time")

    def _take_run(self, name: str) -> None:
        """Take the run key for the tick that waits; one try at a time."""
        known = self.jobs.get(name)
        if known is None or known.waiting is None or self._node is None:
            return
        due, rev = known.waiting
        if due.taking:
            return
        due.taking = True
        self._busy_claiming += 1
        node = self._node.node

        def work() -> Outcome:
            outcome = self._claims.take_run(due, rev, node, self._me, timeout_s=self._limit_s)
            if isinstance(outcome, Won):
                self._ledger.write(Entry(due.run, name, due.tick, rev, outcome.run_rev))
            return outcome

        self._write(
            work,
            lambda outcome: self._on_taken(due, rev, node.number, outcome),
            lambda error: self._on_not_taken(due, error),
            lambda: self._not_taken(due),
        )

    def _on_not_taken(self, due: PendingTick, error: StoreError) -> None:
        due.unclear = due.unclear or error.unclear or isinstance(error, Full)
        self._on_write_failed("claim-failed", error, job=due.job.name, tick=rfc3339(due.tick))
        self._not_taken(due)

    def _not_taken(self, due: PendingTick) -> None:
        """Nothing came of a try to take the run key, or nothing is known of it: try again while there is time."""
        due.taking = False
        self._busy_claiming -= 1
        known = self.jobs.get(due.job.name)
        if known is None or known.waiting is None or known.waiting[0] is not due:
            if due.unclear:
                self._release_unclear(due)
        elif self._draining:
            self._stop_waiting(known, _STOPPING)
        elif self._clock.now() > due.late_at:
            self._waited_too_long(due)
        else:
            due.pause_s = min(2 * due.pause_s or PAUSE_S, PAUSE_MOST_S)
            self._later(due.pause_s, lambda: self._take_run(due.job.name))
        self._end_if_released()

    def _release_unclear(self, due: PendingTick, pause_s: float = PAUSE_S) -> None:
        """Release the run key that an ended tick may have, once its result keeps a late try from taking it."""

        def again() -> None:
            self._later(pause_s, lambda: self._release_unclear(due, min(2 * pause_s, PAUSE_MOST_S)))

        def then(found: tuple[KeyValue | None, KeyValue | None]) -> None:
            _, run = found
            if run is not None and self._claims.is_ours(run, due):
                self._release_run_key(Entry(due.run, due.job.name, due.tick, 0, run.create_revision))

        if due.run in self._live:
            again()
        else:
            self._work(lambda: self._claims.whose(due, timeout_s=self._limit_s), then, lambda _: again())

    def _on_taken(self, due: PendingTick, rev: int, number: int, outcome: Outcome) -> None:
        due.taking = False
        self._busy_claiming -= 1
        known = self.jobs.get(due.job.name)
        waits = known is not None and known.waiting is not None and known.waiting[0] is due
        match outcome:
            case Won(_, lease, run_rev):
                entry = Entry(due.run, due.job.name, due.tick, rev, run_rev)
                if known is not None and waits and self._draining:
                    known.waiting = None
                    self._record(entry, "skipped", _STOPPING)
                elif known is not None and waits:
                    known.waiting = None
                    self._launch(due, entry, lease, number)
                elif due.run not in self._live or not self._live[due.run].over:
                    self._record(entry, "skipped", "a newer tick waits")
                else:
                    # it was recorded while the key was being taken: that record's delivery knows of no key
                    self._release_run_key(entry)
            case Busy() | NodeGone() if known is not None and waits and self._draining:
                self._stop_waiting(known, _STOPPING)
            case Busy(run) if known is not None and waits:
                known.run = run
                if run is None:
                    self._take_run(due.job.name)
                elif self._clock.now() > due.late_at:
                    self._waited_too_long(due)
            case Taken(why) if known is not None and waits:
                self._stop_waiting(known, why)
            case NodeGone():
                pass  # taken up again once we are registered, or too late
            case _:
                pass  # it does not wait any more
        self._end_if_released()

    def _release_run_key(self, entry: Entry, pause_s: float = PAUSE_S) -> None:
        rev = entry.run_rev

        def again() -> None:
            self._later(pause_s, lambda: self._release_run_key(entry, min(2 * pause_s, PAUSE_MOST_S)))

        def failed(error: StoreError) -> None:
            self._on_write_failed("claim-failed", error, job=entry.name, tick=rfc3339(entry.tick))
            again()

        if rev is not None:
            self._write(
                lambda: self._claims.release(entry.name, rev, timeout_s=self._limit_s), lambda _: None, failed, again
            )

    def _on_run_key_gone(self, name: str, revision: int) -> None:
        """The run key was deleted at this revision: the next may have it; a run of ours had it no longer by then."""
        for one in self._runs():
            if one.entry.name == name and one.entry.run_rev is not None and one.entry.run_rev < revision:
                self._end_without_key(one)
        known = self.jobs.get(name)
        if known is not None and known.run is not None and known.run.create_revision < revision:
            known.run = None
        self._take_run(name)

    def _end_without_key(self, one: ActiveRun) -> None:
        reason = "its run key is gone: deleted by hand"
        if one.ordered_at is None:
            self._end_run(one, reason)
        else:
            self._watchdog.end(one.entry.run, reason)

    def _forget_job(self, name: str) -> None:
        """It was removed, or is unreadable now."""
        known = self.jobs.get(name)
        if known is not None:
            self._stop_waiting(known, "the job was removed")
            del self.jobs[name]
