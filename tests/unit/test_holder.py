"""The value of a hold's key: written, read, and fed with anything."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.holder import Holder, UnreadableHolder, myself, shown, with_held_since
from conch.record import replace
from tests.support.fuzz import HOLDER, anything, check_message


def test_holder_round_trip_and_unknown_fields() -> None:
    """Fields that a newer conch may add are ignored."""
    holder = Holder("h", 7, "2026-01-01T00:00:00Z", "cmd ä \n")
    assert b"\n" not in holder.encode()
    assert Holder.decode(holder.encode()) == holder
    more = json.dumps({**json.loads(holder.encode()), "new": [1]}).encode()
    assert Holder.decode(more) == holder


def test_holder_that_waited_says_since_when_it_holds() -> None:
    """Other fields of its value stay; one without the time has held since it started."""
    holder = Holder("h", 7, "2026-01-01T00:00:00Z", "cmd")
    assert holder.since == holder.started
    assert b"held_since" not in holder.encode()
    value = with_held_since(json.dumps({**json.loads(holder.encode()), "new": [1]}).encode(), "2026-01-01T00:00:09Z")
    assert json.loads(value)["new"] == [1]
    assert Holder.decode(value) == replace(holder, held_since="2026-01-01T00:00:09Z")
    assert Holder.decode(value).since == "2026-01-01T00:00:09Z"
    assert Holder.decode(Holder.decode(value).encode()) == Holder.decode(value)


@pytest.mark.parametrize("odd", [None, 7, [], {}])
def test_odd_time_of_a_hold_is_ignored(odd: object) -> None:
    """The rest of the value is read all the same."""
    value = json.dumps({"host": "h", "pid": 7, "started": "s", "cmd": "c", "held_since": odd}).encode()
    assert Holder.decode(value).since == "s"


@given(st.binary() | st.text().map(str.encode))
def test_any_value_is_a_holder_or_unreadable(value: bytes) -> None:
    """Anybody may write a value."""
    try:
        Holder.decode(value)
    except UnreadableHolder:
        pass


def test_holder_shortens_long_commands_and_accepts_odd_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is at most 256 bytes and never ends in half a character; file names need not be UTF-8."""
    monkeypatch.setenv("CONCH_HOST", "h1")
    holder = myself(["ä" * 200, os.fsdecode(b"\xff")])
    assert holder.host == "h1"
    assert holder.pid == os.getpid()
    assert len(holder.cmd.encode()) <= 256
    assert Holder.decode(myself([os.fsdecode(b"a\xff")]).encode()).cmd == "a?"


@given(st.lists(st.text(), max_size=3))
def test_command_as_it_is_shown(command: list[str]) -> None:
    """At most 256 bytes are shown, and no character is cut in two."""
    cmd, text = shown([*command, "ä" * 300]), " ".join([*command, "ä" * 300]).encode("utf-8", "replace").decode()
    assert 253 <= len(cmd.encode()) <= 256
    assert text.startswith(cmd)


@given(anything(HOLDER))
def test_holders(value: bytes) -> None:
    """Any value is unreadable, or a holder that can be written again."""
    try:
        holder = Holder.decode(value)
    except UnreadableHolder as error:
        check_message(error)
        return
    assert isinstance(holder.pid, int)
    # bytes that are no text become question marks once; from then on the value is stable
    again = Holder.decode(holder.encode())
    assert Holder.decode(again.encode()) == again
