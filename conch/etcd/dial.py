"""Opens TCP connections to an endpoint within a deadline."""

import time

from conch import threads
from conch.etcd.endpoints import Endpoint
from conch.plain_socket import socket
from conch.static_typing import Any


def left_s(deadline: float) -> float:
    """Return the seconds until `deadline` (CLOCK_MONOTONIC); raises `TimeoutError` once it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("no answer in time")
    return seconds


def dial(endpoint: Endpoint, deadline: float, first: int = 0) -> socket.socket:
    """Connect to one of the host's addresses; they are tried in turn, beginning with the `first`-th."""
    error: OSError = TimeoutError("no answer in time")
    addresses = _resolve(endpoint, deadline)
    first %= len(addresses)
    addresses = addresses[first:] + addresses[:first]
    for at, (family, kind, protocol, _, address) in enumerate(addresses):
        connecting = socket.socket(family, kind, protocol)
        try:
            # the addresses that are still to be tried get their share of the time
            connecting.settimeout(left_s(deadline) / (len(addresses) - at))
            connecting.connect(address)
        except OSError as failed:
            connecting.close()
            error = failed
            continue
        return connecting
    raise error


def accepts(endpoint: Endpoint, timeout_s: float) -> bool:
    """Return whether a server accepts connections there, however slow it is to answer."""
    try:
        dial(endpoint, time.monotonic() + timeout_s).close()
    except OSError:
        return False
    return True


def _resolve(endpoint: Endpoint, deadline: float) -> list[Any]:
    """Return the addresses of a host.

    The system's resolver takes no time limit, so it runs in a thread that is abandoned at the deadline.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, endpoint.host)
        except OSError:
            continue
        return [(family, socket.SOCK_STREAM, 0, "", (endpoint.host, endpoint.port))]
    found: list[Any] = []
    resolved = threads.Event()

    def resolve() -> None:
        try:
            # as bytes: what Python does to a text, for letters beyond ASCII, takes long to load
            found.extend(socket.getaddrinfo(endpoint.host.encode(), endpoint.port, type=socket.SOCK_STREAM))
        except OSError:
            pass  # nothing is found
        resolved.set()

    try:
        threads.start(resolve)
    except RuntimeError:
        raise ConnectionError("cannot start a thread to resolve its name") from None
    if not resolved.wait(left_s(deadline)) or not found:
        raise ConnectionError("name resolution failed")
    return found
