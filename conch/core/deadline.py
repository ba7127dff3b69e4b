"""The rule that turns the deadline of a hold into the times to act by."""

from conch.core.messages import Held
from conch.record import Record
from conch.static_typing import Sequence

# etcd that accepts connections but answers nothing for this long at the start is slow, not absent.
ANSWERS_WITHIN_S = 60.0

# The part of the TTL between two renewals: short enough to survive an outage of most of the TTL, long enough to let a
# laptop sleep.
RENEWED_EVERY = 1 / 5


class DeadlineRule(Record):
    """The deadline rule of the safety promise for one TTL as etcd granted it; all in seconds.

    The tree gets SIGTERM by `sigterm_at` and SIGKILL by `sigkill_at`; nothing starts after `start_by`.
    """

    ttl_s: float
    kill_after_s: float

    @property
    def margin_s(self) -> float:
        """The reserve for clocks that run at slightly different rates, and for the kill itself."""
        return max(0.2, self.ttl_s / 20)

    @property
    def grace_s(self) -> float:
        """The time that a child gets between SIGTERM and SIGKILL when its deadline comes near."""
        return min(self.kill_after_s, self.ttl_s / 3)

    def sigterm_at(self, deadline: float) -> float:
        """Return the latest time for SIGTERM."""
        return deadline - self.margin_s - self.grace_s

    start_by = sigterm_at

    def ready_by(self, deadline: float) -> float:
        """Return the time from which no start is decided: its first renewal needs time to arrive."""
        return self.sigterm_at(deadline) - self.ttl_s * RENEWED_EVERY

    def sigkill_at(self, deadline: float) -> float:
        """Return the latest time for SIGKILL."""
        return deadline - self.margin_s


class Hold:
    """A hold as the keeper last confirmed it; `lost` says why it must no longer be relied on."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.deadline = held.deadline
        self.lost: str | None = None

    def confirm(self, held: Held) -> None:
        """Accept a newer confirmation of this hold, with all that may have changed."""
        self.held, self.deadline = held, held.deadline

    def renew(self, deadline: float) -> None:
        """Accept a confirmed deadline; an older one changes nothing."""
        self.deadline = max(self.deadline, deadline)

    def rule(self, kill_after_s: float) -> DeadlineRule:
        """Return the deadline rule for a run with this kill-after."""
        return DeadlineRule(self.held.ttl_s, kill_after_s)


class Bounds:
    """The holds that one run must not outlive; each time is that of the hold that ends first, None without holds."""

    def __init__(self, holds: Sequence[Hold], kill_after_s: float) -> None:
        self.holds = holds
        self.kill_after_s = kill_after_s

    @property
    def numbers(self) -> list[int]:
        """The numbers of the holds."""
        return [hold.held.number for hold in self.holds]

    @property
    def lost(self) -> bool:
        """Whether any of the holds is lost."""
        return any(hold.lost is not None for hold in self.holds)

    @property
    def sigterm_at(self) -> float | None:
        """The latest time for SIGTERM."""
        return min((hold.rule(self.kill_after_s).sigterm_at(hold.deadline) for hold in self.holds), default=None)

    @property
    def sigkill_at(self) -> float | None:
        """The latest time for SIGKILL."""
        return min((hold.rule(self.kill_after_s).sigkill_at(hold.deadline) for hold in self.holds), default=None)

    @property
    def start_by(self) -> float | None:
        """The time after which the command must not exec any more."""
        return min((hold.rule(self.kill_after_s).start_by(hold.deadline) for hold in self.holds), default=None)

    def retry_at(self, now: float) -> float | None:
        """Return when to try a start again if the holds leave too little time for one now, None if they do not."""
        if any(now >= hold.rule(self.kill_after_s).ready_by(hold.deadline) for hold in self.holds):
            return now + min(hold.held.ttl_s for hold in self.holds) / 12
        return None
