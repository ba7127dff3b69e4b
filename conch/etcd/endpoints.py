"""Parses endpoints as people write them: `host`, `host:2379`, `http://host:2379`, `https://host`, `[::1]:2379`."""

from conch.errors import BadInput
from conch.record import Record

DEFAULT_PORT = 2379
_WORD = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_HOST = _WORD.union(".-")
_ADDRESS = frozenset("0123456789ABCDEFabcdef:.")


class Endpoint(Record):
    """One member of etcd; `host` has no brackets. `bare`: it was written without a scheme."""

    host: str
    port: int
    tls: bool = False
    bare: bool = False

    def _values(self) -> tuple[str, int, bool]:
        return self.host, self.port, self.tls

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Parse one endpoint; raises `BadInput` that names it."""

    def bad(why: str) -> BadInput:
        return BadInput(f"bad endpoint {text!r}: {why}")

    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    if scheme.lower() not in ("http", "https"):
        raise bad("it must be host:port, http://host:port or https://host:port")
    rest = rest.removesuffix("/")
    if any(c in rest for c in "/?#@"):
        raise bad("only a host and a port are wanted")
    if rest.startswith("["):
        host, closing, port = rest[1:].partition("]")
        if not closing or not _is_address(host) or ":" not in host:
            raise bad("no IPv6 address in the brackets")
        if port and not port.startswith(":"):
            raise bad("there is something between the address and the port")
        port, has_port = port[1:], bool(port)
    else:
        host, colon, port = rest.partition(":")
        has_port = bool(colon)
        if ":" in port:
            raise bad("an IPv6 address needs brackets, as in [::1]:2379")
        if not _is_host(host):
            raise bad("no host name" if not host else "not a host name")
    if not has_port:
        return Endpoint(host, DEFAULT_PORT, scheme.lower() == "https", not separator)
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise bad("the port must be a number from 1 to 65535")
    return Endpoint(host, int(port), scheme.lower() == "https", not separator)


def _is_host(text: str) -> bool:
    """Whether this is a host name, or an IPv4 address; a dot may end it."""
    name = text.removesuffix(".")
    return name != "" and name[0] in _WORD and name[-1] in _WORD and _HOST.issuperset(name)


def _is_address(text: str) -> bool:
    """Whether this may be an IPv6 address, with or without a zone."""
    address, percent, zone = text.partition("%")
    return address != "" and _ADDRESS.issuperset(address) and bool(percent) == bool(zone) and _HOST.issuperset(zone)


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """Parse a comma-separated list; blanks and duplicates are dropped, the order is kept."""
    found = tuple(dict.fromkeys(parse_endpoint(part.strip()) for part in text.split(",") if part.strip()))
    if not found:
        raise BadInput(f"no endpoint in {text!r}")
    if len({endpoint.tls for endpoint in found}) > 1:
        raise BadInput(f"http and https endpoints are mixed in {text!r}")
    return found
