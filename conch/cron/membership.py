"""Being one of the fleet: our registration and its lease, the other daemons and their clocks."""

from abc import abstractmethod
from itertools import count
from typing import Any

from conch.core import clock, linux
from conch.core.daemon_loop import HOLDS
from conch.cron.actor import PAUSE_MOST_S, Actor, Base
from conch.cron.clock import SKEW_S
from conch.cron.fleet import Registered, Registrar, differing_zones
from conch.cron.fleet import Taken as NameTaken
from conch.cron.values import LAST_TICK, fields_of
from conch.etcd.server_clock import etcd_time
from conch.etcd.store import KeyValue, StoreError
from conch.times import rfc3339

# How often a node tells its time.
_TELL_TIME_S = 60.0
# How long a newcomer waits for the others' clocks before it claims.
_MEET_S = 3.0
# How often a host whose clock is off asks the others for theirs, and how often each answers at most.
_ASK_AGAIN_S = 5.0
_ETCD_CLOCK_S = 2.0


class Membership(Actor):
    """Registers, and again when that is lost; what ran under a lost registration is ended before its lease goes."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._ttl_s = base.ttl_s
        self._registrar = Registrar(
            base.store, base.keys, base.watchdog, base.me, base.here, base.leases, base.state, base.ttl_s, self.tell
        )
        self._here = base.here
        self._registering = False
        self._register_turn = 0
        self._numbers = count(1)
        self._node: Registered | None = None
        self._old_leases: dict[int, int] = {}
        self._lost_early: set[int] = set()
        self._deaf_until = 0.0
        self._nodes: dict[str, dict[str, Any]] = {}
        self._draining = False
        self._releasing = False
        self._warned_skew = False
        self._clock_off = False
        self._off_turn = 0  # how often it was found to be off
        self._asking_etcd = False
        self._unheard: set[str] = set()  # hosts whose clocks we wait for before the first claim, until
        self._unheard_until = 0.0
        self._told_at = 0.0
        self._differing_zones = ""  # as it was told
        self._look_at_zones_at = 0.0

    @abstractmethod
    def _on_registration(self) -> None:
        """Claims are possible again."""

    @abstractmethod
    def _on_clock_right(self) -> None:
        """Our clock was off the others' and is not any more."""

    @abstractmethod
    def _slot_numbers(self) -> list[int]:
        """The numbers of the holds of slots."""

    @abstractmethod
    def _needed_registrations(self) -> set[int | None]:
        """The registrations, by the numbers of their holds, under which something runs."""

    def _register(self) -> None:
        if self._releasing or self._registering or self._node is not None:
            return
        self._registering = True
        self._register_turn += 1
        number = self._new_number()

        def lost(reason: str) -> None:
            self._watchdog.lost(number, reason)
            self._inbox.put(lambda: self._on_node_lost(number, reason))

        now, draining, off = self._clock.own(), self._draining, self._clock_off

        def work() -> Registered | NameTaken:
            return self._registrar.register(number, now, lost, draining=draining, off=off, timeout_s=self._limit_s)

        self._work(work, self._on_registered, self._on_not_registered)

    def _new_number(self) -> int:
        """A number for a hold; its place on the board must not be that of another."""
        used = {number % HOLDS for number in (*self._old_leases, *self._slot_numbers())}
        if self._node is not None:
            used.add(self._node.node.number % HOLDS)
        return next(number for number in self._numbers if number % HOLDS not in used)

    def _on_registered(self, outcome: Registered | NameTaken) -> None:
        self._registering = False
        self._on_write_made()
        if isinstance(outcome, NameTaken):
            self._fault("name-taken", level="error").failed(
                host=self._me.host,
                by=outcome.by,
                here=str(self._here),
                msg="another conchd has this name, a copy of this machine perhaps: set CONCH_HOST; claiming nothing",
            )
            self._register_later(self._ttl_s / 2)
            return
        self._fault("name-taken", level="error").over()
        if outcome.node.number in self._lost_early:
            self._old_leases[outcome.node.number] = outcome.node.lease
            self._give_old_leases_back()
            self._register()
            return
        self._node = outcome
        self._fault("not-registered").over()
        self.tell("info", "registered", host=self._me.host, lease=f"{outcome.node.lease:x}", rev=outcome.node.rev)
        self._meet_others()
        self._later(_TELL_TIME_S, lambda: self._tell_time_again(outcome.node.number))
        self._on_registration()

    def _meet_others(self) -> None:
        """Wait a little for the clocks of those that are there, before the first claim."""
        self._unheard = {host for host in self._nodes if host != self._me.host and not self._clock.knows(host)}
        self._unheard_until = clock.now() + _MEET_S

    def _on_not_registered(self, error: StoreError) -> None:
        self._registering = False
        self._on_write_failed("not-registered", error)
        self._register_later(PAUSE_MOST_S)

    def _register_later(self, after_s: float) -> None:
        """Unless that was tried again before, as when the namesake has gone."""
        turn = self._register_turn

        def again() -> None:
            if turn == self._register_turn:
                self._register()

        self._later(after_s, again)

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
            self._watchdog.forget(number)
            self._revoke(lease)

    def _revoke(self, lease: int) -> None:
        limit_s = self._limit_s
        self._work(lambda: self._store.revoke(lease, timeout_s=limit_s), lambda _: None, lambda _: None)

    def _tell_time_again(self, number: int) -> None:
        if self._node is not None and self._node.node.number == number:
            if self._clock.contradicted:
                self._ask_etcd()  # again
            self._tell_time()
            self._later(_TELL_TIME_S, lambda: self._tell_time_again(number))

    def _tell_time(self, *, probe: bool = False) -> None:
        node = self._node
        if node is None:
            return
        limit_s = self._limit_s
        draining, off = self._draining, self._clock_off
        self._told_at = clock.now()
        self._write(
            lambda: self._registrar.refresh(
                node.node, self._clock.own(), draining=draining, off=off, timeout_s=limit_s
            ),
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
        self._compare_zones()
        if host == self._me.host:
            return
        at = fields.get("at")
        sane = isinstance(at, int | float) and not isinstance(at, bool) and 0 < at < LAST_TICK
        if live and sane and clock.now() >= self._deaf_until:
            self._clock.heard(host, float(at))  # type: ignore[arg-type]
            self._check_skew()
        if live:
            self._unheard.discard(host)
            asks = fields.get("clock_off") is True and clock.now() - self._told_at >= _ASK_AGAIN_S
            if new or asks:
                self._tell_time()  # so that it learns ours

    def _compare_zones(self) -> None:
        """Hosts with other rules for their zones have other ticks: say so, once for each change of which hosts do."""
        differing = differing_zones(self._nodes)
        if differing and differing != self._differing_zones:
            self.tell(
                "warning", "zones-differ", hosts=differing, msg="these hosts have other releases of the time zones"
            )
            self._look_at_zones_at = 0.0  # ours may have been changed, too
        self._differing_zones = differing or self._differing_zones

    def _forget_node(self, host: str) -> None:
        self._nodes.pop(host, None)
        self._clock.forget(host)
        self._unheard.discard(host)
        self._check_skew()
        if host == self._me.host:
            self._register()  # unless it was ours

    def _check_skew(self) -> None:
        skew_s = self._clock.skew_s()
        if abs(skew_s) > SKEW_S and not self._warned_skew:
            way = "ahead of" if skew_s > 0 else "behind"
            self.tell("warning", "clock-skew", skew_s=skew_s, msg=f"this host's clock is {way} the others'")
        self._warned_skew = abs(skew_s) > SKEW_S
        if not self._clock.contradicted:
            self._clock.forget_etcd()
        elif self._clock.wants_etcd:
            self._ask_etcd()
        self._follow_clock()

    def _ask_etcd(self) -> None:
        """What time it is on etcd's hosts: between two clocks that contradict each other a third one decides."""
        if self._asking_etcd:
            return
        self._asking_etcd = True
        self._work(
            lambda: etcd_time(self._connection, within_s=_ETCD_CLOCK_S),
            self._on_etcd_time,
            lambda _: self._on_etcd_time(None),
        )

    def _on_etcd_time(self, at: float | None) -> None:
        self._asking_etcd = False
        self._clock.heard_etcd(at)
        self._follow_clock()

    def _follow_clock(self) -> None:
        """Claim nothing while our clock is off: say so, and ask the others for their time until it is right again."""
        off = self._clock.off
        if off == self._clock_off:
            return
        self._clock_off = off
        if off:
            self.tell("error", "clock-off", skew_s=round(self._clock.skew_s(), 1), msg=self._why_clock_off())
            self._off_turn += 1
            self._ask_for_times(self._off_turn)
        else:
            self.tell("info", "clock-right", msg="this host's clock agrees with the others': claiming again")
            self._tell_time()
            self._on_clock_right()

    def _why_clock_off(self) -> str:
        if self._clock.before_release:
            return f"this host's clock shows {rfc3339(self._clock.own())}, before this release: claiming nothing"
        skew_s = self._clock.skew_s()
        way = "ahead of" if skew_s > 0 else "behind"
        return f"this host's clock is {abs(skew_s):.1f} s {way} the others': claiming nothing"

    def _ask_for_times(self, turn: int) -> None:
        if self._clock_off and turn == self._off_turn and not self._releasing:
            self._tell_time()  # with it, that we are off: then they tell theirs
            self._later(_ASK_AGAIN_S, lambda: self._ask_for_times(turn))

    def _knows_the_time(self) -> bool:
        """Whether our clock may be gone by: it is not off, and those that were there before us have told theirs."""
        return not self._clock.off and (not self._unheard or clock.now() >= self._unheard_until)

    def _watch_clock(self) -> None:
        steps = linux.StepTimer()
        while True:
            steps.wait()
            self._inbox.put(self._on_clock_step)

    def _on_clock_step(self) -> None:
        self.tell("warning", "clock-set", msg="the wall clock was set, or the machine was asleep")
        self._check_skew()
        self._tell_time()
