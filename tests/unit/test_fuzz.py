"""Every parser of what others write, fed with anything: what comes out is a value or the parser's own error."""

import json
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.cli.conchd import ADDRESS
from conch.cli.cron import INSTANT
from conch.cli.spec import PREFIX, TTL
from conch.core.channel import pair
from conch.core.messages import _KINDS, ChannelError, Message, decode, encode
from conch.cron.job import UnreadableJob, parse, parse_semaphore, parse_variable
from conch.cron.schedule import parse_schedule
from conch.cron.values import FIRST_TICK, LAST_TICK, fields_of, row, whole_tick
from conch.cron.wal import Wal
from conch.errors import BadInput
from conch.etcd.endpoints import parse_endpoints
from conch.holder import Holder, UnreadableHolder
from conch.keys import ContenderKey, JobKey, Key, Keys, NodeKey, TickKey, check_name, contender, slots_of
from conch.times import LONGEST_S, parse_duration

# with lone surrogates, which is what bytes that are no UTF-8 become in an argument or a variable
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
    """As a careless program would write it."""
    return json.dumps(value).encode()


def torn(value: bytes) -> st.SearchStrategy[bytes]:
    """A good value with a part cut out, doubled or overwritten."""
    place = st.integers(0, len(value))
    return st.tuples(place, place, st.binary(max_size=6)).map(lambda t: value[: t[0]] + t[2] + value[t[1] :])


def one_line(error: Exception) -> None:
    """What is said of bad input names something, and can be written anywhere once it is escaped."""
    assert str(error)
    assert len(str(error)) < 1000


# -- arguments and variables ----------------------------------------------------------------------------------


@given(ARGUMENT | DIGITS)
def test_durations(text: str) -> None:
    """A number of seconds that is finite and not negative, or bad input."""
    try:
        seconds = parse_duration(text)
    except BadInput as error:
        one_line(error)
    else:
        assert 0 <= seconds <= LONGEST_S
        assert text.isascii()
        assert not set(text) & set(" -+\n_e")


@given(ARGUMENT | DIGITS)
def test_ttls(text: str) -> None:
    """A TTL is whole seconds, and at least two."""
    try:
        seconds = TTL.parse(text)
    except BadInput as error:
        one_line(error)
    else:
        assert isinstance(seconds, int)
        assert seconds >= 2


HOSTS = st.text("abz019.-_:[]%@/?#,\t ٣é", max_size=12)
PORTS = st.text("0123456789٣-x", max_size=6)
SCHEMES = st.sampled_from(["", "http://", "https://", "HTTP://", "ftp://", "://", "http:", "https:///"])


@given(ARGUMENT | st.lists(st.builds("{}{}:{}".format, SCHEMES, HOSTS, PORTS), max_size=4).map(",".join))
def test_endpoints(text: str) -> None:
    """Hosts and ports, all with TLS or none, that can be read again as they are shown; or bad input."""
    try:
        found = parse_endpoints(text)
    except BadInput as error:
        one_line(error)
        return
    assert found
    assert len(set(found)) == len(found)
    assert len({one.tls for one in found}) == 1
    for one in found:
        assert 1 <= one.port <= 65535
        assert one.host
        assert one.host.isascii()
        assert not set(one.host) & set("/@?#[], \t\n")
    scheme = "https://" if found[0].tls else ""
    assert parse_endpoints(",".join(f"{scheme}{one}" for one in found)) == found


@given(ARGUMENT | st.text("aZ0._@:+-/\n\0 ", max_size=140))
def test_names(name: str) -> None:
    """A name cannot leave its place in a key: unchanged if it is good, else bad input."""
    try:
        assert check_name(name) == name
    except BadInput as error:
        one_line(error)
    else:
        assert name.isascii()
        assert name.isprintable()
        assert name[0].isalnum()
        assert not set(name) & set("/ ")
        assert 1 <= len(name) <= 128


@given(ARGUMENT | st.text("/aé \n", max_size=10))
def test_prefixes(text: str) -> None:
    """A prefix is printable ASCII that begins with a slash and does not end with one."""
    try:
        prefix = PREFIX.parse(text)
    except BadInput as error:
        one_line(error)
    else:
        assert prefix.startswith("/")
        assert not prefix.endswith("/")
        assert prefix.isascii()
        assert prefix.isprintable()


@given(ARGUMENT | st.text("0123456789:[].a", max_size=20))
def test_status_addresses(text: str) -> None:
    """A host and a port, or bad input."""
    try:
        host, port = ADDRESS._parse(text)
    except BadInput as error:
        one_line(error)
    else:
        assert isinstance(host, str)
        assert 0 <= port <= 65535


@given(ARGUMENT | st.text("0123456789-:.TZz+", max_size=30))
def test_instants(text: str) -> None:
    """Seconds since the epoch, or bad input."""
    try:
        assert isinstance(INSTANT._parse(text), int)
    except BadInput as error:
        one_line(error)


@given(ARGUMENT)
def test_semaphores_and_variables_of_jobs(text: str) -> None:
    """NAME:N and K=V, or bad input."""
    try:
        name, slots = parse_semaphore(text)
    except BadInput as error:
        one_line(error)
    else:
        assert check_name(name) == name
        assert slots >= 1
    try:
        variable, value = parse_variable(text)
    except BadInput as error:
        one_line(error)
    else:
        assert variable
        assert f"{variable}={value}" == text


FIELDS = st.text("0123456789*/-,?LW#HhjanMONsu()", max_size=8)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "../UTC", "/etc/localtime", "", "posixrules", "a" * 300]) | ARGUMENT


@settings(max_examples=200)
@given(
    ARGUMENT | st.lists(FIELDS, min_size=3, max_size=7).map(" ".join) | DIGITS.map("@every ".__add__),
    ZONES,
    st.sampled_from([0, -1, FIRST_TICK, LAST_TICK, -(10**11), 10**12]) | st.integers(-(10**12), 10**12),
)
def test_schedules(text: str, zone: str, after: int) -> None:
    """Ticks that grow, however far from our times one asks, or bad input."""
    try:
        schedule = parse_schedule(text, zone=zone, name="j")
    except BadInput as error:
        one_line(error)
        return
    tick = schedule.next_after(after)
    assert tick is None or tick > after


# -- values in etcd -------------------------------------------------------------------------------------------

JOB = {"schedule": "@hourly", "cmd": ["true"], "run_ttl": 5, "env": {"A": "b"}, "sema": "s:2", "tz": "UTC"}
HOLDER = {"host": "h", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "c"}
RESULT = {"node": "n", "exit": 0, "started": "2026-01-01T00:00:00Z", "duration": 1.5, "state": "ok", "attempt": 1}


def altered(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A good value with some fields of other types, some left out, and some unknown."""
    change = st.dictionaries(st.sampled_from(sorted(good)) | TEXT, ANY, max_size=3)
    without = st.sets(st.sampled_from(sorted(good)), max_size=2)
    return st.tuples(change, without).map(
        lambda t: dumped({**{k: v for k, v in good.items() if k not in t[1]}, **t[0]})
    )


def anything(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Bytes, JSON, a value nearly good, and one torn."""
    return st.binary(max_size=60) | ANY.map(dumped) | altered(good) | torn(dumped(good))


@given(anything(JOB))
def test_jobs(value: bytes) -> None:
    """A job that can be planned and written again, or unreadable."""
    try:
        job = parse("j", value)
    except UnreadableJob as error:
        one_line(error)
        return
    assert parse("j", job.encode()) == job
    assert job.late_after_s(0, 60) > 0
    tick = job.ticks().next_after(FIRST_TICK)
    assert tick is None or tick > FIRST_TICK


@given(anything(HOLDER))
def test_holders(value: bytes) -> None:
    """A holder that can be written again, or unreadable."""
    try:
        holder = Holder.decode(value)
    except UnreadableHolder as error:
        one_line(error)
        return
    assert isinstance(holder.pid, int)
    # what is no text becomes a question mark; then it is stable
    again = Holder.decode(holder.encode())
    assert Holder.decode(again.encode()) == again


@given(st.none() | anything(HOLDER), st.none() | anything(RESULT))
def test_rows_of_ticks(claim: bytes | None, result: bytes | None) -> None:
    """A row that can be shown to programs, or unreadable."""
    try:
        shown = row("j", FIRST_TICK, claim, result)
    except UnreadableHolder:
        return
    json.dumps(shown, allow_nan=False).encode()


@given(anything(HOLDER))
def test_fields_and_ticks_of_values(value: bytes) -> None:
    """A mapping, empty for what is none; a tick in it is a whole number of its range or none."""
    tick = whole_tick(fields_of(value).get("tick"))
    assert tick is None or FIRST_TICK <= tick <= LAST_TICK


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
    st.builds(lambda host: (KEYS.node(host), NodeKey(host)), NAMES),
)


@given(BUILT)
def test_keys_that_conch_makes_are_parsed(built: tuple[str, Key]) -> None:
    """Each as what it is, and never below another prefix."""
    text, key = built
    assert KEYS.parse(text.encode()) == key
    assert Keys("/other").parse(text.encode()) is None
    assert Keys("/p/v2").parse(text.encode()) is None


def built_anew(key: Key) -> str | None:
    """The one key that conch makes of this; None for what keeps a place in a queue and is no contender's."""
    match key:
        case ContenderKey(lease=None):
            return None
        case ContenderKey(kind="elect", name=name, lease=lease):
            return contender(KEYS.office(name), lease or 0)
        case ContenderKey(kind="sema", name=name, slots=slots, lease=lease):
            return contender(KEYS.slots(name, slots), lease or 0)
        case ContenderKey(name=name, slots=slots, host=host, lease=lease):
            return contender(KEYS.host(name, slots, host), lease or 0)
        case JobKey(kind=kind, name=name):
            return KEYS.cron(kind, name)
        case TickKey(kind=kind, name=name, tick=tick):
            return KEYS.cron(kind, name, tick)
        case NodeKey(host=host):
            return KEYS.node(host)


PATHS = st.lists(
    st.sampled_from(
        ["elect", "sema", "sema-host", "cron", "job", "fire", "run", "node", "x", "2", "1700000000", "5f3a"]
    )
    | NAMES
    | TEXT
    | st.sampled_from(["9" * 5000, "02", "٣", "0", "-1", "1001", "F", "f" * 16, "", ".."]),
    max_size=6,
).map(lambda parts: "/".join(["/p", *parts]).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=60) | PATHS | BUILT.flatmap(lambda built: torn(built[0].encode())))
def test_any_key_is_of_one_kind_or_none(key: bytes) -> None:
    """No bytes raise; what is parsed is the one spelling of it, or lies in a queue and names no contender."""
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
    """The queues that a key may lie in."""
    return [KEYS.office(key.name), KEYS.slots(key.name, key.slots), KEYS.host(key.name, key.slots, key.host)]


# -- the link -------------------------------------------------------------------------------------------------

FITTING = st.one_of(
    *(
        st.fixed_dictionaries({"kind": st.just(kind), **dict.fromkeys(message._fields, ANY)})
        for kind, message in _KINDS.items()
    )
)
NEARLY = st.tuples(FITTING, st.dictionaries(TEXT, ANY, max_size=1)).map(lambda t: {**t[0], **t[1]})


def use(data: bytes) -> None:
    """Decode; what is a message can be sent again."""
    try:
        message = decode(data)
    except ChannelError as error:
        one_line(error)
        return
    assert isinstance(message, Message)
    assert decode(encode(message)).kind == message.kind


@given(st.binary(max_size=60) | ANY.map(dumped) | NEARLY.map(dumped))
def test_link_messages(data: bytes) -> None:
    """A message of a kind with its fields, or a link error."""
    use(data)


@given(FITTING.map(dumped).flatmap(torn))
def test_link_messages_that_are_torn(data: bytes) -> None:
    """They are link errors, or messages still."""
    use(data)


@pytest.mark.parametrize("kind", [[], {}, None, 5, "", "nosuch", "\ud800"], ids=repr)
def test_link_messages_of_odd_kinds(kind: Any) -> None:
    """A kind that is none, or cannot be one, is a link error."""
    with pytest.raises(ChannelError):
        decode(dumped({"kind": kind}))


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"kind":' * 50_000, b"\0", b"\xff" * 1000, b"1" * 5000])
def test_link_messages_that_are_hard_to_parse(data: bytes) -> None:
    """Deep, long and odd ones are link errors, and nothing else."""
    with pytest.raises(ChannelError):
        decode(data)


@given(st.lists(st.binary(min_size=1, max_size=60) | NEARLY.map(dumped), min_size=1, max_size=3))
@settings(max_examples=50)
def test_what_arrives_on_the_link(packets: list[bytes]) -> None:
    """The end that reads gets messages or a link error, and sees the end of the other side."""
    ours, theirs = pair()
    try:
        for packet in packets:
            theirs._socket.send(packet)
        theirs.close()
        for _ in range(len(packets) + 1):
            try:
                ours.drain()
            except ChannelError:
                continue
        assert ours.closed
    finally:
        ours.close()


# -- the journal ----------------------------------------------------------------------------------------------


def filled(folder: Path, records: list[bytes]) -> dict[str, bytes]:
    """The files of a journal with these records."""
    journal = Wal(str(folder), segment_bytes=120)
    for record in records:
        journal.append(record)
    journal.close()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def opened_with(files: dict[str, bytes]) -> tuple[list[bytes], str]:
    """The records of a journal opened on these files, which then takes one more and has it after a restart."""
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        journal = Wal(name, segment_bytes=120)
        found = list(journal.replay())
        seqs = [record.seq for record in found]
        assert seqs == sorted(set(seqs))
        seq = journal.append(b"one more")
        assert seq > max(seqs, default=0)
        journal.close()
        again = Wal(name, segment_bytes=120)
        assert list(again.replay()) == [*found, type(found[0])(seq, b"one more")] if found else list(again.replay())
        again.close()
        return [record.data for record in found], journal.damage


RECORDS = st.lists(st.binary(max_size=50), min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.dictionaries(st.integers(1, 10**19).map("{:020}.wal".format), st.binary(max_size=200), max_size=3))
def test_journal_of_any_files(files: dict[str, bytes]) -> None:
    """It opens, finds nothing, puts aside what it cannot read and goes on."""
    found, _ = opened_with(files)
    assert found == []


@settings(max_examples=60)
@given(RECORDS, st.data())
def test_journal_with_damage(records: list[bytes], data: st.DataObject) -> None:
    """Wherever bytes were changed, cut or put in, what it gives is the beginning of what it got."""
    with tempfile.TemporaryDirectory() as name:
        files = filled(Path(name), records)
    victim = data.draw(st.sampled_from(sorted(files)))
    files[victim] = data.draw(torn(files[victim]))
    found, _ = opened_with(files)
    assert found == records[: len(found)]


@settings(max_examples=60)
@given(RECORDS, st.binary(max_size=80), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_journal_with_a_tail(records: list[bytes], tail: bytes, length: int, number: int) -> None:
    """What stands behind the last record, well-formed heads of records that never were included, costs none of them."""
    head = struct.pack(">IQI", length, number, zlib.crc32(tail))
    with tempfile.TemporaryDirectory() as name:
        files = filled(Path(name), records)
    newest = sorted(files)[-1]
    for more in (tail, head + zlib.crc32(head).to_bytes(4, "big") + tail):
        found, _ = opened_with({**files, newest: files[newest] + more})
        assert found[: len(records)] == records
