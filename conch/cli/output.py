"""Lines on stdout, for people and for programs."""

import sys

from conch.errors import CannotWrite, ReaderGone
from conch.log import escape
from conch.static_typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from conch.etcd.store import KeyValue
    from conch.holder import Holder


def line(kv: "KeyValue", holder: "Holder") -> str:
    """Format a contender for people, without its name."""
    return f"{escape(holder.host)} pid={holder.pid} since={escape(holder.since)} rev={kv.create_revision}"


def fields(kv: "KeyValue", holder: "Holder") -> dict[str, object]:
    """Return the JSON fields of a contender, without its name."""
    return {
        "host": holder.host,
        "pid": holder.pid,
        "started": holder.started,
        "since": holder.since,
        "cmd": holder.cmd,
        "rev": kv.create_revision,
        "lease": f"{kv.lease:x}",
    }


def put_line(text: str) -> None:
    """Print one line on stdout and flush it. Raises `CannotWrite`, or `ReaderGone` for a closed pipe."""
    put_lines([text])


def put_lines(texts: Sequence[str]) -> None:
    """Print lines on stdout, all in one write, and flush it. Raises as `put_line`."""
    if sys.stdout is None:
        raise CannotWrite("cannot write to stdout: it is closed")
    try:
        sys.stdout.write("".join([text + "\n" for text in texts]))
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGone("stdout was closed") from None
    except OSError as error:
        raise CannotWrite(f"cannot write to stdout: {error.strerror}") from None


def put_json(data: dict[str, object]) -> None:
    """Print one JSON object as a line on stdout and flush it."""
    put_line(json_line(data))


def json_line(data: dict[str, object]) -> str:
    """Return one JSON object as a line."""
    import json  # late: it is slow to import

    return json.dumps(data)
