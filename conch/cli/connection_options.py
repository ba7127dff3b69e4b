"""From the common options to where etcd is and who we are there."""

import os
import re
from collections.abc import Collection

from conch.errors import BadInput
from conch.etcd.connection import Connection, Settings, read_password
from conch.keys import Keys
from conch.limits import cannot
from conch.log import Log
from conch.record import replace
from conch.static_typing import Any


def settings(values: dict[str, Any], given: Collection[str]) -> Settings:
    """Take the common options out of a command's values; `given` are those that stand on the command line."""
    user, password, visible = values.pop("user"), None, False
    password_file, read_from = values.pop("password_file"), None
    if user is not None:
        user, separator, written = user.partition(":")
        if not user:
            raise BadInput("--user: no user name before the colon")
        if separator and ("user" in given or "password_file" not in given):
            password = written
            visible = "user" in given
        elif password_file is not None:
            password = _read_password(password_file)
            read_from = os.path.abspath(password_file)
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
        password_file=read_from,
        transport=values.pop("transport"),
    )
    _check_tls(connection)
    quiet, verbose = _loudness(values.pop("quiet"), values.pop("verbose"), given)
    found = Settings(
        connection, Keys(values.pop("prefix")), quiet=quiet, verbose=verbose, log_format=values.pop("log_format")
    )
    if password is not None:
        log = Log(quiet=found.quiet, form=found.log_format)
        _warn_of_passwords(connection, log, on_command_line=visible)
    return found


def _loudness(quiet: bool, verbose: bool, given: Collection[str]) -> tuple[bool, bool]:
    """A flag overrules the other one's variable."""
    if quiet and verbose:
        if ("quiet" in given) == ("verbose" in given):
            raise BadInput("--quiet and --verbose exclude each other")
        return "quiet" in given, "verbose" in given
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
    import ssl  # late: only https pays for it

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
        text = f"--cert, --key: {connection.cert} and {connection.key} do not fit: {error}"
        raise cannot(text, error) from None


def _warn_of_passwords(connection: Connection, log: Log, *, on_command_line: bool) -> None:
    if on_command_line:
        log("warning", "password-visible", msg="a password on the command line is visible to other users")
    for endpoint in connection.endpoints:
        if not endpoint.tls and not _is_loopback(endpoint.host):
            log("warning", "password-in-clear", endpoint=str(endpoint), msg="the password goes over plaintext")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
