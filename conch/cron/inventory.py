"""What etcd has, as the scheduler takes it in: listings, events, and keys that nobody can read."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from conch.core import clock
from conch.cron.claim_store import ClaimStore
from conch.cron.clock_check import ASK_AGAIN_S, ClockCheck
from conch.cron.fleet import Fleet
from conch.cron.node import Node
from conch.cron.planner import Planner
from conch.cron.reload import Reload
from conch.cron.replacement import Replacement
from conch.cron.requests import Requests
from conch.cron.run_log import Entry
from conch.cron.runner import Runner
from conch.cron.scheduler_spec import SchedulerPort
from conch.cron.ticks import PAUSE_MOST_S, REMOVED
from conch.cron.unreadable import Unreadable
from conch.cron.values import asker, fields_of
from conch.cron.watcher import Listing, keys_of
from conch.cron.workers import SLICE_S, Chores
from conch.errors import shortage
from conch.etcd.store import Event, KeyValue
from conch.keys import CordonKey, JobKey, NodeKey, TickKey
from conch.limits import is_short


class Inventory:
    """Passes what a listing or event says on to the part that it concerns."""

    def __init__(
        self,
        port: SchedulerPort,
        store: ClaimStore,
        chores: Chores,
        planner: Planner,
        requests: Requests,
        runner: Runner,
        replacement: Replacement,
        node: Node,
        fleet: Fleet,
        clock_check: ClockCheck,
        reload: Reload,
        unreadable: Unreadable,
        *,
        list_again: Callable[[], None],
    ) -> None:
        """`list_again` has everything listed anew."""
        self._port = port
        self._keys = port.spec.keys
        self._host = port.spec.identity.host
        self._our_places = ("", self._host)  # the hosts in the keys of claims and runs that concern us
        self._store = store
        self._chores = chores
        self._planner = planner
        self._requests = requests
        self._runner = runner
        self._replacement = replacement
        self._node = node
        self._fleet = fleet
        self._clock_check = clock_check
        self._reload = reload
        self._unreadable = unreadable
        self._list_again = list_again
        self._relisting = self._was_registered = False
        self._listed = False  # which hosts live is known
        self._arrived: dict[str, KeyValue] = {}  # definitions that are still to be read
        self._read_until = 0.0
        self.unproved: list[Entry] = []  # runs of another boot, which may still live
        self.is_watching = self._was_interrupted = False

    # -- listings and events ------------------------------------------------------------------------------

    def on_watching(self, works: bool) -> None:
        """The watch works, or is interrupted."""
        if self._was_interrupted:
            self._clock_check.on_interrupted_watch()
        self.is_watching = works
        self._was_interrupted = not works

    def on_list(self, listing: Listing, run_ids: set[str]) -> None:
        """Everything that is there; what is not there any more has gone. `run_ids` had run keys before it was read."""
        self._read_until = clock.now() + SLICE_S
        there = keys_of(listing)
        revision = min(found.header.revision for _, found in listing)
        for name in [*self._planner.jobs, *self._arrived]:
            if self._keys.cron("job", name).encode() not in there:
                self.remove_job(name)
        self._compare_run_keys(there, revision, run_ids)
        for host in list(self._fleet.nodes):
            if self._keys.node(host).encode() not in there:
                self._remove_node(host)
        for host in list(self._fleet.cordoned):
            if self._keys.cron("cordon", host).encode() not in there:
                self._fleet.set_cordoned(host, cordoned=False)
        self._requests.keep_only(there)
        for what, found in listing:
            if what.key != self._keys.cron("fire").encode():
                for kv in found.kvs:
                    self._on_key(kv, live=False)
        if not self._listed:
            self._listed = True
            self._clock_check.meet(self._fleet.nodes)
        self.conclude_unproved()

    def _compare_run_keys(self, there: dict[bytes, KeyValue], revision: int, run_ids: set[str]) -> None:
        for name, tracked in self._planner.jobs.items():
            if tracked.run is not None and tracked.run.key not in there:
                tracked.run = None
                self._replacement.wake(name)
        for run in self._runner.live():
            entry, held = run.entry, run.entry.run_rev
            key = there.get(self._keys.cron("run", entry.name, *([entry.host] if entry.host else [])).encode())
            # its key was made before the listing; a revision tells that, unless etcd's went back
            before = held is not None and (held <= revision or entry.run in run_ids)
            if before and (key is None or key.create_revision != held):
                self._runner.end_without_key(run)

    def on_events(self, events: Sequence[Event]) -> None:
        """Keys were written or deleted, in this order."""
        self._read_until = clock.now() + SLICE_S
        for event in events:
            if event.deleted:
                self._on_gone(event.kv.key, event.kv.mod_revision)
            else:
                self._on_key(event.kv, live=True)

    def _on_key(self, kv: KeyValue, *, live: bool) -> None:
        """A key is there. Anyone may write anything: what cannot be made sense of is reported, and that is all."""
        self._unless_odd(kv, lambda: self._take_in(kv, live=live))

    def _unless_odd(self, kv: KeyValue, take: Callable[[], None]) -> None:
        try:
            take()
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            self._unreadable(kv.key, str(error))
        except (OSError, MemoryError) as error:
            if not is_short(error):
                raise
            # as when a job's zone cannot be opened just now
            self._port.log("warning", "postponed", key=kv.key.decode("utf-8", "replace"), msg=shortage(error))
            if not self._relisting:
                self._relisting = True
                self._port.tasks.later(PAUSE_MOST_S, self.list_again)

    def list_again(self) -> None:
        """Have everything listed and watched anew."""
        self._relisting = False
        self._list_again()

    def _take_in(self, kv: KeyValue, *, live: bool) -> None:
        match self._keys.parse(kv.key):
            case JobKey(kind="job", name=name):
                self._on_definition(name, kv)
            case TickKey(kind="fire") if kv.mod_revision != kv.create_revision:
                pass  # an old claim that is kept for longer
            case TickKey(kind="fire", name=name, tick=tick, host=host):
                self._on_claim(name, tick, host, kv)
            case TickKey(kind="now", name=name, tick=number):
                self._requests.on_request(name, number, kv)
            case TickKey(kind="kill", name=name, tick=tick):
                self._runner.end_tick(name, tick, f"killed by {asker(kv.value)}")
            case JobKey(kind="run", name=name, host=host):
                if not kv.lease:
                    self._unreadable(kv.key, "a run key without a lease keeps its job from running")
                tracked = self._planner.jobs.get(name)
                if (
                    tracked is not None and host in self._our_places
                ):  # else the job is gone, or its definition arrives next; a claim finds the key
                    tracked.run = kv
            case NodeKey(host=host):
                self._on_node(host, kv, live=live)
            case CordonKey(host=host):
                self._fleet.set_cordoned(host, cordoned=True)
            case _:
                self._unreadable(kv.key, "no key of ours")

    def _on_gone(self, key: bytes, revision: int) -> None:
        match self._keys.parse(key):
            case JobKey(kind="job", name=name):
                if name in self._planner.jobs:
                    self._port.log("info", "job-removed", job=name)
                self.remove_job(name)
            case TickKey(kind="fire", name=name, tick=tick, host=host) if (
                host in self._our_places and name in self._planner.jobs
            ):
                self._planner.jobs[name].expired_ticks.discard(tick)
            case TickKey(kind="now", name=name, tick=number):
                self._requests.on_gone(name, number)
            case JobKey(kind="run", name=name, host=host) if host in self._our_places:
                self._runner.on_run_key_gone(name, host, revision)
                tracked = self._planner.jobs.get(name)
                if tracked is not None and tracked.run is not None and tracked.run.create_revision < revision:
                    tracked.run = None  # if it was another key, etcd tells at the next claim
                self._replacement.wake(name)
            case CordonKey(host=host):
                self._fleet.set_cordoned(host, cordoned=False)
            case NodeKey(host=host):
                self._remove_node(host)
            case _:
                pass

    # -- jobs and claims ----------------------------------------------------------------------------------

    def _on_definition(self, name: str, kv: KeyValue) -> None:
        """A definition was written. With thousands of them, ticks must not wait: it is read in a chore then."""
        if not self._chores and clock.now() < self._read_until:
            self._read(name, kv)
            return
        if name not in self._arrived:
            self._chores.add(partial(self._read_arrived, name))
        self._arrived[name] = kv

    def _read_arrived(self, name: str) -> None:
        kv = self._arrived.pop(name, None)
        if kv is not None:
            self.read_job(name, kv)

    def read_job(self, name: str, kv: KeyValue) -> None:
        """Take in a definition; raises nothing."""
        self._unless_odd(kv, lambda: self._read(name, kv))

    def _read(self, name: str, kv: KeyValue) -> None:
        if self._planner.on_job(name, kv):
            self._requests.serve(name)
        else:
            self.remove_job(name)

    def remove_job(self, name: str) -> None:
        """The job was removed, or cannot be read now."""
        self._arrived.pop(name, None)
        if self._planner.jobs.pop(name, None) is not None:
            self._replacement.stop(name, REMOVED)

    def _on_claim(self, name: str, tick: int, host: str, kv: KeyValue) -> None:
        fields = fields_of(kv.value)
        self._fleet.on_claim(str(fields.get("host")))
        if host not in self._our_places:
            return  # another host has its own run of this tick
        self._port.on_claim((name, tick), lambda pending: self._store.is_ours(kv, pending))
        tracked = self._planner.jobs.get(name)
        if tracked is not None and tracked.job.overlap == "replace" and fields.get("skip") is not True:
            self._replacement.on_claim(tracked, tick)

    # -- hosts --------------------------------------------------------------------------------------------

    def _on_node(self, host: str, kv: KeyValue, *, live: bool) -> None:
        is_new = host not in self._fleet.nodes
        fields = self._fleet.add(host, kv)
        if self._fleet.zones_differ_anew():
            self._reload.check_zones_soon()
        if host == self._host or not live:
            return
        self._clock_check.on_time(host, fields.get("at"))
        asks = fields.get("clock_off") is True and clock.now() - self._node.published_at >= ASK_AGAIN_S
        if is_new or asks:
            self._node.answer()  # so that it learns our time
        self._planner.wake()

    def _remove_node(self, host: str) -> None:
        self._fleet.remove(host)
        self._clock_check.on_host_gone(host)
        if host == self._host:
            self._node.on_key_gone()
        self._planner.wake()  # the fleet's time may be another without that host's
        self.conclude_unproved()

    def on_registered(self) -> None:
        """We are registered, perhaps again, and perhaps in another etcd, whose revision has grown past the watch's."""
        if self._was_registered:
            self.list_again()
        self._was_registered = True
        self.conclude_unproved()

    # -- runs of another boot -----------------------------------------------------------------------------

    def conclude_unproved(self) -> None:
        """Runs of an earlier boot are lost, unless it lives, as where this host is a copy: then it is registered.

        Nothing that they hold is given back: it goes with the lease that it is held by.
        """
        if not self._may_conclude() or not self._listed:
            return
        gone = [entry for entry in self.unproved if entry.origin not in self._fleet.origins()]
        if gone:
            # it may only be about to register anew
            self._port.tasks.later(2 * self._port.spec.ttl_s, partial(self._conclude, gone))

    def _may_conclude(self) -> bool:
        return self._node.registration is not None and not self._port.is_releasing

    def _conclude(self, entries: Sequence[Entry]) -> None:
        if not self._may_conclude():
            return
        living = self._fleet.origins()
        for entry in entries:
            if entry in self.unproved and entry.origin not in living:
                self.unproved.remove(entry)
                self._port.conclude(replace(entry, run_rev=None, slot=None))
