"""What each delivery compares; a planted bug (`tools/planted`) that drops one comparison got past `test_claims.py`."""

from typing import cast

import pytest

from conch.cron.result_store import ResultStore
from conch.cron.values import Result
from conch.etcd.store import Compare, CreateRevisionIs, Store, Unreachable, ValueBelow
from conch.keys import Keys
from tests.support.sending import AtOnce, result_of
from tests.support.unsent import Unsent

TICK = 1_900_000_000


@pytest.mark.parametrize("run_rev", [None, 31])
@pytest.mark.parametrize("has_floor", [False, True])
def test_every_result_is_created_once_and_above_the_floor(has_floor: bool, run_rev: int | None) -> None:
    """This holds for an `allow` job, too, which has no run key to compare."""
    store = Unsent()
    results = ResultStore(cast(Store, store), Keys("/p"))
    sending = AtOnce(cast(Store, store), results.leases)
    with pytest.raises(Unreachable):
        result_of(results.deliver("j", TICK, Result("a", "ok"), run_rev, (), 0.0, has_floor=has_floor, sending=sending))
    floor = b"/p/cron/floor/j"
    wanted: set[Compare] = {
        CreateRevisionIs(b"/p/cron/result/j/%d" % TICK, 0),
        ValueBelow(floor, b"%d" % TICK) if has_floor else CreateRevisionIs(floor, 0),
    }
    if run_rev is not None:
        wanted.add(CreateRevisionIs(b"/p/cron/run/j", run_rev))
    assert set(store.compare) == wanted
