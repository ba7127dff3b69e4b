"""The connection to etcd, as the common options say it."""

from dataclasses import dataclass, field

from conch.etcd.endpoints import Endpoint
from conch.keys import Keys


@dataclass(frozen=True, slots=True)
class Connection:
    """Where etcd is, how long to wait for it (seconds), and who we are there. The password is never shown.

    `transport` is `grpc`, `http` (etcd's JSON gateway), or `auto`: http where that works.
    """

    endpoints: tuple[Endpoint, ...]
    dial_timeout_s: float = 5.0
    command_timeout_s: float = 5.0
    cacert: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    transport: str = "auto"


@dataclass(frozen=True, slots=True)
class Settings:
    """All the common options."""

    connection: Connection
    keys: Keys
    quiet: bool = False
    log_format: str = "text"
