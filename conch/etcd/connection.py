"""The connection to etcd, as the common options describe it."""

from conch.etcd.endpoints import Endpoint
from conch.keys import Keys
from conch.record import Record


def read_password(path: str) -> str:
    """Return the first line of a file. Raises `OSError` or `UnicodeDecodeError`."""
    with open(path, encoding="utf-8") as file:
        return file.readline().rstrip("\r\n")


class Connection(Record):
    """Where etcd is, how long to wait for it (seconds), and who we are there. The password is never shown.

    `password_file` is the file that the password was read from, if any; it may have changed since.
    `transport` is `grpc`, `http` (etcd's JSON gateway), or `auto`: http if that works.
    """

    endpoints: tuple[Endpoint, ...]
    dial_timeout_s: float = 5.0
    command_timeout_s: float = 5.0
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = None
    password_file: str | None = None
    transport: str = "auto"

    def __repr__(self) -> str:
        """Show all fields but the password."""
        shown = {name: value for name, value in self.__dict__.items() if name != "password"}
        return f"Connection({shown})"


class Settings(Record):
    """All the common options."""

    connection: Connection
    keys: Keys
    quiet: bool = False
    verbose: bool = False
    log_format: str = "text"
