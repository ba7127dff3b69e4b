"""`conch conchd`: the daemon that runs the ticks of a fleet's schedules, each on exactly one host."""

import os
import re
import resource
import signal
from functools import partial

from conch.cli.connection_options import COMMON, settings
from conch.cli.hold_options import CONTAIN, check_host, find_containment
from conch.cli.spec import DURATION, TEXT, TTL, Command, Kind, Line, Option, int_range
from conch.errors import BadInput, ConchError
from conch.record import Record
from conch.static_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conch.core.containment import Containment
    from conch.core.spawn import User
    from conch.etcd.connection import Settings
    from conch.holder import Holder
    from conch.log import Log

_OWN_DESCRIPTORS, _DESCRIPTORS_A_RUN = 64, 4  # two outputs, the reason for a failed exec, the lock on its cgroup
_MOST_DESCRIPTORS = 20480
_SECRETS = ("CONCH_PASSWORD", "ETCDCTL_PASSWORD")
# PATH of runs under another user, the same on every host; a job may set its own (`--env PATH=…`).
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
        raise BadInput(f"{text!r} is not a host name without a port")
    return text


def _tag(text: str) -> str:
    from conch.cron.job_fields import check_tag

    if text.startswith("host="):
        raise BadInput(f"{text!r}: every conchd has the tag of its host, see CONCH_HOST")
    return check_tag(text)


TAG = Kind("tag", _tag)
ADDRESS = Kind("address", _address)


def _shell_command(text: str) -> str:
    if not text.strip():
        raise BadInput("the command is empty")
    return text


SHELL_COMMAND = Kind("command", _shell_command)
HOST_NAME = Kind("name", _host_name)


class _Account(Record):
    """The user that runs get, with its home directory and shell."""

    user: "User"
    home: str
    shell: str


class _Descriptors(Record):
    """The limits of open files: those that runs inherit (soft, hard), and how many runs ours are enough for."""

    inherited: tuple[int, int]
    most_runs: int


def run(line: Line) -> int:
    """Run ticks until a signal ends the daemon; return conch's exit code."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: None)  # asks for a reload: everything is read below anyway
    values = line.values
    common = settings(line)
    _check_system()
    descriptors = _raise_descriptors()
    account = _account(values["run_as"])
    from conch.cli.keyfile import read_key

    job_key = read_key(values["job_key_file"], common.keys.prefix)
    from conch.core.daemon_loop import OUTPUT_BYTES, DaemonLoop
    from conch.cron.state_dir import lock, state_dir
    from conch.log import Log

    identity = _myself()
    log = Log(quiet=common.quiet, form=common.log_format, backlog=OUTPUT_BYTES)
    containment = find_containment(values["contain"], log, verbose=common.verbose)
    state = state_dir(values["state_dir"])
    locked = lock(state)
    _warn_of_risks(log, account, job_key, values["max_runs"], descriptors)
    max_runs = min(values["max_runs"], descriptors.most_runs)
    loop = DaemonLoop(
        partial(_keep, common, values, identity, state, job_key, max_runs, containment, account),
        _environment(account),
        containment,
        log,
        drain_s=values["drain"],
        release_s=2 * common.connection.command_timeout_s,
        user=None if account is None else account.user,
        kept_open=(locked,),
        descriptors=descriptors.inherited,
        keep_output=not values["no_output"],
    )
    return loop.run()


CONCHD = Command(
    "conchd",
    "Run the ticks of the schedules in etcd, each on exactly one of the hosts that run conchd.",
    (
        Option(
            ("--status-addr",),
            "Address to serve status and metrics on.",
            ADDRESS,
            env=("CONCH_STATUS_ADDR",),
            metavar="HOST:PORT",
        ),
        Option(
            ("--status-host",),
            "Accept status requests for this host name, too, such as that of a proxy. Repeatable.",
            HOST_NAME,
            env=("CONCH_STATUS_HOST",),
            metavar="NAME",
            repeated=True,
        ),
        Option(
            ("--state-dir",),
            "Directory of the journal. Default: STATE_DIRECTORY (set by systemd), or one below XDG_STATE_HOME or "
            "~/.local/state.",
            TEXT,
            env=("CONCH_STATE_DIR",),
            metavar="DIR",
        ),
        Option(
            ("--tag",),
            "Tag of this host, for jobs with --on. Repeatable. `host=NAME` is always one.",
            TAG,
            env=("CONCH_TAG",),
            metavar="TAG",
            repeated=True,
        ),
        Option(
            ("--drain",),
            "How long to wait for live runs after SIGTERM.",
            DURATION,
            default="30s",
            env=("CONCH_DRAIN",),
        ),
        Option(
            ("--max-runs",),
            "Claim no more ticks while this many runs are live. Other hosts may claim them.",
            int_range(1, 4000),
            default="1000",
            env=("CONCH_MAX_RUNS",),
        ),
        Option(("--ttl",), "TTL of the lease in etcd, at least 2s.", TTL, default="10s", env=("CONCH_TTL",)),
        Option(
            ("--job-key-file",),
            "Run only jobs that are signed with the key in this file.",
            TEXT,
            env=("CONCH_JOB_KEY_FILE",),
            metavar="FILE",
        ),
        Option(
            ("--no-output",),
            "Keep nothing of what runs print on this host, whatever their jobs say.",
            env=("CONCH_NO_OUTPUT",),
        ),
        Option(("--run-as",), "Run jobs as this user. Needs root.", TEXT, env=("CONCH_RUN_AS",), metavar="USER"),
        Option(
            ("--on-failure",),
            "Run this with /bin/sh after each run of this host that fails, times out, is killed or lost, and for "
            "missed ticks.",
            SHELL_COMMAND,
            env=("CONCH_ON_FAILURE",),
            metavar="CMD",
        ),
        CONTAIN,
        *COMMON,
    ),
    run,
    argument=None,
)


def _check_system() -> None:
    """Exit 69 before etcd is contacted if this system does not let conchd supervise runs."""
    check_host()
    from conch.core import host

    if host.hides_processes():
        raise ConchError(
            "cannot run anything: /proc hides processes of other users (hidepid), perhaps those of jobs, too"
        )


def _myself() -> "Holder":
    from conch.holder import myself
    from conch.keys import check_name

    identity = myself(["conchd"])
    try:
        check_name(identity.host)
    except BadInput as error:
        raise BadInput(f"the host name cannot be part of a key, set CONCH_HOST: {error}") from None
    return identity


def _warn_of_risks(
    log: "Log", account: _Account | None, job_key: bytes | None, max_runs: int, descriptors: _Descriptors
) -> None:
    if os.geteuid() == 0 and account is None:
        log("warning", "running-as-root", msg="whoever can write jobs to etcd can run commands as root: see --run-as")
    if job_key is None:
        log("info", "unsigned-jobs", msg="jobs run no matter who wrote them: see --job-key-file")
    if max_runs > descriptors.most_runs:
        log(
            "warning",
            "few-descriptors",
            max_runs=descriptors.most_runs,
            msg="the limit of open files allows no more runs",
        )


def _keep(
    common: "Settings",
    values: dict[str, Any],
    identity: "Holder",
    state: str,
    job_key: bytes | None,
    max_runs: int,
    containment: "Containment",
    account: _Account | None,
    channel: Any,
) -> None:
    """Be the keeper. What only it needs is imported here: each fork of a run copies what the supervisor has loaded."""
    from conch.cron.daemon import Daemon, keep

    daemon = Daemon(
        connection=common.connection,
        keys=common.keys,
        identity=identity,
        state_dir=state,
        ttl_s=values["ttl"],
        max_runs=max_runs,
        job_key=job_key,
        status=values["status_addr"],
        status_hosts=values["status_host"],
        on_failure=values["on_failure"],
        owner=None if account is None else (account.user.uid, account.user.gid),
        contain=containment.form,
        cgroups=containment.parent,
        tags=values["tag"],
    )
    keep(daemon, channel)


def _environment(account: _Account | None) -> dict[str, str]:
    """Return the environment of runs: ours without the password of etcd; under another user a minimal one."""
    from conch.core import host
    from conch.core.procfs import RUN_ID_VARIABLE

    ours = host.environment()
    if account is not None:
        # if conchd is itself part of a run, its runs must carry that run's id, too
        kept = {name: ours[name] for name in ("LANG", "TZ", RUN_ID_VARIABLE) if name in ours}
        name = account.user.name
        return {"HOME": account.home, "USER": name, "LOGNAME": name, "SHELL": account.shell, "PATH": _PATH, **kept}
    environment = {name: value for name, value in ours.items() if name not in _SECRETS}
    for name in ("CONCH_USER", "ETCDCTL_USER"):
        if name in environment:
            environment[name] = environment[name].partition(":")[0]
    return environment


def _account(name: str | None) -> _Account | None:
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
    return _Account(User(found.pw_name, found.pw_uid, found.pw_gid), found.pw_dir, found.pw_shell or "/bin/sh")


def _raise_descriptors() -> _Descriptors:
    """Raise our soft limit of open files as far as useful."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    limit = max(soft, target)
    if limit < _OWN_DESCRIPTORS:
        raise ConchError(f"the limit of open files is {limit} (ulimit -n): conchd needs at least {_OWN_DESCRIPTORS}")
    if target > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    return _Descriptors((soft, hard), max(1, (limit - _OWN_DESCRIPTORS) // _DESCRIPTORS_A_RUN))
