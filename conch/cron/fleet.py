"""The live daemons as their registrations tell, and the order in which they try to claim a tick."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conch.core import clock
from conch.core.origin import Origin, origin_of
from conch.cron.fleet_clock import SKEW_S, FleetClock
from conch.cron.job import Job
from conch.cron.placement import Host, Place, host_of, this_host, why_not, why_nowhere
from conch.cron.ticks import TrackedJob
from conch.cron.values import fields_of
from conch.etcd.store import KeyValue

Log = Callable[..., None]
# What a job asks of a host: its tags, and what it needs.
_Wish = tuple[tuple[str, ...], tuple[str, ...]]
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
    """The hosts that are registered, with the fields of their registrations, and which jobs they may run."""

    def __init__(
        self,
        host: str,
        fleet_clock: FleetClock,
        log: Log,
        *,
        tags: Collection[str] = (),
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        """`host` is our own name, `tags` are ours. `moved` is called when jobs may have another place than before."""
        self._host = host
        self._clock = fleet_clock
        self._log = log
        self._tags = frozenset(tags)
        self._moved = moved
        self._differing_zones = ""  # as logged last
        self.nodes: dict[str, dict[str, Any]] = {}
        self._cordoned: set[str] = set()
        self._hosts: dict[str, Host] = {}  # as registered
        self._ours = this_host(host, self._tags, cordoned=False)
        # by what jobs ask for; empty: a registration has changed since
        self._takers: dict[_Wish, list[bytes]] = {}
        self._nowhere: dict[_Wish, str] = {}
        self._claimed_at: dict[bytes, float] = {}  # CLOCK_BOOTTIME

    # -- who is there -------------------------------------------------------------------------------------

    def add(self, host: str, kv: KeyValue) -> Mapping[str, Any]:
        """Take in a host's registration; its fields."""
        fields = self.nodes[host] = dict(fields_of(kv.value))
        known = self._hosts.get(host)
        new = self._hosts[host] = host_of(host, fields, cordoned=host in self._cordoned)
        was_off = known is not None and known.fields.get("clock_off") is True
        if known is None or _placing(known) != _placing(new) or was_off != (fields.get("clock_off") is True):
            self._on_change()
        return fields

    def remove(self, host: str) -> None:
        """The host's registration is gone."""
        self.nodes.pop(host, None)
        self._claimed_at.pop(host.encode(), None)
        if self._hosts.pop(host, None) is not None:
            self._on_change()

    def set_cordoned(self, host: str, *, cordoned: bool) -> None:
        """The host was cordoned, or may claim ticks again."""
        if cordoned == (host in self._cordoned):
            return
        if cordoned:
            self._cordoned.add(host)
        else:
            self._cordoned.discard(host)
        if host == self._host:
            self._ours = this_host(host, self._tags, cordoned=cordoned)
            self._log("info", "cordoned" if cordoned else "uncordoned", host=host)
        if host in self._hosts:
            self._hosts[host] = host_of(host, self.nodes[host], cordoned=cordoned)
        self._on_change()

    @property
    def cordoned(self) -> Collection[str]:
        """The hosts that are cordoned, live or not."""
        return self._cordoned

    def _on_change(self) -> None:
        self._takers, self._nowhere = {}, {}
        self._moved()

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

    # -- where a job may run ------------------------------------------------------------------------------

    def why_not_here(self, job: Job) -> str:
        """Why this host may not claim ticks of a job; empty if it may."""
        return why_not(job, self._ours)

    def why_nowhere(self, job: Job) -> str:
        """Why no live host may claim ticks of a job; empty if one may, or we do not know of any host yet."""
        wish = (job.on, job.needs)
        if wish not in self._nowhere:
            self._nowhere[wish] = (
                why_nowhere(job, [host for _, host in sorted(self._hosts.items())]) if self._hosts else ""
            )
        return self._nowhere[wish]

    def place(self, job: Job) -> Place:
        """What this host does about the ticks of a job.

        Those of a job that no live host may run are one host's to report: the first in rank of all that know how.
        """
        if not self.why_not_here(job):
            return Place.CLAIM
        if not self._hosts or not self.why_nowhere(job):
            return Place.NONE
        reporters = [host.name.encode() for host in self._hosts.values() if host.can and not host.draining]
        is_first = not before(
            self._host.encode(), [host for host in reporters if host != self._host.encode()], job.name, 0
        )
        return Place.REPORT if is_first else Place.NONE

    def place_of(self, tracked: TrackedJob) -> Place:
        """As `place`; logs, once per change, that no live host may run the job, or that this one is too old for it."""
        job, place = tracked.job, self.place(tracked.job)
        if not self._hosts:
            return place  # our own registration is yet to be heard of: what it changes is logged then
        too_old = "" if self._ours.can.issuperset(job.needs) else f"this conchd {self.why_not_here(job)[3:]}"
        why = self.why_nowhere(job) if place is Place.REPORT else too_old
        if why and why != tracked.nowhere:
            self._log("warning", "nowhere" if place is Place.REPORT else "too-old", job=job.name, msg=why)
        elif tracked.nowhere and not why and not self.why_nowhere(job):
            self._log("info", "somewhere", job=job.name, msg="a live host may run it")
        tracked.nowhere = why
        return place

    def _before_us(self, name: str, number: int, job: Job | None) -> list[bytes]:
        """Which of the live hosts that may take this tick go before us."""
        wish = ((), ()) if job is None else (job.on, job.needs)
        if wish not in self._takers:
            self._takers[wish] = [
                host.name.encode()
                for host in self._hosts.values()
                if host.name != self._host
                and host.fields.get("clock_off") is not True
                and not (host.draining or host.cordoned if job is None else why_not(job, host))
            ]
        return before(self._host.encode(), self._takers[wish], name, number)

    def turn(self, job: Job, number: int) -> Turn:
        """Our turn at a tick of a job, or at a request, among the hosts that may run it.

        A host whose clock differs from the others' by more than a second never goes first. A tick that runs on every
        host is everybody's turn.
        """
        if job.each:
            return Turn(0.0, [])
        hosts = self._before_us(job.name, number, job)
        is_off = abs(self._clock.skew_s()) > SKEW_S
        return Turn(max(len(hosts), 1 if is_off else 0) * TURN_S, hosts)

    def is_first(self, name: str, number: int) -> bool:
        """Whether we are the first in line of the hosts that claim ticks, whatever our clock shows."""
        return not self._before_us(name, number, None)

    def origins(self) -> list[Origin]:
        """Where the registered daemons run, as far as they say so."""
        return [made_by for fields in self.nodes.values() if (made_by := origin_of(fields.get("origin")))]


def _placing(host: Host) -> tuple[object, ...]:
    return host.tags, host.can, host.draining, host.cordoned
