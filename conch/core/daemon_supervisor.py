"""conchd's decisions: what to do at each message, signal, timeout and end of a process, for many runs.

As `conch.core.supervisor` for one; the same `Attempt` starts and ends what runs. Nothing here touches the system:
the ports do.
"""

from conch.core.daemon_states import DAEMON_NEXT, DaemonState
from conch.core.deadline import Hold
from conch.core.messages import (
    Begin,
    Begun,
    Drain,
    Failed,
    Finished,
    Held,
    Kill,
    Lost,
    Message,
    Note,
    Recorded,
    Release,
    Released,
    Reload,
    Renewed,
    Start,
)
from conch.core.states import ENDING, EndRequests, LoopPorts, next_backoff
from conch.core.task import Task, TaskPorts
from conch.core.timetable import Timetable
from conch.errors import EXIT_DEFECT, EXIT_SIGNAL, EXIT_UNAVAILABLE, checked
from conch.log import Log
from conch.plain_signal import name_of, signal

_KEEPER_DIED = "the process that talks to etcd died"
_STOPPING = "conchd is stopping"
# The pause between a keeper that died and the next one.
_RESTART_S, _RESTART_MOST_S = 0.1, 30.0
# A keeper that lived this long does not count as one that dies again and again.
_STABLE_S = 60.0


class DaemonSupervisor:
    """Runs what the keeper orders, and replaces a keeper that died. When the state is DONE, `code` is the exit code."""

    def __init__(self, loop: LoopPorts, ports: TaskPorts, log: Log, *, drain_s: float, release_s: float) -> None:
        self._loop = loop
        self._ports = ports
        self._log = log
        self._drain_s = drain_s
        self._release_s = release_s
        self.state = DaemonState.STARTING
        self.tasks: dict[str, Task] = {}
        self._times = Timetable()  # when each task is to be woken, or earlier: a renewal makes that later
        self._holds: dict[int, Hold] = {}
        self._leases: list[int] = []  # of earlier keepers, until something is held again
        self._keeper = False
        self._keeper_at: float | None = None  # when to start the next one
        self._keeper_since = 0.0
        self._defects = 0  # how many keepers in a row ended because of a defect
        self._restart_s = _RESTART_S
        self._requests = EndRequests()
        self._drain_at: float | None = None  # when the drain time is over
        self._release_by: float | None = None  # when to stop waiting for the keeper, RECORDING or RELEASING
        self.ended_by: int | None = None  # the signal that `code` stands for
        self.code = 0

    @property
    def done(self) -> bool:
        """Whether `code` is final. All that comes later is ignored."""
        return self.state is DaemonState.DONE

    def begin(self) -> None:
        """Start the keeper."""
        self._start_keeper()

    @property
    def wake_at(self) -> float | None:
        """The next time (CLOCK_BOOTTIME) at which `on_time` has something to do."""
        keeper_at = None if self._keeper_at is None or self._bound() else self._keeper_at
        times = [keeper_at, self._release_by, self._drain_at, self._times.first]
        return min((at for at in times if at is not None), default=None)

    @property
    def holds(self) -> set[int]:
        """The holds whose deadlines matter."""
        return set(self._holds)

    def on_message(self, message: Message) -> None:
        """Handle a message from the keeper."""
        if self.done:
            return
        match message:
            case Begun() if self.state is DaemonState.STARTING:
                self._enter(DaemonState.RUNNING)
            case Held():
                self._leases.clear()
                self._on_held(message)
            case Renewed(number, deadline) if number in self._holds:
                self._holds[number].renew(deadline)
            case Lost(number, reason) if number in self._holds:
                if self._holds[number].lost is None:  # it may come twice
                    self._leases.append(self._holds[number].held.lease)
                self._lose(number, reason)
            case Start() if message.run not in self.tasks:
                self._take(message)
            case Kill(run, reason) if run in self.tasks:
                self.tasks[run].end(reason)
                self._plan(self.tasks[run])
            case Recorded(run) if run in self.tasks and self.tasks[run].finished is not None:
                del self.tasks[run]
                self._times.set(run, None)
                self._forget_holds()
            case Failed(code, text) if self.state is DaemonState.STARTING:
                self._fail(code, text)
            case Failed(_, text):
                # another keeper may do better; what runs must not lose its supervisor for it
                self._log("error", "keeper-failed", msg=text)
                self.on_keeper_death()
            case Released(reason) if self.state is DaemonState.RELEASING and not self.tasks:
                if reason:
                    self._log("warning", "released", reason=reason)
                self._enter(DaemonState.DONE)
            case Note(level, event, text):
                self._log(level, event, **text)
            case _:
                pass  # an answer to what is over by now
        self._end_if_idle()

    def on_keeper_death(self) -> None:
        """Replace the keeper, once nothing runs any more under what it held; what holds nothing runs on.

        The first keeper is not replaced until it has begun: the next one would fail for the same reason.
        """
        self._keeper = False
        self._defects = self._defects + 1 if self._loop.drop_keeper() else 0
        if self.done:
            return
        if self.state is DaemonState.STARTING:
            self._fail(EXIT_DEFECT if self._defects else EXIT_UNAVAILABLE, f"{_KEEPER_DIED} at its start")
            return
        self._log("warning", "keeper-died")
        now = self._loop.now()
        if now - self._keeper_since >= _STABLE_S:
            self._restart_s = _RESTART_S
        self._restart_s = next_backoff(self._restart_s, _RESTART_S, _RESTART_MOST_S, self._loop.jitter)
        self._leases += [hold.held.lease for hold in self._holds.values()]
        for number in list(self._holds):
            self._lose(number, _KEEPER_DIED)
        if self._release_by is not None and not any(task.finished for task in self.tasks.values()):
            self.code = self.code or (EXIT_DEFECT if self._defects else 0)
            self._enter(DaemonState.DONE)  # all is recorded; leases expire by themselves
            return
        if self.state is DaemonState.RELEASING:
            self._release_by = None
            self._enter(DaemonState.STOPPING if self._drain_at is None else DaemonState.DRAINING)
        self._keeper_at = now + self._restart_s

    def on_signal(self, number: int) -> None:
        """SIGTERM, SIGINT, SIGQUIT: drain; the second ends the drain, the third kills. SIGHUP: reload.

        A signal that ends counts only from a second after the one before.
        """
        if number == signal.SIGHUP:
            self._send(Reload())  # a keeper that is yet to be started reads everything anew in any case
        if self.done or number not in ENDING or not self._requests.add(number, self._loop.now()):
            return
        self._log("info", "signal", signal=name_of(number))
        if self.state is DaemonState.STARTING and not self.tasks:
            self.code, self.ended_by = EXIT_SIGNAL + number, number
            self._give_up()
        elif self._requests.count == 1:
            self._drain()
        elif self._requests.count == 2:
            self._end_drain()
        else:
            for task in self._live():
                task.kill("third signal")
                self._plan(task)
        self._end_if_idle()

    def on_change(self, ended: set[str]) -> None:
        """Of these runs the main process has ended, or something in their trees."""
        if self.done:
            return
        for run in ended:
            if run in self.tasks:
                self.tasks[run].advance()
                self._plan(self.tasks[run])
        self._end_if_idle()

    def on_time(self) -> None:
        """Time has passed; deadlines are judged first."""
        if self.done:
            return
        now = self._loop.now()
        due = [self.tasks[run] for run in self._times.take_due(now) if run in self.tasks]
        for task in due:
            if task.lost_from is not None and now >= task.lost_from:
                task.lose("not renewed in time")
        for task in due:
            task.on_time(now)
            self._plan(task)
        if self._keeper_at is not None and now >= self._keeper_at and not self._bound():
            self._keeper_at = None
            self._start_keeper()
        if self._drain_at is not None and now >= self._drain_at:
            self._end_drain()
        if self._release_by is not None and now >= self._release_by:
            if self.tasks:
                self._log.plain(f"the ends of {len(self.tasks)} runs could not be recorded")
                self.code = EXIT_UNAVAILABLE
            self._give_up()
        self._end_if_idle()

    # -- the keeper ---------------------------------------------------------------------------------------

    def _start_keeper(self) -> None:
        try:
            self._loop.start_keeper()
        except OSError as error:
            text = f"cannot start the process that talks to etcd: {error.strerror or error}"
            if self.state is DaemonState.STARTING:
                self._fail(EXIT_UNAVAILABLE, text)
                return
            self._log("error", "keeper-failed", msg=text)
            self._keeper_at = self._loop.now() + _RESTART_MOST_S
            return
        self._keeper = True
        self._keeper_since = self._loop.now()
        self._holds.clear()
        ended = [task.finished for task in self.tasks.values() if task.finished is not None]
        live = [task.order.run for task in self._live()]
        first = self.state is DaemonState.STARTING
        self._send(Begin(live, [finished.run for finished in ended], first, list(self._leases)))
        for task in self._live():
            task.announce()
        for finished in ended:
            self._send(finished)
        if self._requests.count:
            self._send(Drain())

    def _send(self, message: Message) -> None:
        if self._keeper:
            self._loop.send(message)

    def _fail(self, code: int, text: str) -> None:
        """The first keeper never began: say why, and end."""
        self._log.plain(text)
        self.code = code
        self._give_up()

    def _give_up(self) -> None:
        """End without the keeper."""
        self._keeper = False
        self._loop.drop_keeper()
        self._enter(DaemonState.DONE)

    # -- holds and runs -----------------------------------------------------------------------------------

    def _live(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.finished is None]

    def _plan(self, task: Task) -> None:
        """Note when a task is to be woken, after whatever may have made that earlier."""
        self._times.set(task.order.run, task.wake_at)

    def _bound(self) -> bool:
        return any(task.order.holds for task in self._live())

    def _on_held(self, held: Held) -> None:
        known = self._holds.get(held.number)
        if known is not None and known.lost is None:
            known.confirm(held)
            for task in self._live():
                self._plan(task)
        else:
            self._holds[held.number] = Hold(held)

    def _lose(self, number: int, reason: str) -> None:
        hold = self._holds.get(number)
        if hold is None:
            return  # forgotten with the last run that needed it
        hold.lost = reason
        for task in self._live():
            if number in task.order.holds:
                task.lose(reason)
                self._plan(task)
        self._forget_holds()

    def _forget_holds(self) -> None:
        if all(hold.lost is None for hold in self._holds.values()):
            return
        needed = {number for task in self._live() for number in task.order.holds}
        self._holds = {n: hold for n, hold in self._holds.items() if hold.lost is None or n in needed}

    def _take(self, order: Start) -> None:
        if order.hook and self.state not in (DaemonState.RUNNING, DaemonState.DRAINING):
            self._send(Finished(order.run, "unstarted", None, 0, 0.0, 0.0, _STOPPING))
            return
        holds = [self._holds.get(number) for number in order.holds]
        task = Task(order, holds, self._ports, self._send, self._loop.now, lambda: not self._requests.count, self._log)
        self.tasks[order.run] = task
        if self._requests.count and not order.hook:  # a hook has its time until the drain is over
            task.finish_unstarted(_STOPPING)
        else:
            task.start()
            self._plan(task)

    # -- the end ------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        self._enter(DaemonState.DRAINING)
        self._drain_at = self._loop.now() + self._drain_s
        self._log("info", "draining", runs=len(self._live()), wait_s=self._drain_s)
        self._send(Drain())
        for task in self._live():
            task.end_waiting(_STOPPING)
            self._plan(task)

    def _end_drain(self) -> None:
        self._drain_at = None
        if self.state is DaemonState.DRAINING:
            self._enter(DaemonState.STOPPING)
        for task in self._live():
            task.end(_STOPPING)
            self._plan(task)

    def _end_if_idle(self) -> None:
        """When nothing runs any more, have the ends of runs recorded, then everything released; then end."""
        if self.state not in (DaemonState.DRAINING, DaemonState.STOPPING, DaemonState.RECORDING):
            return
        if not self.tasks and self._keeper:
            self._enter(DaemonState.RELEASING)
            self._release_by = self._loop.now() + self._release_s
            self._send(Release())
        elif not self.tasks:
            self._give_up()
        elif self._live() or self.state is not DaemonState.STOPPING:
            return
        elif not self._keeper and self._requests.count > 1:
            self._log.plain(f"the ends of {len(self.tasks)} runs could not be recorded: {_KEEPER_DIED}")
            self.code = EXIT_DEFECT if self._defects else EXIT_UNAVAILABLE
            self._give_up()
        else:
            # the recording is waited for, but not forever
            self._enter(DaemonState.RECORDING)
            self._release_by = self._loop.now() + self._release_s

    def _enter(self, state: DaemonState) -> None:
        self.state = checked(DAEMON_NEXT, self.state, state)
