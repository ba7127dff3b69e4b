"""Any value in etcd is a job or unreadable, and raises nothing else."""

import json

from hypothesis import given
from hypothesis import strategies as st

from conch.cron.job import (
    LARGEST_BYTES,
    UnreadableJob,
    parse,
)
from tests.support.jobs import ANY, FULL, KEY, LEAST, TICK, text_of

JOBS = st.fixed_dictionaries(
    {"schedule": st.just("@daily") | ANY, "cmd": st.just(["true"]) | ANY},
    optional={field: ANY for field in [*FULL, "sig", "x"] if field not in LEAST},
)


def use(value: bytes) -> None:
    """Parse a value; what is a job can be written, read again, signed and changed."""
    try:
        job = parse("j", value)
    except UnreadableJob:
        return
    assert parse("j", job.encode()) == job
    job.is_signed_by(KEY)
    if len(job.encode()) < LARGEST_BYTES - 100:
        signed = parse("j", job.signed(KEY).encode())
        assert signed.is_signed_by(KEY)
        assert not parse("j", signed.changed(paused=not job.paused).encode()).is_signed
    tick = job.ticks().next_after(TICK)
    assert tick is None or tick > TICK


@given(st.binary(max_size=200) | st.text(st.characters(exclude_categories=["Cs"])).map(str.encode))
def test_any_bytes_are_a_job_or_unreadable(value: bytes) -> None:
    """Nothing but `UnreadableJob` is raised."""
    use(value)


@given(ANY.map(text_of) | JOBS.map(text_of))
def test_any_json_is_a_job_or_unreadable(value: bytes) -> None:
    """And a job is the same after a way through etcd."""
    use(value)


def test_number_too_large_for_a_float_leaves_a_job_that_can_be_rewritten() -> None:
    """1e400 in a field of another program must not make `cron pause` write what nobody can read."""
    use(b'{"schedule": "@daily", "cmd": ["true"], "x": 1e400}')


def test_nesting_as_deep_as_it_can_be_read() -> None:
    """What can just be read can be written and signed too, or it is unreadable."""

    def value(depth: int) -> bytes:
        return b'{"schedule": "@daily", "cmd": ["true"], "x": %s%s}' % (b"[" * depth, b"]" * depth)

    def readable(depth: int) -> bool:
        try:
            json.loads(value(depth))
        except RecursionError:
            return False
        return True

    low, high = 1, 16000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if readable(middle) else (low, middle)
    for depth in range(max(1, low - 60), low + 5):
        use(value(depth))
