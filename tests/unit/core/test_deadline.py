"""The deadline rule."""

import pytest

from conch.core.deadline import DeadlineRule


@pytest.mark.parametrize(
    ("ttl", "kill_after", "margin", "grace"),
    [(10, 5, 0.5, 10 / 3), (2, 5, 0.2, 2 / 3), (60, 5, 3, 5), (10, 0, 0.5, 0), (4, 1, 0.2, 1)],
)
def test_deadline_rule(ttl: float, kill_after: float, margin: float, grace: float) -> None:
    """margin = max(0.2 s, TTL/20), grace = min(kill-after, TTL/3)."""
    terms = DeadlineRule(ttl, kill_after)
    assert terms.margin_s == pytest.approx(margin)
    assert terms.grace_s == pytest.approx(grace)
    assert terms.sigkill_at(100) == pytest.approx(100 - margin)
    assert terms.sigterm_at(100) == terms.start_by(100) == pytest.approx(100 - margin - grace)
