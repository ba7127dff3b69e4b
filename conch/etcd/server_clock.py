"""What the clocks of etcd's hosts show: a member says it in the `Date` of any answer over HTTP."""

import http.client
import time
from email.utils import parsedate_to_datetime
from statistics import median

from conch.etcd.certificates import tls_context
from conch.etcd.connection import Connection
from conch.etcd.endpoints import Endpoint
from conch.static_typing import Any

# A `Date` is cut to whole seconds.
_HALF_S = 0.5


def etcd_time(connection: Connection, *, within_s: float) -> float | None:
    """The middle of what the members' clocks show now, to about a second, in seconds since the epoch.

    None if no member answers so, as where etcd serves gRPC alone. Takes `within_s` at most, for all of them together.
    """
    until = time.monotonic() + within_s
    try:
        tls = tls_context(connection) if any(endpoint.tls for endpoint in connection.endpoints) else None
    except OSError:
        return None  # a certificate cannot be read just now
    found = []
    for still, endpoint in zip(range(len(connection.endpoints), 0, -1), connection.endpoints, strict=True):
        now = time.monotonic()
        one = _ahead_s(endpoint, tls, now + (until - now) / still)  # a silent one must not take the others' time
        if one is not None:
            found.append(one)
    return median(found) + time.monotonic() if found else None


def _ahead_s(endpoint: Endpoint, tls: Any, until: float) -> float | None:
    """How far a member's wall clock is ahead of our CLOCK_MONOTONIC."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        return None
    host, port = endpoint.host, endpoint.port
    one: http.client.HTTPConnection
    if endpoint.tls:
        one = http.client.HTTPSConnection(host, port, timeout=left_s, context=tls)
    else:
        one = http.client.HTTPConnection(host, port, timeout=left_s)
    try:
        asked_at = time.monotonic()
        one.request("GET", "/version")
        date = one.getresponse().headers["Date"]
        middle = (asked_at + time.monotonic()) / 2
        return parsedate_to_datetime(date).timestamp() + _HALF_S - middle
    except (OSError, http.client.HTTPException, ValueError, TypeError, OverflowError):
        return None  # it is away, or speaks otherwise
    finally:
        one.close()
