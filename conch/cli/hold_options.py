"""The options of `elect` and `sema`, and the start of a command under a hold."""

import os

from conch.cli.connection_options import COMMON
from conch.cli.spec import DURATION, POSITIVE_DURATION, TEXT, TTL, Command, Line, Option, Usage, choice, int_range
from conch.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, BadInput, ConchError
from conch.etcd.connection import Settings
from conch.static_typing import TYPE_CHECKING, Any, Collection, Sequence

if TYPE_CHECKING:
    from conch.core.containment import Containment
    from conch.core.states import RunOptions
    from conch.keeper.hold_spec import QueueSpec
    from conch.log import Log


def epilog(exit_1: str) -> str:
    """Return what the help of a command that holds something says below its options."""
    return (
        "Hooks read /dev/null. Hooks and CMD get these variables: CONCH_NAME, CONCH_REV (the fencing token), "
        f"CONCH_LEASE, CONCH_HOLD_KEY, CONCH_TREE. Exit codes: that of CMD; 1 {exit_1}, 64 wrong usage, 69 etcd did "
        "not answer, 70 the hold was lost, 71 a defect of conch, 74 stdout cannot be written, 75 not acquired or the "
        "on-acquire hook failed, 126/127 CMD cannot be run, 128+n ended by signal n."
    )


CONTAIN = Option(
    ("--contain",),
    "What holds the processes of a run: a cgroup of its own, or nothing but their ancestry (tree). With auto, a cgroup "
    "where one can be had.",
    choice("auto", "cgroup", "tree"),
    default="auto",
    env=("CONCH_CONTAIN",),
)
# The flags of contract 3 that every wrapper has.
HOLD = (
    Option(("--ttl",), "TTL of the lease in etcd, at least 2s.", TTL, default="10s"),
    Option(("--wait",), "Give up after this time, connecting and queueing included.", DURATION),
    Option(("-n", "--nonblock"), "Do not queue: acquire immediately or exit 75."),
    Option(("-E", "--conflict-exit-code"), "Exit code if it was not acquired.", int_range(0, 255), default="75"),
    Option(("--kill-after",), "Time from SIGTERM to SIGKILL.", DURATION, default="5s"),
    Option(
        ("--on-acquire",),
        "Hook to run with /bin/sh -c after acquiring and before CMD. If it fails, conch releases and exits 75.",
        TEXT,
        metavar="CMD",
    ),
    Option(("--on-lose",), "Hook to run with /bin/sh -c after each run of CMD.", TEXT, metavar="CMD"),
    Option(("--hook-timeout",), "Kill a hook that takes longer.", POSITIVE_DURATION, default="30s"),
    CONTAIN,
)
_COMMON_KEYWORDS = frozenset(option.keyword for option in COMMON)


def check_query(command: Command, query: str, line: Line, allowed: Collection[str]) -> None:
    """Refuse what a query such as --who does not take: a command to run, and options not in `allowed`."""
    if line.child is not None:
        raise Usage(command.path, f"{query} takes no command")
    for option in command.options:
        keyword = option.keyword
        if keyword in line.explicit and keyword not in _COMMON_KEYWORDS and keyword not in allowed:
            raise Usage(command.path, f"{option.flags[-1]} does not go with {query}")


def find_command(child: Sequence[str], path: str | None = None) -> str:
    """Return the file to run, found on `path` or PATH; exit 126 or 127 before etcd is contacted."""
    from conch.core.spawn import find_command as find

    try:
        return find(child[0], os.environ.get("PATH") if path is None else path)
    except FileNotFoundError:
        raise ConchError(f"cannot run {child[0]!r}: not found", code=EXIT_NOT_FOUND) from None
    except PermissionError:
        raise ConchError(f"cannot run {child[0]!r}: not executable", code=EXIT_NOT_EXECUTABLE) from None


def check_host() -> None:
    """Exit 69 before etcd is contacted if this system does not let conch supervise processes."""
    from conch.core import host

    problem = host.problem()
    if problem is not None:
        raise ConchError(f"cannot run anything: {problem}")


def find_containment(mode: str, log: "Log", *, verbose: bool) -> "Containment":
    """Find out what can hold the processes of runs; exit 69 before etcd is contacted if that is not what is asked."""
    from conch.core.containment import find

    containment = find(mode, log)
    if verbose and containment.reason:
        log("info", "uncontained", reason=containment.reason)
    return containment


def run_under_hold(settings: Settings, line: Line, *, what: str, stages: "tuple[QueueSpec, ...]") -> int:
    """Acquire the hold, run the line's command and release; return conch's exit code."""
    values, child = line.values, line.child or []
    check_host()
    file = find_command(child)
    if values["nonblock"] and values["wait"]:
        raise BadInput("--nonblock and --wait exclude each other")
    nonblock = values["nonblock"] or values["wait"] == 0
    wait_s = None if nonblock else values["wait"]

    from conch.core.wrapper_loop import WrapperLoop
    from conch.holder import myself
    from conch.keeper.hold_spec import HoldSpec
    from conch.log import Log

    log = Log(quiet=settings.quiet, form=settings.log_format)
    containment = find_containment(values["contain"], log, verbose=settings.verbose)
    hold = HoldSpec(
        connection=settings.connection,
        what=what,
        stages=stages,
        ttl_s=values["ttl"],
        kill_after_s=values["kill_after"],
        value=myself(child).encode(),
        nonblock=nonblock,
        wait_s=wait_s,
        verbose=settings.verbose,
        cgroups=containment.parent,
    )
    options = _run_options(settings, values, wait_s, nonblock=nonblock)
    return WrapperLoop(options, child, file, lambda channel: _keep(hold, channel), hold.pack(), containment, log).run()


def _run_options(settings: Settings, values: dict[str, Any], wait_s: float | None, *, nonblock: bool) -> "RunOptions":
    from conch.core.states import RunOptions

    return RunOptions(
        name=values["name"],
        kill_after_s=values["kill_after"],
        wait_s=wait_s,
        nonblock=nonblock,
        on_acquire=values["on_acquire"],
        on_lose=values["on_lose"],
        hook_timeout_s=values["hook_timeout"],
        restart=values.get("restart", False),
        restart_min_s=values.get("restart_min", 1.0),
        restart_max_s=values.get("restart_max", 30.0),
        restart_stable_s=values.get("restart_stable", 60.0),
        conflict_exit=values["conflict_exit_code"],
        dial_timeout_s=settings.connection.dial_timeout_s,
        command_timeout_s=settings.connection.command_timeout_s,
    )


def _keep(hold: Any, channel: Any) -> None:
    # imported in the keeper only, because it imports all of gRPC
    from conch.keeper.main import keep

    keep(hold, channel)
