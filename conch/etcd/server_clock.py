"""Reads the clocks of etcd's hosts: every answer of a member over HTTP has a `Date`."""

import http.client
import time
from email.utils import parsedate_to_datetime
from statistics import median

from conch.etcd.certificates import tls_context
from conch.etcd.connection import Connection
from conch.etcd.endpoints import Endpoint
from conch.static_typing import Any

# A `Date` is rounded down to whole seconds.
_HALF_S = 0.5


def etcd_time(connection: Connection, *, within_s: float) -> float | None:
    """Return the median of the members' clocks, to about a second, in seconds since the epoch.

    None if no member answers over HTTP, as where etcd serves gRPC alone. All of them together take at most `within_s`.
    """
    until = time.monotonic() + within_s
    try:
        tls = tls_context(connection) if any(endpoint.tls for endpoint in connection.endpoints) else None
    except OSError:
        return None  # a certificate is missing or being replaced
    found = []
    for unasked, endpoint in zip(range(len(connection.endpoints), 0, -1), connection.endpoints, strict=True):
        now = time.monotonic()
        # a silent member must not take the others' time
        ahead_s = _ahead_s(endpoint, tls, now + (until - now) / unasked)
        if ahead_s is not None:
            found.append(ahead_s)
    return median(found) + time.monotonic() if found else None


def _ahead_s(endpoint: Endpoint, tls: Any, until: float) -> float | None:
    """Return how far a member's wall clock is ahead of our CLOCK_MONOTONIC."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        return None
    host, port = endpoint.host, endpoint.port
    connection: http.client.HTTPConnection
    if endpoint.tls:
        connection = http.client.HTTPSConnection(host, port, timeout=left_s, context=tls)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=left_s)
    try:
        sent_at = time.monotonic()
        connection.request("GET", "/version")
        date = connection.getresponse().headers["Date"]
        middle = (sent_at + time.monotonic()) / 2
        return parsedate_to_datetime(date).timestamp() + _HALF_S - middle
    except (OSError, http.client.HTTPException, ValueError, TypeError, OverflowError):
        return None  # it is down, or does not speak HTTP
    finally:
        connection.close()
