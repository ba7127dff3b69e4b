"""How a tick is claimed while a run of its job is alive."""

import json

import pytest

from conch.cron.job import parse
from conch.cron.overlap import ClaimToRun, ClaimToSkip, ClaimToWait, policy_of, running_tick
from conch.cron.ticks import PendingTick
from conch.etcd.store import KeyValue

TICK = 1_800_000_000
OLDER, NEWER = TICK - 60, TICK + 60


def tick(overlap: str) -> PendingTick:
    job = parse("j", json.dumps({"schedule": "@every 60s", "cmd": ["true"], "overlap": overlap}).encode())
    return PendingTick(job, 5, TICK, TICK + 30.0, "run")


def run_key(running: object) -> KeyValue:
    return KeyValue(b"/run/j", json.dumps({"tick": running, "host": "b", "run": "other"}).encode(), 7, 7, 9)


SKIP_OLDER = "the run of 2027-01-15T07:59:00Z on b is alive"
SKIP_NEWER = "the run of 2027-01-15T08:01:00Z on b is alive"


@pytest.mark.parametrize(
    ("overlap", "running", "decided"),
    [
        ("allow", None, "run"),
        ("allow", OLDER, "run"),
        ("forbid", None, "run"),
        ("forbid", OLDER, SKIP_OLDER),
        ("forbid", NEWER, SKIP_NEWER),
        ("forbid", "odd", "a run is alive"),
        ("replace", None, "run"),
        ("replace", OLDER, "wait"),
        ("replace", NEWER, SKIP_NEWER),
        ("replace", TICK, "the run of 2027-01-15T08:00:00Z on b is alive"),
        ("replace", "odd", "wait"),
    ],
)
def test_decision(overlap: str, running: object, decided: str) -> None:
    """Allow runs, forbid skips, replace waits for an older run; a skip and a wait compare the run key that they saw."""
    busy = None if running is None else run_key(running)
    match policy_of(tick(overlap).job).decide(tick(overlap), busy):
        case ClaimToRun():
            assert decided == "run"
        case ClaimToWait(key):
            assert (decided, key) == ("wait", busy)
        case ClaimToSkip(reason, key):
            assert (decided, key) == (reason, busy)


@pytest.mark.parametrize(("value", "expected"), [(TICK, TICK), ("x", None), (1.5, None), (True, None), (None, None)])
def test_running_tick_is_a_whole_second_or_unknown(value: object, expected: int | None) -> None:
    assert running_tick(run_key(value)) == expected
