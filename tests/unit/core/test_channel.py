"""The link between supervisor and keeper."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.core.channel import pair
from conch.core.deadline_page import DeadlinePage
from conch.core.messages import (
    Acquire,
    Answered,
    Begin,
    Begun,
    ChannelError,
    Drain,
    Ended,
    Failed,
    Finished,
    Held,
    Kill,
    Lost,
    Message,
    Note,
    Queued,
    Recorded,
    Release,
    Released,
    Reload,
    Renewed,
    Running,
    Start,
    decode,
    encode,
)

LIMITS = (1.5, 2.5, 600.0, 5.0, 3, 30.0)
EVERY: list[Message] = [
    Acquire(1, 12.5, 7),
    Answered(2**62),
    Queued(5),
    Held(1, 5, 2**62, "/k", 10.0, 99.5),
    Renewed(3, 1.5),
    Lost(1, "gone"),
    Failed(69, "ä\n"),
    Released(),
    Note("info", "queued", {"rev": 5, "x": "y"}),
    Running(5, "ab", [1, 2], 5.0, "x"),
    Ended(),
    Release(None),
    Begin(["a"], ["b", "c"], True, [2**63 - 1]),
    Begun(),
    Start("r", "j ä", "2027-01-15T08:00:00Z", ["x", "\udcff" * 5000], {"A": "b" * 5000}, None, [1, 2], *LIMITS),
    Kill("r", "replaced"),
    Finished("r", "ended", None, 2, 1.25, 0.5, ""),
    Recorded("r"),
    Drain(),
    Reload(),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: message.kind)
def test_every_message_comes_through(message: Message) -> None:
    """As it was."""
    assert decode(encode(message)) == message


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
        lambda x: json.dumps(x).encode()
    )
)
def test_anything_else_is_a_link_error(data: bytes) -> None:
    """Never another exception."""
    try:
        decode(data)
    except ChannelError:
        pass


def test_message_with_wrong_fields_is_a_link_error() -> None:
    """Missing or unknown."""
    for data in ({"kind": "ended", "x": 1}, {"kind": "failed", "code": 1}):
        with pytest.raises(ChannelError):
            decode(json.dumps(data).encode())


def test_order_is_kept_and_the_newest_deadline_comes_last() -> None:
    """Each message once."""
    supervisor, keeper = pair()
    keeper.send(Answered(1))
    keeper.send(Renewed(1, 10.0))
    keeper.send(Held(1, 2, 1, "k", 10, 10.0))
    keeper.send(Renewed(1, 20.0))
    assert [m.kind for m in supervisor.drain()] == ["answered", "held", "renewed"]
    keeper.send(Renewed(1, 30.0))
    assert supervisor.drain() == [Renewed(1, 30.0)]
    assert supervisor.drain() == []
    supervisor.close()
    keeper.close()


def test_an_hour_of_renewals_to_a_stopped_supervisor_blocks_nothing() -> None:
    """100,000 of them; then it finds the newest, and only that."""
    supervisor, keeper = pair()
    for i in range(100_000):
        keeper.send(Renewed(1, float(i)))
        assert not keeper.pending
    assert supervisor.drain() == [Renewed(1, 99_999.0)]
    supervisor.close()
    keeper.close()


def test_messages_to_a_stopped_reader_wait_and_lose_nothing() -> None:
    """Sends never block; what the socket does not take is sent later, in order."""
    supervisor, keeper = pair()
    for i in range(2000):
        keeper.send(Note("info", "n", {"i": i}))
    assert keeper.pending
    got: list[Message] = []
    while len(got) < 2000:
        got += supervisor.drain()
        keeper.flush()
    assert [m.text["i"] for m in got if isinstance(m, Note)] == list(range(2000))
    assert not keeper.pending
    supervisor.close()
    keeper.close()


def test_messages_that_are_sent_together_share_packets() -> None:
    """Of a size that the other side takes whole, however long one of them is; a renewal goes its own way."""
    supervisor, keeper = pair()
    long = Kill("r", "x" * 1500)
    start = Start("s", "j", "t", ["c\n", "y" * 100_000], {}, None, [1], 1.0, 2.0, 3.0, 4.0, 0, 1.0)
    sent = [Recorded("a\nb"), *[long] * 40, start, Recorded("c")]
    keeper.send(*sent[:3], Renewed(1, 5.0), *sent[3:])
    packets: list[bytes] = []
    while packet := os.read(supervisor.fileno(), 1 << 20) if len(packets) < 4 else b"":
        packets.append(packet)
    assert [len(packet) < 33_000 for packet in packets] == [True, True, False, True]
    keeper.send(*sent)
    assert supervisor.drain() == [*sent, Renewed(1, 5.0)]
    supervisor.close()
    keeper.close()


def test_end_is_seen_after_all_that_was_sent_before() -> None:
    """Also when the other side died with unread mail, and while we send to it."""
    supervisor, keeper = pair()
    supervisor.send(Ended())  # never read
    keeper.send(Lost(1, "last words"))
    keeper.close()
    supervisor.send(Ended())
    assert supervisor.drain() == [Lost(1, "last words")]
    assert supervisor.closed
    assert not supervisor.pending
    supervisor.close()


def test_half_written_deadline_is_not_taken() -> None:
    """A keeper stopped in the middle of a write leaves what was there before, or nothing."""
    board = DeadlinePage()
    assert board.read() is None
    board.publish(Renewed(1, 5.0))
    assert board.read() == Renewed(1, 5.0)
    board._page[3] ^= 1
    assert board.read() is None


def test_deadline_is_seen_by_another_process() -> None:
    """The page is shared across fork."""
    board = DeadlinePage()
    pid = os.fork()
    if pid == 0:
        board.publish(Renewed(7, 1.25))
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.read() == Renewed(7, 1.25)


def test_order_is_never_cut_and_other_texts_are() -> None:
    """A command that was cut would be another one."""
    start = Start("r", "l", "t", ["x" * 100_000], {"A": "y" * 100_000}, "/" + "z" * 5000, [], *LIMITS)
    supervisor, keeper = pair()
    keeper.send(start)
    keeper.send(Kill("r", "w" * 100_000))
    first, second = supervisor.drain()
    assert first == start
    assert isinstance(second, Kill)
    assert len(second.reason) == 2000
    supervisor.close()
    keeper.close()


def test_deadlines_of_many_holds() -> None:
    """Only those that are followed are told, each newest once; numbers that share a place replace each other."""
    supervisor, keeper = pair(4)
    for number in (1, 2, 3):
        keeper.send(Renewed(number, float(number)))
    assert supervisor.drain() == []
    supervisor.follow({1, 3})
    assert sorted(supervisor.drain(), key=str) == [Renewed(1, 1.0), Renewed(3, 3.0)]
    keeper.send(Renewed(2, 9.0))
    keeper.send(Renewed(3, 4.0))
    assert supervisor.drain() == [Renewed(3, 4.0)]
    supervisor.follow({2, 3})
    assert supervisor.drain() == [Renewed(2, 9.0)]
    keeper.send(Renewed(7, 8.0))
    assert supervisor.drain() == [Renewed(7, 8.0)]
    supervisor.close()
    keeper.close()


def test_renewal_sends_nothing_but_itself() -> None:
    """Any thread may send one, while another sends messages: both would send the same message, and drop the next."""
    ours, theirs = pair()
    sent = 0
    while not theirs.pending:
        theirs.send(Kill(str(sent), ""))
        sent += 1
    arrived = ours.drain()
    theirs.send(Renewed(0, 5.0))
    assert theirs.pending
    assert ours.drain() == [Renewed(0, 5.0)]
    theirs.flush()
    assert [*arrived, *ours.drain()] == [Kill(str(number), "") for number in range(sent)]
    for end in (ours, theirs):
        end.close()
