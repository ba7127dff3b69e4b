"""What the commands that run a child under a hold share: their flags, the `--`, and the start of the loop."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from conch.cli.options import DURATION, POSITIVE_DURATION, TTL, whole
from conch.config import Settings
from conch.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, BadInput, ConchError

if TYPE_CHECKING:
    from conch.keeper.job import Stage

_Command = TypeVar("_Command", bound=Callable[..., Any])


EXIT_CODES = (
    "Hooks read /dev/null. Their environment and the command's: CONCH_NAME, CONCH_REV (the fencing token), "
    "CONCH_LEASE, CONCH_HOLD_KEY, CONCH_TREE. Exit codes: the command's; 1 vacant or not held, 64 usage, 69 etcd did "
    "not answer, 70 the hold was lost, 74 stdout cannot be written, 75 not acquired or the on-acquire hook failed, "
    "126/127 the command cannot be run, 128+n ended by signal n."
)


class WrapperCommand(click.Command):
    """Takes what follows the first `--` as the child's command, unparsed, into `ctx.obj`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the command line at the first `--`."""
        child: list[str] | None = None
        if "--" in args:
            at = args.index("--")
            args, child = args[:at], args[at + 1 :]
        ctx.obj = child
        # what stands there without an option before it: the arguments, and a command whose -- was forgotten
        bare = sum(not word.startswith("-") for word in args) > sum(isinstance(p, click.Argument) for p in self.params)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            of_a_command = "unexpected extra argument" in error.format_message() or (
                isinstance(error, click.NoSuchOption) and not error.option_name.startswith("--")
            )
            if child is None and bare and of_a_command:
                raise click.UsageError("the command to run stands after --", ctx) from None
            raise


def hold_options(command: _Command) -> _Command:
    """The flags of contract 3 that every wrapper has."""
    for option in reversed(
        (
            click.option("--ttl", type=TTL, default="10s", show_default=True, help="Lease TTL, at least 2s."),
            click.option("--wait", type=DURATION, help="Give up after this long, dialling and queueing together."),
            click.option("-n", "--nonblock", is_flag=True, help="Take it now or exit 75."),
            click.option(
                "-E",
                "--conflict-exit-code",
                type=whole(0, 255),
                default=75,
                show_default=True,
                help="Exit code when it was not acquired.",
            ),
            click.option("--kill-after", type=DURATION, default="5s", show_default=True, help="SIGTERM to SIGKILL."),
            click.option(
                "--on-acquire",
                metavar="CMD",
                help="/bin/sh -c hook after winning, before the child; its failure gives the hold up.",
            ),
            click.option("--on-lose", metavar="CMD", help="/bin/sh -c hook after each run of the child."),
            click.option(
                "--hook-timeout",
                type=POSITIVE_DURATION,
                default="30s",
                show_default=True,
                help="A hook that takes longer is killed.",
            ),
        )
    ):
        command = option(command)
    return command


def refuse_with_look(context: click.Context, look: str, values: dict[str, Any], allowed: set[str]) -> None:
    """A look takes neither a command nor a flag of `values` that is not allowed with it."""
    if context.obj is not None:
        raise click.UsageError(f"{look} takes no command", context)
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and parameter.name in values and parameter.name not in allowed:
            raise click.UsageError(f"{parameter.opts[-1]} does not go with {look}", context)


def find_command(child: Sequence[str], path: str | None = None) -> str:
    """The file to run, found on `path` or PATH; exits 126 or 127 before etcd is touched."""
    from conch.core.process import find_command as find

    try:
        return find(child[0], os.environ.get("PATH") if path is None else path)
    except FileNotFoundError:
        raise ConchError(f"cannot run {child[0]!r}: not found", code=EXIT_NOT_FOUND) from None
    except PermissionError:
        raise ConchError(f"cannot run {child[0]!r}: not executable", code=EXIT_NOT_EXECUTABLE) from None


def run_under_hold(
    settings: Settings,
    child: Sequence[str],
    *,
    name: str,
    what: str,
    stages: "tuple[Stage, ...]",
    values: dict[str, Any],
) -> int:
    """Hold, run, release; returns conch's exit code."""
    file = find_command(child)
    nonblock = values["nonblock"] or values["wait"] == 0
    if values["nonblock"] and values["wait"]:
        raise BadInput("--nonblock and --wait exclude each other")

    from conch.core.loop import Loop
    from conch.core.plan import Plan
    from conch.holder import myself
    from conch.keeper.job import Job
    from conch.log import Log

    wait_s = None if nonblock else values["wait"]
    job = Job(
        connection=settings.connection,
        what=what,
        stages=stages,
        ttl_s=values["ttl"],
        kill_after_s=values["kill_after"],
        value=myself(child).encode(),
        nonblock=nonblock,
        wait_s=wait_s,
    )
    plan = Plan(
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
    return Loop(plan, child, file, partial(_keep, job), job.pack(), log).run()


def _keep(job: Any, link: Any) -> None:
    # imported in the keeper alone: with it comes all of gRPC
    from conch.keeper.main import keep

    keep(job, link)
