"""What /healthz says: the first of the reasons why no tick could be claimed now."""

from types import SimpleNamespace
from typing import Any

import pytest

from conch.core import clock
from conch.cron.health import lease_left_s, why_unhealthy

NOW = 1000.0
# What is wrong, the worst first, and what is said then.
FAULTS = [
    ("clock off", "this host's clock is 9 s ahead"),
    ("unregistered", "not registered in etcd"),
    ("lease", "etcd does not confirm our lease"),
    ("writes", "etcd takes no writes: full"),
    ("watch", "the etcd watch is interrupted"),
    ("supervisor", "the supervisor is stopped"),
]


@pytest.fixture(autouse=True)
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: NOW)


class Parts:
    """What is asked of the parts."""

    def __init__(self, *faults: str, failing: bool = False, left_s: float = 7.0) -> None:
        self.followed = False
        self.clock_check = SimpleNamespace(
            follow=self._follow, is_off=False, why_off=lambda: "this host's clock is 9 s ahead"
        )
        self._off = "clock off" in faults
        session = SimpleNamespace(deadline=NOW if "lease" in faults else NOW + left_s)
        registered = SimpleNamespace(session=session, failing=failing)
        self.node = SimpleNamespace(current=None if "unregistered" in faults else registered)
        # the reason is kept while the breaker is closed again, until a write was made
        self.writes = SimpleNamespace(reason="full" if "writes" in faults else "", is_open=False)
        self.inventory = SimpleNamespace(is_watching="watch" not in faults)
        self.runner = SimpleNamespace(is_supervisor_answering=lambda: "supervisor" not in faults)

    def _follow(self) -> None:
        self.followed, self.clock_check.is_off = True, self._off


def why(parts: Parts, *, draining: bool = False) -> str:
    its: Any = parts
    return why_unhealthy(its, draining=draining)


def test_healthy() -> None:
    """The clock was compared just now, not when somebody last wrote its time."""
    parts = Parts()
    assert why(parts) == ""
    assert parts.followed


@pytest.mark.parametrize("at", range(len(FAULTS)))
def test_the_worst_is_named(at: int) -> None:
    """Alone, and with all that may follow from it."""
    fault, said = FAULTS[at]
    assert why(Parts(fault)) == said
    assert why(Parts(*(name for name, _ in FAULTS[at:]))) == said


def test_draining_says_enough() -> None:
    assert why(Parts(*(name for name, _ in FAULTS)), draining=True) == "draining"


def test_renewal_that_failed_counts_before_the_lease_has_expired() -> None:
    """The run key of a tick claimed now would have little time left."""
    assert why(Parts(failing=True)) == "etcd does not confirm our lease"


@pytest.mark.parametrize(
    ("is_open", "said"), [(True, "not registered in etcd: full"), (False, "not registered in etcd")]
)
def test_why_it_is_not_registered(is_open: bool, said: str) -> None:
    """A reason of earlier writes is none of this, once etcd takes writes again."""
    parts = Parts("unregistered", "writes")
    parts.writes.is_open = is_open
    assert why(parts) == said


@pytest.mark.parametrize(
    ("faults", "left_s", "shown_s"), [((), 7.0, 7.0), ((), -3.0, 0.0), (("unregistered",), 7.0, 0.0)]
)
def test_lease_left(faults: tuple[str, ...], left_s: float, shown_s: float) -> None:
    """Never below zero: a gauge of seconds."""
    parts: Any = Parts(*faults, left_s=left_s)
    assert lease_left_s(parts) == shown_s
