"""Makes Click commands of the data in `spec`, and runs the lines that `fast_parser` leaves to Click.

Click prints the help and words what is wrong; bad input is one line on stderr and exit code 64.
"""

import click

from conch import __version__
from conch.cli import spec
from conch.cli.exit import refuse, say
from conch.cli.spec import Command, Group, Kind, Line, Option
from conch.errors import EXIT_USAGE, BadInput
from conch.static_typing import Any

_SETTINGS: Any = {"help_option_names": ["-h", "--help"]}


def run_with_click(words: list[str], group: Group) -> int:
    """Parse the words with Click and run the command that they name; return conch's exit code."""
    root: Any = click.version_option(__version__, prog_name="conch", message="%(prog)s %(version)s")(to_click(group))
    try:
        result = root.main(words, prog_name="conch", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError:
        say("conch: no command given (try 'conch --help')")
        return EXIT_USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        refuse(context.command_path if context is not None else "conch", error.format_message().replace("\n", " "))
        return EXIT_USAGE
    return result if isinstance(result, int) else 0


def to_click(what: Command | Group) -> click.Command:
    """Make the Click command for a command or group of the spec."""
    if isinstance(what, Group):
        return _ClickGroup(what)

    @click.pass_context
    def run(context: click.Context, /, **values: Any) -> int:
        return what.run(Line(values, explicit(), context.obj))

    return (_ChildCommand if what.takes_child else click.Command)(
        what.name.rpartition(" ")[2],
        callback=run,
        params=[*_arguments(what), *map(_option, what.options)],
        help=what.summary,
        epilog=what.epilog or None,
        context_settings=_SETTINGS,
    )


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
        super().__init__(group.name, help=group.summary, context_settings=_SETTINGS)
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


class _ChildCommand(click.Command):
    """A command that leaves what follows the first `--` unparsed, in `ctx.obj`: it is the child's command line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what precedes the first `--`; explain a forgotten `--`."""
        args, child = spec.split_command(args)
        ctx.obj = child
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
                raise click.UsageError("the command to run stands after --", ctx) from None
            raise


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
        )
    ]


def _option(option: Option) -> click.Option:
    how: dict[str, Any] = {"is_flag": True} if option.kind is None else {"type": _type(option.kind)}
    if option.default is not None:
        how.update(default=option.default, show_default=True)
    return click.Option(
        [*option.flags, option.keyword],
        envvar=list(option.env) or None,
        help=option.help,
        metavar=option.metavar,
        multiple=option.repeated,
        required=option.required,
        **how,
    )
