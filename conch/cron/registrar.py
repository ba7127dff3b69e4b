"""Writes our registration: a leased key under our host's name, confirmed and renewed like any hold."""

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from conch import __version__
from conch.core import clock
from conch.core.deadline import DeadlineRule
from conch.core.messages import Held
from conch.core.origin import Origin, origin_of
from conch.cron.features import CAN
from conch.cron.scheduler_spec import SchedulerSpec
from conch.cron.ticks import Registration
from conch.cron.values import fields_of
from conch.etcd.store import CreateRevisionIs, KeyValue, LeaseGone, Put, Range, Store, StoreError
from conch.holder import Holder
from conch.keeper.session import Session
from conch.keeper.watchdog import Watchdog
from conch.keys import Keys

Log = Callable[..., None]


@dataclass(frozen=True, slots=True)
class NameTaken:
    """Another conchd of this name is registered, and not known to be dead: where it runs, as far as it says so."""

    by: str


@dataclass(slots=True)
class Registered:
    """Our registration, and the session that renews its lease. `failing`: the newest renewal was not confirmed."""

    registration: Registration
    session: Session
    failing: bool = False


class Registrar:
    """Creates, refreshes and takes over the key of our registration."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        watchdog: Watchdog,
        identity: Holder,
        origin: Origin,
        leases: Collection[int],
        state_id: str,
        ttl_s: int,
        log: Log,
        *,
        said: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        """`said` are further fields of our registration, as they are when it is written.

        `origin` is our supervisor, `leases` were its earlier keeper's, `state_id` names our state directory.
        """
        self._leases = set(leases)
        self._store = store
        self._key = keys.node(identity.host)
        self._watchdog = watchdog
        self._identity = identity
        self.origin = origin
        self._state_id = state_id
        self._ttl_s = ttl_s
        self._log = log
        self._said = said
        self.tzdata = ""  # the release of our time zones

    def value(self, at: float, *, draining: bool, off: bool) -> bytes:
        """The value of our key: who and where we are, the time on our clock, and whether that clock is wrong."""
        return json.dumps(
            {
                **json.loads(self._identity.encode()),
                "at": round(at, 3),
                "state": self._state_id,
                "draining": draining,
                "clock_off": off,
                "tzdata": self.tzdata,
                "origin": self.origin.fields(),
                "can": sorted(CAN),
                **self._said(),
            }
        ).encode()

    def register(
        self, number: int, at: float, lost: Callable[[str], None], *, draining: bool, off: bool, timeout_s: float
    ) -> Registered | NameTaken:
        """Get a lease and create our key, taking over the key of a conchd that is proved dead. Raises `StoreError`.

        Proved dead is a daemon that was started in this boot with this state directory, which we have locked, and whose
        process is gone. Any other namesake, such as one on another machine, is alive until its lease has expired.
        `lost` is called, from another thread, when the registration is lost.
        """
        lease = int.from_bytes(os.urandom(8)) >> 1 or 1
        self._leases.add(lease)
        granted_at = clock.now()
        granted = self._store.grant(lease, self._ttl_s, timeout_s=timeout_s)
        try:
            ours = self._create(lease, self.value(at, draining=draining, off=off), timeout_s)
            if isinstance(ours, NameTaken):
                self._store.revoke(lease, timeout_s=timeout_s)
                self._leases.discard(lease)
                return ours
        except BaseException:
            self._abandon(lease)
            raise
        registration = Registration(number, lease, ours.create_revision)
        registered: list[Registered] = []

        def note_failures(level: str, event: str, **fields: str | int | float) -> None:
            for entry in registered:
                entry.failing = event in ("renew-failed", "doubt")
            self._log(level, event, **fields)

        session = Session(
            self._store,
            lease,
            granted.ttl_s,
            granted_at,
            should_renew=lambda: True,
            renewed=lambda deadline: self._watchdog.renewed(number, deadline),
            lost=lost,
            log=note_failures,
        )
        registered.append(Registered(registration, session))
        rule = DeadlineRule(session.ttl_s, 0.0)
        self._watchdog.acquired(number, rule, session.deadline, renew_now=session.renew_now)
        self._watchdog.send(Held(number, registration.rev, lease, self._key, session.ttl_s, session.deadline))
        session.follow(self._key, registration.rev)
        return registered[0]

    def _create(self, lease: int, value: bytes, timeout_s: float) -> KeyValue | NameTaken:
        key = self._key.encode()
        for _ in range(2):
            result = self._store.txn(
                [CreateRevisionIs(key, 0)], [Put(key, value, lease), Range(key)], [Range(key)], timeout_s=timeout_s
            )
            found = result.ranges[0].kvs[0]
            if found.lease == lease:
                return found
            if not self._is_replaceable(found):
                return NameTaken(_location(found))
            # The daemon that made the key is dead, and all that it ran has been ended.
            self._store.revoke(found.lease, timeout_s=timeout_s)
        raise LeaseGone("cannot register: our key came back")

    def refresh(self, registration: Registration, at: float, *, draining: bool, off: bool, timeout_s: float) -> None:
        """Write the time on our clock anew. May raise `StoreError`."""
        key, value = self._key.encode(), self.value(at, draining=draining, off=off)
        self._store.txn(
            [CreateRevisionIs(key, registration.rev)], [Put(key, value, registration.lease)], timeout_s=timeout_s
        )

    def _abandon(self, lease: int) -> None:
        try:
            self._store.revoke(lease, timeout_s=1.0)
        except StoreError:
            pass  # it expires by itself

    def _is_replaceable(self, kv: KeyValue) -> bool:
        """Whether we made this key, or a daemon that is proved dead."""
        fields = fields_of(kv.value)
        made_by = origin_of(fields.get("origin"))
        if made_by is None or fields.get("state") != self._state_id:
            return False
        if made_by == self.origin:  # or a machine that was resumed from a snapshot of our memory
            return kv.lease in self._leases
        return made_by.proved_dead(self.origin)


def _location(kv: KeyValue) -> str:
    fields = fields_of(kv.value)
    made_by = origin_of(fields.get("origin"))
    return f"pid {fields.get('pid')}" if made_by is None else str(made_by)


def described(spec: SchedulerSpec, *, running: int) -> dict[str, object]:
    """Return what a registration says of a daemon that has so many live runs, as of when it is written."""
    return {
        "version": __version__,
        "tags": sorted({*spec.tags, f"host={spec.identity.host}"}),
        "max_runs": spec.max_runs,
        "running": running,
        "ahead_s": round(spec.clock.skew_s(), 3),
    }
