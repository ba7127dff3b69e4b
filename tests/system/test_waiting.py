"""What a waiter says at once of a wait that may have no end."""

import signal

import pytest

from tests.support.conch import CONCH, Bench


@pytest.mark.kinds("elect", "sema")
@pytest.mark.parametrize("between", ["", f"{CONCH} elect between -- "])
def test_wait_for_the_conch_around_us_is_told(conch: Bench, between: str) -> None:
    """Directly within, and with another hold in between; it goes on waiting until it is ended."""
    inner = " ".join([CONCH, *conch.holding("o"), "--", "touch", str(conch.file("ran"))])
    outer = conch.hold("o", command=f"exec {between}{inner}")
    assert outer.wait_event("waits-for-itself")["key"] == conch.key("o", outer.lease())
    outer.signal(signal.SIGTERM)
    outer.wait()
    assert not conch.file("ran").exists()


def test_wait_for_others_is_not_taken_for_one_for_ourselves(conch: Bench) -> None:
    """Of two slots the conch around us has one; who has the other will leave."""
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
def test_key_without_a_lease_in_the_way_is_named_once(conch: Bench) -> None:
    """Whoever put it has to delete it; then the wait is over."""
    key = conch.key("o", 0)
    conch.etcd.put(key, "by another tool")
    waiter = conch.queue("o", command="true")
    assert waiter.wait_event("no-lease")["key"] == key
    conch.etcd.delete(key)
    assert waiter.wait() == 0
    assert len(waiter.events("no-lease")) == 1


@pytest.mark.kinds("elect", "sema")
def test_held_office_is_no_cause_for_alarm(conch: Bench) -> None:
    """An ordinary wait is told as `queued`, and no more."""
    holder = conch.hold("o")
    waiter = conch.queue("o", command="true")
    holder.signal(signal.SIGTERM)
    assert waiter.wait() == 0
    assert not waiter.events("no-lease", "waits-for-itself")
