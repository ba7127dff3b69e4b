"""The wrapper's supervisor on the real system: descriptors, signals, processes and the terminal."""

import os

from conch.core import host, keeper_process, linux, procfs, spawn
from conch.core.cgroup import remove_left
from conch.core.channel import Channel
from conch.core.containment import Containment
from conch.core.event_loop import SupervisorLoop
from conch.core.messages import Held
from conch.core.process_tree import Process, reap_orphans
from conch.core.procfs import Stat
from conch.core.spawn import Spec
from conch.core.states import End, ProcessTree, RunOptions
from conch.core.supervisor import Supervisor
from conch.core.terminal import WANTS_TERMINAL, Terminal
from conch.errors import EXIT_SIGNAL, ConchError, EndedBySignal
from conch.log import Log
from conch.plain_signal import name_of, signal
from conch.static_typing import Callable, Mapping, Sequence


class WrapperLoop:
    """Runs a `Supervisor` on the real system; it is its `TreePorts`, and its `SupervisorLoop` the `LoopPorts`."""

    def __init__(
        self,
        options: RunOptions,
        command: Sequence[str],
        file: str,
        keeper_main: Callable[[Channel], None],
        send_spec: bytes,
        containment: Containment,
        log: Log,
    ) -> None:
        self._name = options.name
        self._command = command
        self._file = file
        self._log = log
        self._pid = os.getpid()
        self._containment = containment
        self._environment: Mapping[str, str] = host.environment()
        self._loop = SupervisorLoop(keeper_main, log, send_spec=send_spec)
        self._terminal = Terminal()
        self._child: Process | None = None
        self._next_child: Process | None = None  # the next child, behind its gate while we queue
        self._prefork_tried = False  # in this acquisition
        self._is_hook = False
        self._lent = False
        self._wants_terminal = False  # the child gets it, now and whenever conch comes to the foreground
        self._some_hidden = host.hides_processes()
        self._preexisting = self._find_preexisting()
        if self._terminal.ours:
            self._loop.signals.note(signal.SIGTSTP)
        self._supervisor = Supervisor(options, self._loop, self, log)

    def run(self) -> int:
        """Work until the supervisor is done; return conch's exit code. Raises `EndedBySignal` if a signal ended it."""
        keeper_process.collect_garbage()
        supervisor = self._supervisor
        try:
            supervisor.begin()
            while not supervisor.done:
                self._turn()
        finally:
            if (
                self._child is not None and self._lent
            ):  # a defect ends conch: the keeper kills the command, the shell goes on
                self._terminal.take_back(self._child.pid, restore=True)
        self._discard_next_child()
        self._loop.dismiss_keeper()
        self._loop.close()
        if supervisor.ended_by is not None and supervisor.code == EXIT_SIGNAL + supervisor.ended_by:
            raise EndedBySignal(supervisor.ended_by)
        return supervisor.code

    def _turn(self) -> None:
        self._prefork_child()
        self._loop.wait(self._supervisor.wake_at)
        self._read_channel()
        self._supervisor.on_time()
        for number in self._loop.signals.take():
            self._on_signal(number)
        self._log.flush()

    def _read_channel(self) -> None:
        self._loop.receive(self._supervisor.on_message, self._supervisor.on_keeper_death)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap_orphans()
            if self._next_child is not None and self._next_child.exit_code() is not None:
                self._discard_next_child()  # somebody killed it; do not fork again now, in case that goes on
            self._stop_with_child()
            self._supervisor.on_change()
            return
        if number == signal.SIGTSTP:
            self._stop_on_request()
            return
        if number == signal.SIGCONT:
            self._continue_child()
        self._supervisor.on_signal(number)

    # -- TreePorts ----------------------------------------------------------------------------------------

    def start_tree(self, hook: str | None, held: Held, start_by: float | None) -> ProcessTree:
        """Start the hook or the child behind its gate; lend the terminal to the child."""
        if hook is not None:
            child = self._fork(Spec("/bin/sh", ("/bin/sh", "-c", hook), self._environment, no_input=True))
        else:
            if self._next_child is not None and not self._next_child.untouched():
                self._discard_next_child()
            waiting, self._next_child = self._next_child, None
            child = waiting or self._fork_child()
        child.start_by = start_by
        child.environment = {
            "CONCH_NAME": self._name,
            "CONCH_REV": str(held.rev),
            "CONCH_LEASE": f"{held.lease:x}",
            "CONCH_HOLD_KEY": held.key,
        }
        self._child = child
        self._is_hook = hook is not None
        self._wants_terminal = not self._is_hook and self._terminal.lent_at_once
        self._lent = self._wants_terminal and self._terminal.lend(child.pid)
        return child

    def _prefork_child(self) -> None:
        """Fork the child in advance, once, while conch waits for its hold: it then starts at one message."""
        if not self._supervisor.acquiring:
            self._prefork_tried = False
        elif not self._prefork_tried and not self._some_hidden:
            # where /proc hides some processes, a hook is known to be gone only when conch has no other child
            self._prefork_tried = True
            if self._next_child is None:
                try:
                    self._next_child = self._fork_child()
                except OSError:
                    pass  # tried again, and reported, when the child is needed

    def _discard_next_child(self) -> None:
        if self._next_child is not None:
            self._next_child.discard()
            self._next_child = None

    def _fork_child(self) -> Process:
        return self._fork(Spec(self._file, tuple(self._command), self._environment, in_our_place=True))

    def _fork(self, spec: Spec) -> Process:
        run_id = spawn.new_run_id()
        return spawn.start(
            spec,
            run_id=run_id,
            cgroup=self._containment.open(run_id),
            dispositions=self._loop.signals.dispositions,
            exclude=self._excluded,
            some_hidden=self._some_hidden,
        )

    def open_gate(self, tree: ProcessTree) -> None:
        """Let the main process exec."""
        if self._child is tree and self._child is not None:
            self._child.open_gate()
            # these cost time, of which there is enough from here on
            import resource  # noqa: F401 - what `os.wait4` would load when the command has ended

            linux.give_memory_back()
            remove_left(self._containment.parent)

    def contain(self) -> str:
        """Return the form in which runs are contained now."""
        return self._containment.form

    def reap(self, tree: ProcessTree) -> End:
        """Take the terminal back and reap the main process."""
        child = self._child
        if child is None or child is not tree:
            return End()
        died_of = child.died_of()
        error = child.exec_error()
        late = error == spawn.LATE
        if child.uncontained:
            self._containment.warn(child.uncontained)
        if self._lent:
            self._terminal.take_back(child.pid, restore=died_of is not None)
        child.reap()
        self._child = None
        interrupted = self._lent and died_of in (signal.SIGINT, signal.SIGQUIT)
        if interrupted and died_of is not None:
            self._terminal.signal_others(died_of)
        # under nohup, conch outlives its terminal
        hung_up = self._lent and self._loop.signals.heard(signal.SIGHUP)
        hung_up = hung_up and (died_of == signal.SIGHUP or self._terminal.hung_up())
        self._lent = False
        return End(None if late else error, late, died_of, interrupted or hung_up)

    # -- processes ----------------------------------------------------------------------------------------

    def _find_preexisting(self) -> dict[int, Stat]:
        """Return the descendants that conch had before it started anything (`job & exec conch …`): not ours to end."""
        if not keeper_process.had_children():
            return {}
        if self._some_hidden:
            raise ConchError(
                "/proc hides processes of other users (hidepid), and conch had children before it started: "
                "what its command leaves running could not be told from them"
            )
        scan = procfs.processes()
        early = keeper_process.early_pid()
        found = procfs.descendants(self._pid, scan, lambda entry: entry.pid == early)
        return {entry.pid: entry for entry in found}

    def _excluded(self, entry: Stat) -> bool:
        """Whether this child of conch is not part of what runs under the hold."""
        if entry.pid == self._loop.keeper or (self._next_child is not None and entry.pid == self._next_child.pid):
            return True
        if not self._preexisting:
            return False
        before = self._preexisting.get(entry.pid)
        if before is not None and before.start == entry.start:
            return True
        # an orphan of those processes became our child: it is in one of their groups, and lacks the id of our run
        groups = {process.group for process in self._preexisting.values()}
        tagged = self._child is not None and procfs.carries(entry.pid, self._child.run_id)
        return entry.group in groups and not tagged

    def _reap_orphans(self) -> None:
        """Reap the orphaned descendants that have ended; the children that conch forked are reaped elsewhere."""
        forked = (child.pid for child in (self._child, self._next_child) if child is not None)
        reap_orphans({self._loop.keeper, *forked})

    # -- job control --------------------------------------------------------------------------------------

    def _stop_on_request(self) -> None:
        """Ctrl-Z while conch's group has the terminal: stop the command, and conch with it."""
        if self._child is not None and not self._is_hook:
            self._child.signal_group(signal.SIGTSTP)
        else:
            self._terminal.stop_ourselves()

    def _stop_with_child(self) -> None:
        """Stop with a child that was stopped (Ctrl-Z, or a read in the background), as the shell expects."""
        child = self._child
        stopped_by = child.stopped_by() if child is not None and self._terminal.ours else None
        if child is None or stopped_by is None or (stopped_by == signal.SIGSTOP and not self._lent):
            return
        wants_terminal = stopped_by in (signal.SIGTTIN, signal.SIGTTOU)
        if self._is_hook:
            if wants_terminal:
                self._log_stopped(stopped_by, "a hook wants the terminal, which it cannot have")
            return
        if wants_terminal:
            self._wants_terminal = True
            if not self._can_lend(child):
                self._log_stopped(stopped_by, WANTS_TERMINAL)
            if self._can_lend(child):  # all along, or conch came to the foreground just now
                self._continue_child()
                return
        self._terminal.take_back(child.pid)
        self._terminal.stop_ourselves(stopped_by if wants_terminal else signal.SIGTSTP)
        # conch was continued; or never stopped, as nobody could continue it (an orphaned process group)
        arrived = self._loop.signals.take()
        self._read_channel()
        self._supervisor.on_time()
        if signal.SIGCONT not in arrived and self._child is child:
            # without the terminal, a child that wants it would be stopped again immediately
            self._continue_child(only_with_terminal=wants_terminal)
        for number in arrived:
            self._on_signal(number)

    def _log_stopped(self, number: int, text: str) -> None:
        self._log("warning", "stopped", name=self._name, signal=name_of(number), msg=text)

    def _can_lend(self, child: Process) -> bool:
        return self._terminal.foreground() in (os.getpgrp(), child.pid)

    def _continue_child(self, *, only_with_terminal: bool = False) -> None:
        """After `fg`, give the terminal to the child again; after `bg`, only let it run on."""
        child = self._child
        if child is None or self._is_hook or not self._terminal.ours:
            return
        if self._wants_terminal:
            self._lent = self._terminal.lend(child.pid) or self._lent
        if self._lent or not only_with_terminal:
            child.signal_group(signal.SIGCONT)
