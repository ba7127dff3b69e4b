"""The options that all commands share, and the types that turn bad input into one line and exit 64."""

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from conch.config import Connection, Settings
from conch.durations import parse_duration
from conch.errors import BadInput
from conch.keys import DEFAULT_PREFIX, Keys
from conch.log import Log
from conch.names import check_name
from conch.record import replace

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


DURATION = Parsed("duration", parse_duration)
NAME = Parsed("name", check_name)


def whole(low: int, high: int) -> Parsed:
    """A whole number between the two, both included."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,19}", text) and low <= int(text) <= high:
            return int(text)
        raise BadInput(f"{text!r} is not a whole number from {low} to {high}")

    return Parsed("number", parse)


def _positive(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise BadInput("it must be more than 0")
    return seconds


POSITIVE_DURATION = Parsed("duration", _positive)


def _ttl(text: str) -> int:
    seconds = parse_duration(text)
    if seconds != int(seconds) or seconds < 2:
        raise BadInput(f"{text!r} is not a TTL: whole seconds, at least 2s")
    return int(seconds)


TTL = Parsed("duration", _ttl)


def _prefix(text: str) -> str:
    trimmed = text.rstrip("/")
    if not trimmed.startswith("/") or not trimmed.isprintable() or not trimmed.isascii() or " " in trimmed:
        raise BadInput(f"{text!r} is not a prefix: write /name, without blanks or control characters")
    return trimmed


PREFIX = Parsed("prefix", _prefix)


def _endpoints(text: str) -> Any:
    from conch.etcd.endpoints import parse_endpoints

    return parse_endpoints(text)


ENDPOINTS = Parsed("list", _endpoints)


def _env(option: str, *, etcdctl: bool = True) -> list[str]:
    name = option.upper().replace("-", "_")
    return [f"CONCH_{name}", f"ETCDCTL_{name}"] if etcdctl else [f"CONCH_{name}"]


_COMMON: tuple[Callable[[_Command], _Command], ...] = (
    click.option(
        "--endpoints",
        type=ENDPOINTS,
        default="localhost:2379",
        show_default=True,
        envvar=_env("endpoints"),
        metavar="LIST",
        help="Comma-separated members of etcd: host:port, http://host:port, https://host:port.",
    ),
    click.option(
        "--dial-timeout",
        type=POSITIVE_DURATION,
        default="5s",
        show_default=True,
        envvar=_env("dial-timeout"),
        help="The whole time to find one endpoint that answers.",
    ),
    click.option(
        "--command-timeout",
        type=POSITIVE_DURATION,
        default="5s",
        show_default=True,
        envvar=_env("command-timeout"),
        help="One request to etcd, retries on other endpoints included.",
    ),
    click.option("--cacert", envvar=_env("cacert"), metavar="FILE", help="CA to verify https endpoints with."),
    click.option("--cert", envvar=_env("cert"), metavar="FILE", help="Client certificate."),
    click.option("--key", envvar=_env("key"), metavar="FILE", help="The client certificate's key."),
    click.option("--user", envvar=_env("user"), metavar="NAME[:PASSWORD]", help="etcd user."),
    click.option(
        "--password-file",
        envvar=_env("password-file", etcdctl=False),
        metavar="FILE",
        help="Where the password stands; else it is taken from CONCH_PASSWORD or ETCDCTL_PASSWORD.",
    ),
    click.option(
        "--transport",
        type=click.Choice(["auto", "grpc", "http"]),
        default="auto",
        show_default=True,
        envvar=_env("transport", etcdctl=False),
        help="How to talk to etcd: its JSON gateway, which starts fast, or gRPC. conchd takes gRPC for auto.",
    ),
    click.option(
        "--prefix",
        type=PREFIX,
        default=DEFAULT_PREFIX,
        show_default=True,
        envvar=_env("prefix", etcdctl=False),
        help="Every key lives under it; two prefixes never see each other.",
    ),
    click.option(
        "--quiet",
        is_flag=True,
        envvar=_env("quiet", etcdctl=False),
        help="Only warnings and errors on stderr.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        envvar=_env("log-format", etcdctl=False),
        help="One line an event on stderr: logfmt or JSON.",
    ),
)


def common_options(command: _Command) -> _Command:
    """Add the common options to a command; they arrive as keyword arguments for `settings`."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


def settings(values: dict[str, Any]) -> Settings:
    """Take the common options out of a command's keyword arguments."""
    user, password, visible = values.pop("user"), None, False
    password_file = values.pop("password_file")
    if user is not None:
        context = click.get_current_context()
        user, separator, given = user.partition(":")
        if not user:
            raise BadInput("--user: no user name before the colon")
        by_flag = click.core.ParameterSource.COMMANDLINE
        user_by_flag = context.get_parameter_source("user") is by_flag
        if separator and (user_by_flag or context.get_parameter_source("password_file") is not by_flag):
            password = given
            visible = user_by_flag
        elif password_file is not None:
            password = _read_password(password_file)
        else:
            password = os.environ.get("CONCH_PASSWORD") or os.environ.get("ETCDCTL_PASSWORD")
        if not password:
            raise BadInput(f"--user {user}: no password (--password-file, CONCH_PASSWORD or ETCDCTL_PASSWORD)")
    elif password_file is not None:
        raise BadInput("--password-file goes with --user")
    endpoints = values.pop("endpoints")
    if any(values[name] for name in ("cacert", "cert", "key")):
        # as etcdctl has it: whoever gives certificates means TLS, unless the endpoint says http://
        endpoints = tuple(replace(one, tls=True) if one.bare else one for one in endpoints)
    for text in (user, password):
        if text is not None and not _encodable(text):
            raise BadInput("--user: user and password must be UTF-8 text")
    connection = Connection(
        endpoints=endpoints,
        dial_timeout_s=values.pop("dial_timeout"),
        command_timeout_s=values.pop("command_timeout"),
        cacert=values.pop("cacert"),
        cert=values.pop("cert"),
        key=values.pop("key"),
        user=user,
        password=password,
        transport=values.pop("transport"),
    )
    _check_tls(connection)
    found = Settings(
        connection, Keys(values.pop("prefix")), quiet=values.pop("quiet"), log_format=values.pop("log_format")
    )
    if password is not None:
        log = Log(quiet=found.quiet, form=found.log_format)
        _warn_of_passwords(connection, log, on_command_line=visible)
    return found


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_password(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--password-file: cannot read {path}: {_why(error)}") from None


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _check_tls(connection: Connection) -> None:
    for flag, path in (("cacert", connection.cacert), ("cert", connection.cert), ("key", connection.key)):
        if path is None:
            continue
        try:
            open(path, "rb").close()
        except (OSError, ValueError) as error:
            raise BadInput(f"--{flag}: cannot read {path}: {_why(error)}") from None
    if (connection.cert is None) != (connection.key is None):
        raise BadInput("--cert and --key go together")
    if connection.endpoints[0].tls and (connection.cacert or connection.cert):
        _check_certificates(connection)


def _check_certificates(connection: Connection) -> None:
    import ssl  # late: only https pays for it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if connection.cacert is not None:
            context.load_verify_locations(connection.cacert)
    except (ssl.SSLError, OSError) as error:
        raise BadInput(f"--cacert: no certificate in {connection.cacert} ({error.strerror or error})") from None
    try:
        if connection.cert is not None:
            context.load_cert_chain(connection.cert, connection.key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise BadInput(f"--cert, --key: {connection.cert} and {connection.key} do not fit: {error}") from None


def _warn_of_passwords(connection: Connection, log: Log, *, on_command_line: bool) -> None:
    if on_command_line:
        log("warning", "password-visible", msg="a password on the command line is visible to other users")
    for endpoint in connection.endpoints:
        if not endpoint.tls and not _is_loopback(endpoint.host):
            log("warning", "password-in-clear", endpoint=str(endpoint), msg="the password goes over plaintext")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
