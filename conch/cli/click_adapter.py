"""Options as Click has them: made of `conch.cli.spec`'s, with bad input as one line and exit 64."""

from collections.abc import Callable, Iterable

import click

from conch.cli import spec
from conch.cli.spec import COMMON, Kind, Option
from conch.errors import BadInput
from conch.keys import check_name
from conch.static_typing import Any, TypeVar

_Command = TypeVar("_Command", bound=Callable[..., Any])


# generic only in the newest Click
class Parsed(click.ParamType):  # type: ignore[type-arg]
    """A Click type made of one of conch's parsers."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a text; what is no text is parsed already."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except BadInput as error:
            self.fail(str(error), param, ctx)


def _type(kind: Kind) -> Any:
    if kind.choices:
        return click.Choice(list(kind.choices))
    return str if kind is spec.TEXT else Parsed(kind.name, kind.parse)


def _option(option: Option) -> Callable[[_Command], _Command]:
    how: dict[str, Any] = {"is_flag": True} if option.kind is None else {"type": _type(option.kind)}
    if option.default is not None:
        how.update(default=option.default, show_default=True)
    if option.metavar is not None:
        how.update(metavar=option.metavar)
    return click.option(*option.flags, option.keyword, envvar=list(option.env) or None, help=option.help, **how)


def with_options(options: Iterable[Option]) -> Callable[[_Command], _Command]:
    """Add these options to a command; they arrive as keyword arguments."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(list(options)):
            command = _option(option)(command)
        return command

    return decorate


def common_options(command: _Command) -> _Command:
    """Add the common options to a command; they arrive as keyword arguments for `settings`."""
    return with_options(COMMON)(command)


def given() -> frozenset[str]:
    """The options that stand on the command line of the command that runs."""
    context = click.get_current_context()
    return frozenset(
        parameter.name
        for parameter in context.command.params
        if parameter.name is not None
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    )


def whole(low: int, high: int) -> Parsed:
    """A whole number between the two, both included."""
    kind = spec.whole(low, high)
    return Parsed(kind.name, kind.parse)


DURATION = Parsed("duration", spec.DURATION.parse)
POSITIVE_DURATION = Parsed("duration", spec.POSITIVE_DURATION.parse)
TTL = Parsed("duration", spec.TTL.parse)
NAME = Parsed("name", check_name)


class WrapperCommand(click.Command):
    """Takes what follows the first `--` as the child's command, unparsed, into `ctx.obj`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the command line at the first `--`."""
        args, child = spec.cut(args)
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


def made(command: spec.Command) -> click.Command:
    """The Click command for one that is written down as data."""

    @click.pass_context
    def run(context: click.Context, /, **values: Any) -> int:
        return command.run(spec.Line(values, given(), context.obj))

    options: Callable[..., Any] = with_options(command.options)(run)
    how: dict[str, Any] = {
        "context_settings": {"help_option_names": ["-h", "--help"]},
        "help": command.summary,
        "epilog": command.epilog or None,
    }
    name = command.name.rpartition(" ")[2]
    if not command.alone:
        options = click.argument("name", type=NAME)(options)
    found: click.Command = click.command(name, cls=click.Command if command.alone else WrapperCommand, **how)(options)
    return found
