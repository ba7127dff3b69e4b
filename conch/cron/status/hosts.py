"""Checks the `Host` of a request, so that no web page can read the status through a name of its own (DNS rebinding)."""

import ipaddress
import re
from collections.abc import Iterable

_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?)\]|([A-Za-z0-9._~-]*))(?::[0-9]*)?", re.ASCII)


def host_of(authority: str) -> str | None:
    """Return the host in `HOST[:PORT]`, in lower case and without a final dot; None if it is malformed."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    return match[1] or _normalize(match[2])


def _normalize(name: str) -> str:
    return name.lower().removesuffix(".")


class Hosts:
    """The names by which clients may address this host, besides its IP addresses and `localhost`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {"localhost", *(_normalize(name) for name in names)} - {""}

    def __contains__(self, host: object) -> bool:
        """Return whether a client may use this host, as returned by `host_of`.

        Any IP address is accepted: a browser that a foreign page led here would send the name of that page.
        """
        return isinstance(host, str) and (host in self._names or _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
