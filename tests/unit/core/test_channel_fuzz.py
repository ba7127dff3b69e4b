"""The channel between the two processes, fed with anything."""

from hypothesis import given, settings
from hypothesis import strategies as st

from conch.core.channel import pair
from conch.core.messages import ChannelError
from tests.support.fuzz import NEARLY, dumped


@given(st.lists(st.binary(min_size=1, max_size=60) | NEARLY.map(dumped), min_size=1, max_size=3))
@settings(max_examples=50)
def test_any_packets_on_the_channel(packets: list[bytes]) -> None:
    """The reader gets messages or channel errors, and then sees that the other side has closed."""
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
