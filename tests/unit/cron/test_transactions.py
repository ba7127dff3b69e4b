"""Transactions on jobs on their way to etcd: those that come while a request is under way share the next one."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from conch.cron.shared_leases import SharedLeases
from conch.cron.transactions import Transactions
from conch.cron.writes import Unsent
from conch.etcd.store import (
    CreateRevisionIs,
    Full,
    Header,
    KeyValue,
    LeaseExists,
    LeaseGone,
    Put,
    Range,
    RangeResult,
    Refused,
    Rejected,
    StoreError,
    TooBig,
    Txn,
    TxnResult,
    TxnResults,
    Unreachable,
)
from tests.support.parts import TICK, World, lost_reply
from tests.support.virtual_loop import DirectWorkers, Log, VirtualLoop

NOW = float(TICK)


def txn(name: str, *, puts: int = 1, compares: int = 1, size: int = 1) -> Txn:
    """A transaction on keys of its own."""
    keys = [f"{name}/{number}".encode() for number in range(max(puts, compares))]
    return Txn(
        tuple(CreateRevisionIs(key, 0) for key in keys[:compares]),
        tuple(Put(key, b"x" * size, 7) for key in keys[:puts]),
        (Range(keys[0]),),
    )


def clearly(error: StoreError) -> StoreError:
    """The error of a request that etcd has refused before it wrote anything."""
    error.unclear = False
    return error


class Etcd:
    """Answers requests: with the next of `errors` if there is one, else each transaction with its own first key.

    `check` may refuse a request; `leases` is whether the shared leases are there.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.requests: list[list[str]] = []
        self.times: list[float] = []
        self.parts: list[Sequence[Txn]] = []
        self.errors: list[Exception | None] = []
        self.check: Callable[[Sequence[Txn]], None] = lambda parts: None
        self.granted: list[int] = []
        self.leases = True
        self.read: list[tuple[Range, ...]] = []

    def names(self, parts: Sequence[Txn]) -> list[str]:
        return [part.success[0].key.partition(b"/")[0].decode() for part in parts]

    def _make(self, parts: Sequence[Txn]) -> TxnResults:
        self.requests.append(self.names(parts))
        self.times.append(round(self._now(), 3))
        self.parts.append(parts)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        if not self.leases:
            raise clearly(LeaseGone("gone"))
        self.check(parts)
        header = Header(len(self.requests), 1, 1)
        found = [KeyValue(part.success[0].key, b"", 1, 1, 0) for part in parts]
        return TxnResults(header, tuple(TxnResult(header, True, (RangeResult(header, (kv,), 1),)) for kv in found))

    def txns(self, parts: Sequence[Txn], *, timeout_s: float) -> TxnResults:
        assert len(parts) > 1, "a single one is no part of another"
        return self._make(parts)

    def txn(self, compare: Any, success: Any, failure: Any = (), *, timeout_s: float) -> TxnResult:
        if not compare:
            self.read.append(tuple(success))
            return TxnResult(Header(1, 1, 1), True, ())
        return self._make([Txn(compare, success, failure)]).results[0]

    def grant(self, lease: int, ttl_s: int, *, timeout_s: float) -> None:
        self.granted.append(lease)
        self.leases = True
        if len(self.granted) > 2:
            raise LeaseExists("there already")


class Bed(World):
    """`Transactions` on a scripted etcd, each of whose requests takes a second."""

    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(loop, log)
        self.etcd = Etcd(self.now)
        store: Any = self.etcd
        self.transactions = Transactions(store, SharedLeases(store, "/p"), self.tasks, DirectWorkers(1.0))

    async def make(
        self, name: str, job: str = "", *, wanted: Callable[[], bool] = lambda: True, **shape: int
    ) -> str | StoreError | Unsent | None:
        """Make a transaction; what was answered: the key that it found, or the error."""
        sending = self.transactions.sending(timeout_s=5.0, is_wanted=wanted)
        try:
            answer = await sending.make(job or name, txn(name, **shape), NOW)
        except (StoreError, Unsent) as error:
            return error
        return None if answer is None else answer.ranges[0].kvs[0].key.decode().partition("/")[0]

    def all(self, *making: Coroutine[Any, Any, Any], first: str = "first") -> list[Any]:
        """Make these while a first one is under way."""

        async def work() -> list[Any]:
            before = asyncio.ensure_future(self.make(first))
            await asyncio.sleep(0.5)
            answers = await asyncio.gather(*making)
            assert await before == first
            return answers

        answers = self.loop.run(work())
        self.check()
        return answers


@pytest.fixture
def bed(loop: VirtualLoop, log: Log) -> Bed:
    return Bed(loop, log)


# -- what goes into one request -------------------------------------------------------------------------------


def test_transaction_that_comes_alone_waits_for_nothing(bed: Bed) -> None:
    """Nor does the next one, when the first has been answered."""
    assert bed.loop.run(bed.make("a")) == "a"
    assert bed.loop.run(bed.make("b")) == "b"
    assert bed.etcd.requests == [["a"], ["b"]]
    assert bed.etcd.times == [1.0, 2.0]


def test_those_that_come_during_a_request_share_the_next(bed: Bed) -> None:
    """In the order in which they came, and each gets its own answer."""
    assert bed.all(*map(bed.make, "abcde")) == list("abcde")
    assert bed.etcd.requests == [["first"], list("abcde")]
    assert bed.etcd.times == [1.0, 2.0]


def test_request_has_one_transaction_of_a_job(bed: Bed) -> None:
    """All compares of a request see etcd as it was before: of two transactions of a job, one must see the other."""
    names = ["j1", "j2", "k1", "j3", "k2", "l1"]
    assert bed.all(*(bed.make(name, name[0]) for name in names)) == names
    assert bed.etcd.requests == [["first"], ["j1", "k1", "l1"], ["j2", "k2"], ["j3"]]


def test_transaction_does_not_overtake_one_of_its_job(bed: Bed) -> None:
    """The first of `j` is too large for the request that the second would fit into."""
    making = [bed.make("k", puts=50), bed.make("j1", "j", puts=50), bed.make("j2", "j"), bed.make("l")]
    assert bed.all(*making) == ["k", "j1", "j2", "l"]
    assert bed.etcd.requests == [["first"], ["k", "l"], ["j1"], ["j2"]]


@pytest.mark.parametrize(
    ("puts", "compares", "sizes"),
    [(1, 1, [127, 73]), (2, 7, [60, 60, 60, 20]), (60, 2, [1] * 200), (200, 1, [1] * 200), (0, 5, [123, 77])],
)
def test_request_has_no_more_operations_than_etcd_takes(bed: Bed, puts: int, compares: int, sizes: list[int]) -> None:
    """Those of the largest transaction count, and of the outer one its parts and, never done, a put of each key."""
    reads = Txn((CreateRevisionIs(b"r/0", 0),) * 5, (Range(b"r/0"),))

    async def read(name: str) -> bool:
        return await bed.transactions.sending(timeout_s=5.0).make(name, reads, NOW) is not None

    makes = [bed.make(str(n), puts=puts, compares=compares) if puts else read(str(n)) for n in range(200)]
    bed.all(*makes)
    assert [len(parts) for parts in bed.etcd.parts[1:]] == sizes
    for parts in bed.etcd.parts:
        outer = max(len(parts), sum(len(part.written()) for part in parts))
        inner = max(len(each) for part in parts for each in (part.compare, part.success, part.failure))
        assert len(parts) == 1 or outer + inner <= 128


def test_request_has_no_more_bytes_than_etcd_takes(bed: Bed) -> None:
    """A transaction that is larger by itself is sent alone."""
    sizes = [100_000] * 7 + [600_000] + [1]
    answers = bed.all(*(bed.make(str(number), size=size) for number, size in enumerate(sizes)))
    assert answers == [str(number) for number in range(len(sizes))]
    assert bed.etcd.requests[1:] == [["0", "1", "2", "3", "4", "8"], ["5", "6"], ["7"]]


def test_reads_wait_for_no_transaction(bed: Bed) -> None:
    """A request of their own, beside the one that is under way."""
    sending = bed.transactions.sending(timeout_s=5.0)

    async def read() -> float:
        await sending.read(Range(b"x"), Range(b"y"))
        return bed.now()

    assert bed.all(read(), bed.make("a")) == [1.5, "a"]
    assert bed.etcd.read == [(Range(b"x"), Range(b"y"))]


# -- what etcd refuses ----------------------------------------------------------------------------------------


def test_request_that_is_too_big_is_halved_and_that_is_remembered(bed: Bed) -> None:
    """Once etcd's limit is known, no request is refused any more."""
    refused: list[int] = []

    def limited(parts: Sequence[Txn]) -> None:
        if len(parts) > 4:
            refused.append(len(parts))
            raise clearly(TooBig("too many operations in txn request"))

    bed.etcd.check = limited
    names = [str(number) for number in range(60)]
    assert bed.all(*(bed.make(name, puts=2, compares=7) for name in names)) == names
    assert refused[0] == 60
    refused.clear()
    assert bed.all(*(bed.make(name, puts=2, compares=7) for name in names)) == names
    assert refused == []
    assert max(map(len, bed.etcd.requests[-20:])) == 3


def test_one_that_is_too_big_by_itself_says_nothing_about_the_others(bed: Bed) -> None:
    """Else all would be sent alone for as long as the daemon lives."""

    def limited(parts: Sequence[Txn]) -> None:
        if "big" in bed.etcd.names(parts):
            raise clearly(TooBig("request is too large"))

    bed.etcd.check = limited
    names = [str(number) for number in range(20)]
    assert bed.all(*map(bed.make, ["big", *names]))[1:] == names
    assert bed.all(*map(bed.make, names)) == names
    assert max(map(len, bed.etcd.requests[-3:])) > 10


@pytest.mark.parametrize("error", [Refused("permission denied"), Rejected("no"), TooBig("too large")])
def test_one_that_is_refused_fails_alone(bed: Bed, error: StoreError) -> None:
    """Its neighbours are made, in requests of halves."""

    def deny(parts: Sequence[Txn]) -> None:
        if "c" in bed.etcd.names(parts):
            raise clearly(error)

    bed.etcd.check = deny
    answers = bed.all(*map(bed.make, "abcdefgh"))
    assert answers[:2] + answers[3:] == list("abdefgh")
    assert type(answers[2]) is type(error)
    assert not answers[2].unclear


def test_two_that_are_refused_do_not_hide_each_other(bed: Bed) -> None:
    """The refusal of one half does not keep the other from being sent, nor its error from being told."""

    def deny(parts: Sequence[Txn]) -> None:
        for name in ("a", "h"):
            if name in bed.etcd.names(parts):
                raise clearly(Refused(name))

    bed.etcd.check = deny
    answers = bed.all(*map(bed.make, "abcdefgh"))
    assert answers[1:-1] == list("bcdefg")
    assert [str(answers[0]), str(answers[-1])] == ["a", "h"]


def test_full_etcd_fails_all_of_them(bed: Bed) -> None:
    """It says nothing about one of them, and the request that crosses the quota is made: none is sent again."""
    bed.etcd.errors = [None, clearly(Full("database space exceeded"))]
    answers = bed.all(*map(bed.make, "abc"))
    assert [type(answer) for answer in answers] == [Full] * 3
    assert bed.etcd.requests == [["first"], list("abc")]


# -- what is not known ----------------------------------------------------------------------------------------


def test_lost_reply_makes_all_of_its_request_unclear(bed: Bed) -> None:
    """It is not split. Each has an error of its own, so that what one learns does not count for the others."""
    bed.etcd.errors = [None, lost_reply()]
    answers = bed.all(*map(bed.make, "abc"))
    assert [type(answer) for answer in answers] == [Unreachable] * 3
    assert all(answer.unclear for answer in answers)
    answers[0].unclear = False
    assert [answer.unclear for answer in answers] == [False, True, True]
    assert bed.etcd.requests == [["first"], list("abc")]
    assert bed.loop.run(bed.make("d")) == "d"


def test_request_that_was_never_sent_makes_nothing_unclear(bed: Bed) -> None:
    """Nobody listened."""
    bed.etcd.errors = [None, clearly(Unreachable("connection refused"))]
    assert [answer.unclear for answer in bed.all(*map(bed.make, "abc"))] == [False] * 3


@pytest.mark.parametrize("last", [Refused("permission denied"), Rejected("no")])
def test_refusal_after_an_unclear_try_is_unclear(bed: Bed, last: StoreError) -> None:
    """The first try may be served later, whatever the second one says."""
    first = Refused("permission denied, after a try without an answer")
    bed.etcd.errors = [None, first, None, clearly(last)]
    a, b = bed.all(*map(bed.make, "ab"))
    assert a == "a", "what was answered is known"
    assert type(b) is type(last)
    assert b.unclear


def test_missing_lease_after_an_unclear_try_is_an_unclear_error(bed: Bed) -> None:
    """Not the clear answer that another lease is missing."""
    gone = clearly(LeaseGone("gone"))
    bed.etcd.errors = [None, Refused("after a try without an answer"), None, gone, clearly(LeaseGone("gone"))]
    a, b = bed.all(*map(bed.make, "ab"))
    assert a == "a"
    assert isinstance(b, LeaseGone)
    assert b.unclear


# -- what nobody wants any more -------------------------------------------------------------------------------


def test_what_nobody_wants_any_more_is_not_sent(bed: Bed) -> None:
    """That is asked when its time has come."""
    a, b, c = bed.all(bed.make("a"), bed.make("b", wanted=lambda: bed.now() < 0.9), bed.make("c"))
    assert (a, c) == ("a", "c")
    assert isinstance(b, Unsent)
    assert bed.etcd.requests == [["first"], ["a", "c"]]


def test_no_request_is_made_of_nothing(bed: Bed) -> None:
    answers = bed.all(*(bed.make(name, wanted=lambda: False) for name in "ab"))
    assert [type(answer) for answer in answers] == [Unsent, Unsent]
    assert bed.etcd.requests == [["first"]]


@pytest.mark.parametrize("unclear", [False, True])
def test_what_nobody_wants_any_more_between_two_halves(bed: Bed, unclear: bool) -> None:
    """It is not sent again. If it may have been made, its owner learns that and not that nothing was sent."""
    refusal = Refused("permission denied")
    refusal.unclear = unclear
    bed.etcd.errors = [None, refusal]
    answers = bed.all(*map(bed.make, "abc"), bed.make("d", wanted=lambda: bed.now() < 2.5))
    assert answers[:3] == ["a", "b", "c"]
    assert bed.etcd.requests == [["first"], list("abcd"), ["a", "b"], ["c"]]
    if unclear:
        assert isinstance(answers[3], Refused)
        assert answers[3].unclear
    else:
        assert isinstance(answers[3], Unsent)


def test_caller_that_has_gone_does_no_harm(bed: Bed) -> None:
    async def work() -> Any:
        first = asyncio.ensure_future(bed.make("a"))
        gone = asyncio.ensure_future(bed.make("b"))
        await asyncio.sleep(0.5)
        gone.cancel()
        return await asyncio.gather(first, bed.make("c"))

    assert bed.loop.run(work()) == ["a", "c"]
    bed.check()


# -- leases ---------------------------------------------------------------------------------------------------


def test_shared_leases_are_granted_once_for_all(bed: Bed) -> None:
    """And the request is repeated whole."""

    async def work() -> list[Any]:
        before = asyncio.ensure_future(bed.make("first"))
        await asyncio.sleep(1.2)
        assert await before == "first"
        bed.etcd.leases = False
        again = asyncio.ensure_future(bed.make("again"))
        await asyncio.sleep(0.5)
        answers = await asyncio.gather(*map(bed.make, "abc"))
        return [await again, *answers]

    assert bed.loop.run(work()) == ["again", "a", "b", "c"]
    assert len(bed.etcd.granted) == 2, "one for claims and one for results"
    assert bed.etcd.requests == [["first"], ["again"], ["again"], ["a", "b", "c"]]


def test_missing_lease_of_one_is_the_answer_to_that_one(bed: Bed) -> None:
    """A registration that is gone concerns no result."""

    def lacks(parts: Sequence[Txn]) -> None:
        if "b" in bed.etcd.names(parts):
            raise clearly(LeaseGone("gone"))

    bed.etcd.check = lacks
    assert bed.all(*map(bed.make, "abcd")) == ["a", None, "c", "d"]


# -- defects --------------------------------------------------------------------------------------------------


def test_defect_ends_the_daemon(bed: Bed) -> None:
    """It is no error of etcd, and nobody waits for ever."""
    bed.etcd.errors = [KeyError("defect")]

    async def work() -> None:
        making = asyncio.ensure_future(bed.make("a"))
        await asyncio.sleep(2.0)
        assert not making.done()
        making.cancel()

    bed.loop.run(work())
    with pytest.raises(KeyError):
        bed.check()
