"""Makes Click commands of the data in `spec`, and runs the lines that `fast_parser` leaves to Click.

Click prints the help and words what is wrong; bad input is one line on stderr and exit code 64.
"""

import os
import shlex

import click

from conch import __version__
from conch.cli import spec
from conch.cli.connection_options import COMMON
from conch.cli.exit import refuse, say
from conch.cli.meant import meant_command, meant_option
from conch.cli.spec import COMPLETION_VARIABLE, Command, Group, Kind, Line, Option
from conch.errors import EXIT_NO, EXIT_USAGE, BadInput
from conch.static_typing import Any

_SETTINGS: Any = {"help_option_names": ["-h", "--help"]}


def run_with_click(words: list[str], group: Group) -> int:
    """Parse the words with Click and run the command that they name; return conch's exit code."""
    version = click.version_option(__version__, "-V", "--version", prog_name="conch", message="%(prog)s %(version)s")
    root: Any = version(to_click(group))
    try:
        result = root.main(words, prog_name="conch", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        at = error.ctx.command if error.ctx is not None else None
        path = error.ctx.command_path if error.ctx is not None else "conch"
        names = ", ".join(at.commands) if isinstance(at, click.Group) else ""
        say(f"{path}: no command given: {names} (try '{path} --help')")
        return EXIT_USAGE
    except click.NoSuchOption as error:
        context = error.ctx
        flags = [] if context is None else [flag for parameter in context.command.params for flag in parameter.opts]
        where = "conch" if context is None else context.command_path
        refuse(where, f"No such option: {error.option_name}{_did_you_mean(meant_option(error.option_name, flags))}")
        return EXIT_USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        refuse(context.command_path if context is not None else "conch", error.format_message().replace("\n", " "))
        return EXIT_USAGE
    return result if isinstance(result, int) else 0


def complete_with_click(instruction: str, group: Group) -> int:
    """Print the completions that a shell asks for (`bash_complete` and alike); nothing for another question."""
    from click.shell_completion import get_completion_class

    shell, _, what = instruction.partition("_")
    of_shell = get_completion_class(shell)
    if of_shell is None or what != "complete":
        return EXIT_NO
    # what is logged would stand in the middle of the line that is being typed
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    click.echo(of_shell(to_click(group), {}, "conch", COMPLETION_VARIABLE).complete())
    return 0


def _did_you_mean(found: str) -> str:
    return f". Did you mean {found}?" if found else ""


def to_click(what: Command | Group) -> click.Command:
    """Make the Click command for a command or group of the spec."""
    if isinstance(what, Group):
        return _ClickGroup(what)

    @click.pass_context
    def run(context: click.Context, /, **values: Any) -> int:
        return what.run(Line(values, explicit(), context.obj))

    command = (_ChildCommand if what.takes_child else _PlainCommand)(
        what.name.rpartition(" ")[2],
        callback=run,
        params=[*_arguments(what), *map(_option, what.options)],
        help=what.summary,
        short_help=_first_sentence(what.summary),
        epilog=what.epilog or None,
        context_settings=_SETTINGS,
    )
    command.what = what
    return command


def _first_sentence(summary: str) -> str:
    """Return the first sentence of a summary, for lists of commands."""
    return summary.split("\n\n")[0].partition(": conch ")[0].rstrip(".") + "."


def explicit() -> frozenset[str]:
    """Return the keywords that the command line of the running Click command sets itself."""
    context = click.get_current_context()
    return frozenset(
        parameter.name
        for parameter in context.command.params
        if parameter.name is not None
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    )


class _ClickGroup(click.Group):
    """A group that imports a member only when it is asked for."""

    def __init__(self, group: Group) -> None:
        short = _first_sentence(group.summary)
        super().__init__(group.name, help=group.summary, short_help=short, context_settings=_SETTINGS)
        self._group = group
        # Click suggests similar names from the keys of its own table
        names: Any = dict.fromkeys(group.members)
        self.commands = names

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - Click's protocol
        """Return the names in the order of the registry."""
        return list(self._group.members)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command of that name."""
        found = self._group.member(cmd_name)
        return None if found is None else to_click(found)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names; say what was meant if there is none."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            group = "" if self._group.name == "conch" else self._group.name
            found = meant_command(name, group, list(self._group.members))
            prefix = f"conch {group}".rstrip()
            ctx.fail(f"No such command {name!r}{_did_you_mean(found and f'{prefix} {found}')}")
        return super().resolve_command(ctx, args)


class _PlainCommand(click.Command):
    """A command whose help shows its options in groups, and examples first."""

    what: Command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(_heading(self.what, parameter.name), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does, and its examples."""
        super().format_help_text(ctx, formatter)
        if self.what.examples:
            with formatter.section("Examples"):
                for line, comment in self.what.examples:
                    formatter.write(f"{'':{formatter.current_indent}}# {comment}\n")
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class _ChildCommand(_PlainCommand):
    """A command that leaves what follows the first `--` unparsed, in `ctx.obj`: it is the child's command line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what precedes the first `--`; explain a forgotten `--`."""
        args, child = spec.split_command(args)
        ctx.obj, untouched = child, list(args)
        arguments = sum(isinstance(parameter, click.Argument) for parameter in self.params)
        has_surplus = sum(not argument.startswith("-") for argument in args) > arguments
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            # an extra argument, or a short option that is not ours: `conch elect o sh -c true`
            may_be_child = "unexpected extra argument" in error.format_message() or (
                isinstance(error, click.NoSuchOption) and not error.option_name.startswith("--")
            )
            if child is None and has_surplus and may_be_child:
                raise click.UsageError(_forgotten_dashes(ctx, untouched, arguments), ctx) from None
            raise

    def shell_complete(self, ctx: click.Context, incomplete: str) -> Any:
        """Complete an option, or the command to run after `--`."""
        if ctx.obj is None:
            return super().shell_complete(ctx, incomplete)
        from conch.cli.completion import complete_command

        return complete_command(ctx.obj, incomplete)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - Click's protocol
        """Return the usage in the order in which people write it."""
        argument = self.what.argument
        name = [] if argument is None else [argument.metavar or argument.name.upper()]
        return [*name, "[OPTIONS]", "[-- CMD...]"]


def _heading(command: Command, keyword: str | None) -> str:
    """Return the heading in the help under which people look for an option."""
    if any(keyword == option.keyword for option in COMMON):
        return "Log" if keyword in ("quiet", "verbose", "log_format") else "Connection"
    if command.name not in ("elect", "sema"):
        return "Options"
    return "Looking" if keyword in ("who", "watch", "assert_", "min_rev", "as_json") else "Running"


def _forgotten_dashes(ctx: click.Context, args: list[str], arguments: int) -> str:
    """Say that the command to run stands after `--`, with the line as it was probably meant."""
    number = args[args.index("-n") + 1] if "-n" in args[:-1] else ""
    if number.isdigit() and any("--max" in parameter.opts for parameter in ctx.command.params):
        return f"-n means --nonblock; for {number} slots write --max {number}; the command to run stands after --"
    flags = {flag: parameter for parameter in ctx.command.params for flag in parameter.opts}
    at, seen = 0, 0
    while at < len(args):
        if not args[at].startswith("-"):
            seen += 1
            if seen > arguments:
                break
        else:
            option = flags.get(args[at].partition("=")[0])
            if option is None:
                return "the command to run stands after --"
            at += 0 if "=" in args[at] or (isinstance(option, click.Option) and option.is_flag) else 1
        at += 1
    line = shlex.join([*ctx.command_path.split(), *args[:at], "--", *args[at:]])
    return f"the command to run stands after --: {line}"


# generic only in the newest Click
class _KindType(click.ParamType):  # type: ignore[type-arg]
    """A Click type that parses with a `Kind`."""

    def __init__(self, kind: Kind) -> None:
        self.name = kind.name
        self._parse = kind.parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a text; Click may pass a value that is parsed already."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except BadInput as error:
            self.fail(str(error), param, ctx)

    def split_envvar_value(self, rv: str) -> list[str]:
        """Split the variable of a repeated option at commas."""
        return [part.strip() for part in rv.split(",") if part.strip()]


def _type(kind: Kind) -> Any:
    if kind.choices:
        return click.Choice(list(kind.choices))
    return str if kind is spec.TEXT else _KindType(kind)


def _arguments(command: Command) -> list[click.Argument]:
    argument = command.argument
    if argument is None:
        return []
    return [
        click.Argument(
            [argument.name],
            type=_type(argument.kind),
            required=argument.required,
            metavar=argument.metavar,
            nargs=-1 if argument.repeated else 1,
            shell_complete=_names_of(command) if argument.kind is spec.NAME else None,
        )
    ]


def _names_of(command: Command) -> Any:
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Any:
        from conch.cli.completion import complete_name

        return complete_name(command, ctx, incomplete)

    return complete


def _files_of(option: Option) -> Any:
    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Any:
        from conch.cli.completion import complete_value

        return complete_value(option.metavar, incomplete)

    return complete


def _option(option: Option) -> click.Option:
    how: dict[str, Any] = {"is_flag": True} if option.kind is None else {"type": _type(option.kind)}
    if option.default is not None:
        how.update(default=option.default, show_default=True)
    return click.Option(
        [*option.flags, option.keyword],
        envvar=list(option.env) or None,
        show_envvar=bool(option.env),
        shell_complete=None if option.kind is None or option.kind.choices else _files_of(option),
        help=option.help,
        metavar=option.metavar,
        multiple=option.repeated,
        required=option.required,
        **how,
    )
