"""`conch dev`: a real etcd on this machine, for as long as a command runs."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conch.cli.options import WrapperCommand
from conch.cli.wrapper import find_command
from conch.errors import EXIT_NOT_EXECUTABLE, EXIT_SIGNAL, ConchError
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

    environment = dict(os.environ)  # before anything of ours leaves a mark in it
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
        return EXIT_SIGNAL + interrupted.number
    return 0


def _run(
    child: list[str],
    file: str,
    environment: dict[str, str],
    cluster: "Cluster",
    taken: list[signal.Signals],
    early: list[int],
) -> int:
    """Run the command in our own process group: the terminal's signals reach it by themselves.

    `early` has the signals that came before it could take them.
    """
    environment.update(CONCH_ENDPOINTS=cluster.endpoints, ETCDCTL_ENDPOINTS=cluster.endpoints, ETCDCTL_API="3")
    running: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: object) -> None:
        if running is None:
            early.append(number)
        elif number not in (signal.SIGINT, signal.SIGQUIT) or not _from_our_terminal():
            running.send_signal(number)

    for number in taken:
        signal.signal(number, pass_on)
    try:
        running = subprocess.Popen(child, executable=file, env=environment)
    except OSError as error:
        raise ConchError(f"cannot run {child[0]}: {error.strerror}", code=EXIT_NOT_EXECUTABLE) from None
    cluster.guard(running.pid)
    for waiting in early:
        running.send_signal(waiting)
    code = running.wait()
    try:
        cluster.check_running()
    except ConchError as error:
        Log().plain(str(error))
    return code if code >= 0 else EXIT_SIGNAL - code


def _from_our_terminal() -> bool:
    """Whether Ctrl-C would have reached the command too, as one of the foreground group."""
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
