"""Names and keys: what may stand in a key, and what each key means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.errors import BadInput
from conch.keys import ContenderKey, JobKey, Key, Keys, NodeKey, TickKey, check_name, contender, prefix_end


@pytest.mark.parametrize("name", ["a", "A9", "db.primary", "a@b:c+d-e_f", "0", "x" * 128])
def test_names_that_may_stand_in_a_key(name: str) -> None:
    """As the contract lists them."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/", "a/b", "..", ".a", "-a", " a", "a b", "a\n", "a\x00", "ä", "x" * 129, "_a", "a\x1b", "９"]
)
def test_names_that_may_not_stand_in_a_key(name: str) -> None:
    """Refused before anything is sent."""
    with pytest.raises(BadInput, match="bad name"):
        check_name(name)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("/p/elect/db/5f3a", ContenderKey("elect", "db", 1, "", 0x5F3A)),
        ("/p/elect/db/marker", ContenderKey("elect", "db", 1, "", None)),
        ("/p/elect/db/", ContenderKey("elect", "db", 1, "", None)),
        ("/p/elect/db/too/deep", ContenderKey("elect", "db", 1, "", None)),
        ("/p/elect/db/5F3A", ContenderKey("elect", "db", 1, "", None)),
        ("/p/elect/db/05f3a", ContenderKey("elect", "db", 1, "", None)),
        ("/p/elect/db/ffffffffffffffff", ContenderKey("elect", "db", 1, "", None)),
        ("/p/elect/db", None),
        ("/p/elect/ä/1", None),
        ("/p/elect//1", None),
        ("/p/sema/s/2/1", ContenderKey("sema", "s", 2, "", 1)),
        ("/p/sema/s/1000/é", ContenderKey("sema", "s", 1000, "", None)),
        ("/p/sema/s/1001/1", None),
        ("/p/sema/s/02/1", None),
        ("/p/sema/s/0/1", None),
        ("/p/sema/s/٢/1", None),
        ("/p/sema/s/" + "9" * 5000 + "/1", None),
        ("/p/sema/s/2", None),
        ("/p/sema-host/s/2/h/1", ContenderKey("sema-host", "s", 2, "h", 1)),
        ("/p/sema-host/s/2/h h/1", None),
        ("/p/sema-host/s/2/h", None),
        ("/p/cron/job/j", JobKey("job", "j")),
        ("/p/cron/job/", None),
        ("/p/cron/job/a/b", None),
        ("/p/cron/run/j", JobKey("run", "j")),
        ("/p/cron/floor/j", JobKey("floor", "j")),
        ("/p/cron/fire/j/1700000000", TickKey("fire", "j", 1700000000)),
        ("/p/cron/now/j/1000000000", TickKey("now", "j", 1000000000)),
        ("/p/cron/result/a:b@c/9999999999", TickKey("result", "a:b@c", 9999999999)),
        ("/p/cron/fire/j/0999999999", None),
        ("/p/cron/fire/j/999999999", None),
        ("/p/cron/fire/j/10000000000", None),
        ("/p/cron/fire/j/ 1700000000", None),
        ("/p/cron/fire/j/1700000000\n", None),
        ("/p/cron/fire/j/+170000000", None),
        ("/p/cron/fire/j/١٧٠٠٠٠٠٠٠٠", None),
        ("/p/cron/fire/j/sub/1700000000", None),
        ("/p/cron/nosuch/j", None),
        ("/p/node/h", NodeKey("h")),
        ("/p/node/", None),
        ("/p/node/a/b", None),
        ("/p/nosuch/x", None),
        ("/p/", None),
        ("/q/node/h", None),
        ("x/p/node/h", None),
        ("", None),
    ],
)
def test_keys_are_parsed(key: str, found: Key | None) -> None:
    """A key parses to what conch writes it for; any key in a queue's range belongs to that queue."""
    assert Keys("/p").parse(key.encode()) == found


def test_keys_are_those_of_the_contract() -> None:
    """A public API."""
    assert contender(Keys().office("db"), 0x5F3A) == "/conch/v1/elect/db/5f3a"
    assert Keys("/other").office("db") == "/other/elect/db/"


@given(st.binary(min_size=1), st.binary())
def test_prefix_end_is_after_every_key_with_the_prefix_and_no_other(prefix: bytes, more: bytes) -> None:
    """The range end as etcd defines it; a prefix of 0xff bytes only ends at the end of all keys."""
    end = prefix_end(prefix)
    assert end == b"\0" or prefix + more < end
    if end != b"\0":
        assert not end.startswith(prefix)
