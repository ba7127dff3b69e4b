"""Jobs and any JSON, for the tests of what conch reads in etcd."""

import json
from typing import Any

from hypothesis import strategies as st

KEY = b"k" * 16


LEAST: dict[str, Any] = {"schedule": "* * * * *", "cmd": ["true"]}


FULL: dict[str, Any] = {
    "schedule": "H 3 * * mon-fri",
    "tz": "Europe/Berlin",
    "cmd": ["sh", "-c", "echo é; exit 1", ""],
    "run_ttl": 90.5,
    "kill_after": 0,
    "overlap": "replace",
    "retries": 2,
    "retry_delay": 1,
    "start_deadline": 7,
    "sema": "a:b:3",
    "env": {"A": "", "_B": "x=y"},
    "cwd": "/",
    "paused": True,
    "added_by": "me@here",
    "added_at": "2026-01-01T00:00:00Z",
    "from_later": {"x": [1, None, "ü"]},
}


TICK = 1_700_000_000


# any JSON, lone surrogates and what is no number included
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 86400, 86401, "1e400", "\ud800", "a\0b", "A=B", "forbid", "x:1"])
    | st.floats()
    | st.text(st.characters(), max_size=20)
)


ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=5), inner),
    max_leaves=8,
)


def text_of(data: object) -> bytes:
    return json.dumps(data).encode()
