"""The wrapper's hold: asks the keeper for it, knows its deadline, has it released.

The part of the supervisor that knows nothing of what runs. It answers each call with an event, or None.
"""

from conch.core.deadline import ANSWERS_WITHIN_S, Hold
from conch.core.messages import Acquire, Answered, Failed, Held, Lost, Message, Note, Queued, Release, Released, Renewed
from conch.core.states import ACQUISITION_NEXT, AcquisitionState, Contact, LoopPorts, RunOptions
from conch.errors import EXIT_DEFECT, EXIT_NOT_ACQUIRED, EXIT_UNAVAILABLE, checked
from conch.log import Field, Log
from conch.record import Record
from conch.static_typing import Callable

# A signal before any endpoint answered leaves nothing to release, except for a request that is just under way.
_UNANSWERED_RELEASE_S = 0.5
# A lease that went unrenewed past its deadline has most likely expired, and etcd is most likely unreachable.
_EXPIRED_RELEASE_S = 1.0
# The keeper enforces the time limits of an acquisition; this much later it is considered hung.
_KEEPER_SLACK_S = 2.0
_DIED = "the process that talks to etcd died"
_DIED_TWICE = "the process that talks to etcd died twice"
_HUNG = "the process that talks to etcd does not answer"


class HoldWon(Record):
    """The hold is ours."""

    hold: Hold


class HoldRenewed(Record):
    """The hold has a newer deadline."""


class HoldLost(Record):
    """The hold is gone, or must be taken for gone."""

    reason: str


class AcquireFailed(Record):
    """There is no hold. `leftovers`: release what etcd may have of it. `final`: not even a restart tries again."""

    code: int
    message: str
    leftovers: bool
    final: bool


class ReleaseDone(Record):
    """Nothing is held any more, or all that could be done for it was."""


Event = HoldWon | HoldRenewed | HoldLost | AcquireFailed | ReleaseDone


class Acquisition:
    """One hold after another, each through its states; the keeper, the lease and the deadline.

    A keeper that dies is replaced once to queue, and once to release the lease.
    """

    def __init__(self, options: RunOptions, loop: LoopPorts, log: Log, *, contain: Callable[[], str]) -> None:
        """`contain` tells the form in which runs are contained."""
        self._options = options
        self._loop = loop
        self._contain = contain
        self._log = log
        self.state = AcquisitionState.IDLE
        self.hold: Hold | None = None
        self._give_up_at = None if options.wait_s is None else loop.now() + options.wait_s
        self._contact = Contact.NONE
        self._timer: float | None = None
        self._keeper = False
        self._replacements = 1  # how many more keepers this acquisition may have
        self._keeper_defect = False  # one of this acquisition ended because of a defect
        self._number = 0
        self._lease: int | None = None

    @property
    def wake_at(self) -> float | None:
        """The next time (CLOCK_BOOTTIME) at which `on_time` has something to do."""
        return self._timer

    @property
    def lost(self) -> bool:
        """Whether the hold was lost."""
        return self.hold is not None and self.hold.lost is not None

    def about(self) -> dict[str, Field]:
        """Return the fields that name this hold in log lines."""
        return {
            "name": self._options.name,
            "rev": self.hold.held.rev if self.hold else None,
            "lease": f"{self._lease:x}" if self._lease else None,
        }

    def send(self, message: Message) -> None:
        """Send to the keeper, if there is one."""
        if self._keeper:
            self._loop.send(message)

    # -- what happens -------------------------------------------------------------------------------------

    def on_message(self, message: Message) -> Event | None:
        """Handle a message from the keeper."""
        asking = self.state is AcquisitionState.ASKING
        match message:
            case Answered(lease):
                self._reach(Contact.ANSWERED)
                self._lease = lease
                if asking:
                    self._timer = self._hung_from()
            case Queued(rev):
                self._reach(Contact.QUEUED)
                self._log("info", "queued", **{**self.about(), "rev": rev})
            case Held() if message.number == self._number and asking:
                return self._on_held(message)
            case Renewed(number, deadline) if number == self._number and self.hold is not None:
                self.hold.renew(deadline)
                return HoldRenewed()
            case Lost(number, reason) if number == self._number:
                return self.lose(reason)
            case Failed(code, text, leftovers) if asking:
                return self._on_failed(code, text, leftovers=leftovers and self._lease is not None)
            case Failed(_, text) if self.state is AcquisitionState.HELD and not self.lost:
                self._log("error", "keeper-failed", **self.about(), msg=text)  # its death follows
            case Released(reason) if self.state in (AcquisitionState.RELEASING, AcquisitionState.CANCELLING):
                return self._on_released(reason)
            case Note(level, event, text):
                self._log(level, event, **{"name": self._options.name, **text})
            case _:
                pass  # an answer to what is over by now, as a hold that crossed its release
        return None

    def on_keeper_death(self, during: str) -> Event | None:
        """The keeper ended by itself; `during` names what the wrapper was doing."""
        self._keeper = False
        self._keeper_defect |= self._loop.drop_keeper()
        if self.state is AcquisitionState.IDLE:
            return None
        self._log("warning", "keeper-died", **self.about(), state=during)
        if self.state is AcquisitionState.HELD:
            return self.lose(_DIED)
        replace = self._replacements > 0
        self._replacements = 0
        if self.state is AcquisitionState.ASKING:
            if replace:
                return self._ask(abandon=self._lease)
            code = EXIT_DEFECT if self._keeper_defect else EXIT_UNAVAILABLE
            if self._lease is None:
                return self._on_failed(code, _DIED_TWICE, leftovers=False)
            self._replacements = 1  # one more, for the release
            return AcquireFailed(code, _DIED_TWICE, leftovers=True, final=False)
        if replace and self._lease is not None:
            return self._ask_for_release()
        return self._on_released(f"{_DIED}; the lease expires by itself")

    def on_time(self) -> Event | None:
        """Act if the time that the keeper had is over."""
        now = self._loop.now()
        if self._timer is None or now < self._timer:
            return None
        self._timer = None
        if self.state is AcquisitionState.ASKING:
            self._drop_keeper()
            answered = self._contact is not Contact.NONE and not self._options.nonblock
            return AcquireFailed(EXIT_NOT_ACQUIRED if answered else EXIT_UNAVAILABLE, _HUNG, leftovers=True, final=True)
        if self.state is AcquisitionState.CANCELLING and self._lease is not None:
            # the answer to the request that was under way: there is something to release after all
            self._enter(AcquisitionState.RELEASING)
            self._timer = now + self._options.command_timeout_s
            return None
        return self.give_up_release()

    # -- acquiring ----------------------------------------------------------------------------------------

    def acquire(self) -> Event | None:
        """Ask for a hold."""
        self._replacements, self._keeper_defect = 1, False
        self._log("info", "acquiring", name=self._options.name)
        return self._ask(abandon=None)

    def _ask(self, abandon: int | None) -> Event | None:
        self._enter(AcquisitionState.ASKING)
        self._number += 1
        self.hold = None
        try:
            self._need_keeper()
        except OSError as error:
            self._enter(AcquisitionState.IDLE)
            text = f"cannot start the process that talks to etcd: {error}"
            return AcquireFailed(EXIT_UNAVAILABLE, text, leftovers=False, final=self._never_queued)
        self._timer = self._hung_from()
        self._loop.send(Acquire(self._number, self._give_up_at, abandon))
        return None

    def _hung_from(self) -> float | None:
        """Return when a keeper that has reported nothing by then must be hung."""
        options, now = self._options, self._loop.now()
        times = [self._give_up_at]
        if self._contact is Contact.NONE:
            times.append(now + max(ANSWERS_WITHIN_S, options.dial_timeout_s))
        elif options.nonblock:
            times.append(now + 2 * options.command_timeout_s)  # the transaction, and the release of the lease
        earliest = min((at for at in times if at is not None), default=None)
        return None if earliest is None else earliest + options.command_timeout_s + _KEEPER_SLACK_S

    def _on_held(self, held: Held) -> Event:
        self._reach(Contact.QUEUED)
        self._enter(AcquisitionState.HELD)
        self.hold = Hold(held)
        self._lease = held.lease
        rule = self.hold.rule(self._options.kill_after_s)
        self._log(
            "info",
            "acquired",
            **self.about(),
            ttl_s=rule.ttl_s,
            margin_s=rule.margin_s,
            grace_s=rule.grace_s,
            contain=self._contain(),
            rule="SIGTERM by deadline-margin-grace, SIGKILL by deadline-margin",
        )
        return HoldWon(self.hold)

    def _on_failed(self, code: int, text: str, *, leftovers: bool) -> Event:
        if not leftovers:
            self._lease = None
            self._enter(AcquisitionState.IDLE)
        return AcquireFailed(code, text, leftovers=leftovers, final=self._never_queued)

    @property
    def _never_queued(self) -> bool:
        """Whether conch was never in line: a restart then does not try again."""
        return self._contact is not Contact.QUEUED

    def lose(self, reason: str) -> Event | None:
        """The hold is gone, or must be taken for gone: say so, once."""
        hold = self.hold
        if self.state is not AcquisitionState.HELD or hold is None or hold.lost is not None:
            return None
        hold.lost = reason
        self._log("error", "lost", **self.about(), reason=reason, left_s=hold.deadline - self._loop.now())
        return HoldLost(reason)

    # -- releasing ----------------------------------------------------------------------------------------

    def release(self) -> Event | None:
        """Have the keeper release what is held or may have been granted."""
        if self._lease is None and not self._keeper:
            return self._on_released("")
        return self._ask_for_release()

    def _ask_for_release(self) -> Event | None:
        try:
            self._need_keeper()
        except OSError as error:
            return self._on_released(f"{error}; the lease expires by itself")
        wait_s = self._options.command_timeout_s
        if self._lease is None:
            self._enter(AcquisitionState.CANCELLING)
            wait_s = _UNANSWERED_RELEASE_S
        else:
            self._enter(AcquisitionState.RELEASING)
            if self.hold is not None and self.lost and self.hold.deadline <= self._loop.now():
                wait_s = min(wait_s, _EXPIRED_RELEASE_S)
        self._timer = self._loop.now() + wait_s
        self._loop.send(Release(self._lease))
        return None

    def give_up_release(self) -> Event:
        """Wait no longer for the release."""
        self._drop_keeper()
        return self._on_released("not confirmed in time; the lease expires by itself" if self._lease else "")

    def _on_released(self, reason: str) -> Event:
        if self._lease is not None:
            self._log("warning" if reason else "info", "released", **self.about(), reason=reason or None)
        self._lease = self.hold = None
        self._enter(AcquisitionState.IDLE)
        return ReleaseDone()

    # -- the keeper and the states ------------------------------------------------------------------------

    def _need_keeper(self) -> None:
        if not self._keeper:
            self._loop.start_keeper()
            self._keeper = True

    def _drop_keeper(self) -> None:
        self._keeper = False
        self._loop.drop_keeper()

    def _reach(self, contact: Contact) -> None:
        if contact.value > self._contact.value:
            self._contact = contact

    def _enter(self, state: AcquisitionState) -> None:
        self.state = checked(ACQUISITION_NEXT, self.state, state)
        self._timer = None
