"""Which `Host` a request may name, so that no web page reads the status through a name of its own (DNS rebinding)."""

import ipaddress
import re
from collections.abc import Iterable

_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?)\]|([A-Za-z0-9._~-]*))(?::[0-9]*)?", re.ASCII)


def host_of(authority: str) -> str | None:
    """The host in `HOST[:PORT]`, in lower case and without a final dot; None if it is malformed."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    return match[1] or _plain(match[2])


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


class Hosts:
    """The names by which this host may be asked, besides its addresses and `localhost`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {"localhost", *(_plain(name) for name in names)} - {""}

    def __contains__(self, host: object) -> bool:
        """Whether a host, as `host_of` has it, may be asked for. No page can make a browser send a foreign address."""
        return isinstance(host, str) and (host in self._names or _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
