"""Messages between the two processes, decoded from anything."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.core.messages import ChannelError, Message, decode, encode
from tests.support.fuzz import ANY, FITTING, NEARLY, check_message, dumped, torn


def check(data: bytes) -> None:
    """Decode the data: a channel error, or a message that can be sent again."""
    try:
        message = decode(data)
    except ChannelError as error:
        check_message(error)
        return
    assert isinstance(message, Message)
    assert decode(encode(message)).kind == message.kind


@given(st.binary(max_size=60) | ANY.map(dumped) | NEARLY.map(dumped))
def test_messages(data: bytes) -> None:
    """Any data is a message of a known kind with its fields, or a channel error."""
    check(data)


@given(FITTING.map(dumped).flatmap(torn))
def test_messages_that_are_torn(data: bytes) -> None:
    """A damaged message is a channel error or still a message."""
    check(data)


@pytest.mark.parametrize("kind", [[], {}, None, 5, "", "nosuch", "\ud800"], ids=repr)
def test_messages_of_odd_kinds(kind: Any) -> None:
    """An unknown kind is a channel error, also one that is no text."""
    with pytest.raises(ChannelError):
        decode(dumped({"kind": kind}))


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"kind":' * 50_000, b"\0", b"\xff" * 1000, b"1" * 5000])
def test_messages_that_are_hard_to_parse(data: bytes) -> None:
    """Deep, long and binary data raise channel errors and nothing else."""
    with pytest.raises(ChannelError):
        decode(data)
