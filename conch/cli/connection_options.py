"""The options that all commands share: where etcd is, who we are there, and what conch logs."""

import os

from conch.cli.spec import ENDPOINTS, POSITIVE_DURATION, PREFIX, TEXT, Line, Option, choice
from conch.errors import BadInput
from conch.etcd.connection import Connection, Settings, read_password
from conch.keys import DEFAULT_PREFIX, Keys
from conch.limits import cannot
from conch.log import Log
from conch.record import Record, replace
from conch.static_typing import Any, Collection


def _env(option: str, *, etcdctl: bool = True) -> tuple[str, ...]:
    name = option.upper().replace("-", "_")
    return (f"CONCH_{name}", f"ETCDCTL_{name}") if etcdctl else (f"CONCH_{name}",)


COMMON: tuple[Option, ...] = (
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
        "Total time to find an endpoint that answers.",
        POSITIVE_DURATION,
        default="5s",
        env=_env("dial-timeout"),
    ),
    Option(
        ("--command-timeout",),
        "Total time for one request to etcd, including retries on other endpoints.",
        POSITIVE_DURATION,
        default="5s",
        env=_env("command-timeout"),
    ),
    Option(("--cacert",), "CA certificate to verify https endpoints with.", TEXT, env=_env("cacert"), metavar="FILE"),
    Option(("--cert",), "Client certificate.", TEXT, env=_env("cert"), metavar="FILE"),
    Option(("--key",), "Private key of the client certificate.", TEXT, env=_env("key"), metavar="FILE"),
    Option(("--user",), "etcd user.", TEXT, env=_env("user"), metavar="NAME[:PASSWORD]"),
    Option(
        ("--password-file",),
        "File that contains the password. Without it: CONCH_PASSWORD or ETCDCTL_PASSWORD.",
        TEXT,
        env=_env("password-file", etcdctl=False),
        metavar="FILE",
    ),
    Option(
        ("--transport",),
        "Protocol to etcd: http is its JSON gateway, which starts fast. With auto, conchd uses gRPC and every other "
        "command the gateway where it works.",
        choice("auto", "grpc", "http"),
        default="auto",
        env=_env("transport", etcdctl=False),
    ),
    Option(
        ("--prefix",),
        "Prefix of all keys in etcd. Two prefixes never see each other.",
        PREFIX,
        default=DEFAULT_PREFIX,
        env=_env("prefix", etcdctl=False),
    ),
    Option(("-q", "--quiet"), "Log only warnings and errors.", env=_env("quiet", etcdctl=False)),
    Option(("-v", "--verbose"), "Log each confirmed renewal, too.", env=_env("verbose", etcdctl=False)),
    Option(
        ("--log-format",),
        "Format of the log on stderr, one line per event: text is logfmt.",
        choice("text", "json"),
        default="text",
        env=_env("log-format", etcdctl=False),
    ),
)


class _Credentials(Record):
    """An etcd user and its password; `visible` if the password is an argument, which other users can read."""

    user: str | None = None
    password: str | None = None
    password_file: str | None = None
    visible: bool = False


def settings(line: Line) -> Settings:
    """Make the settings that the common options of a line describe. Raises `BadInput`; warns of exposed passwords."""
    values = line.values
    credentials = _credentials(values, line.explicit)
    endpoints = values["endpoints"]
    if any(values[name] for name in ("cacert", "cert", "key")):
        # as etcdctl does: certificates imply TLS, unless the endpoint says http://
        endpoints = tuple(replace(endpoint, tls=True) if endpoint.bare else endpoint for endpoint in endpoints)
    for text in (credentials.user, credentials.password):
        if text is not None and not _encodable(text):
            raise BadInput("--user: user and password must be UTF-8 text")
    connection = Connection(
        endpoints=endpoints,
        dial_timeout_s=values["dial_timeout"],
        command_timeout_s=values["command_timeout"],
        cacert=values["cacert"],
        cert=values["cert"],
        key=values["key"],
        user=credentials.user,
        password=credentials.password,
        password_file=credentials.password_file,
        transport=values["transport"],
    )
    _check_tls(connection)
    quiet, verbose = _verbosity(values["quiet"], values["verbose"], line.explicit)
    found = Settings(connection, Keys(values["prefix"]), quiet=quiet, verbose=verbose, log_format=values["log_format"])
    if credentials.password is not None:
        log = Log(quiet=found.quiet, form=found.log_format)
        _warn_of_passwords(connection, log, on_command_line=credentials.visible)
    return found


def _credentials(values: dict[str, Any], explicit: Collection[str]) -> _Credentials:
    """Find user and password: --user NAME:PASSWORD, --password-file, CONCH_PASSWORD, ETCDCTL_PASSWORD."""
    user, path = values["user"], values["password_file"]
    if user is None:
        if path is not None:
            raise BadInput("--password-file goes with --user")
        return _Credentials()
    user, separator, written = user.partition(":")
    if not user:
        raise BadInput("--user: no user name before the colon")
    if separator and ("user" in explicit or "password_file" not in explicit):
        found = _Credentials(user, written, visible="user" in explicit)
    elif path is not None:
        found = _Credentials(user, _read_password(path), os.path.abspath(path))
    else:
        found = _Credentials(user, os.environ.get("CONCH_PASSWORD") or os.environ.get("ETCDCTL_PASSWORD"))
    if not found.password:
        raise BadInput(f"--user {user}: no password (--password-file, CONCH_PASSWORD or ETCDCTL_PASSWORD)")
    return found


def _verbosity(quiet: bool, verbose: bool, explicit: Collection[str]) -> tuple[bool, bool]:
    """Return --quiet and --verbose; a flag overrules the variable of the other."""
    if quiet and verbose:
        if ("quiet" in explicit) == ("verbose" in explicit):
            raise BadInput("--quiet and --verbose exclude each other")
        return "quiet" in explicit, "verbose" in explicit
    return quiet, verbose


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_password(path: str) -> str:
    try:
        return read_password(path)
    except (OSError, UnicodeDecodeError) as error:
        raise cannot(f"--password-file: cannot read {path}: {_why(error)}", error) from None


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _check_tls(connection: Connection) -> None:
    for flag, path in (("cacert", connection.cacert), ("cert", connection.cert), ("key", connection.key)):
        if path is None:
            continue
        try:
            open(path, "rb").close()
        except (OSError, ValueError) as error:
            raise cannot(f"--{flag}: cannot read {path}: {_why(error)}", error) from None
    if (connection.cert is None) != (connection.key is None):
        raise BadInput("--cert and --key go together")
    if connection.endpoints[0].tls and (connection.cacert or connection.cert):
        _check_certificates(connection)


def _check_certificates(connection: Connection) -> None:
    import ssl  # here, because it is slow to import and only https needs it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if connection.cacert is not None:
            context.load_verify_locations(connection.cacert)
    except (ssl.SSLError, OSError) as error:
        text = f"--cacert: no certificate in {connection.cacert} ({error.strerror or error})"
        raise cannot(text, error) from None
    try:
        if connection.cert is not None:
            context.load_cert_chain(connection.cert, connection.key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        text = f"--cert, --key: {connection.cert} and {connection.key} cannot be used: {error}"
        raise cannot(text, error) from None


def _warn_of_passwords(connection: Connection, log: Log, *, on_command_line: bool) -> None:
    if on_command_line:
        log("warning", "password-visible", msg="a password on the command line is visible to other users")
    for endpoint in connection.endpoints:
        if not endpoint.tls and not _is_loopback(endpoint.host):
            log(
                "warning",
                "password-in-clear",
                endpoint=str(endpoint),
                msg="the password is sent over an unencrypted connection",
            )


def _is_loopback(host: str) -> bool:
    parts = host.split(".")
    is_127 = len(parts) == 4 and parts[0] == "127" and all(part.isdecimal() and len(part) <= 3 for part in parts)
    return is_127 or host in ("localhost", "::1")
