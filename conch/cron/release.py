"""Giving back what a daemon holds in etcd when it ends: slots and its registration."""

from conch.core import clock
from conch.cron.parts import Parts
from conch.cron.scheduler_spec import SchedulerSpec
from conch.etcd.store import StoreError

# How long etcd may take to release the registration, in seconds.
_LIMIT_S = 1.0


async def give_back(parts: Parts, spec: SchedulerSpec) -> None:
    """Wait for the slots that are being given back, then revoke the registration. What etcd does not take expires."""
    await parts.workers.files(lambda: parts.notifier.close(spec.timeout_s / 2))
    registered, slots = parts.node.release(), parts.recorder.returning
    limit_s = min(_LIMIT_S, spec.timeout_s)

    def work() -> None:
        until = clock.now() + limit_s
        for slot in slots:
            slot.released.wait(max(0.0, until - clock.now()))
        if registered is not None:
            registered.session.stop()
            spec.store.revoke(registered.registration.lease, timeout_s=limit_s)

    try:
        await parts.workers.etcd(work)
    except StoreError:
        pass  # the lease expires by itself


def abandon(parts: Parts, spec: SchedulerSpec) -> None:
    """Revoke all leases, from another thread than the scheduler's: the supervisor is dead, and nothing runs."""
    runs = list(parts.runner.active.values())
    leases = [run.slot.lease for run in runs if run.slot is not None] + parts.node.leases
    current = parts.node.current
    if current is not None:
        current.session.stop()
    for lease in leases:
        try:
            if lease is not None:
                spec.store.revoke(lease, timeout_s=spec.timeout_s)
        except StoreError:
            continue  # it expires by itself
