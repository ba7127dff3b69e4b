"""Being one of the fleet: our registration and its lease, the other daemons and their clocks."""

from abc import abstractmethod
from itertools import count
from typing import Any

from conch.core import clock, system
from conch.core.crew import HOLDS
from conch.cron.actor import PAUSE_MOST_S, Actor, Base
from conch.cron.clock import SKEW_S
from conch.cron.fleet import Registered, Registrar
from conch.cron.fleet import Taken as NameTaken
from conch.cron.records import LAST_TICK, fields_of
from conch.etcd.store import KeyValue, StoreError

# How often a node tells its time.
_TELL_TIME_S = 60.0


class Membership(Actor):
    """Registers, and again when that is lost; what ran under a lost registration is ended before its lease goes."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._ttl_s = base.ttl_s
        self._registrar = Registrar(base.store, base.keys, base.warden, base.me, base.state, base.ttl_s, self.tell)
        self._numbers = count(1)
        self._node: Registered | None = None
        self._old_leases: dict[int, int] = {}
        self._lost_early: set[int] = set()
        self._deaf_until = 0.0
        self._nodes: dict[str, dict[str, Any]] = {}
        self._draining = False
        self._releasing = False
        self._warned_skew = False

    @abstractmethod
    def _on_registration(self) -> None:
        """Claims are possible again."""

    @abstractmethod
    def _slot_numbers(self) -> list[int]:
        """The numbers of the holds of slots."""

    @abstractmethod
    def _needed_registrations(self) -> set[int | None]:
        """The registrations, by the numbers of their holds, under which something runs."""

    def _register(self) -> None:
        if self._releasing:
            return
        number = self._new_number()

        def lost(reason: str) -> None:
            self._warden.lost(number, reason)
            self._inbox.put(lambda: self._on_node_lost(number, reason))

        def work() -> Registered | NameTaken:
            return self._registrar.register(
                number, self._clock.own(), lost, draining=self._draining, timeout_s=self._limit_s
            )

        self._work(work, self._on_registered, self._on_not_registered)

    def _new_number(self) -> int:
        """A number for a hold; its place on the board must not be that of another."""
        used = {number % HOLDS for number in (*self._old_leases, *self._slot_numbers())}
        if self._node is not None:
            used.add(self._node.node.number % HOLDS)
        return next(number for number in self._numbers if number % HOLDS not in used)

    def _on_registered(self, outcome: Registered | NameTaken) -> None:
        self._on_write_made()
        if isinstance(outcome, NameTaken):
            self.tell(
                "error",
                "name-taken",
                host=self._me.host,
                msg="another conchd has this name: set CONCH_HOST; claiming nothing",
            )
            self._later(self._ttl_s / 2, self._register)
            return
        if outcome.node.number in self._lost_early:
            self._old_leases[outcome.node.number] = outcome.node.lease
            self._give_old_leases_back()
            self._register()
            return
        self._node = outcome
        self._fault("not-registered").over()
        self.tell("info", "registered", host=self._me.host, lease=f"{outcome.node.lease:x}", rev=outcome.node.rev)
        self._later(_TELL_TIME_S, lambda: self._tell_time_again(outcome.node.number))
        self._on_registration()

    def _on_not_registered(self, error: StoreError) -> None:
        self._on_write_failed("not-registered", error)
        self._later(PAUSE_MOST_S, self._register)

    def _on_node_lost(self, number: int, reason: str) -> None:
        if self._node is None or self._node.node.number != number:
            self._lost_early.add(number)
            return
        self.tell("error", "registration-lost", reason=reason)
        self._old_leases[number] = self._node.node.lease
        self._node.session.stop()
        self._node = None
        self._give_old_leases_back()
        if not self._releasing:
            self._register()

    def _give_old_leases_back(self) -> None:
        """A lost registration may still have its lease; nothing that ran under it may run any more when it goes."""
        needed = self._needed_registrations()
        for number in [number for number in self._old_leases if number not in needed]:
            lease = self._old_leases.pop(number)
            self._warden.forget(number)
            self._revoke(lease)

    def _revoke(self, lease: int) -> None:
        limit_s = self._limit_s
        self._work(lambda: self._store.revoke(lease, timeout_s=limit_s), lambda _: None, lambda _: None)

    def _tell_time_again(self, number: int) -> None:
        if self._node is not None and self._node.node.number == number:
            self._tell_time()
            self._later(_TELL_TIME_S, lambda: self._tell_time_again(number))

    def _tell_time(self, *, probe: bool = False) -> None:
        node = self._node
        if node is None:
            return
        limit_s = self._limit_s
        draining = self._draining
        self._write(
            lambda: self._registrar.refresh(node.node, self._clock.own(), draining=draining, timeout_s=limit_s),
            lambda _: None,
            lambda error: self._on_write_failed("refresh-failed", error),
            lambda: None,  # told when etcd takes writes again
            probe=probe,
        )

    def _probe_time(self) -> bool:
        """Find out by telling our time whether etcd takes writes; whether there is a key to be written."""
        self._tell_time(probe=True)
        return self._node is not None

    def _resume(self) -> None:
        self._tell_time()

    def _on_node(self, host: str, kv: KeyValue, *, live: bool) -> None:
        fields = dict(fields_of(kv.value))
        new = host not in self._nodes
        self._nodes[host] = fields
        if host == self._me.host:
            return
        at = fields.get("at")
        sane = isinstance(at, int | float) and not isinstance(at, bool) and 0 < at < LAST_TICK
        if live and sane and clock.now() >= self._deaf_until:
            self._clock.heard(host, float(at))  # type: ignore[arg-type]
            self._check_skew()
        if new and live:
            self._tell_time()  # so that it learns ours

    def _forget_node(self, host: str) -> None:
        self._nodes.pop(host, None)
        self._clock.forget(host)

    def _check_skew(self) -> None:
        skew_s = self._clock.skew_s()
        if abs(skew_s) > SKEW_S and not self._warned_skew:
            way = "ahead of" if skew_s > 0 else "behind"
            self.tell("warning", "clock-skew", skew_s=skew_s, msg=f"this host's clock is {way} the others'")
        self._warned_skew = abs(skew_s) > SKEW_S

    def _watch_clock(self) -> None:
        steps = system.StepTimer()
        while True:
            steps.wait()
            self._inbox.put(self._on_clock_step)

    def _on_clock_step(self) -> None:
        self.tell("warning", "clock-set", msg="the wall clock was set, or the machine was asleep")
        self._check_skew()
        self._tell_time()
