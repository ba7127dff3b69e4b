"""The back-off between attempts."""

from conch.core.states import next_backoff


def test_backoff_grows_with_jitter_between_its_bounds() -> None:
    """Decorrelated jitter: between the minimum and three times the previous delay, at most the maximum."""
    seen: list[tuple[float, float]] = []

    def highest(low: float, high: float) -> float:
        seen.append((low, high))
        return high

    delay = 1.0
    delays = []
    for _ in range(5):
        delay = next_backoff(delay, 1.0, 30.0, highest)
        delays.append(delay)
    assert delays == [3, 9, 27, 30, 30]
    assert all(low == 1.0 for low, _ in seen)
