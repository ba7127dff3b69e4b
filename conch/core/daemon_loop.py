"""The supervisor of many runs on the real system: descriptors, signals, processes, their output."""

import select
import time

import conch.core.env_file  # noqa: F401 - a run reads its files by it, with rights that may not reach conch's own
from conch.core import clock, procfs, spawn
from conch.core.cgroup import Usage
from conch.core.channel import Channel
from conch.core.containment import Containment
from conch.core.daemon_supervisor import DaemonSupervisor
from conch.core.event_loop import SupervisorLoop
from conch.core.messages import Kill, Lost, Start
from conch.core.orphans import SCAN_PAUSE_S, Orphans, reap_zombie
from conch.core.output_relay import Outputs, Relay
from conch.core.output_tail import OutputTail
from conch.core.process_tree import Process, reap_orphans
from conch.core.procfs import Stat
from conch.core.spawn import Spec, User
from conch.core.states import End, ProcessTree
from conch.errors import EXIT_SIGNAL, EndedBySignal
from conch.line_writer import LineWriter
from conch.log import Log
from conch.plain_signal import signal
from conch.record import Record, replace
from conch.static_typing import Callable, Collection, Mapping

# How many holds there can be at a time: one for the host, and one per run with a semaphore.
HOLDS = 4096
# How long a process that cannot be attributed may delay declaring a run finished.
_UNCLEAR_S = 5.0
# The next scan while a run has leftovers, in case nothing wakes us when they end.
_SCAN_AGAIN_S = 1.0
# How long ends of runs and their output wait while orders to start others have arrived.
_STARTS_FIRST_S = 0.25
# How much output of runs may wait for our own reader, also when many runs end together.
OUTPUT_BYTES = 4 << 20
_LAST_OUTPUT_S = 1.0


class _Run(Record):
    process: Process
    relays: tuple[Relay, Relay]


class DaemonLoop:
    """Runs a `DaemonSupervisor` on the real system; it is its `TaskPorts`, and its `SupervisorLoop` the `LoopPorts`."""

    def __init__(
        self,
        keeper_main: Callable[[Channel], None],
        environment: Mapping[str, str],
        containment: Containment,
        log: Log,
        *,
        drain_s: float,
        release_s: float,
        user: User | None,
        kept_open: Collection[int],
        descriptors: tuple[int, int] | None = None,
        keep_output: bool = True,
    ) -> None:
        """Runs get this environment and, if there is one, this user's rights; `kept_open` are the keeper's descriptors.

        `descriptors` is the limit of open files that runs get, if ours was raised. Without `keep_output` nothing that
        runs print is kept, whatever their jobs say.
        """
        self._environment = environment
        self._containment = containment
        self._log = log
        self._user = user
        self._keep_output = keep_output
        self._loop = SupervisorLoop(keeper_main, log, holds=HOLDS, kept_open=kept_open)
        self._dispositions = replace(self._loop.signals.dispositions, descriptors=descriptors)
        self._out = LineWriter(1, OUTPUT_BYTES)
        self._outputs = Outputs(self._loop.poller)
        self._tails: dict[str, OutputTail] = {}  # of the runs whose output is kept
        self._runs: dict[str, _Run] = {}
        self._run_of_pid: dict[int, str] = {}  # by the pid of the main process
        self._ended: dict[str, float] = {}  # runs whose main process has ended, since when
        self._orphans = Orphans(self._runs, self._run_of_pid, lambda: self._loop.keeper)
        self._escape_signals: list[tuple[Process, int]] = []  # to send with the next scan
        self._scan_at: float | None = None
        self._scanned_at = 0.0
        self._scan: dict[int, Stat] | None = None  # of this turn
        self._supervisor = DaemonSupervisor(self._loop, self, log, drain_s=drain_s, release_s=release_s)

    def run(self) -> int:
        """Work until the supervisor is done; return conchd's exit code. Raises `EndedBySignal` if a signal ended it."""
        supervisor = self._supervisor
        supervisor.begin()
        while not supervisor.done:
            self._loop.follow(supervisor.holds)
            times = [at for at in (supervisor.wake_at, self._scan_at, self._outputs.wake_at) if at is not None]
            ready = self._loop.wait(min(times, default=None))
            # neither a loss nor the end of a run waits behind orders to start hundreds of runs
            self._loop.receive(supervisor.on_message, supervisor.on_keeper_death, at_once=(Lost, Kill))
            supervisor.on_time()
            self._signal_escaped()
            for number in self._loop.signals.take():
                if number == signal.SIGCHLD:
                    self._scan_soon()
                else:
                    supervisor.on_signal(number)
            self._signal_escaped()
            if not self._loop.has_messages or clock.now() >= self._scanned_at + _STARTS_FIRST_S:
                self._judge_ends()
                self._pass_output_on(ready)
        self._loop.dismiss_keeper()
        self._write_last_output()
        self._loop.close()
        if supervisor.ended_by is not None and supervisor.code == EXIT_SIGNAL + supervisor.ended_by:
            raise EndedBySignal(supervisor.ended_by)
        return supervisor.code

    # -- the ends of runs ---------------------------------------------------------------------------------

    def _scan_soon(self) -> None:
        """A process has ended: find out which, together with those that end at about the same time."""
        self._scan_at = self._scanned_at + SCAN_PAUSE_S

    def _note_ends(self) -> None:
        reap_orphans({self._loop.keeper, *self._run_of_pid})
        for run, started in self._runs.items():
            if run not in self._ended and started.process.exit_code() is not None:
                self._ended[run] = clock.now()

    def _judge_ends(self) -> None:
        """Have the supervisor judge the runs whose main process has ended; all of them share one scan.

        What lives of such a run are conchd's own children and what is below them: its main process had others, which
        the kernel had conchd adopt before it reported that end.
        """
        now = clock.now()
        if self._scan_at is None or now < self._scan_at:
            return
        self._scanned_at, self._scan_at = now, None
        self._note_ends()
        if not self._ended:
            return
        try:
            self._scan = procfs.children(self._run_of_pid)
            clear = self._orphans.attribute(self._scan)
            # a stream of unclear processes, perhaps of other runs, must not delay the judgement forever
            judged = {
                run
                for run, since in self._ended.items()
                if (clear or now - since > _UNCLEAR_S) and not self._is_settling(self._runs[run].process, self._scan)
            }
        except OSError:
            judged = set()  # /proc cannot be read now
        unjudged = self._ended.keys() - judged
        self._supervisor.on_change(judged)
        self._scan = None
        self._signal_escaped()
        reap_orphans({self._loop.keeper, *self._run_of_pid})  # those that waited behind what was just reaped
        self._scanned_at = clock.now()
        self._ended = {run: since for run, since in self._ended.items() if run in self._runs}
        pause_s = SCAN_PAUSE_S if unjudged else _SCAN_AGAIN_S
        self._scan_at = self._scanned_at + pause_s if self._ended else None

    @staticmethod
    def _is_settling(child: Process, scan: Mapping[int, Stat]) -> bool:
        """Whether the tree consists of zombies, which are reaped: only another scan can show it empty."""
        found = child.members(scan)
        if not found or not all(entry.dead for entry in found):
            return not found and child.is_settling()
        for entry in found:
            reap_zombie(entry)
        return True

    def signal_escaped_soon(self, child: Process, number: int) -> None:
        """Signal the processes that left the group of this run; the runs share one /proc scan."""
        self._escape_signals.append((child, number))

    def _signal_escaped(self) -> None:
        if not self._escape_signals:
            return
        unsent, self._escape_signals = self._escape_signals, []
        try:
            scan = procfs.processes()
            self._orphans.attribute(scan)
            trees, sizes = self._orphans.trees(scan), procfs.group_sizes(scan.values())
            for child, number in unsent:
                child.signal_those_escaped(number, trees.get(child.run_id, ()), sizes)
        except OSError:
            pass  # /proc cannot be read now; a kill is repeated

    # -- output -------------------------------------------------------------------------------------------

    def _pass_output_on(self, ready: list[tuple[int, int]]) -> None:
        self._outputs.pass_on((fd for fd, _ in ready), clock.now())
        for lines in (self._out, self._log.lines):
            lines.flush()
            self._loop.want_write(lines)

    def _write_last_output(self) -> None:
        deadline = clock.now() + _LAST_OUTPUT_S
        for lines in (self._out, self._log.lines):
            lines.flush()
            while lines.pending and clock.now() < deadline:
                poller = select.poll()
                poller.register(lines.fileno(), select.POLLOUT)
                poller.poll(100)
                lines.flush()

    # -- TaskPorts ------------------------------------------------------------------------------------------

    def wall(self) -> float:
        """Return the seconds since the epoch, for display."""
        return time.time()

    def start_tree(self, order: Start, attempt: int, start_by: float | None) -> ProcessTree:
        """Fork the run behind its gate, its output piped to us."""
        job_environment = {**order.environment, "CONCH_ATTEMPT": str(attempt)}
        environment = {**self._environment, **job_environment}
        relays = self._open_relays(order)
        try:
            child = spawn.start(
                Spec(
                    "",
                    tuple(order.command),
                    environment,
                    no_input=True,
                    directory=order.directory,
                    outputs=(relays[0].write_end, relays[1].write_end),
                    user=self._user,
                    apart=True,
                    env_files=tuple(order.env_files),
                    job_environment=job_environment,
                ),
                run_id=order.run,
                cgroup=self._containment.open(order.run),
                start_by=start_by,
                dispositions=self._dispositions,
                exclude=lambda entry: self._orphans.excluded(entry, order.run),
            )
        except OSError:
            for relay in relays:
                relay.started()
                relay.finish()
            raise
        for relay in relays:
            relay.started()
            self._outputs.add(relay)
        self._runs[order.run] = _Run(child, relays)
        self._run_of_pid[child.pid] = order.run
        return _DaemonTree(child, self)

    def _open_relays(self, order: Start) -> tuple[Relay, Relay]:
        tail = None
        if self._keep_output and order.keep_output != "never" and not order.hook:
            tail = self._tails.setdefault(order.run, OutputTail())
        out = Relay(order.label, self._out, tail)
        try:
            relays = out, Relay(order.label, self._log.lines, tail)
        except OSError:
            out.started()
            out.finish()
            raise
        if self._user is not None:
            for relay in relays:
                relay.belongs_to(self._user.uid, self._user.gid)
        return relays

    def take_output(self, run: str) -> str:
        """Return the end of what a run printed, all attempts together, and forget it."""
        tail = self._tails.pop(run, None)
        return "" if tail is None else tail.text()

    def open_gate(self, tree: ProcessTree) -> None:
        """Let the main process exec."""
        self._runs[tree.run_id].process.open_gate()

    def reap(self, tree: ProcessTree) -> End:
        """Pass on the last output of the run and reap its main process."""
        run = self._runs.pop(tree.run_id)
        self._ended.pop(tree.run_id, None)  # it may be started again under the same id
        del self._run_of_pid[run.process.pid]
        if self._scan is not None:
            self._scan.pop(run.process.pid, None)
        error = run.process.exec_error()
        for relay in run.relays:
            self._outputs.finish(relay)
        run.process.reap()
        late = error == spawn.LATE
        if run.process.uncontained:
            self._containment.warn(run.process.uncontained)
        return End(None if late else error, late)

    def empty(self, child: Process) -> bool:
        """Whether nothing of a tree lives, as this turn's scan shows; without a scan it is taken to live."""
        if self._scan is None:
            return False
        try:
            alive = child.exit_code() is None or child.populated() or child.members(self._scan)
        except OSError:
            return False  # /proc cannot be read now
        return not alive


class _DaemonTree:
    """The process tree of one run; the scans that show it empty are shared by all runs."""

    def __init__(self, child: Process, loop: DaemonLoop) -> None:
        self._child = child
        self._loop = loop
        self.pid = child.pid
        self.run_id = child.run_id
        self.cgroup = child.cgroup

    def exit_code(self) -> int | None:
        return self._child.exit_code()

    def empty(self) -> bool:
        return self._loop.empty(self._child)

    def refused(self) -> list[int]:
        return self._child.refused()

    def clear_away(self) -> Usage:
        return self._child.clear_away()

    def signal_group(self, number: int) -> None:
        self._child.signal_group(number)

    def signal_tree(self, number: int) -> None:
        self._child.signal_group(number)
        self._child.signal_contained(number)
        self._loop.signal_escaped_soon(self._child, number)
