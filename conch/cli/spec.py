"""The command line as data: commands, options, and the kinds of values they take.

`fast_parser` reads from it the lines that are plainly right; `click_adapter` makes Click commands of it for the rest.
"""

from conch.errors import EXIT_USAGE, BadInput, ConchError
from conch.keys import KINDS, check_name
from conch.record import Record
from conch.static_typing import Any, Callable
from conch.times import parse_duration

# A shell that wants completions sets it; Click derives it from the name of the program.
COMPLETION_VARIABLE = "_CONCH_COMPLETE"


class Kind(Record):
    """The type of a value: `parse` converts a text or raises `BadInput`; `choices` lists the valid texts, if few."""

    name: str
    parse: Callable[[str], Any]
    choices: tuple[str, ...] = ()


class Option(Record):
    """An option of a command; without a kind it is a flag.

    `env` names the variables that stand in for it, the first one that is not empty. A `repeated` option has a tuple of
    values; its variable separates them with commas.
    """

    flags: tuple[str, ...]
    help: str
    kind: Kind | None = None
    name: str = ""
    default: str | None = None
    env: tuple[str, ...] = ()
    metavar: str | None = None
    repeated: bool = False
    required: bool = False

    @property
    def keyword(self) -> str:
        """The key of its value in `Line.values`."""
        return self.name or self.flags[-1].lstrip("-").replace("-", "_")


class Argument(Record):
    """The one positional argument of a command; a `repeated` one has a tuple of values."""

    name: str
    kind: Kind
    metavar: str | None = None
    required: bool = True
    repeated: bool = False


class Line(Record):
    """A command line after parsing.

    `values` has every option and argument by keyword, `explicit` the keywords that the line itself sets, and `child`
    the words after `--` (None without `--`).
    """

    values: dict[str, Any]
    explicit: frozenset[str]
    child: list[str] | None


class Command(Record):
    """A command: `name` is the path below `conch`, and `run` executes a line and returns conch's exit code.

    `takes_child` says that a command to run may follow `--`. `examples` are command lines with a comment each.
    """

    name: str
    summary: str
    options: tuple[Option, ...]
    run: Callable[[Line], int]
    argument: Argument | None
    takes_child: bool = False
    epilog: str = ""
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """The words that call it."""
        return f"conch {self.name}"


class Group(Record):
    """Commands by name. A member is a group, or the `module:CONSTANT` of a command, imported only when needed."""

    name: str
    summary: str
    members: "dict[str, str | Group]"

    def member(self, name: str) -> "Command | Group | None":
        """Return the member of that name, None if there is none."""
        found = self.members.get(name)
        if not isinstance(found, str):
            return found
        module, _, constant = found.partition(":")
        command = getattr(__import__(module, fromlist=[constant]), constant)
        assert isinstance(command, Command)  # noqa: S101 - for the type checker
        return command


class Usage(ConchError):
    """Options that are valid one by one but not together; `where` is the command's path."""

    code = EXIT_USAGE

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


def split_command(words: list[str]) -> tuple[list[str], list[str] | None]:
    """Split a command line at the first `--`; the second part is None without one."""
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


# -- kinds ----------------------------------------------------------------------------------------------------


def int_range(low: int, high: int) -> Kind:
    """Accept integers from `low` to `high`, both included."""

    def parse(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
            return int(text)
        raise BadInput(f"{text!r} is not a whole number from {low} to {high}")

    return Kind("number", parse)


def choice(*choices: str) -> Kind:
    """Accept exactly these texts."""

    def parse(text: str) -> str:
        if text not in choices:
            raise BadInput(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return Kind("choice", parse, choices)


def _positive(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise BadInput("it must be more than 0")
    return seconds


def _ttl(text: str) -> int:
    seconds = parse_duration(text)
    if seconds != int(seconds) or seconds < 2:
        raise BadInput(f"{text!r} is not a TTL: whole seconds, at least 2s")
    return int(seconds)


def _prefix(text: str) -> str:
    trimmed = text.rstrip("/")
    if not trimmed.startswith("/") or not trimmed.isprintable() or not trimmed.isascii() or " " in trimmed:
        raise BadInput(f"{text!r} is not a prefix: write /name, without blanks or control characters")
    for at, part in enumerate(trimmed.split("/")):
        if at > 1 and part in KINDS:
            outer = trimmed.rpartition(f"/{part}")[0]
            raise BadInput(f"{text!r} is not a separate prefix: it lies among the keys of prefix {outer}")
    return trimmed


def _endpoints(text: str) -> Any:
    from conch.etcd.endpoints import parse_endpoints

    return parse_endpoints(text)


def _schedule(text: str) -> str:
    from conch.cron.schedule_advice import check_written

    return check_written(text)


TEXT = Kind("text", str)
SCHEDULE = Kind("schedule", _schedule)
DURATION = Kind("duration", parse_duration)
POSITIVE_DURATION = Kind("duration", _positive)
TTL = Kind("duration", _ttl)
PREFIX = Kind("prefix", _prefix)
ENDPOINTS = Kind("list", _endpoints)
NAME = Kind("name", check_name)

NAME_ARGUMENT = Argument("name", NAME)
NAMES_ARGUMENT = Argument("names", NAME, metavar="NAME...", repeated=True)
