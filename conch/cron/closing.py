"""Ticks that are given up: those that nobody claimed are counted once, those of which we do not know are closed."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

from conch.cron.actor import Base
from conch.cron.claim_store import Again, NodeGone, Outcome, PendingTick, Won
from conch.cron.missing import Missed, joined
from conch.cron.replacing import Replacing
from conch.cron.run_log import Entry
from conch.cron.schedule import Schedule
from conch.etcd.store import KeyValue, StoreError
from conch.times import rfc3339

TOO_LATE = "etcd confirmed the claim too late"
CHANGED = "the job was changed"
# Ticks whose claims are unclear: with so many, none is claimed that could become another. So none is ever forgotten.
_UNCLEAR = 1000
# Jobs that are looked up in one transaction, with two reads each: below etcd's limit of operations.
_LOOKED_UP = 50
_LOOK_UP_S, _LOOK_UP_MOST_S = 0.5, 10.0
# A fault without an end of its own is over when it has not happened for so long.
_QUIET_S = 5.0


class Closing(Replacing):
    """Gives ticks up: each leaves a row, a count, or another host's claim."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._unclear: dict[str, tuple[PendingTick, str | None]] = {}  # by run: to be closed, one at a time, and why
        self._closing = False
        self._missing: dict[str, list[Missed]] = {}  # to be looked up
        self._asked_of: list[dict[str, list[Missed]]] = []  # what is being looked up
        self._missing_timer = False
        self._look_up_pause_s = _LOOK_UP_S

    @abstractmethod
    def _take_up_again(self, due: PendingTick) -> None:
        """A tick turns out not to be claimed, and its job has changed."""

    @abstractmethod
    def _not_claimed(self, due: PendingTick) -> None:
        """A request was not claimed at this tick."""

    @abstractmethod
    def _waiting(self) -> int:
        """How many ticks wait to be claimed."""

    def _on_registration(self) -> None:
        super()._on_registration()
        self._close_next()

    def _has_room_for_unclear(self) -> bool:
        return len(self._unclear) < _UNCLEAR

    def _give_up(self, due: PendingTick, reason: str | None) -> None:
        """A tick is given up, for this reason or (None) as too late. Should a claim have been made, it is recorded."""
        if due.unclear:
            self._unclear[due.run] = (due, reason)
            self._close_next()
        elif due.request_rev:
            self._not_claimed(due)
        elif reason is None:
            self._missed(due.job.name, due.tick, due.tick, 1)

    # -- unclear claims -----------------------------------------------------------------------------------

    def _close_next(self, *, probe: bool = False) -> bool:
        """Close the unclear tick that has waited longest; whether something is sent. One at a time."""
        if self._closing or not self._unclear or (self._writes.is_open and not probe):
            return False
        if self._node is None and not self._releasing:
            return False  # a claim may land for as long as our old registration lasts, and must be seen then
        run, (due, reason) = next(iter(self._unclear.items()))
        del self._unclear[run]
        self._closing = True
        self._busy_claiming += 1
        if reason is None and due.job.name in self.jobs and self._node is not None:
            self._close(due, probe=probe)
        else:
            self._look_for_claim(due, reason)
        return True

    def _closed(self) -> None:
        self._closing = False
        self._busy_claiming -= 1
        self._close_next()
        self._end_if_released()

    def _not_closed(self, due: PendingTick, reason: str | None) -> None:
        self._unclear[due.run] = (due, reason)
        self._closing = False
        self._busy_claiming -= 1

    def _on_close_unsent(self, due: PendingTick) -> None:
        self._not_closed(due, None)
        self._close_next()  # unless etcd still takes no writes
        self._end_if_released()

    def _on_not_closed(self, due: PendingTick, reason: str | None, error: StoreError) -> None:
        self._not_closed(due, reason)
        self._on_claim_error(due, error)
        self._end_if_released()

    def _on_claim_error(self, due: PendingTick, error: StoreError) -> None:
        waiting = self._waiting() + len(self._unclear)
        missed = self.counts["missed", ""]
        due.refused = self._was_refused(error)
        self._on_write_failed(
            "claim-failed", error, job=due.job.name, tick=rfc3339(due.tick), waiting=waiting, missed=missed
        )

    def _close(self, due: PendingTick, *, probe: bool) -> None:
        """Nobody may claim this tick any more, above all not a try of ours that etcd still has somewhere.

        To look is not enough: a request that was given up may be served at any later time, as by a leader that was
        frozen, and what it then claims nobody would ever end. So the tick is claimed to be skipped.
        """
        known, registered = self.jobs[due.job.name], self._node
        assert registered is not None  # noqa: S101 - asked by the caller
        node, now, has_floor = registered.node, self._clock.own(), known.has_floor

        def work() -> Outcome:
            return self._claims.claim_to_skip(
                due, node, self._me, now, None, TOO_LATE, has_floor=has_floor, timeout_s=self._limit_s
            )

        def then(outcome: Outcome) -> None:
            match outcome:
                case Won():
                    entry = Entry(due.run, due.job.name, due.tick, outcome.rev, outcome.run_rev)
                    self._record(entry, "skipped", TOO_LATE)
                case Again(has_floor):
                    known.has_floor = has_floor
                    self._unclear[due.run] = (due, None)
                case NodeGone():
                    self._unclear[due.run] = (due, TOO_LATE)  # what lands later finds no registration either
                case _:
                    # of what others have not claimed; a claim of ours that lands later does not find the job as it was
                    due.unclear = False
                    self._give_up(due, None)
            self._closed()

        self._write(
            work,
            then,
            lambda error: self._on_not_closed(due, None, error),
            lambda: self._on_close_unsent(due),
            probe=probe,
        )

    def _look_for_claim(self, due: PendingTick, reason: str | None) -> None:
        """Record our claim if it was made; a claim that lands later does not find the job or us as they were."""

        def then(found: tuple[KeyValue | None, KeyValue | None]) -> None:
            fire, run = found
            if fire is not None and self._claims.is_ours(fire, due):
                entry = Entry(due.run, due.job.name, due.tick, fire.create_revision)
                if run is not None and self._claims.is_ours(run, due):
                    entry = replace(entry, run_rev=run.create_revision)
                self._record(entry, "skipped", reason or TOO_LATE)
            elif due.request_rev or fire is None:
                due.unclear = False
                if reason == CHANGED and not due.request_rev:
                    self._take_up_again(due)
                else:
                    self._give_up(due, None if reason == TOO_LATE else reason)
            self._closed()

        self._work(
            lambda: self._claims.whose(due, timeout_s=self._limit_s),
            then,
            lambda error: self._on_not_closed(due, reason, error),
        )

    # -- missed ticks -------------------------------------------------------------------------------------

    def _missed(self, name: str, first: int, last: int, ticks: int | Schedule, ripe_at: float = 0.0) -> None:
        """Ticks that we did not claim in time, so many or all of a schedule: what nobody has is counted, once.

        Nobody can claim them any more from `ripe_at` on.
        """
        missed = self._missing.setdefault(name, [])
        missed.append(Missed(first, last, ticks, ripe_at))
        missed[:] = joined(missed)
        self._look_up_later()

    def _look_up_later(self) -> None:
        if not self._missing_timer:
            self._missing_timer = True
            self._later(self._look_up_pause_s, self._look_up_missed)

    def _ripe(self) -> dict[str, list[Missed]]:
        """Take out what can be looked up now, of some jobs at a time."""
        now = self._clock.now()
        found: dict[str, list[Missed]] = {}
        for name, missed in list(self._missing.items()):
            ripe = [one for one in missed if one.ripe_at <= now]
            if ripe and len(found) < _LOOKED_UP:
                found[name] = ripe
                del self._missing[name]
                if len(ripe) < len(missed):
                    self._missing[name] = [one for one in missed if one.ripe_at > now]
        return found

    def _look_up_missed(self) -> None:
        """Ask etcd which of the missed ticks others have claimed; without an answer ask again, more rarely."""
        self._missing_timer = False
        asked = self._ripe()
        if not asked:
            if self._missing:
                self._look_up_later()
            return

        self._asked_of.append(asked)

        def work() -> dict[str, tuple[int, int, int]]:
            ends = {name: (min(m.first for m in ms), max(m.newest() for m in ms)) for name, ms in asked.items()}
            taken = self._claims.taken_between(ends, timeout_s=self._limit_s)
            return {name: (*ends[name], sum(m.left(taken[name]) for m in ms)) for name, ms in asked.items()}

        def then(found: dict[str, tuple[int, int, int]]) -> None:
            self._asked_of.remove(asked)
            self._look_up_pause_s = _LOOK_UP_S
            for name, (first, last, ticks) in found.items():
                if ticks > 0:
                    self._count_missed(job=name, tick=rfc3339(first), until=rfc3339(last), ticks=ticks)
            if self._missing:
                self._look_up_later()

        def failed(_: StoreError) -> None:
            self._asked_of.remove(asked)
            self._look_up_pause_s = min(2 * self._look_up_pause_s, _LOOK_UP_MOST_S)
            for name, missed in asked.items():
                self._missing[name] = joined([*missed, *self._missing.pop(name, [])])
            self._look_up_later()

        self._work(work, then, failed)

    def _count_missed(self, *, ticks: int, **fields: str) -> None:
        self.counts["missed", ""] += ticks
        fault = self._fault("missed", merge=merged)
        if not fault.lasts:
            self._later(_QUIET_S, self._end_missed)
        fault.failed(**fields, ticks=ticks)

    def _tell_unasked(self) -> None:
        """What was missed and could not be looked up before the end is in the log at least."""
        left = [missed for some in (self._missing, *self._asked_of) for missed in some.values()]
        ticks = sum(one.count() for missed in left for one in missed)
        if ticks:
            why = "conchd ends before etcd could be asked which of them others have claimed"
            self.tell("warning", "missed", ticks=ticks, msg=why)

    def _end_missed(self) -> None:
        fault = self._fault("missed", merge=merged)
        if fault.quiet_s() < _QUIET_S or self._writes.is_open:
            self._later(_QUIET_S, self._end_missed)
        else:
            fault.over()


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two gaps in one line of the log: of so many ticks in all, between these moments."""
    return {
        **({"job": one["job"]} if one.get("job") == other["job"] else {}),
        "tick": min(one["tick"], other["tick"]),
        "until": max(one["until"], other["until"]),
        "ticks": one["ticks"] + other["ticks"],
    }
