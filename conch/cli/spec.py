"""What a command line may say, as data; and a reader of lines that are plainly right.

Click reads everything else and words what is wrong: it takes as long to load as all of conch, so a line that
needs none of that goes without it. Both read from the same options, and a line that this reader takes means the
same to Click.
"""

import os
import re
from collections.abc import Callable, Sequence

from conch.errors import EXIT_USAGE, BadInput, ConchError
from conch.keys import DEFAULT_PREFIX, KINDS, check_name
from conch.record import Record
from conch.static_typing import Any
from conch.times import parse_duration


class Kind(Record):
    """What an option takes: `parse` raises `BadInput`; a kind with `choices` takes one of these."""

    name: str
    parse: Callable[[str], Any]
    choices: tuple[str, ...] = ()


class Option(Record):
    """An option of a command. Without a kind it is a flag; `env` are the variables that stand in for it."""

    flags: tuple[str, ...]
    help: str
    kind: Kind | None = None
    name: str = ""
    default: str | None = None
    env: tuple[str, ...] = ()
    metavar: str | None = None

    @property
    def keyword(self) -> str:
        """What its value is called."""
        return self.name or self.flags[-1].lstrip("-").replace("-", "_")


class Line(Record):
    """A command line that was read: all values by keyword, which of them it said itself, and what follows `--`."""

    values: dict[str, Any]
    given: frozenset[str]
    child: list[str] | None


class Command(Record):
    """A command that takes one NAME, options, and after `--` a command to run; one that is `alone`, only options."""

    name: str
    summary: str
    epilog: str
    options: tuple[Option, ...]
    run: Callable[[Line], int]
    alone: bool = False

    @property
    def path(self) -> str:
        """How people call it."""
        return f"conch {self.name}"


class Usage(ConchError):
    """A line that can be read but makes no sense; `where` is the command's path."""

    code = EXIT_USAGE

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


def cut(words: list[str]) -> tuple[list[str], list[str] | None]:
    """What stands before the first `--`, and what follows it."""
    if "--" not in words:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


def read(words: list[str], command: Command) -> Line | None:
    """The line that these words say; None where anything is wrong with them, or unusual."""
    words, child = cut(words)
    by_flag = {flag: option for option in command.options for flag in option.flags}
    texts: dict[str, str] = {}
    flags: set[str] = set()
    names: list[str] = []
    ahead = iter(words)
    for word in ahead:
        if not word.startswith("-"):
            names.append(word)
            continue
        flag, separator, text = word.partition("=")
        option = by_flag.get(flag)
        if option is None or (separator and (option.kind is None or not flag.startswith("--"))):
            return None
        if option.kind is None:
            flags.add(option.keyword)
            continue
        if not separator:
            text = next(ahead, "-")
            if text.startswith("-"):
                return None  # forgotten, most likely
        texts[option.keyword] = text
    if len(names) != (0 if command.alone else 1) or (command.alone and child is not None):
        return None
    try:
        values: dict[str, Any] = {} if command.alone else {"name": check_name(names[0])}
        for option in command.options:
            values[option.keyword] = _value(option, texts, flags)
    except (BadInput, _Unusual):
        return None
    return Line(values, frozenset([*(["name"] if names else []), *texts, *flags]), child)


class _Unusual(Exception):
    """Something for Click."""


def _value(option: Option, texts: dict[str, str], flags: set[str]) -> Any:
    keyword = option.keyword
    if option.kind is None:
        if keyword not in flags and any(os.environ.get(variable) for variable in option.env):
            raise _Unusual  # true, yes, 0 and so on
        return keyword in flags
    text = texts.get(keyword)
    if text is None:
        text = next((found for variable in option.env if (found := os.environ.get(variable))), option.default)
    return None if text is None else option.kind.parse(text)


# -- kinds ----------------------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Kind:
    """A whole number between the two, both included."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,19}", text) and low <= int(text) <= high:
            return int(text)
        raise BadInput(f"{text!r} is not a whole number from {low} to {high}")

    return Kind("number", parse)


def choice(*choices: str) -> Kind:
    """One of these words."""

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
            above = trimmed.rpartition(f"/{part}")[0]
            raise BadInput(f"{text!r} is no prefix of its own: it lies among the keys of prefix {above}")
    return trimmed


def _endpoints(text: str) -> Any:
    from conch.etcd.endpoints import parse_endpoints

    return parse_endpoints(text)


TEXT = Kind("text", str)
DURATION = Kind("duration", parse_duration)
POSITIVE_DURATION = Kind("duration", _positive)
TTL = Kind("duration", _ttl)
PREFIX = Kind("prefix", _prefix)
ENDPOINTS = Kind("list", _endpoints)


# -- the options that all commands share ------------------------------------------------------------------------


def _env(option: str, *, etcdctl: bool = True) -> tuple[str, ...]:
    name = option.upper().replace("-", "_")
    return (f"CONCH_{name}", f"ETCDCTL_{name}") if etcdctl else (f"CONCH_{name}",)


COMMON: Sequence[Option] = (
    Option(
        ("--endpoints",),
        "Comma-separated members of etcd: host:port, http://host:port, https://host:port.",
        ENDPOINTS,
        default="localhost:2379",
        env=_env("endpoints"),
        metavar="LIST",
    ),
    Option(
        ("--dial-timeout",),
        "The whole time to find one endpoint that answers.",
        POSITIVE_DURATION,
        default="5s",
        env=_env("dial-timeout"),
    ),
    Option(
        ("--command-timeout",),
        "One request to etcd, retries on other endpoints included.",
        POSITIVE_DURATION,
        default="5s",
        env=_env("command-timeout"),
    ),
    Option(("--cacert",), "CA to verify https endpoints with.", TEXT, env=_env("cacert"), metavar="FILE"),
    Option(("--cert",), "Client certificate.", TEXT, env=_env("cert"), metavar="FILE"),
    Option(("--key",), "The client certificate's key.", TEXT, env=_env("key"), metavar="FILE"),
    Option(("--user",), "etcd user.", TEXT, env=_env("user"), metavar="NAME[:PASSWORD]"),
    Option(
        ("--password-file",),
        "Where the password stands; else it is taken from CONCH_PASSWORD or ETCDCTL_PASSWORD.",
        TEXT,
        env=_env("password-file", etcdctl=False),
        metavar="FILE",
    ),
    Option(
        ("--transport",),
        "How to talk to etcd: its JSON gateway, which starts fast, or gRPC. conchd takes gRPC for auto.",
        choice("auto", "grpc", "http"),
        default="auto",
        env=_env("transport", etcdctl=False),
    ),
    Option(
        ("--prefix",),
        "Every key lives under it; two prefixes never see each other.",
        PREFIX,
        default=DEFAULT_PREFIX,
        env=_env("prefix", etcdctl=False),
    ),
    Option(("-q", "--quiet"), "Only warnings and errors on stderr.", env=_env("quiet", etcdctl=False)),
    Option(("-v", "--verbose"), "Each confirmed renewal on stderr, too.", env=_env("verbose", etcdctl=False)),
    Option(
        ("--log-format",),
        "One line an event on stderr: logfmt or JSON.",
        choice("text", "json"),
        default="text",
        env=_env("log-format", etcdctl=False),
    ),
)
