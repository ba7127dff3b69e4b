"""The rule that turns a deadline into the last moments to act."""

from conch.record import Record

# How long etcd may leave a start without its first answer, if it takes connections: it is slow then, and not away.
ANSWERS_WITHIN_S = 60.0

# Of the TTL: often enough to ride out most of it, seldom enough to leave a laptop asleep.
RENEWED_EVERY = 1 / 5


class DeadlineRule(Record):
    """The deadline rule of the safety promise for one TTL as etcd granted it; all in seconds.

    The tree is sent SIGTERM by `term_at`, SIGKILL by `kill_at`, and none is started after `start_by`.
    """

    ttl_s: float
    kill_after_s: float

    @property
    def margin_s(self) -> float:
        """What is kept for clocks that run at slightly different rates, and for the kill itself."""
        return max(0.2, self.ttl_s / 20)

    @property
    def grace_s(self) -> float:
        """The time that a child gets between SIGTERM and SIGKILL when its deadline comes near."""
        return min(self.kill_after_s, self.ttl_s / 3)

    def sigterm_at(self, deadline: float) -> float:
        """The last moment for SIGTERM."""
        return deadline - self.margin_s - self.grace_s

    start_by = sigterm_at

    def ready_by(self, deadline: float) -> float:
        """When it is too late to decide for a start: its first renewal must have time to come through."""
        return self.sigterm_at(deadline) - self.ttl_s * RENEWED_EVERY

    def sigkill_at(self, deadline: float) -> float:
        """The last moment for SIGKILL."""
        return deadline - self.margin_s
