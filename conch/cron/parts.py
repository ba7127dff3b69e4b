"""The parts of the scheduler, wired: which part hears of what from which other."""

from functools import partial

from conch.cron.claim_store import ClaimStore
from conch.cron.claimer import Claimer, ClaimPorts
from conch.cron.clock_check import ClockCheck
from conch.cron.closer import Closer
from conch.cron.fleet import Fleet
from conch.cron.group_commit import GroupCommit
from conch.cron.inventory import Inventory
from conch.cron.job_counts import JobCounts
from conch.cron.missing import MissedTicks
from conch.cron.node import Node
from conch.cron.notifier import make_notifier
from conch.cron.placing import Placing
from conch.cron.planner import Planner
from conch.cron.readiness import Readiness
from conch.cron.recorder import Recorder
from conch.cron.registrar import Registrar, described
from conch.cron.reload import Reload
from conch.cron.replacement import Replacement
from conch.cron.requests import RequestPorts, Requests
from conch.cron.result_store import ResultStore
from conch.cron.runner import Runner, RunPorts
from conch.cron.scheduler_spec import SchedulerPort
from conch.cron.semaphore_slot import queue_for_slot
from conch.cron.sweeping import make_sweeping
from conch.cron.ticks import Registration, TrackedJob
from conch.cron.transactions import Transactions
from conch.cron.turns import Turns
from conch.cron.unreadable import Unreadable
from conch.cron.waiting_room import WaitingRoom
from conch.cron.watcher import Watcher
from conch.cron.workers import Chores, Workers
from conch.cron.writes import Faults, Writes
from conch.etcd.server_clock import etcd_time
from conch.etcd.store import Range

# How long etcd's hosts may take to say their time, in seconds.
_ETCD_CLOCK_S = 2.0
# Results are in less of a hurry than claims: what ends within this time, in seconds, is recorded together.
_RESULTS_APART_S = 0.05


class Parts:
    """Owns every part of one scheduler."""

    def __init__(self, port: SchedulerPort) -> None:
        spec = port.spec
        self._port = port
        self._spec = spec
        self._host = spec.identity.host
        self.job_counts = JobCounts()
        self.workers = Workers(port.counts)
        self.chores = Chores(port.tasks)
        self.faults = Faults(port.log)
        self.writes = Writes(port.tasks, self.workers, self.faults)
        self.unreadable = Unreadable(port.log)
        self.results = ResultStore(spec.store, spec.keys)
        self.store = ClaimStore(spec.store, spec.keys, self._host, self.results)
        self._commit = GroupCommit(spec.run_log, port.tasks, self.workers)
        # two, so that neither waits for the other
        leases = self.results.leases
        self._claims = Transactions(spec.store, leases, port.tasks, self.workers)
        self._results = Transactions(spec.store, leases, port.tasks, self.workers, apart_s=_RESULTS_APART_S)
        self.fleet = Fleet(self._host, spec.clock, port.log, tags=spec.tags, moved=lambda: self.placing.follow_soon())
        self.placing = Placing(self.fleet, port.tasks, planner=lambda: self.planner, pending=port.pending)
        self.clock_check = self._make_clock_check()
        self.planner = self._make_planner()
        self.runner = self._make_runner()
        self.node = self._make_node()
        self.notifier = make_notifier(port, self.workers, self.faults, self._tracked)
        self.readiness = self._make_readiness()
        self.missed = self._make_missed()
        self.room = self._make_room()
        self._claim_ports = ClaimPorts(
            tracked=self._tracked,
            registration=self._registration,
            draining=lambda: port.is_draining,
            read_job=lambda name, kv: self.inventory.read_job(name, kv),
            unreadable=self.unreadable,
            waiting=lambda: len(port.pending) + len(self.closer.unclear),
            why_not_here=self.fleet.why_not_here,
        )
        self.claimer = self._make_claimer()
        self.turns = Turns(
            self.fleet,
            wall_clock=spec.clock.now,
            pending=lambda: len(port.pending),
            draining=lambda: port.is_draining,
        )
        self.closer = self._make_closer()
        self.replacement = self._make_replacement()
        self.requests = self._make_requests()
        self.recorder = self._make_recorder()
        self.reload = self._make_reload()
        self.sweeping = make_sweeping(port, self.workers, self.results, self.fleet, self._registration)
        self.inventory = self._make_inventory()
        self.watcher = self._make_watcher()
        self.writes.connect(
            probers=(
                *(self.closer.probes.probe, self.room.probe, self.recorder.probes.probe),
                lambda: self.node.publish(probe=True),
            ),
            resumed=(self.node.publish, self.recorder.probes.resume, self.closer.probes.resume, self.room.admit),
        )

    def start(self) -> None:
        """Begin to work: register, plan, sweep."""
        tasks = self._port.tasks
        tasks.spawn(self.node.keep_registered())
        tasks.spawn(self.planner.run())
        tasks.spawn(self.sweeping.run())
        self.reload.start()

    # -- what several parts ask ---------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a claim is under way or unclear, a claimed tick waits for its run key, or a run or its record."""
        if self.runner.active or self.closer.unclear or self.readiness.claims_under_way() or self.replacement.waiting:
            return True
        return any(tick.unclear for tick in self._port.pending.values())  # they are closed next

    def on_clock_step(self) -> None:
        """The wall clock was set, or the machine was asleep."""
        self._port.log("warning", "clock-set", msg="the wall clock was set, or the machine was asleep")
        self.clock_check.check()
        self.node.publish()
        self.planner.wake()

    def _tracked(self, name: str) -> TrackedJob | None:
        return self.planner.jobs.get(name)

    def _registration(self) -> Registration | None:
        return self.node.registration

    def _is_clock_off(self) -> bool:
        self.clock_check.follow()
        return self.clock_check.is_off

    def _on_registered(self) -> None:
        self.clock_check.meet(self.fleet.nodes)
        self.room.admit()
        self.replacement.wake_all()
        self.closer.wake()
        self.inventory.on_registered()

    def _on_run_ended(self) -> None:
        self.node.revoke_unneeded()
        self.room.admit()

    # -- making the parts ---------------------------------------------------------------------------------

    def _make_clock_check(self) -> ClockCheck:
        return ClockCheck(
            self._spec.clock,
            self._host,
            self._port.tasks,
            self.workers,
            self._port.log,
            etcd_time=partial(etcd_time, self._spec.connection, within_s=_ETCD_CLOCK_S),
            publish=lambda: self.node.publish(),
            corrected=lambda: self.planner.on_clock_right(),
        )

    def _make_planner(self) -> Planner:
        return Planner(
            self._spec.clock,
            self.chores,
            self._port.log,
            moments=self._spec.store.moments,
            due=lambda tick: self._port.consider(tick),
            missed=lambda name, missed: self.missed.add(name, missed),
            is_clock_off=self._is_clock_off,
            place=self.fleet.place_of,
            host=self._host,
        )

    def _make_runner(self) -> Runner:
        return Runner(
            RunPorts(
                tracked=self._tracked,
                registration=self._registration,
                new_number=lambda: self.node.new_number(),
                queue_for_slot=partial(queue_for_slot, self._spec, self._port.log),
            ),
            self._spec.watchdog,
            self._spec.run_log,
            self._spec.clock,
            self._spec.keys,
            self._host,
            self._port.loop,
            self._port.counts,
        )

    def _make_node(self) -> Node:
        spec, port = self._spec, self._port
        registrar = Registrar(
            *(spec.store, spec.keys, spec.watchdog, spec.identity, spec.origin, spec.leases, spec.state_id, spec.ttl_s),
            log=port.log,
            said=lambda: described(spec, running=len(self.runner.live())),
        )
        return Node(
            *(registrar, spec.watchdog, port.tasks, self.workers, self.writes, self.faults, port.log),
            own_time=spec.clock.own,
            flags=lambda: (port.is_draining, self.clock_check.is_off),
            needed=lambda: {run.node for run in self.runner.live()},
            slots=lambda: [run.slot.number for run in self.runner.active.values() if run.slot is not None],
            registered=self._on_registered,
            host=self._host,
            contain=spec.contain,
            ttl_s=spec.ttl_s,
            timeout_s=spec.timeout_s,
            revoke=lambda lease: spec.store.revoke(lease, timeout_s=spec.timeout_s),
        )

    def _make_readiness(self) -> Readiness:
        return Readiness(
            *(self.runner, self.node, self.writes, self.clock_check),
            parts=lambda: (self.claimer, self.closer, self.replacement),
            max_runs=self._spec.max_runs,
        )

    def _make_missed(self) -> MissedTicks:
        spec, port = self._spec, self._port
        return MissedTicks(
            lambda ends: self.store.taken_between(ends, self.placing.each_here(ends), timeout_s=spec.timeout_s),
            *(port.tasks, self.workers, self.writes, self.faults, port.counts, port.log, spec.clock.now),
            on_missed=self.notifier.missed,
        )

    def _make_room(self) -> WaitingRoom:
        spec, port = self._spec, self._port
        return WaitingRoom(
            *(port.tasks, self.writes, self.faults),
            why_closed=self.readiness.why_not_ready,
            free=self.readiness.free,
            draining=lambda: port.is_draining,
            wall_clock=spec.clock.now,
        )

    def _make_claimer(self) -> Claimer:
        spec, port = self._spec, self._port
        return Claimer(
            *(self.store, self._claim_ports, self.room, self._claims, self.writes, self._commit, spec.clock),
            *(spec.identity, port.counts),
            job_key=spec.job_key,
            timeout_s=spec.timeout_s,
        )

    def _make_closer(self) -> Closer:
        spec = self._spec
        return Closer(
            *(self.store, self._claim_ports, self._claims, self.workers, self.writes, spec.clock, spec.identity),
            report=self.claimer.report_failure,
            releasing=lambda: self._port.is_releasing,
            timeout_s=spec.timeout_s,
        )

    def _make_replacement(self) -> Replacement:
        spec = self._spec
        return Replacement(
            *(self.store, self._claim_ports, self._port.tasks, self._claims, self.workers, self.writes, self._commit),
            *(spec.clock, spec.identity),
            end_runs=self.runner.end_before,
            is_recorded=lambda run: run not in self.runner.active,
            timeout_s=spec.timeout_s,
        )

    def _make_requests(self) -> Requests:
        spec, port = self._spec, self._port
        ports = RequestPorts(
            host=self._host,
            why_not_here=self.fleet.why_not_here,
            tracked=self._tracked,
            is_pending=lambda tick_id: tick_id in port.pending,
            why_closed=self.readiness.why_not_ready,
            turn=self.fleet.turn,
            start=lambda tick, on_claim: port.consider(tick, on_claim),
            draining=lambda: port.is_draining,
            signed_only=spec.job_key is not None,
        )
        return Requests(
            *(spec.store, spec.keys, ports, port.tasks, self.workers, spec.clock, port.log), timeout_s=spec.timeout_s
        )

    def _make_recorder(self) -> Recorder:
        spec, port = self._spec, self._port
        return Recorder(
            *(self.results, self.runner, self._commit, spec.watchdog, self._results, self.writes),
            *(port.counts, self.job_counts, port.log),
            tracked=self._tracked,
            own_time=spec.clock.own,
            releasing=lambda: port.is_releasing,
            ended=self._on_run_ended,
            notify=self.notifier.ended,
            run_key_gone=self.replacement.wake,
            timeout_s=spec.timeout_s,
        )

    def _make_reload(self) -> Reload:
        spec = self._spec
        probe = Range(spec.keys.node(self._host).encode())
        reload = Reload(
            *(self.planner, self._port.tasks, self.workers, self.chores, self._port.log),
            renew=lambda: spec.store.renew(probe, timeout_s=spec.timeout_s),
            set_release=self._set_zones_release,
            list_again=lambda: self.inventory.list_again(),
            remove_job=lambda name: self.inventory.remove_job(name),
            job_key=lambda name: spec.keys.cron("job", name),
        )
        self.node.registrar.tzdata = reload.release
        return reload

    def _set_zones_release(self, release: str) -> None:
        self.node.registrar.tzdata = release
        self.node.publish()

    def _make_inventory(self) -> Inventory:
        return Inventory(
            *(self._port, self.store, self.chores, self.planner, self.requests, self.runner, self.replacement),
            *(self.node, self.fleet, self.clock_check, self.reload, self.unreadable),
            list_again=lambda: self.watcher.list_again(),
        )

    def _make_watcher(self) -> Watcher:
        port = self._port
        return Watcher(
            *(self._spec.store, self._spec.keys, port.log),
            call=port.call,
            run_ids=lambda: port.ask(self.runner.ids_with_keys, None),
            listed=self.inventory.on_list,
            events=self.inventory.on_events,
            watching=self.inventory.on_watching,
            timeout_s=self._spec.timeout_s,
        )
