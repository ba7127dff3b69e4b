"""Values for parsers: good ones, damaged ones, and anything at all."""

import json
import os
from typing import Any

from hypothesis import strategies as st

from conch.core.messages import _KINDS

# with lone surrogates: Python turns bytes that are no UTF-8 into them in arguments and variables
TEXT = st.text(st.characters(), max_size=40)
ARGUMENT = TEXT | st.binary(max_size=40).map(os.fsdecode)
DIGITS = st.text("0123456789.hmsn-+ e_٣\n", max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**320)
    | st.floats()
    | st.sampled_from([-1, 2**31, 2**63, 1_700_000_000, -1_700_000_000])
    | TEXT
)
ANY = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=10
)


def dumped(value: Any) -> bytes:
    """Return a value as a careless program would write it."""
    return json.dumps(value).encode()


def torn(value: bytes) -> st.SearchStrategy[bytes]:
    """Draw a good value with a part removed, doubled or overwritten."""
    place = st.integers(0, len(value))
    return st.tuples(place, place, st.binary(max_size=6)).map(lambda t: value[: t[0]] + t[2] + value[t[1] :])


def check_message(error: Exception) -> None:
    """Check that a message says something and is short enough to be logged."""
    assert str(error)
    assert len(str(error)) < 1000


JOB = {"schedule": "@hourly", "cmd": ["true"], "run_ttl": 5, "env": {"A": "b"}, "sema": "s:2", "tz": "UTC"}
HOLDER = {"host": "h", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "c"}
RESULT = {"node": "n", "exit": 0, "started": "2026-01-01T00:00:00Z", "duration": 1.5, "state": "ok", "attempt": 1}


def altered(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Draw a good value with some fields of other types, some missing, and some unknown."""
    change = st.dictionaries(st.sampled_from(sorted(good)) | TEXT, ANY, max_size=3)
    without = st.sets(st.sampled_from(sorted(good)), max_size=2)
    return st.tuples(change, without).map(
        lambda t: dumped({**{k: v for k, v in good.items() if k not in t[1]}, **t[0]})
    )


def anything(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Draw bytes, JSON, a nearly good value, or a damaged one."""
    return st.binary(max_size=60) | ANY.map(dumped) | altered(good) | torn(dumped(good))


FITTING = st.one_of(
    *(
        st.fixed_dictionaries({"kind": st.just(kind), **dict.fromkeys(message._fields, ANY)})
        for kind, message in _KINDS.items()
    )
)
# a message of a known kind with odd fields, and perhaps one field too many
NEARLY = st.tuples(FITTING, st.dictionaries(TEXT, ANY, max_size=1)).map(lambda t: {**t[0], **t[1]})
