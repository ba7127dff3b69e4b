"""The wrapper's dealings with its keeper: asking for a hold, knowing its deadline, giving it back.

The half of the supervisor's decisions that knows nothing of what runs; see `conch.core.supervisor` for the other.
"""

from abc import ABC, abstractmethod

from conch.core.deadline import ANSWERS_WITHIN_S, DeadlineRule
from conch.core.messages import Acquire, Answered, Failed, Held, Lost, Message, Note, Queued, Release, Released, Renewed
from conch.core.states import NEXT, IllegalTransition, Ports, RunOptions, State, next_backoff
from conch.errors import EXIT_DEFECT, EXIT_NOT_ACQUIRED, EXIT_UNAVAILABLE
from conch.log import Field, Log

# A signal while no endpoint ever answered leaves nothing to give back, but for a request just under way.
_UNANSWERED_RELEASE_S = 0.5
# A lease that went unrenewed past its deadline is most likely gone, and etcd most likely away.
_EXPIRED_RELEASE_S = 1.0
# The keeper keeps the times of an acquisition; this much later it is taken for hung.
_KEEPER_SLACK_S = 2.0
_DIED_TWICE = "the process that talks to etcd died twice"


class Acquisition(ABC):
    """The states and their one timer, the keeper, the lease and the deadline."""

    def __init__(self, options: RunOptions, ports: Ports, log: Log) -> None:
        self._options = options
        self._ports = ports
        self._log = log
        self.state = State.BACKOFF
        self.code = 0
        self.ended_by: int | None = None  # the signal that `code` stands for, where it is 128+n
        self._timer: float | None = None
        self._give_up_at = None if options.wait_s is None else ports.now() + options.wait_s
        self._backoff_s = options.restart_min_s
        # how conch ends: `_ending` says that it does after the release, with `code`
        self._ending = not options.restart
        # the keeper
        self._keeper = False
        self._keeper_replaced = False
        self._keeper_defect = False  # one of this acquisition ended of a defect
        self._ever_answered = False
        self._started = False  # it was in line once: from now on nothing but a signal ends a restart
        # this acquisition
        self._number = 0
        self._lease: int | None = None
        self._hold: Held | None = None
        self._deadline = 0.0
        self._lost: str | None = None
        self._requeue = False
        self._wait_briefly = False

    @abstractmethod
    def _reset_run(self) -> None:
        """Forget what ran under the hold before."""

    @abstractmethod
    def _start_next(self) -> None:
        """In READY: start the hook or the child, once there is time enough left for it."""

    @abstractmethod
    def _lose(self, reason: str) -> None:
        """The hold is gone, or must be taken for gone."""

    @property
    def done(self) -> bool:
        """Whether `code` is final. What comes after it is ignored."""
        return self.state is State.DONE

    @property
    def acquiring(self) -> bool:
        """Whether we are in line, or about to be."""
        return self.state is State.ACQUIRING

    def begin(self) -> None:
        """Queue up for the first time."""
        self._acquire()

    def on_message(self, message: Message) -> None:
        """Something arrived from the keeper."""
        match message:
            case Answered(lease):
                self._ever_answered = True
                self._lease = lease
                if self.state is State.ACQUIRING:
                    self._timer = self._acquired_by()
            case Queued(rev):
                self._started = True
                self._log("info", "queued", **{**self._about(), "rev": rev})
            case Held() if message.number == self._number and self.state is State.ACQUIRING:
                self._on_held(message)
            case Renewed(number, deadline) if number == self._number:
                self._deadline = max(self._deadline, deadline)
                if self.state is State.READY:
                    self._start_next()
            case Lost(number, reason) if number == self._number:
                self._lose(reason)
            case Failed(code, text, leftovers) if self.state is State.ACQUIRING:
                if leftovers and self._lease is not None:
                    self._log.plain(text)
                    self.code, self._ending = code, self._ending or not self._started
                    self._release()
                else:
                    self._lease = None
                    self._on_failed(code, text)
            case Failed(_, text) if self._bound:
                self._log("error", "keeper-failed", **self._about(), msg=text)  # its death follows
            case Released(reason) if self.state is State.RELEASING:
                self._on_released(reason)
            case Note(level, event, text):
                self._log(level, event, **{"name": self._options.name, **text})
            case _:
                pass  # an answer to what is over by now, as a hold that crossed its release

    def on_keeper_death(self) -> None:
        """The keeper ended by itself; it is replaced once to queue, and once to give the lease back."""
        self._keeper = False
        self._keeper_defect |= self._ports.drop_keeper()
        if self.state in (State.DONE, State.BACKOFF):
            return
        self._log("warning", "keeper-died", **self._about(), state=self.state.value)
        again = not self._keeper_replaced
        if self.state is State.ACQUIRING and again:
            self._keeper_replaced = True
            self._ask_for_hold(abandon=self._lease)
        elif self.state is State.ACQUIRING and self._lease is not None:
            self._log.plain(_DIED_TWICE)
            self.code = self._died_code
            self._keeper_replaced = False
            self._release()
        elif self.state is State.ACQUIRING:
            self._on_failed(self._died_code, _DIED_TWICE)
        elif self.state is State.RELEASING and again and self._lease is not None:
            self._keeper_replaced = True
            self._ask_for_release()
        elif self.state is State.RELEASING:
            self._on_released("the process that talks to etcd died; the lease expires by itself")
        else:
            self._lose("the process that talks to etcd died")

    @property
    def _died_code(self) -> int:
        return EXIT_DEFECT if self._keeper_defect else EXIT_UNAVAILABLE

    # -- states -------------------------------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        if state not in NEXT[self.state]:
            raise IllegalTransition(f"cannot go from {self.state.value} to {state.value}")
        self.state = state
        self._timer = None

    def _finish(self) -> None:
        self._enter(State.DONE)

    @property
    def _rule(self) -> DeadlineRule:
        return DeadlineRule(self._hold.ttl_s if self._hold else 0.0, self._options.kill_after_s)

    @property
    def _bound(self) -> bool:
        """Whether something runs, or is about to, that must not outlive the hold."""
        return (
            self._hold is not None
            and self._lost is None
            and self.state in (State.READY, State.ON_ACQUIRE, State.RUNNING, State.ON_LOSE)
        )

    @property
    def _lost_from(self) -> float:
        """When an unrenewed hold must be taken for lost: in time to end what runs, or to start nothing any more."""
        ready = self.state is State.READY
        return self._rule.sigkill_at(self._deadline) if ready else self._rule.sigterm_at(self._deadline)

    def _about(self) -> dict[str, Field]:
        return {
            "name": self._options.name,
            "rev": self._hold.rev if self._hold else None,
            "lease": f"{self._lease:x}" if self._lease else None,
        }

    # -- acquiring ----------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        self._enter(State.ACQUIRING)
        self._keeper_replaced = self._keeper_defect = False
        self._log("info", "acquiring", name=self._options.name)
        self._ask_for_hold()

    def _ask_for_hold(self, abandon: int | None = None) -> None:
        self._number += 1
        self._hold = self._lost = None
        self._requeue = False
        self._reset_run()
        try:
            self._need_keeper()
        except OSError as error:
            self._on_failed(EXIT_UNAVAILABLE, f"cannot start the process that talks to etcd: {error}")
            return
        self._timer = self._acquired_by()
        self._ports.send(Acquire(self._number, self._give_up_at, abandon))

    def _need_keeper(self) -> None:
        if not self._keeper:
            self._ports.start_keeper()
            self._keeper = True

    def _acquired_by(self) -> float | None:
        """When a keeper that has told nothing yet must be hung."""
        options, now = self._options, self._ports.now()
        moments = [self._give_up_at]
        if not self._ever_answered:
            moments.append(now + max(ANSWERS_WITHIN_S, options.dial_timeout_s))
        elif options.nonblock:
            moments.append(now + 2 * options.command_timeout_s)  # the transaction, and the lease given back
        moment = min((m for m in moments if m is not None), default=None)
        return None if moment is None else moment + options.command_timeout_s + _KEEPER_SLACK_S

    def _on_hung_keeper(self) -> None:
        self._log.plain("the process that talks to etcd does not answer")
        self._keeper = False
        self._ports.drop_keeper()
        answered = self._ever_answered and not self._options.nonblock
        self.code = self._options.conflict_exit if answered else EXIT_UNAVAILABLE
        self._ending = True
        self._release()

    def _on_held(self, held: Held) -> None:
        self._started = True
        self._hold, self._lease, self._deadline = held, held.lease, held.deadline
        rule = self._rule
        self._log(
            "info",
            "acquired",
            **self._about(),
            ttl_s=rule.ttl_s,
            margin_s=rule.margin_s,
            grace_s=rule.grace_s,
            rule="SIGTERM by deadline-margin-grace, SIGKILL by deadline-margin",
        )
        self._enter(State.READY)
        self._start_next()

    def _on_failed(self, code: int, text: str) -> None:
        if self._ending or not self._started:
            self._log.plain(text)
            self.code = self._options.conflict_exit if code == EXIT_NOT_ACQUIRED else code
            self._finish()
        else:
            self._log("warning", "failed", name=self._options.name, msg=text)
            self._back_off()

    def _back_off(self) -> None:
        options = self._options
        self._backoff_s = next_backoff(
            self._backoff_s, options.restart_min_s, options.restart_max_s, self._ports.jitter
        )
        self._enter(State.BACKOFF)
        self._log("info", "backoff", name=options.name, delay_s=self._backoff_s)
        self._timer = self._ports.now() + self._backoff_s

    # -- releasing ----------------------------------------------------------------------------------------

    def _release(self) -> None:
        self._enter(State.RELEASING)
        if self._lease is None and not self._keeper:
            self._on_released("")
        else:
            self._ask_for_release()

    def _ask_for_release(self) -> None:
        try:
            self._need_keeper()
        except OSError as error:
            self._on_released(f"{error}; the lease expires by itself")
            return
        # Before the first answer there is nothing to give back, but for a request just under way.
        self._wait_briefly = self._lease is None
        wait_s = self._options.command_timeout_s
        if self._wait_briefly:
            wait_s = _UNANSWERED_RELEASE_S
        elif self._hold is not None and self._lost is not None and self._deadline <= self._ports.now():
            wait_s = min(wait_s, _EXPIRED_RELEASE_S)
        self._timer = self._ports.now() + wait_s
        self._ports.send(Release(self._lease))

    def _on_release_timer(self, now: float) -> None:
        if self._wait_briefly and self._lease is not None:
            self._wait_briefly = False
            self._timer = now + self._options.command_timeout_s
        else:
            self._give_up_release()

    def _give_up_release(self) -> None:
        self._keeper = False
        self._ports.drop_keeper()
        self._on_released("not confirmed in time; the lease expires by itself" if self._lease else "")

    def _on_released(self, reason: str) -> None:
        if self._lease is not None:
            self._log("warning" if reason else "info", "released", **self._about(), reason=reason or None)
        self._lease = self._hold = None
        if self._requeue:
            self._acquire()
        elif self._ending:
            self._finish()
        else:
            self._back_off()
