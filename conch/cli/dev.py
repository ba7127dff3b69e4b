"""`conch dev`: a real etcd on this machine, for as long as a command runs."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conch.cli.click_adapter import WrapperCommand
from conch.cli.hold_options import find_command
from conch.core import host
from conch.core.event_loop import Signals
from conch.core.states import SAME_REQUEST_S
from conch.core.terminal import WANTS_TERMINAL, Terminal
from conch.errors import EXIT_NOT_EXECUTABLE, ConchError, EndedBySignal
from conch.log import Log

if TYPE_CHECKING:
    from conch.dev import Cluster

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@click.command(
    "dev",
    cls=WrapperCommand,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Without CMD it prints the endpoints and runs until a signal.",
)
@click.option("--members", type=click.Choice(["1", "3", "5"]), default="1", show_default=True, help="How many.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the data lasts; else it is thrown away.")
@click.pass_context
def command(context: click.Context, members: str, data_dir: Path | None) -> int:
    """Run CMD with a real etcd on free loopback ports: conch dev [OPTIONS] -- CMD..."""
    from conch.dev import Cluster

    environment = host.environment()
    child: list[str] | None = context.obj
    if child is not None and not child:
        raise click.UsageError("no command after --", context)
    # `conch` and what the extra brings are found also when their environment is not activated
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)))
    file = find_command(child, path) if child else None

    signals = Signals(ignored=())
    noted: list[int] = []

    def check() -> None:
        # While etcd starts, a signal is only noted: raised anywhere, it could make us forget a member just started.
        noted.extend(number for number in signals.take() if number in _ENDING)
        if noted:
            raise EndedBySignal(noted[0])

    with Cluster(int(members), folder=data_dir, check=check) as cluster:
        check()
        if child is not None and file is not None:
            environment.update(PATH=path)
            return _run(child, file, environment, cluster, signals)
        click.echo(f"export CONCH_ENDPOINTS={cluster.endpoints} ETCDCTL_ENDPOINTS={cluster.endpoints}")
        while True:
            cluster.check_running()
            _wait_for(signals)
            check()


def _wait_for(signals: Signals) -> None:
    poller = select.poll()
    poller.register(signals, select.POLLIN)
    poller.poll()


def _run(child: list[str], file: str, environment: dict[str, str], cluster: "Cluster", signals: Signals) -> int:
    """Run the command in a group of its own, with the terminal; return its exit code or raise `EndedBySignal`."""
    environment.update(CONCH_ENDPOINTS=cluster.endpoints, ETCDCTL_ENDPOINTS=cluster.endpoints)
    terminal = Terminal()
    if terminal.ours:
        signals.note(signal.SIGTSTP)
    try:
        # as for conch elect: descriptors of the caller's own are the command's, too
        running = subprocess.Popen(child, executable=file, env=environment, process_group=0, close_fds=False)
    except OSError as error:
        raise ConchError(f"cannot run {child[0]}: {error.strerror}", code=EXIT_NOT_EXECUTABLE) from None
    cluster.guard(running.pid)
    running.returncode = code = _Job(running.pid, terminal).wait(signals)
    try:
        cluster.check_running()
    except ConchError as error:
        Log().plain(str(error))
    if code < 0:
        raise EndedBySignal(-code)
    return code


class _Job:
    """The command's process group, and who has the terminal."""

    def __init__(self, group: int, terminal: Terminal) -> None:
        self._group = group
        self._terminal = terminal
        self._wants_terminal = terminal.lent_at_once
        self._lent = self._wants_terminal and terminal.lend(group)
        self._passed_on: dict[int, float] = {}

    def wait(self, signals: Signals) -> int:
        """Pass signals on until the command has ended; its exit code is negative for a signal."""
        while True:
            for number in signals.take():
                self._pass_on(number)
            pid, status = os.waitpid(self._group, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                _wait_for(signals)
            elif os.WIFSTOPPED(status):
                self._on_stop(os.WSTOPSIG(status), signals)
            else:
                return self._end(os.waitstatus_to_exitcode(status))

    def _pass_on(self, number: int) -> None:
        now = time.monotonic()
        if number != signal.SIGCHLD and now - self._passed_on.get(number, -SAME_REQUEST_S) >= SAME_REQUEST_S:
            if number in _ENDING:
                self._passed_on[number] = now
            self._signal(number)

    def _on_stop(self, stopped_by: int, signals: Signals) -> None:
        if stopped_by == signal.SIGSTOP and not self._lent:
            return  # somebody stopped it, and will continue it
        asked = stopped_by in (signal.SIGTTIN, signal.SIGTTOU)
        self._wants_terminal = self._wants_terminal or asked
        arrived: list[int] = []
        if not (asked and self._terminal.foreground() in (os.getpgrp(), self._group)):
            if asked:
                Log()("warning", "stopped", signal=signal.Signals(stopped_by).name, msg=WANTS_TERMINAL)
            self._terminal.take_back(self._group)
            self._terminal.stop_ourselves(stopped_by if asked else signal.SIGTSTP)
            arrived = signals.take()
        self._lent = (self._wants_terminal and self._terminal.lend(self._group)) or self._lent
        # where nobody could stop and continue us, a command that wants the terminal would be stopped again at once
        if self._lent or not asked or signal.SIGCONT in arrived:
            self._signal(signal.SIGCONT)
        for number in arrived:
            self._pass_on(number)

    def _end(self, code: int) -> int:
        if self._lent:
            self._terminal.take_back(self._group, restore=code < 0)
            if -code in (signal.SIGINT, signal.SIGQUIT):
                self._terminal.signal_others(-code)
        return code

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._group, number)
        except (ProcessLookupError, PermissionError):
            pass  # all of it has ended, or is another user's
