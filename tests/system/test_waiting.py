"""What a waiter logs immediately about a wait that may never end."""

import signal

import pytest

from tests.support.conch import CONCH, Bench


@pytest.mark.kinds("elect", "sema")
@pytest.mark.parametrize("between", ["", f"{CONCH} elect between -- "])
def test_wait_for_the_outer_conch_is_logged(conch: Bench, between: str) -> None:
    """The inner conch waits for an office that the outer one holds, directly or with another hold in between."""
    inner = " ".join([CONCH, *conch.holding("o"), "--", "touch", str(conch.file("ran"))])
    outer = conch.hold("o", command=f"exec {between}{inner}")
    assert outer.wait_event("waits-for-itself")["key"] == conch.key("o", outer.lease())
    outer.signal(signal.SIGTERM)
    outer.wait()
    assert not conch.file("ran").exists()


def test_wait_for_others_is_not_taken_for_one_for_the_outer_conch(conch: Bench) -> None:
    """The outer conch has one of two slots; the holder of the other will leave."""
    other = conch.start("sema", "s", "--max", "2", "--", "sleep", "1000")
    other.child()
    ran = conch.file("ran")
    outer = conch.start(
        "sema", "s", "--max", "2", "--", CONCH, "sema", "s", "--max", "2", "--", "sh", "-c", f"echo > {ran}"
    )
    outer.wait_event("queued")
    other.signal(signal.SIGTERM)
    assert outer.wait() == 0
    assert ran.exists()
    assert not outer.events("waits-for-itself")


@pytest.mark.kinds("elect", "sema")
def test_key_without_a_lease_that_blocks_the_queue_is_named_once(conch: Bench) -> None:
    """The wait ends when somebody deletes the key."""
    key = conch.key("o", 0)
    conch.etcd.put(key, "by another tool")
    waiter = conch.queue("o", command="true")
    assert waiter.wait_event("no-lease")["key"] == key
    conch.etcd.delete(key)
    assert waiter.wait() == 0
    assert len(waiter.events("no-lease")) == 1


@pytest.mark.kinds("elect", "sema")
def test_ordinary_wait_causes_no_warning(conch: Bench) -> None:
    """An ordinary wait is logged as `queued`, and no more."""
    holder = conch.hold("o")
    waiter = conch.queue("o", command="true")
    holder.signal(signal.SIGTERM)
    assert waiter.wait() == 0
    assert not waiter.events("no-lease", "waits-for-itself")
