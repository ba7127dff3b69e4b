"""`conch conchd`: the daemon that runs the ticks of a fleet's schedules, each on exactly one host."""

import os
import re
import resource
import signal
from functools import partial
from typing import Any

import click

from conch.cli.click_adapter import DURATION, TTL, Parsed, common_options, given, whole
from conch.cli.connection_options import settings
from conch.cli.hold_options import check_host
from conch.errors import BadInput, ConchError

_OWN_DESCRIPTORS, _DESCRIPTORS_A_RUN = 64, 3
_MOST_DESCRIPTORS = 16384
_SECRETS = ("CONCH_PASSWORD", "ETCDCTL_PASSWORD")
# What another user's runs find commands on, the same on every host; a job may have its own (`--env PATH=…`).
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator:
        host = "127.0.0.1"
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or (separator and not host):
        raise BadInput(f"{text!r} is not HOST:PORT or a port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})", text):
        raise BadInput(f"{text!r} is not a host's name, without a port")
    return text


class _Names(Parsed):
    def split_envvar_value(self, rv: str) -> list[str]:
        """A variable has them with commas."""
        return [name.strip() for name in rv.split(",") if name.strip()]


ADDRESS = Parsed("address", _address)
HOST_NAME = _Names("name", _host_name)


@click.command("conchd", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--status-addr",
    type=ADDRESS,
    envvar="CONCH_STATUS_ADDR",
    metavar="HOST:PORT",
    help="Serve status and metrics there.",
)
@click.option(
    "--status-host",
    type=HOST_NAME,
    multiple=True,
    envvar="CONCH_STATUS_HOST",
    metavar="NAME",
    help="Another name by which the status may be asked for, as a proxy's; repeatable.",
)
@click.option(
    "--state-dir",
    envvar="CONCH_STATE_DIR",
    metavar="DIR",
    help="Where the journal is kept; else STATE_DIRECTORY (systemd), or below XDG_STATE_HOME or ~/.local/state.",
)
@click.option(
    "--drain",
    type=DURATION,
    default="30s",
    show_default=True,
    envvar="CONCH_DRAIN",
    help="After SIGTERM: how long to wait for runs.",
)
@click.option(
    "--max-runs",
    type=whole(1, 4000),
    default=1000,
    show_default=True,
    envvar="CONCH_MAX_RUNS",
    help="At this many live runs claim nothing; other hosts may.",
)
@click.option("--ttl", type=TTL, default="10s", show_default=True, envvar="CONCH_TTL", help="Lease TTL, at least 2s.")
@click.option(
    "--job-key-file",
    envvar="CONCH_JOB_KEY_FILE",
    metavar="FILE",
    help="Run only jobs that are signed with the key in this file.",
)
@click.option("--run-as", envvar="CONCH_RUN_AS", metavar="USER", help="Run jobs as this user; needs root.")
@common_options
def command(**values: Any) -> int:
    """Run the ticks of the schedules in etcd, each on exactly one host of those that run conchd."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: None)  # all is read below in any case
    common = settings(values, given())
    check_host()
    from conch.core import host

    if host.hides_processes():
        raise ConchError("cannot run anything: /proc hides processes of other users (hidepid), jobs' own perhaps")
    descriptors, most = _raise_descriptors()
    user = _user(values["run_as"])
    from conch.cli.keyfile import read_key

    job_key = read_key(values["job_key_file"], common.keys.prefix)
    from conch.core.daemon_loop import OUTPUT_BYTES, DaemonLoop
    from conch.cron.daemon import Daemon
    from conch.cron.state_dir import lock, state_dir
    from conch.holder import myself
    from conch.keys import check_name
    from conch.log import Log

    me = myself(["conchd"])
    try:
        check_name(me.host)
    except BadInput as error:
        raise BadInput(f"the host's name cannot stand in a key, set CONCH_HOST: {error}") from None
    log = Log(quiet=common.quiet, form=common.log_format, backlog=OUTPUT_BYTES)
    state = state_dir(values["state_dir"])
    locked = lock(state)
    if os.geteuid() == 0 and user is None:
        log("warning", "running-as-root", msg="whoever may write jobs in etcd runs commands as root here: see --run-as")
    if job_key is None:
        log("info", "unsigned-jobs", msg="jobs are run whoever wrote them: see --job-key-file")
    if values["max_runs"] > most:
        log("warning", "few-descriptors", max_runs=most, msg="the limit of open files allows no more runs")
    daemon = Daemon(
        connection=common.connection,
        keys=common.keys,
        me=me,
        state_dir=state,
        ttl_s=values["ttl"],
        max_runs=min(values["max_runs"], most),
        job_key=job_key,
        status=values["status_addr"],
        status_hosts=tuple(values["status_host"]),
    )
    crew = DaemonLoop(
        partial(_keep, daemon),
        _environment(user),
        log,
        drain_s=values["drain"],
        release_s=2 * common.connection.command_timeout_s,
        user=None if user is None else user[0],
        kept_open=(locked,),
        descriptors=descriptors,
    )
    return crew.run()


def _keep(daemon: Any, channel: Any) -> None:
    # imported in the keeper alone: with it comes all of gRPC
    from conch.cron.daemon import keep

    keep(daemon, channel)


def _environment(user: Any) -> dict[str, str]:
    """What runs inherit: ours without etcd's password; under another user's rights nothing but that user's minimum."""
    from conch.core import host
    from conch.core.procfs import RUN_ID_VARIABLE

    ours = host.environment()
    if user is not None:
        account, home, shell = user
        # the ids of runs that we are part of ourselves go on to all that we run
        kept = {name: ours[name] for name in ("LANG", "TZ", RUN_ID_VARIABLE) if name in ours}
        return {"HOME": home, "USER": account.name, "LOGNAME": account.name, "SHELL": shell, "PATH": _PATH, **kept}
    environment = {name: value for name, value in ours.items() if name not in _SECRETS}
    for name in ("CONCH_USER", "ETCDCTL_USER"):
        if name in environment:
            environment[name] = environment[name].partition(":")[0]
    return environment


def _user(name: str | None) -> Any:
    if name is None:
        return None
    import pwd

    from conch.core.spawn import User

    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise BadInput(f"--run-as: there is no user {name!r}") from None
    if os.geteuid() != 0:
        raise BadInput("--run-as needs root")
    return User(found.pw_name, found.pw_uid, found.pw_gid), found.pw_dir, found.pw_shell or "/bin/sh"


def _raise_descriptors() -> tuple[tuple[int, int], int]:
    """Use what we may of open files; what our limit was, for runs to get, and how many runs it is enough for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if max(soft, wanted) < _OWN_DESCRIPTORS:
        limit = max(soft, wanted)
        raise ConchError(f"the limit of open files is {limit} (ulimit -n): conchd needs at least {_OWN_DESCRIPTORS}")
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return (soft, hard), max(1, (max(soft, wanted) - _OWN_DESCRIPTORS) // _DESCRIPTORS_A_RUN)
