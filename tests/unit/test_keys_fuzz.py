"""Names and keys, fed with anything."""

from hypothesis import given
from hypothesis import strategies as st

from conch.cron.values import FIRST_TICK, LAST_TICK
from conch.errors import BadInput
from conch.keys import ContenderKey, CordonKey, JobKey, Key, Keys, NodeKey, TickKey, check_name, contender, slots_of
from tests.support.fuzz import ARGUMENT, TEXT, check_message, torn


@given(ARGUMENT | st.text("aZ0._@:+-/\n\0 ", max_size=140))
def test_names(name: str) -> None:
    """A name cannot reach beyond its place in a key: it is returned unchanged or is bad input."""
    try:
        assert check_name(name) == name
    except BadInput as error:
        check_message(error)
    else:
        assert name.isascii()
        assert name.isprintable()
        assert name[0].isalnum()
        assert not set(name) & set("/ ")
        assert 1 <= len(name) <= 128


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,127}", fullmatch=True)
LEASES = st.integers(1, 2**63 - 1)
KEYS = Keys("/p")
BUILT: st.SearchStrategy[tuple[str, Key]] = st.one_of(
    st.builds(
        lambda name, lease: (contender(KEYS.office(name), lease), ContenderKey("elect", name, 1, "", lease)),
        NAMES,
        LEASES,
    ),
    st.builds(
        lambda name, slots, lease: (
            contender(KEYS.slots(name, slots), lease),
            ContenderKey("sema", name, slots, "", lease),
        ),
        NAMES,
        st.integers(1, 1000),
        LEASES,
    ),
    st.builds(
        lambda name, slots, host, lease: (
            contender(KEYS.host(name, slots, host), lease),
            ContenderKey("sema-host", name, slots, host, lease),
        ),
        NAMES,
        st.integers(1, 1000),
        NAMES,
        LEASES,
    ),
    st.builds(
        lambda kind, name: (KEYS.cron(kind, name), JobKey(kind, name)), st.sampled_from(["job", "run", "floor"]), NAMES
    ),
    st.builds(
        lambda kind, name, tick: (KEYS.cron(kind, name, tick), TickKey(kind, name, tick)),
        st.sampled_from(["fire", "result", "now"]),
        NAMES,
        st.integers(FIRST_TICK, LAST_TICK),
    ),
    st.builds(lambda name, host: (KEYS.cron("run", name, host), JobKey("run", name, host)), NAMES, NAMES),
    st.builds(
        lambda kind, name, tick, host: (KEYS.cron(kind, name, tick, host), TickKey(kind, name, tick, host)),
        st.sampled_from(["fire", "result"]),
        NAMES,
        st.integers(FIRST_TICK, LAST_TICK),
        NAMES,
    ),
    st.builds(lambda host: (KEYS.cron("cordon", host), CordonKey(host)), NAMES),
    st.builds(lambda host: (KEYS.node(host), NodeKey(host)), NAMES),
)


@given(BUILT)
def test_keys_that_conch_makes_are_parsed(built: tuple[str, Key]) -> None:
    """Each parses to its own kind, and to nothing below another prefix."""
    text, key = built
    assert KEYS.parse(text.encode()) == key
    assert Keys("/other").parse(text.encode()) is None
    assert Keys("/p/v2").parse(text.encode()) is None


def built_anew(key: Key) -> str | None:
    """Build the key again; None if it lies in a queue but names no contender."""
    match key:
        case ContenderKey(lease=None):
            return None
        case ContenderKey(kind="elect", name=name, lease=lease):
            return contender(KEYS.office(name), lease or 0)
        case ContenderKey(kind="sema", name=name, slots=slots, lease=lease):
            return contender(KEYS.slots(name, slots), lease or 0)
        case ContenderKey(name=name, slots=slots, host=host, lease=lease):
            return contender(KEYS.host(name, slots, host), lease or 0)
        case JobKey(kind=kind, name=name, host=host):
            return KEYS.cron(kind, name, *([host] if host else []))
        case TickKey(kind=kind, name=name, tick=tick, host=host):
            return KEYS.cron(kind, name, tick, *([host] if host else []))
        case CordonKey(host=host):
            return KEYS.cron("cordon", host)
        case NodeKey(host=host):
            return KEYS.node(host)


PATHS = st.lists(
    st.sampled_from(
        ["elect", "sema", "sema-host", "cron", "job", "fire", "run", "cordon", "node", "x", "2", "1700000000", "5f3a"]
    )
    | NAMES
    | TEXT
    | st.sampled_from(["9" * 5000, "02", "٣", "0", "-1", "1001", "F", "f" * 16, "", ".."]),
    max_size=6,
).map(lambda parts: "/".join(["/p", *parts]).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=60) | PATHS | BUILT.flatmap(lambda built: torn(built[0].encode())))
def test_any_key_is_of_one_kind_or_none(key: bytes) -> None:
    """No bytes raise; a parsed key has exactly one spelling, or lies in a queue and names no contender."""
    found = KEYS.parse(key)
    if found is not None:
        again = built_anew(found)
        if again is not None:
            assert again.encode() == key
        else:
            assert isinstance(found, ContenderKey)
            assert any(key.startswith(queue.encode()) for queue in queues(found))
    slots = slots_of(KEYS.semaphore("x"), key)
    assert slots is None or key.startswith(KEYS.slots("x", slots).encode())


def queues(key: ContenderKey) -> list[str]:
    """Return the queues that a key may lie in."""
    return [KEYS.office(key.name), KEYS.slots(key.name, key.slots), KEYS.host(key.name, key.slots, key.host)]
