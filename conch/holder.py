"""How a contender describes itself in the value of its key: one line of JSON."""

import os
import time

from conch import json_text
from conch.errors import BadInput
from conch.keys import check_name
from conch.record import Record, fields_of
from conch.static_typing import Sequence
from conch.times import rfc3339

CMD_BYTES = 256


class UnreadableHolder(ValueError):
    """A value that is not a holder's JSON."""


class Holder(Record):
    """A contender: its host, the pid of its supervisor, its start (RFC 3339 UTC) and its command.

    `held_since` is when it got the hold, if it says so: one that did not have to wait does not.
    """

    host: str
    pid: int
    started: str
    cmd: str
    held_since: str | None = None

    @property
    def since(self) -> str:
        """When it began to hold, if it does."""
        return self.held_since or self.started

    def encode(self) -> bytes:
        """Return one line of JSON."""
        fields = {name: value for name, value in fields_of(self).items() if value is not None}
        return json_text.dumps(fields).encode("utf-8", "replace")

    @classmethod
    def decode(cls, value: bytes) -> "Holder":
        """Parse a value and ignore unknown fields. Raises `UnreadableHolder`, which says what is wrong."""
        try:
            data = json_text.loads(value)
        except (ValueError, RecursionError) as error:
            raise UnreadableHolder(f"no JSON: {error}") from None
        if not isinstance(data, dict):
            raise UnreadableHolder("not a JSON object")
        host, pid = data.get("host"), data.get("pid")
        started, cmd = data.get("started"), data.get("cmd")
        if not (isinstance(host, str) and isinstance(started, str) and isinstance(cmd, str)):
            raise UnreadableHolder("host, started and cmd must be strings")
        if not isinstance(pid, int) or isinstance(pid, bool):
            raise UnreadableHolder("pid must be a number")
        held_since = data.get("held_since")
        return cls(host, pid, started, cmd, held_since if isinstance(held_since, str) else None)


def with_held_since(value: bytes, held_since: str) -> bytes:
    """Return a holder's value with the time (RFC 3339 UTC) at which it got the hold; other fields stay.

    Raises `ValueError` if the value is not a holder's.
    """
    Holder.decode(value)
    return json_text.dumps({**json_text.loads(value), "held_since": held_since}).encode("utf-8", "replace")


def host_name() -> str:
    """Return the host as holders name it: `CONCH_HOST` (for tests of several hosts on one), else the host name."""
    name = os.environ.get("CONCH_HOST")
    if not name:
        return os.uname().nodename
    try:
        return check_name(name)
    except BadInput as error:
        raise BadInput(f"CONCH_HOST: {error}") from None


def shown(command: Sequence[str]) -> str:
    """Return a command as holders show it: at most 256 bytes of UTF-8, and no character cut in two."""
    return " ".join(command).encode("utf-8", "replace")[:CMD_BYTES].decode("utf-8", "ignore")


def myself(command: Sequence[str]) -> Holder:
    """Return the holder that describes this process running a command."""
    return Holder(host_name(), os.getpid(), rfc3339(time.time()), shown(command))
