"""The live daemons as their registrations tell, and the order in which they try to claim a tick."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conch.core import clock
from conch.core.origin import Origin, origin_of
from conch.cron.fleet_clock import SKEW_S, FleetClock
from conch.cron.values import fields_of
from conch.etcd.store import KeyValue

Log = Callable[..., None]
# Each host in line for a tick gives the ones before it this much time, in seconds.
TURN_S = 0.1
# A host that has claimed something so lately is claiming still: it may have many ticks to claim at once.
_CLAIMING_S = 0.5


@dataclass(frozen=True, slots=True)
class Turn:
    """How long a host waits for its turn, in seconds, and for whom: the hosts before it in line."""

    wait_s: float
    before: Sequence[bytes]


def before(host: bytes, others: Iterable[bytes], name: str, tick: int) -> list[bytes]:
    """Which others go before a host at a tick: by highest random weight (Thaler and Ravishankar, 1996).

    Every daemon asks this of every tick, so it is one digest a host and no more.
    """
    weigh, of_tick = hashlib.sha256, f"{name}\0{tick}\0".encode()
    weight = weigh(of_tick + host).digest()
    return [other for other in others if weigh(of_tick + other).digest() < weight]


def differing_zones(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """List which live hosts have which release of the time zones; empty if all have the same.

    Releases are compared with releases, digests of the database with digests.
    """
    found: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    for host in sorted(nodes):
        release = nodes[host].get("tzdata")
        if isinstance(release, str) and release:
            found[release.startswith("sha256:")].setdefault(release[:40], []).append(host)
    differing = next((hosts for hosts in found.values() if len(hosts) > 1), {})
    return "; ".join(f"{release}: {' '.join(hosts)}" for release, hosts in sorted(differing.items()))


class Fleet:
    """The hosts that are registered, with the fields of their registrations."""

    def __init__(self, host: str, fleet_clock: FleetClock, log: Log) -> None:
        """`host` is our own name."""
        self._host = host
        self._clock = fleet_clock
        self._log = log
        self._differing_zones = ""  # as logged last
        self._other_takers: list[bytes] | None = None  # None: a registration has changed since
        self.nodes: dict[str, dict[str, Any]] = {}
        self._claimed_at: dict[bytes, float] = {}  # CLOCK_BOOTTIME

    def add(self, host: str, kv: KeyValue) -> Mapping[str, Any]:
        """Take in a host's registration; its fields."""
        fields = self.nodes[host] = dict(fields_of(kv.value))
        self._other_takers = None
        return fields

    def remove(self, host: str) -> None:
        """The host's registration is gone."""
        self.nodes.pop(host, None)
        self._other_takers = None
        self._claimed_at.pop(host.encode(), None)

    def on_claim(self, host: str) -> None:
        """The host has claimed a tick."""
        if host in self.nodes:
            self._claimed_at[host.encode()] = clock.now()

    def are_claiming(self, hosts: Iterable[bytes]) -> bool:
        """Whether one of these hosts is claiming ticks, as far as we have heard."""
        since = clock.now() - _CLAIMING_S
        return any(self._claimed_at.get(host, 0.0) > since for host in hosts)

    def zones_differ_anew(self) -> bool:
        """Warn, once per change, of hosts with other releases of the time zones: their ticks differ. Whether it did."""
        differing = differing_zones(self.nodes)
        changed = bool(differing) and differing != self._differing_zones
        if changed:
            self._log(
                "warning", "zones-differ", hosts=differing, msg="these hosts have other releases of the time zones"
            )
        self._differing_zones = differing or self._differing_zones
        return changed

    def _before_us(self, name: str, number: int) -> list[bytes]:
        """Which of the live hosts that take new ticks go before us."""
        if self._other_takers is None:
            self._other_takers = [
                host.encode()
                for host, fields in self.nodes.items()
                if host != self._host and fields.get("draining") is not True and fields.get("clock_off") is not True
            ]
        return before(self._host.encode(), self._other_takers, name, number)

    def turn(self, name: str, number: int) -> Turn:
        """Our turn at a tick of a job, or at a request.

        A host whose clock differs from the others' by more than a second never goes first.
        """
        hosts = self._before_us(name, number)
        is_off = abs(self._clock.skew_s()) > SKEW_S
        return Turn(max(len(hosts), 1 if is_off else 0) * TURN_S, hosts)

    def is_first(self, name: str, number: int) -> bool:
        """Whether we are the first in line, whatever our clock shows."""
        return not self._before_us(name, number)

    def origins(self) -> list[Origin]:
        """Where the registered daemons run, as far as they say so."""
        return [made_by for fields in self.nodes.values() if (made_by := origin_of(fields.get("origin")))]
