"""The gaps between the keys of existing jobs, in which the sweep finds those of removed ones."""

from hypothesis import given
from hypothesis import strategies as st

from conch.cron.sweep import gaps_between
from conch.etcd.store import Range


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=8), st.binary(min_size=1, max_size=5))
def test_gaps_hold_what_begins_with_none_of_the_prefixes(names: list[bytes], tail: bytes) -> None:
    """Every key is in a gap or begins with a prefix, and never both."""
    prefixes = [b"k/" + name + b"/" for name in names]
    gaps = gaps_between(Range(b"k/", b"k0"), prefixes)
    one = b"k/" + tail
    inside = [gap for gap in gaps if gap.key <= one < gap.end]
    assert len(inside) == (0 if any(one.startswith(prefix) for prefix in prefixes) else 1)
