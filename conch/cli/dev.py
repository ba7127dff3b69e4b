"""`conch dev`: run a command with a real etcd on this machine."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from conch.cli.hold_options import find_command
from conch.cli.output import put_line
from conch.cli.spec import Command, Kind, Line, Option, Usage, choice
from conch.core import host
from conch.core.event_loop import Signals
from conch.core.states import SAME_REQUEST_S
from conch.core.terminal import WANTS_TERMINAL, Terminal
from conch.errors import EXIT_NOT_EXECUTABLE, BadInput, ConchError, EndedBySignal
from conch.log import Log
from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conch.dev import Cluster

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def _path(text: str) -> Path:
    if os.path.exists(text) and not os.access(text, os.R_OK):
        raise BadInput(f"{text!r} is not readable")
    return Path(text)


def run(line: Line) -> int:
    """Start etcd, then run the line's command, or print the endpoints and wait for a signal."""
    from conch.dev import Cluster

    environment = host.environment()
    child = line.child
    if child is not None and not child:
        raise Usage(DEV.path, "no command after --")
    # `conch` and the etcd of its extra are found even if their environment is not activated
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)))
    file = find_command(child, path) if child else None

    signals = Signals(ignored=())
    noted: list[int] = []

    def check() -> None:
        # While etcd starts, a signal is only noted: raised anywhere, it could make us forget a member just started.
        noted.extend(number for number in signals.take() if number in _ENDING)
        if noted:
            raise EndedBySignal(noted[0])

    with Cluster(int(line.values["members"]), folder=line.values["data_dir"], check=check) as cluster:
        check()
        if child is not None and file is not None:
            environment.update(PATH=path)
            return _run_child(child, file, environment, cluster, signals)
        put_line(f"export CONCH_ENDPOINTS={cluster.endpoints} ETCDCTL_ENDPOINTS={cluster.endpoints}")
        while True:
            cluster.check_running()
            _wait_for(signals)
            check()


DEV = Command(
    "dev",
    "Run CMD with a real etcd on free loopback ports.",
    (
        Option(("--members",), "Number of etcd members.", choice("1", "3", "5"), default="1"),
        Option(("--data-dir",), "Directory to keep the data in. Without it the data is deleted.", Kind("path", _path)),
    ),
    run,
    argument=None,
    takes_child=True,
    examples=(("conch dev -- bash", "a shell in which conch and etcdctl find that etcd"),),
    epilog="Without CMD, print the endpoints and run until a signal.",
)


def _wait_for(signals: Signals) -> None:
    poller = select.poll()
    poller.register(signals, select.POLLIN)
    poller.poll()


def _run_child(child: list[str], file: str, environment: dict[str, str], cluster: "Cluster", signals: Signals) -> int:
    """Run the command in its own process group, with the terminal; return its exit code or raise `EndedBySignal`."""
    environment.update(CONCH_ENDPOINTS=cluster.endpoints, ETCDCTL_ENDPOINTS=cluster.endpoints)
    terminal = Terminal()
    if terminal.ours:
        signals.note(signal.SIGTSTP)
    try:
        # as conch elect does: the command inherits the caller's descriptors
        running = subprocess.Popen(child, executable=file, env=environment, process_group=0, close_fds=False)
    except OSError as error:
        raise ConchError(f"cannot run {child[0]}: {error.strerror}", code=EXIT_NOT_EXECUTABLE) from None
    cluster.guard(running.pid)
    running.returncode = code = _ChildGroup(running.pid, terminal).wait(signals)
    try:
        cluster.check_running()
    except ConchError as error:
        Log().plain(str(error))
    if code < 0:
        raise EndedBySignal(-code)
    return code


class _ChildGroup:
    """The command's process group, and whether it has the terminal."""

    def __init__(self, group: int, terminal: Terminal) -> None:
        self._group = group
        self._terminal = terminal
        self._wants_terminal = terminal.lent_at_once
        self._lent = self._wants_terminal and terminal.lend(group)
        self._forwarded_at: dict[int, float] = {}

    def wait(self, signals: Signals) -> int:
        """Forward signals until the command ends; return its exit code, negative for a signal."""
        while True:
            for number in signals.take():
                self._forward(number)
            pid, status = os.waitpid(self._group, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                _wait_for(signals)
            elif os.WIFSTOPPED(status):
                self._handle_stop(os.WSTOPSIG(status), signals)
            else:
                return self._finish(os.waitstatus_to_exitcode(status))

    def _forward(self, number: int) -> None:
        now = time.monotonic()
        if number != signal.SIGCHLD and now - self._forwarded_at.get(number, -SAME_REQUEST_S) >= SAME_REQUEST_S:
            if number in _ENDING:
                self._forwarded_at[number] = now
            self._signal(number)

    def _handle_stop(self, stopped_by: int, signals: Signals) -> None:
        if stopped_by == signal.SIGSTOP and not self._lent:
            return  # whoever stopped it will continue it
        wants_terminal = stopped_by in (signal.SIGTTIN, signal.SIGTTOU)
        self._wants_terminal = self._wants_terminal or wants_terminal
        arrived: list[int] = []
        if not (wants_terminal and self._terminal.foreground() in (os.getpgrp(), self._group)):
            if wants_terminal:
                Log()("warning", "stopped", signal=signal.Signals(stopped_by).name, msg=WANTS_TERMINAL)
            self._terminal.take_back(self._group)
            self._terminal.stop_ourselves(stopped_by if wants_terminal else signal.SIGTSTP)
            arrived = signals.take()
        self._lent = (self._wants_terminal and self._terminal.lend(self._group)) or self._lent
        # If nothing could stop and continue us, a command that wants the terminal would be stopped again immediately.
        if self._lent or not wants_terminal or signal.SIGCONT in arrived:
            self._signal(signal.SIGCONT)
        for number in arrived:
            self._forward(number)

    def _finish(self, code: int) -> int:
        if self._lent:
            self._terminal.take_back(self._group, restore=code < 0)
            if -code in (signal.SIGINT, signal.SIGQUIT):
                self._terminal.signal_others(-code)
        return code

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._group, number)
        except (ProcessLookupError, PermissionError):
            pass  # every process of it has ended or belongs to another user
