"""Whether a daemon could claim a tick now, in words for `/healthz`."""

from conch.core import clock
from conch.cron.parts import Parts


def why_unhealthy(parts: Parts, *, draining: bool) -> str:
    """Why no tick could be claimed now; empty if one could."""
    if draining:
        return "draining"
    parts.clock_check.follow()
    if parts.clock_check.is_off:
        return parts.clock_check.why_off()
    current, refused = parts.node.current, parts.writes.reason
    if current is None:
        reason = f": {refused}" if parts.writes.is_open else ""
        return f"not registered in etcd{reason}"
    if current.failing or clock.now() >= current.session.deadline:
        return "etcd does not confirm our lease"
    if refused:
        return f"etcd takes no writes: {refused}"
    if not parts.inventory.is_watching:
        return "the etcd watch is interrupted"
    return "" if parts.runner.is_supervisor_answering() else "the supervisor is stopped"


def lease_left_s(parts: Parts) -> float:
    """How long our registration lasts without a renewal, in seconds; 0 without a registration."""
    current = parts.node.current
    return 0.0 if current is None else max(0.0, current.session.deadline - clock.now())
