"""`conch dev`: a real etcd on this machine, for as long as a command runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conch.cli.options import WrapperCommand
from conch.cli.wrapper import find_command
from conch.core import host
from conch.core.plan import SAME_REQUEST_S
from conch.core.terminal import Terminal
from conch.errors import EXIT_NOT_EXECUTABLE, ConchError, EndedBySignal
from conch.log import Log

if TYPE_CHECKING:
    from conch.dev import Cluster

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class _Interrupted(Exception):
    def __init__(self, number: int) -> None:
        self.number = number


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

    noted: list[int] = []

    def check() -> None:
        if noted:
            raise _Interrupted(noted[0])

    # While etcd starts, a signal is only noted: raised anywhere, it could make us forget a member just started.
    taken = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
    for number in taken:
        signal.signal(number, lambda n, _frame: noted.append(n))
    try:
        with Cluster(int(members), folder=data_dir, check=check) as cluster:
            check()
            if child is not None and file is not None:
                environment.update(PATH=path)
                return _run(child, file, environment, cluster, taken, noted)
            click.echo(f"export CONCH_ENDPOINTS={cluster.endpoints} ETCDCTL_ENDPOINTS={cluster.endpoints}")
            awaited = {*taken, signal.SIGCHLD}
            signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
            while not noted:
                cluster.check_running()
                arrived = signal.sigwait(awaited)
                if arrived != signal.SIGCHLD:
                    noted.append(arrived)
            check()
    except _Interrupted as interrupted:
        raise EndedBySignal(interrupted.number) from None
    return 0


def _run(
    child: list[str],
    file: str,
    environment: dict[str, str],
    cluster: "Cluster",
    taken: list[signal.Signals],
    early: list[int],
) -> int:
    """Run the command in a group of its own, with the terminal; return its exit code or raise `EndedBySignal`.

    `early` has the signals that came before it could take them.
    """
    environment.update(CONCH_ENDPOINTS=cluster.endpoints, ETCDCTL_ENDPOINTS=cluster.endpoints, ETCDCTL_API="3")
    terminal = Terminal()
    group: int | None = None
    passed_on: dict[int, float] = {}

    def pass_on(number: int, _frame: object) -> None:
        if group is None:
            early.append(number)
        elif time.monotonic() - passed_on.get(number, -SAME_REQUEST_S) >= SAME_REQUEST_S:
            passed_on[number] = time.monotonic()
            _signal(group, number)

    for number in (*taken, *((signal.SIGTSTP,) if terminal.ours else ())):
        signal.signal(number, pass_on)
    try:
        # as for conch elect: descriptors of the caller's own are the command's, too
        running = subprocess.Popen(child, executable=file, env=environment, process_group=0, close_fds=False)
    except OSError as error:
        raise ConchError(f"cannot run {child[0]}: {error.strerror}", code=EXIT_NOT_EXECUTABLE) from None
    group = running.pid
    cluster.guard(group)
    for number in early:
        _signal(group, number)
    running.returncode = code = _wait(group, terminal)
    try:
        cluster.check_running()
    except ConchError as error:
        Log().plain(str(error))
    if code < 0:
        raise EndedBySignal(-code)
    return code


def _wait(group: int, terminal: Terminal) -> int:
    """Wait for the command, and for its job control; the exit code is negative for a signal."""
    wants_terminal = terminal.lent_at_once
    lent = wants_terminal and terminal.lend(group)
    while True:
        _, status = os.waitpid(group, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            break
        stopped_by = os.WSTOPSIG(status)
        if stopped_by == signal.SIGSTOP and not lent:
            continue
        asked = stopped_by in (signal.SIGTTIN, signal.SIGTTOU)
        wants_terminal = wants_terminal or asked
        if not (asked and terminal.foreground() in (os.getpgrp(), group)):
            terminal.take_back(group)
            terminal.stop_ourselves()
        lent = (wants_terminal and terminal.lend(group)) or lent
        _signal(group, signal.SIGCONT)
    code = os.waitstatus_to_exitcode(status)
    if lent:
        terminal.take_back(group, restore=code < 0)
        if -code in (signal.SIGINT, signal.SIGQUIT):
            terminal.signal_others(-code)
    return code


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass  # all of it has ended, or is another user's
