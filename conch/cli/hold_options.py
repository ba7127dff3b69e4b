"""What the commands that run a child under a hold share: their flags, and the start of the loop."""

import os
from collections.abc import Sequence
from functools import partial

from conch.cli.spec import DURATION, POSITIVE_DURATION, TEXT, TTL, Command, Line, Option, Usage, whole
from conch.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, BadInput, ConchError
from conch.etcd.connection import Settings
from conch.static_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conch.keeper.hold_spec import QueueSpec

EXIT_CODES = (
    "Hooks read /dev/null. Their environment and the command's: CONCH_NAME, CONCH_REV (the fencing token), "
    "CONCH_LEASE, CONCH_HOLD_KEY, CONCH_TREE. Exit codes: the command's; 1 vacant or not held, 64 usage, 69 etcd did "
    "not answer, 70 the hold was lost, 71 a defect of conch, 74 stdout cannot be written, 75 not acquired or the "
    "on-acquire hook failed, 126/127 the command cannot be run, 128+n ended by signal n."
)

# The flags of contract 3 that every wrapper has.
HOLD = (
    Option(("--ttl",), "Lease TTL, at least 2s.", TTL, default="10s"),
    Option(("--wait",), "Give up after this long, dialling and queueing together.", DURATION),
    Option(("-n", "--nonblock"), "Take it now or exit 75."),
    Option(("-E", "--conflict-exit-code"), "Exit code when it was not acquired.", whole(0, 255), default="75"),
    Option(("--kill-after",), "SIGTERM to SIGKILL.", DURATION, default="5s"),
    Option(
        ("--on-acquire",),
        "/bin/sh -c hook after winning, before the child; its failure gives the hold up.",
        TEXT,
        metavar="CMD",
    ),
    Option(("--on-lose",), "/bin/sh -c hook after each run of the child.", TEXT, metavar="CMD"),
    Option(("--hook-timeout",), "A hook that takes longer is killed.", POSITIVE_DURATION, default="30s"),
)


def refuse_with_look(command: Command, look: str, line: Line, allowed: set[str]) -> None:
    """A look takes neither a command nor one of the command's own flags that is not allowed with it."""
    if line.child is not None:
        raise Usage(command.path, f"{look} takes no command")
    for option in command.options:
        name = option.keyword
        if name in line.given and name in line.values and name not in allowed:
            raise Usage(command.path, f"{option.flags[-1]} does not go with {look}")


def find_command(child: Sequence[str], path: str | None = None) -> str:
    """The file to run, found on `path` or PATH; exits 126 or 127 before etcd is touched."""
    from conch.core.spawn import find_command as find

    try:
        return find(child[0], os.environ.get("PATH") if path is None else path)
    except FileNotFoundError:
        raise ConchError(f"cannot run {child[0]!r}: not found", code=EXIT_NOT_FOUND) from None
    except PermissionError:
        raise ConchError(f"cannot run {child[0]!r}: not executable", code=EXIT_NOT_EXECUTABLE) from None


def check_host() -> None:
    """Exit 69 before etcd is touched where nothing could be watched over."""
    from conch.core import host

    problem = host.problem()
    if problem is not None:
        raise ConchError(f"cannot run anything: {problem}")


def run_under_hold(
    settings: Settings,
    child: Sequence[str],
    *,
    name: str,
    what: str,
    stages: "tuple[QueueSpec, ...]",
    values: dict[str, Any],
) -> int:
    """Hold, run, release; returns conch's exit code."""
    check_host()
    file = find_command(child)
    nonblock = values["nonblock"] or values["wait"] == 0
    if values["nonblock"] and values["wait"]:
        raise BadInput("--nonblock and --wait exclude each other")

    from conch.core.states import RunOptions
    from conch.core.wrapper_loop import WrapperLoop
    from conch.holder import myself
    from conch.keeper.hold_spec import HoldSpec
    from conch.log import Log

    wait_s = None if nonblock else values["wait"]
    job = HoldSpec(
        connection=settings.connection,
        what=what,
        stages=stages,
        ttl_s=values["ttl"],
        kill_after_s=values["kill_after"],
        value=myself(child).encode(),
        nonblock=nonblock,
        wait_s=wait_s,
        verbose=settings.verbose,
    )
    plan = RunOptions(
        name=name,
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
    log = Log(quiet=settings.quiet, form=settings.log_format)
    return WrapperLoop(plan, child, file, partial(_keep, job), job.pack(), log).run()


def _keep(job: Any, channel: Any) -> None:
    # imported in the keeper alone: with it comes all of gRPC
    from conch.keeper.main import keep

    keep(job, channel)
