"""What each claim compares; the planted bugs (`tools/planted`) that drop one comparison got past `test_claims.py`."""

from collections.abc import Callable
from typing import cast

import pytest

from conch.cron.claim_store import ClaimStore
from conch.cron.job import decode
from conch.cron.result_store import ResultStore
from conch.cron.ticks import PendingTick, Registration
from conch.cron.transactions import Sending
from conch.etcd.store import (
    Compare,
    CreateRevisionIs,
    KeyValue,
    ModRevisionIs,
    Store,
    Unreachable,
    ValueBelow,
)
from conch.holder import Holder
from conch.keys import Keys
from tests.support.sending import AtOnce, result_of
from tests.support.unsent import Unsent

ME = Holder("a", 1, "2026-01-01T00:00:00Z", "conchd")
BUSY = KeyValue(b"/p/cron/run/j", b"{}", 31, 31, 1)
TICK = 1_900_000_000


NODE = Registration(1, 2, 11)


def claim(claims: ClaimStore, due: PendingTick, has_floor: bool, sending: Sending) -> None:
    result_of(claims.claim(due, NODE, ME, 0.0, has_floor=has_floor, sending=sending))


def claim_to_wait(claims: ClaimStore, due: PendingTick, has_floor: bool, sending: Sending) -> None:
    result_of(claims.claim_to_wait(due, NODE, ME, 0.0, BUSY, has_floor=has_floor, sending=sending))


def claim_to_skip(claims: ClaimStore, due: PendingTick, has_floor: bool, sending: Sending) -> None:
    result_of(claims.claim_to_skip(due, NODE, ME, 0.0, BUSY, "why", has_floor=has_floor, sending=sending))


@pytest.mark.parametrize("host", ["", "a"])
@pytest.mark.parametrize("overlap", ["forbid", "allow", "replace"])
@pytest.mark.parametrize("has_floor", [False, True])
@pytest.mark.parametrize("how", [claim, claim_to_wait, claim_to_skip])
def test_every_claim_compares_all_that_may_stand_against_it(
    how: Callable[[ClaimStore, PendingTick, bool, Sending], None], has_floor: bool, overlap: str, host: str
) -> None:
    """One comparison must not hide that another is missing: the run key of a forbid job, say, that of its claim.

    A tick that runs on every host has keys of its own, and those without a host count, too: the job may be changed.
    """
    job = decode("j", {"schedule": "@every 1s", "cmd": ["true"], "overlap": overlap})
    store = Unsent()
    results = ResultStore(cast(Store, store), Keys("/p"))
    with pytest.raises(Unreachable):
        how(
            ClaimStore(cast(Store, store), Keys("/p"), "a", results),
            PendingTick(job, 21, TICK, 0.0, "r", request_rev=41, number=TICK - 9, host=host),
            has_floor,
            AtOnce(cast(Store, store), results.leases),
        )
    floor = b"/p/cron/floor/j"
    wanted: set[Compare] = {
        CreateRevisionIs(b"/p/node/a", 11),
        CreateRevisionIs(b"/p/cron/fire/j/%d" % TICK, 0),
        CreateRevisionIs(b"/p/cron/fire/j/%d/a" % TICK, 0),
        CreateRevisionIs(b"/p/cron/result/j/%d" % TICK + (b"/a" if host else b""), 0),
        ModRevisionIs(b"/p/cron/job/j", 21),
        CreateRevisionIs(b"/p/cron/now/j/%d" % (TICK - 9), 41),
        ValueBelow(floor, b"%d" % TICK) if has_floor else CreateRevisionIs(floor, 0),
    }
    if how is not claim:
        wanted.add(CreateRevisionIs(BUSY.key, 31))
    elif overlap != "allow":
        wanted |= {CreateRevisionIs(BUSY.key, 0), CreateRevisionIs(BUSY.key + b"/a", 0)}
    if how is not claim_to_skip:
        wanted.add(CreateRevisionIs(b"/p/cron/cordon/a", 0))
    assert set(store.compare) == wanted
