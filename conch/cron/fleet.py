"""The live daemons: our own registration and lease, and whose turn it is at a tick."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from conch.core import clock
from conch.core.deadline import DeadlineRule
from conch.core.messages import Held
from conch.core.origin import Origin, origin_of
from conch.cron.claim_store import Node
from conch.cron.values import fields_of
from conch.etcd.store import CreateRevisionIs, KeyValue, LeaseGone, Put, Range, Store, StoreError
from conch.holder import Holder
from conch.keeper.session import Session
from conch.keeper.watchdog import Watchdog
from conch.keys import Keys

Tell = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Taken:
    """Another conchd of this name is registered, and not known to be dead: where it runs, as far as it says so."""

    by: str


def differing_zones(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Say which live hosts have which release of the zones, if it is not the same; a digest is no release."""
    found: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
    for host in sorted(nodes):
        release = nodes[host].get("tzdata")
        if isinstance(release, str) and release:
            found[release.startswith("sha256:")].setdefault(release[:40], []).append(host)
    differing = next((hosts for hosts in found.values() if len(hosts) > 1), {})
    return "; ".join(f"{release}: {' '.join(hosts)}" for release, hosts in sorted(differing.items()))


def order(hosts: Iterable[str], name: str, tick: int) -> list[str]:
    """The hosts in the order of their turns at a tick: by highest random weight (Thaler and Ravishankar, 1996)."""

    def weight(host: str) -> bytes:
        return hashlib.sha256(f"{name}\0{tick}\0{host}".encode()).digest()

    return sorted(hosts, key=weight)


@dataclass(slots=True)
class Registered:
    """Our registration, kept by a session until it is lost."""

    node: Node
    session: Session
    failing: bool = False


class Registrar:
    """Makes us a node: a leased key under our host's name, confirmed and renewed like any hold."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        watchdog: Watchdog,
        me: Holder,
        here: Origin,
        leases: Collection[int],
        state: str,
        ttl_s: int,
        tell: Tell,
    ) -> None:
        """`here` is our supervisor, `leases` were its earlier keeper's, `state` is the id of our state directory."""
        self._leases = set(leases)
        self._store = store
        self._key = keys.node(me.host)
        self._watchdog = watchdog
        self._me = me
        self._here = here
        self._state = state
        self._ttl_s = ttl_s
        self._tell = tell
        self.tzdata = ""  # the release of our zones

    def value(self, at: float, *, draining: bool, off: bool) -> bytes:
        """What our key says: who and where we are, the time on our clock, and whether that is off the others'."""
        holder = json.loads(self._me.encode())
        told = {"at": round(at, 3), "state": self._state, "draining": draining, "clock_off": off, "tzdata": self.tzdata}
        return json.dumps({**holder, **told, "origin": self._here.fields()}).encode()

    def register(
        self, number: int, at: float, lost: Callable[[str], None], *, draining: bool, off: bool, timeout_s: float
    ) -> Registered | Taken:
        """Get a lease and create our key, taking over what a conchd left that is proved dead. Raises `StoreError`.

        Proved is what was started in this boot by this state directory, which is locked by us, and is not there any
        more. All that cannot be proved dead, as the namesake on another machine, is alive until its lease has run out.
        """
        lease = int.from_bytes(os.urandom(8)) >> 1 or 1
        self._leases.add(lease)
        granted_at = clock.now()
        granted = self._store.grant(lease, self._ttl_s, timeout_s=timeout_s)
        key, value = self._key.encode(), self.value(at, draining=draining, off=off)
        try:
            for _ in range(2):
                made = self._store.txn(
                    [CreateRevisionIs(key, 0)], [Put(key, value, lease), Range(key)], [Range(key)], timeout_s=timeout_s
                )
                there = made.ranges[0].kvs[0]
                if there.lease == lease:
                    break
                if not self._was_ours(there):
                    self._store.revoke(lease, timeout_s=timeout_s)
                    self._leases.discard(lease)
                    return Taken(_whereabouts(there))
                # all that it ran has been ended
                self._store.revoke(there.lease, timeout_s=timeout_s)
            else:
                raise LeaseGone("cannot register: our key came back")
        except BaseException:
            self._abandon(lease)
            raise
        node = Node(number, lease, there.create_revision)
        registered: list[Registered] = []

        def tell(level: str, event: str, **text: str | int | float) -> None:
            for one in registered:
                one.failing = event in ("renew-failed", "doubt")
            self._tell(level, event, **text)

        session = Session(
            self._store,
            lease,
            granted.ttl_s,
            granted_at,
            wanted=lambda: True,
            renewed=lambda deadline: self._watchdog.renewed(number, deadline),
            lost=lost,
            tell=tell,
        )
        registered.append(Registered(node, session))
        self._watchdog.acquired(number, DeadlineRule(session.ttl_s, 0.0), session.deadline, renew_now=session.renew_now)
        self._watchdog.send(Held(number, node.rev, lease, self._key, session.ttl_s, session.deadline))
        session.follow(self._key, node.rev)
        return registered[0]

    def refresh(self, node: Node, at: float, *, draining: bool, off: bool, timeout_s: float) -> None:
        """Tell our time anew. May raise `StoreError`."""
        key, value = self._key.encode(), self.value(at, draining=draining, off=off)
        self._store.txn([CreateRevisionIs(key, node.rev)], [Put(key, value, node.lease)], timeout_s=timeout_s)

    def _abandon(self, lease: int) -> None:
        try:
            self._store.revoke(lease, timeout_s=1.0)
        except StoreError:
            pass  # it expires by itself

    def _was_ours(self, kv: KeyValue) -> bool:
        """Whether we made this key, or one that is proved dead."""
        fields = fields_of(kv.value)
        made_by = origin_of(fields.get("origin"))
        if made_by is None or fields.get("state") != self._state:
            return False
        if made_by == self._here:  # or a machine that was resumed from a snapshot of our memory
            return kv.lease in self._leases
        return made_by.proved_dead(self._here)


def _whereabouts(kv: KeyValue) -> str:
    fields = fields_of(kv.value)
    made_by = origin_of(fields.get("origin"))
    return f"pid {fields.get('pid')}" if made_by is None else str(made_by)
