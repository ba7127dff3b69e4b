"""What a new definition changes in a job."""

from conch.cron.changes import changes
from conch.cron.job import decode


def test_job_that_changes_nothing_has_no_changes() -> None:
    """Whoever wrote it, when, and with which defaults."""
    bare = {"schedule": "@daily", "cmd": ["a"]}
    full = {
        **bare,
        "tz": "UTC",
        "run_ttl": 600,
        "overlap": "forbid",
        "env": {},
        "added_by": "x",
        "added_at": "y",
        "sig": "z",
    }
    assert changes(decode("j", bare), decode("j", full)) == []


def test_changes_are_told_field_by_field() -> None:
    """As a person would write them."""
    before = {
        "schedule": "@daily",
        "cmd": ["a b", "c"],
        "tz": "Europe/Berlin",
        "run_ttl": 90,
        "sema": "s:1",
        "env": {"A": "1"},
    }
    after = {"schedule": "@daily", "cmd": ["a"], "retries": 2, "env": {"A": "2", "B": ""}, "later": {"x": 1}}
    assert changes(decode("j", before), decode("j", after)) == [
        "tz: Europe/Berlin → UTC",
        "cmd: 'a b' c → a",
        "run_ttl: 90 → 600",
        "retries: 0 → 2",
        "sema: s:1 → -",
        "env: B added, A changed",
        'later: - → {"x": 1}',
    ]
