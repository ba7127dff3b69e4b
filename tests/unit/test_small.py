"""Durations, names, keys, endpoints, holders, log lines, the deadline rule: pure functions."""

import json
import os
import shlex
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.core import clock
from conch.core.deadline import DeadlineRule
from conch.core.states import next_backoff
from conch.cron.unreadable import Unreadable
from conch.errors import BadInput
from conch.etcd.endpoints import Endpoint, parse_endpoints
from conch.holder import Holder, UnreadableHolder, myself, shown
from conch.keys import ContenderKey, JobKey, Key, Keys, NodeKey, TickKey, check_name, contender, prefix_end
from conch.log import Log, escape, logfmt
from conch.times import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3), ("10s", 10), ("1m30s", 90), ("2h", 7200), ("5", 5), ("0.5", 0.5), ("0", 0), ("1.5h", 5400),
        (".5s", 0.5), ("1h1m1s1ms", 3661.001), ("007", 7),
    ],
)  # fmt: skip
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    """Units, their sequences, plain seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "-1s",
        "nan",
        "inf",
        "1e3",
        "1d",
        "s",
        "1 s",
        "1s ",
        "+1",
        "1s5",
        "٣",
        "1_000",
        "0x1",
        "9" * 400,
        "1.2.3",
        "infinity",
        "1s-1s",
    ],
)
def test_durations_that_are_none(text: str) -> None:
    """Each is refused with a line that quotes it."""
    with pytest.raises(BadInput, match="duration|too long"):
        parse_duration(text)


@given(st.text())
def test_any_text_is_a_duration_or_bad_input(text: str) -> None:
    """Nothing else comes out of the parser."""
    try:
        assert parse_duration(text) >= 0
    except BadInput:
        pass


@given(st.integers(0, 10**9))
def test_format_of_a_duration_parses_back(milliseconds: int) -> None:
    """To the millisecond."""
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=0.0006)


@pytest.mark.parametrize("name", ["a", "A9", "db.primary", "a@b:c+d-e_f", "0", "x" * 128])
def test_names_that_may_stand_in_a_key(name: str) -> None:
    """As the contract lists them."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/", "a/b", "..", ".a", "-a", " a", "a b", "a\n", "a\x00", "ä", "x" * 129, "_a", "a\x1b", "９"]
)
def test_names_that_may_not(name: str) -> None:
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
    """As what conch makes of them; whatever lies in a queue's range is in that queue."""
    assert Keys("/p").parse(key.encode()) == found


def test_unreadable_keys_are_reported_once_and_not_without_end() -> None:
    """Each by a line; after a thousand others no more are remembered or named."""
    lines: list[dict[str, str]] = []

    def tell(level: str, event: str, **text: str) -> None:
        assert (level, event) == ("warning", "unreadable")
        lines.append(text)

    report = Unreadable(tell)
    for _ in range(3):
        report(b"/p/\xff", "why")
    assert lines == [{"key": "/p/\ufffd", "msg": "why"}]
    for number in range(3000):
        report(b"%d" % number + b"x" * 10_000, "why")
    assert len(lines) == 1001
    assert "no others are named" in lines[-1]["msg"]
    assert max(len(line["key"]) for line in lines) <= 500


def test_keys_are_those_of_the_contract() -> None:
    """A public API."""
    assert contender(Keys().office("db"), 0x5F3A) == "/conch/v1/elect/db/5f3a"
    assert Keys("/other").office("db") == "/other/elect/db/"


@given(st.binary(min_size=1), st.binary())
def test_prefix_end_is_after_every_key_with_the_prefix_and_no_other(prefix: bytes, more: bytes) -> None:
    """etcd's range end; a prefix of 0xff alone goes to the end of everything."""
    end = prefix_end(prefix)
    assert end == b"\0" or prefix + more < end
    if end != b"\0":
        assert not end.startswith(prefix)


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("a", [Endpoint("a", 2379)]),
        ("a:1,b:2", [Endpoint("a", 1), Endpoint("b", 2)]),
        (" a:1 , ,a:1,", [Endpoint("a", 1)]),
        ("http://a:1/", [Endpoint("a", 1)]),
        ("https://a,HTTPS://b:3", [Endpoint("a", 2379, True), Endpoint("b", 3, True)]),
        ("[::1]:5,[fe80::1%eth0]", [Endpoint("::1", 5), Endpoint("fe80::1%eth0", 2379)]),
    ],
)
def test_endpoints_as_people_write_them(text: str, endpoints: list[Endpoint]) -> None:
    """Blanks and duplicates dropped."""
    assert list(parse_endpoints(text)) == endpoints


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "a:99999", "a:0", "a:", "a:x", "a b", "http://a/path", "ftp://a", "http://", "a,https://b", "::1",
     "[::1", "[::1]x:1", "[a]:1", "a:1:2", "user@a:1", "a:-1", "a:١", "http://a?x", "ä:1"],
)  # fmt: skip
def test_malformed_endpoints_are_named(text: str) -> None:
    """One line, before anything is sent."""
    with pytest.raises(BadInput, match="endpoint"):
        parse_endpoints(text)


@given(st.text())
def test_any_text_is_endpoints_or_bad_input(text: str) -> None:
    """Nothing else comes out of the parser."""
    try:
        assert parse_endpoints(text)
    except BadInput:
        pass


def test_endpoint_shows_itself_as_it_is_written() -> None:
    """With brackets where they are needed."""
    assert [str(e) for e in parse_endpoints("a,[::1]:5")] == ["a:2379", "[::1]:5"]


def test_holder_round_trip_and_unknown_fields() -> None:
    """A newer conch may write more."""
    holder = Holder("h", 7, "2026-01-01T00:00:00Z", "cmd ä \n")
    assert b"\n" not in holder.encode()
    assert Holder.decode(holder.encode()) == holder
    more = json.dumps({**json.loads(holder.encode()), "new": [1]}).encode()
    assert Holder.decode(more) == holder


@given(st.binary() | st.text().map(str.encode))
def test_any_value_is_a_holder_or_unreadable(value: bytes) -> None:
    """Values come from anybody."""
    try:
        Holder.decode(value)
    except UnreadableHolder:
        pass


def test_holder_cuts_long_commands_and_bears_odd_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 bytes at most, never half a character; file names need not be UTF-8."""
    monkeypatch.setenv("CONCH_HOST", "h1")
    holder = myself(["ä" * 200, os.fsdecode(b"\xff")])
    assert holder.host == "h1"
    assert holder.pid == os.getpid()
    assert len(holder.cmd.encode()) <= 256
    assert Holder.decode(myself([os.fsdecode(b"a\xff")]).encode()).cmd == "a?"


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


def test_backoff_grows_with_jitter_between_its_bounds() -> None:
    """Decorrelated: between the minimum and three times the one before, at most the maximum."""
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


def test_logfmt_quotes_and_escapes() -> None:
    """One line, whatever is in it."""
    line = logfmt({"a": 1, "b": "x y", "c": 'q"=', "d": "\x1b\n", "e": 0.5, "f": True, "g": "", "h": 2.0, "i": "a\\b"})
    assert line == 'a=1 b="x y" c="q\\"=" d=\\x1b\\n e=0.5 f=true g="" h=2 i=a\\\\b'


@given(st.text())
def test_escaped_text_is_one_printable_line(text: str) -> None:
    """Control characters and lone surrogates too."""
    assert escape(text).isprintable()
    escape(text).encode()


def test_log_does_not_block_on_a_full_pipe_and_says_what_it_dropped() -> None:
    """A supervisor that waited for a reader could not end its child."""
    read, write = os.pipe()
    log = Log(fd=write)
    for i in range(20000):
        log("info", "event", number=i)
    os.set_blocking(read, False)
    text = b""
    while True:
        try:
            text += os.read(read, 65536)
        except BlockingIOError:
            before = len(text)
            log.flush()
            try:
                text += os.read(read, 65536)
            except BlockingIOError:
                pass
            if len(text) == before:
                break
    assert b"number=0\n" in text
    assert b"number=19999\n" in text
    assert b"lines were dropped" in text
    os.close(read)
    log("info", "nobody reads")  # a broken pipe is nobody's error
    log.close()
    os.close(write)


def test_log_does_not_block_on_a_terminal_that_nobody_reads() -> None:
    """A terminal takes a part of a line; the rest follows when there is room, and lines stay whole."""
    master, slave = os.openpty()
    log = Log(fd=slave)
    for i in range(300):
        log("info", "event", number=i, text="x" * 300)
    os.set_blocking(master, False)
    text = b""
    for _ in range(1000):
        try:
            text += os.read(master, 65536)
        except BlockingIOError:
            log.flush()
            time.sleep(0.001)
    lines = text.replace(b"\r\n", b"\n").splitlines()
    assert all(line.startswith((b"ts=", b"conch: ")) for line in lines)
    assert b"number=0 " in lines[0]
    assert b"number=299 " in lines[-1]
    log.close()
    os.close(master)
    os.close(slave)


def test_log_bears_a_closed_descriptor() -> None:
    """2>&- is the user's right."""
    Log(fd=9999)("error", "event")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("character", ["x", "ä", "€", "😀", "\x1b", '"'])
def test_line_with_a_long_text_is_whole(form: str, character: str) -> None:
    """The text is cut, not the line: at most 4 KiB, all fields, valid UTF-8, valid JSON."""
    left, right = socket.socketpair()
    log = Log(form=form, fd=right.fileno())
    log("error", "run-end", run="job", reason=character * 5000, msg="short", code=7)
    log.close()
    right.close()
    data = left.makefile("rb").read()
    left.close()
    assert len(data) <= 4096
    assert data.count(b"\n") == 1
    line = json.loads(data) if form == "json" else dict(part.split("=", 1) for part in shlex.split(data.decode()))
    assert (line["run"], line["msg"], str(line["code"])) == ("job", "short", "7")
    assert line["reason"].endswith("…")


@given(st.lists(st.text(), max_size=3))
def test_command_as_it_is_shown(command: list[str]) -> None:
    """At most 256 bytes of it, and no character cut in two."""
    cmd, text = shown([*command, "ä" * 300]), " ".join([*command, "ä" * 300]).encode("utf-8", "replace").decode()
    assert 253 <= len(cmd.encode()) <= 256
    assert text.startswith(cmd)


def test_quiet_log_keeps_warnings() -> None:
    """Only info is left out."""
    left, right = socket.socketpair()
    log = Log(quiet=True, fd=right.fileno())
    log("info", "a")
    log("warning", "b", none=None)
    log("error", "c")
    log.close()
    right.close()
    text = left.makefile().read()
    assert [line.split()[2] for line in text.splitlines()] == ["event=b", "event=c"]
    assert "none" not in text
    left.close()


def test_the_clock_of_deadlines_is_the_one_that_counts_suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOCK_BOOTTIME and no other."""
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 42.0}.__getitem__)
    assert clock.now() == 42.0
