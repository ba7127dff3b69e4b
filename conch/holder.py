"""How a contender describes itself in the value of its key: one line of JSON."""

import os
import time

from conch import json_text
from conch.errors import BadInput
from conch.keys import check_name
from conch.record import Record
from conch.static_typing import Sequence
from conch.times import rfc3339

CMD_BYTES = 256


class UnreadableHolder(ValueError):
    """A value that is not a holder's JSON."""


class Holder(Record):
    """A contender: its host, the pid of its supervisor, its start (RFC 3339 UTC) and its command."""

    host: str
    pid: int
    started: str
    cmd: str

    def encode(self) -> bytes:
        """Return one line of JSON."""
        return json_text.dumps(
            {"host": self.host, "pid": self.pid, "started": self.started, "cmd": self.cmd},
        ).encode("utf-8", "replace")

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
        return cls(host, pid, started, cmd)


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
