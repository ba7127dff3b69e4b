"""Pauses between tries."""

from conch.etcd.backoff import Backoff


def test_pauses_double_up_to_the_longest_and_begin_again() -> None:
    """None is zero: there is no retry without a pause."""
    backoff = Backoff(0.05, 0.25)
    assert [backoff.next_s() for _ in range(5)] == [0.05, 0.1, 0.2, 0.25, 0.25]
    backoff.reset()
    assert backoff.next_s() == 0.05


def test_jitter_shortens_a_pause_by_half_at_most() -> None:
    """It does not lengthen any: the longest stays the longest."""
    pauses = {Backoff(1.0, 1.0, jitter=True).next_s() for _ in range(200)}
    assert len(pauses) > 10
    assert min(pauses) >= 0.5
    assert max(pauses) <= 1.0
