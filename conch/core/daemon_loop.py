"""The supervisor of many runs on the real system: descriptors, signals, processes, their output."""

import os
import random
import select
import signal
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from conch.core import clock, procfs, spawn
from conch.core.channel import Channel
from conch.core.daemon_supervisor import DaemonSupervisor
from conch.core.event_loop import SupervisorLoop
from conch.core.messages import Message, Start
from conch.core.output_relay import Outputs, Relay
from conch.core.process_tree import Process, reap_orphans
from conch.core.procfs import Stat
from conch.core.spawn import Spec, User
from conch.core.states import End, ProcessTree
from conch.errors import EXIT_SIGNAL, EndedBySignal
from conch.line_writer import LineWriter
from conch.log import Log
from conch.record import replace

# How many holds there can be at a time: one for the host, and one a run with a semaphore.
HOLDS = 4096
# Looks at all processes are shared: with many runs about to end, one look each would be too dear.
_LOOK_PAUSE_S = 0.01
# How long what nobody can be told to be of may keep a run from being judged.
_UNCLEAR_S = 5.0
# Should nothing wake us while something left running ends.
_LOOK_AGAIN_S = 1.0
# What runs have printed may wait for our own reader: the last words of many that end together, too.
OUTPUT_BYTES = 4 << 20
_LAST_WORDS_S = 1.0


@dataclass(slots=True)
class _Run:
    process: Process
    relays: tuple[Relay, Relay]


class DaemonLoop:
    """Runs a `Pool` on the real system; it is its `PoolPorts`."""

    def __init__(
        self,
        keeper_main: Callable[[Channel], None],
        environment: Mapping[str, str],
        log: Log,
        *,
        drain_s: float,
        release_s: float,
        user: User | None,
        kept_open: Collection[int],
        descriptors: tuple[int, int] | None = None,
    ) -> None:
        """Runs get this environment and, if given, this user's rights; `kept_open` are the keeper's descriptors.

        `descriptors` is the limit of them that runs get, if ours was raised.
        """
        self._environment = environment
        self._log = log
        self._user = user
        self._parent = SupervisorLoop(keeper_main, log, holds=HOLDS, kept_open=kept_open)
        self._dispositions = replace(self._parent.signals.dispositions, descriptors=descriptors)
        self._out = LineWriter(1, OUTPUT_BYTES)
        self._outputs = Outputs(self._parent.poller)
        self._runs: dict[str, _Run] = {}
        self._trees: dict[int, str] = {}  # by the pid of the main process
        self._ended: dict[str, float] = {}  # since when
        self._orphans: dict[tuple[int, int], str | None] = {}  # by pid and start
        self._unmarked: dict[tuple[int, int], float] = {}  # those without an environment, since when
        self._escaped: list[tuple[Process, int]] = []
        self._me = os.getpid()
        self._look_at: float | None = None
        self._looked_at = 0.0
        self._seen: dict[int, Stat] | None = None
        self._preexisting = frozenset(
            (entry.pid, entry.start) for entry in procfs.descendants(os.getpid(), procfs.processes(), lambda _: False)
        )
        self._supervisor = DaemonSupervisor(self, log, drain_s=drain_s, release_s=release_s)

    def run(self) -> int:
        """Work until the pool is done; return conchd's exit code. Raises `EndedBySignal` where one was its end."""
        supervisor = self._supervisor
        supervisor.begin()
        while not supervisor.done:
            self._parent.follow(supervisor.holds)
            moments = [m for m in (supervisor.wake_at, self._look_at, self._outputs.wake_at) if m is not None]
            ready = self._parent.wait(min(moments, default=None))
            self._parent.receive(supervisor.on_message, supervisor.on_keeper_death)
            supervisor.on_time()
            self._signal_escaped()
            for number in self._parent.signals.take():
                if number == signal.SIGCHLD:
                    self._note_ends()
                else:
                    supervisor.on_signal(number)
            self._signal_escaped()
            self._look()
            self._pass_output_on(ready)
        self._parent.dismiss_keeper()
        self._last_words()
        self._parent.close()
        if supervisor.ended_by is not None and supervisor.code == EXIT_SIGNAL + supervisor.ended_by:
            raise EndedBySignal(supervisor.ended_by)
        return supervisor.code

    # -- the ends of runs ---------------------------------------------------------------------------------

    def _note_ends(self) -> None:
        reap_orphans({self._parent.keeper, *self._trees})
        for run, what in self._runs.items():
            if run not in self._ended and what.process.exit_code() is not None:
                self._ended[run] = clock.now()
        if self._ended:
            self._look_at = self._looked_at + _LOOK_PAUSE_S

    def _look(self) -> None:
        """Have those judged whose main process has ended; one look at all processes serves them all."""
        now = clock.now()
        if self._look_at is None or now < self._look_at:
            return
        try:
            self._seen = procfs.processes()
            clear = self._attribute(self._seen)
            # a stream of unclear ones, of other runs perhaps, must not put off the judgement for ever
            judged = {
                run
                for run, since in self._ended.items()
                if (clear or now - since > _UNCLEAR_S) and not self._reap_zombies(self._runs[run].process, self._seen)
            }
        except OSError:
            judged = set()  # we cannot look now
        unjudged = self._ended.keys() - judged
        self._supervisor.on_change(judged)
        self._seen = None
        self._signal_escaped()
        reap_orphans({self._parent.keeper, *self._trees})  # those that stood behind what was just reaped
        self._looked_at = clock.now()
        self._ended = {run: since for run, since in self._ended.items() if run in self._runs}
        pause_s = _LOOK_PAUSE_S if unjudged else _LOOK_AGAIN_S
        self._look_at = self._looked_at + pause_s if self._ended else None

    def _attribute(self, everyone: Mapping[int, Stat]) -> bool:
        """Find out whose the orphans are that came to us from outside all groups; tell whether that is clear.

        A zombie may be the parent of what was born after the look began; one just in exec shows no environment for a
        moment. Both want another look. What shows none at the second look either has wiped it: it is nobody's.
        """
        clear = True
        known: dict[tuple[int, int], str | None] = {}
        unmarked: dict[tuple[int, int], float] = {}
        now = clock.now()
        for entry in everyone.values():
            if entry.parent != self._me or entry.pid in self._trees or entry.group in self._trees:
                continue
            who = (entry.pid, entry.start)
            if entry.pid == self._parent.keeper or who in self._preexisting:
                continue
            if entry.dead:
                clear = False
                try:
                    os.waitpid(entry.pid, os.WNOHANG)
                except ChildProcessError:
                    pass  # reaped already
            elif self._orphans.get(who) is not None:
                known[who] = self._orphans[who]
            else:
                marks = procfs.run_ids_of(entry.pid)
                if marks is None:
                    unmarked[who] = self._unmarked.get(who, now)
                    clear = clear and now - unmarked[who] >= _LOOK_PAUSE_S
                known[who] = next((mark for mark in marks or () if mark in self._runs), None)
        self._orphans, self._unmarked = known, unmarked
        return clear

    @staticmethod
    def _reap_zombies(child: Process, seen: Mapping[int, Stat]) -> bool:
        """Whether all that was seen of a tree had ended and waited for us: only a further look shows it empty."""
        found = child.members(seen)
        if not found or not all(entry.dead for entry in found):
            return False
        for entry in found:
            try:
                os.waitpid(entry.pid, os.WNOHANG)
            except ChildProcessError:
                pass  # another's child
        return True

    def signal_escaped_soon(self, child: Process, number: int) -> None:
        """Signal what left the groups of runs: one look at all processes serves all of them."""
        self._escaped.append((child, number))

    def _signal_escaped(self) -> None:
        if not self._escaped:
            return
        strays, self._escaped = self._escaped, []
        try:
            everyone = procfs.processes()
            self._attribute(everyone)
            for child, number in strays:
                child.signal_escaped(number, everyone)
        except OSError:
            pass  # we cannot look now; a kill is repeated

    # -- output -------------------------------------------------------------------------------------------

    def _pass_output_on(self, ready: list[tuple[int, int]]) -> None:
        self._outputs.pass_on((fd for fd, _ in ready), clock.now())
        for lines in (self._out, self._log.lines):
            lines.flush()
            self._parent.want_write(lines)

    def _last_words(self) -> None:
        until = clock.now() + _LAST_WORDS_S
        for lines in (self._out, self._log.lines):
            lines.flush()
            while lines.pending and clock.now() < until:
                poller = select.poll()
                poller.register(lines.fileno(), select.POLLOUT)
                poller.poll(100)
                lines.flush()

    # -- PoolPorts ----------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds of CLOCK_BOOTTIME."""
        return clock.now()

    def wall(self) -> float:
        """Seconds since the epoch, for people."""
        return time.time()

    def jitter(self, low: float, high: float) -> float:
        """A random number between the two."""
        return random.uniform(low, high)

    def start_keeper(self) -> None:
        """Fork the keeper."""
        self._parent.start_keeper()

    def drop_keeper(self) -> bool:
        """SIGKILL the keeper and reap it; return whether it had ended of a defect of its own."""
        return self._parent.drop_keeper()

    def send(self, message: Message) -> None:
        """Send to the keeper."""
        self._parent.send(message)

    def start_tree(self, order: Start, attempt: int, start_by: float | None) -> ProcessTree:
        """Fork the run behind its gate, its output piped to us."""
        environment = {**self._environment, **order.environment, "CONCH_ATTEMPT": str(attempt)}
        relays = self._open_relays(order.label)
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
                ),
                run_id=order.run,
                start_by=start_by,
                dispositions=self._dispositions,
                exclude=lambda entry: self._excluded(entry, order.run),
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
        self._trees[child.pid] = order.run
        return _Watched(child, self)

    def _open_relays(self, label: str) -> tuple[Relay, Relay]:
        out = Relay(label, self._out)
        try:
            relays = out, Relay(label, self._log.lines)
        except OSError:
            out.started()
            out.finish()
            raise
        if self._user is not None:
            for relay in relays:
                relay.belongs_to(self._user.uid, self._user.gid)
        return relays

    def open_gate(self, tree: ProcessTree) -> None:
        """Let the main process exec."""
        self._runs[tree.run_id].process.open_gate()

    def reap(self, tree: ProcessTree) -> End:
        """Pass on its last output and let the main process go."""
        run = self._runs.pop(tree.run_id)
        self._ended.pop(tree.run_id, None)  # should it be started again, under the same id
        del self._trees[run.process.pid]
        if self._seen is not None:
            self._seen.pop(run.process.pid, None)
        error = run.process.exec_error()
        for relay in run.relays:
            self._outputs.finish(relay)
        run.process.reap()
        late = error == spawn.LATE
        return End(None if late else error, late)

    def _excluded(self, entry: Stat, run: str) -> bool:
        """Whether this process is not part of the run: only our own children can be another's."""
        if entry.parent != self._me:
            return False
        owner = (
            self._trees.get(entry.pid) or self._trees.get(entry.group) or self._orphans.get((entry.pid, entry.start))
        )
        return owner != run

    def empty(self, child: Process) -> bool:
        """Whether nothing of a tree lives, as far as this turn's look shows; before it, it is taken to live."""
        if self._seen is None:
            return False
        try:
            found = child.members(self._seen)
        except OSError:
            return False  # we cannot look now
        return not found and child.exit_code() is not None


class _Watched:
    """A process whose emptiness is seen by the looks that all share."""

    def __init__(self, child: Process, crew: DaemonLoop) -> None:
        self._child = child
        self._crew = crew
        self.pid = child.pid
        self.run_id = child.run_id

    def exit_code(self) -> int | None:
        return self._child.exit_code()

    def empty(self) -> bool:
        return self._crew.empty(self._child)

    def refused(self) -> list[int]:
        return self._child.refused()

    def signal_group(self, number: int) -> None:
        self._child.signal_group(number)

    def signal_tree(self, number: int) -> None:
        self._child.signal_group(number)
        self._crew.signal_escaped_soon(self._child, number)
