"""The processes of a run: how its main process ended, whom a signal reaches, and when nothing is left.

`tests/system/test_process.py` has the trees that fork and escape, each in a process of its own.
"""

import marshal
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from conch.core import process_tree
from conch.core.process_tree import Process, nothing_lives, reap_orphans
from conch.core.procfs import Stat
from tests.support.conch import wait_for

ME, MAIN = 100, 200
TERM, KILL = signal.SIGTERM, signal.SIGKILL


def entry(pid: int, *, parent: int = MAIN, group: int = MAIN, state: str = "S") -> Stat:
    return Stat(pid, state, parent, group, 1, 5)


def by_pid(*entries: Stat) -> dict[int, Stat]:
    return {found.pid: found for found in entries}


# -- the main process -----------------------------------------------------------------------------------------


class Child:
    """A real process, the main one of a tree; `heard` is what it was sent through its gate."""

    def __init__(self, script: str, **options: Any) -> None:
        self.gate, gate = os.pipe()
        errors, self.errors = os.pipe()
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], {"PATH": "/bin:/usr/bin"}, **options)
        self.process = Process(pid, "r", gate, errors, lambda one: False, None, 7.5, False)
        self.reaped = False

    def ended(self) -> Process:
        wait_for(lambda: self.process.exit_code() is not None, "the end")
        return self.process

    def heard(self) -> bytes:
        length = int.from_bytes(os.read(self.gate, 4))
        data = b""
        while len(data) < length:
            data += os.read(self.gate, length - len(data))
        assert os.read(self.gate, 1) == b"", "the gate is closed"
        return data

    def close(self) -> None:
        if not self.reaped:
            os.kill(self.process.pid, KILL)
            self.process.reap()
        os.close(self.gate)
        os.close(self.errors)


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(script: str, **options: Any) -> Child:
        children.append(Child(script, **options))
        return children[-1]

    yield start
    for one in children:
        one.close()


@pytest.mark.parametrize(
    ("script", "code", "died_of"), [("exit 0", 0, None), ("exit 143", 143, None), ("kill -TERM $$", 143, TERM)]
)
def test_end(child: Callable[..., Child], script: str, code: int, died_of: int | None) -> None:
    """As a shell shows it; only `died_of` tells a signal from an exit code. Asking does not reap."""
    process = child(script).ended()
    assert [process.exit_code(), process.exit_code()] == [code, code]
    assert process.died_of() == died_of


def test_process_that_lives_has_not_ended(child: Callable[..., Child]) -> None:
    process = child("exec sleep 100").process
    assert (process.exit_code(), process.died_of()) == (None, None)


def test_reaped_process_is_gone(child: Callable[..., Child]) -> None:
    one = child("exit 0")
    one.ended().reap()
    one.reaped = True
    with pytest.raises(ChildProcessError):
        one.process.exit_code()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTSTP])
def test_stop_is_told_once(child: Callable[..., Child], number: int) -> None:
    process = child("while :; do sleep 0.01; done").process
    assert process.stopped_by() is None
    os.kill(process.pid, number)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert process.stopped_by() == number
    assert process.stopped_by() is None


def test_process_that_has_ended_was_not_stopped(child: Callable[..., Child]) -> None:
    assert child("exit 0").ended().stopped_by() is None


@pytest.mark.parametrize("text", ["", "too late", "gr\xfc\xdfe"])
def test_exec_error(child: Callable[..., Child], text: str) -> None:
    one = child("exit 126")
    os.write(one.errors, text.encode("latin-1"))
    os.close(one.errors)
    assert one.ended().exec_error() == (text.encode("latin-1").decode("utf-8", "replace") or None)
    one.errors = os.open("/dev/null", os.O_RDONLY)


# -- the gate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1 << 20], ids=["small", "larger than a pipe"])
def test_gate_sends_what_was_found_out_meanwhile(child: Callable[..., Child], size: int) -> None:
    one = child("exec sleep 100")
    one.process.environment["CONCH_REV"] = "x" * size
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(one.heard()), daemon=True)
    reader.start()
    one.process.open_gate()
    reader.join(20)
    assert marshal.loads(heard[0]) == (7.5, {"CONCH_REV": "x" * size})  # noqa: S302 - our own


def test_gate_of_a_process_that_is_dead(child: Callable[..., Child]) -> None:
    """Its end is seen like any other."""
    one = child("exit 0")
    os.close(one.gate)
    one.process.open_gate()
    one.gate = os.open("/dev/null", os.O_RDONLY)


def test_discarded_process_never_runs(child: Callable[..., Child]) -> None:
    one = child("exec sleep 100")
    one.process.discard()
    one.reaped = True
    assert os.read(one.gate, 1) == b""
    with pytest.raises(ProcessLookupError):
        os.kill(one.process.pid, 0)


def test_untouched(child: Callable[..., Child]) -> None:
    """A signal that waits behind the gate would be the command's."""
    assert child("exec sleep 100").process.untouched()
    blocked = child("exec sleep 100", setsigmask=[TERM])
    os.kill(blocked.process.pid, TERM)
    assert not blocked.process.untouched()
    assert not child("exit 0").ended().untouched()


@pytest.mark.parametrize("number", [TERM, KILL])
def test_signal_to_the_group(child: Callable[..., Child], number: int) -> None:
    """Or to the process alone that has not made its group yet; what has ended is none of it."""
    for options in ({"setpgroup": 0}, {}):
        process = child("exec sleep 100", **options).process
        process.signal_group(number)
        wait_for(lambda process=process: process.died_of() == number, "its end")  # type: ignore[misc]
        process.signal_group(number)


# -- the tree -------------------------------------------------------------------------------------------------


class Tree:
    """A tree in a /proc of the test's own: whom a signal reaches. `strange` are children that are not part of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *strange: int, some_hidden: bool = False) -> None:
        self.sent: list[tuple[str, int, int]] = []
        self.refusing: set[int] = set()
        self.gone: set[int] = set()
        self.found: dict[int, Stat] = {}
        self.code: int | None = None
        monkeypatch.setattr(os, "getpid", lambda: ME)
        monkeypatch.setattr(os, "kill", self._kill)
        monkeypatch.setattr(os, "killpg", lambda group, number: self._send("group", group, number))
        monkeypatch.setattr(process_tree, "signal_exactly", lambda one, number: self._send("process", one.pid, number))
        monkeypatch.setattr(process_tree, "processes", lambda: self.found)
        monkeypatch.setattr(Process, "exit_code", lambda _: self.code)
        self.process = Process(MAIN, "r", -1, -1, lambda one: one.pid in strange, None, None, some_hidden)

    def _kill(self, pid: int, number: int) -> None:
        if number:
            self._send("pid", pid, number)
        elif pid in self.gone:
            raise ProcessLookupError
        elif pid in self.refusing:
            raise PermissionError

    def _send(self, to: str, whom: int, number: int) -> None:
        self.sent.append((to, whom, number))
        if whom in self.gone:
            raise ProcessLookupError
        if whom in self.refusing:
            raise PermissionError


MAIN_ENTRY = entry(MAIN, parent=ME)
OTHER = entry(900, parent=1, group=900)


def test_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """All descendants, whatever their groups, and orphans; not the main process, nor what is below a foreign child."""
    tree = Tree(monkeypatch, 300)
    scan = by_pid(
        MAIN_ENTRY,
        entry(201),
        entry(202, parent=201, group=202),
        entry(250, parent=ME, group=250),
        entry(300, parent=ME, group=300),
        entry(301, parent=300, group=301),
        OTHER,
    )
    assert sorted(found.pid for found in tree.process.members(scan)) == [201, 202, 250]


@pytest.mark.parametrize(
    ("escaped", "sent"),
    [
        ([], []),
        # a group of its own: all of it, with what it forks meanwhile
        ([entry(202, group=202), entry(203, parent=202, group=202)], [("group", 202, TERM)]),
        # a group in which others are, too: each by itself, but none that only waits to be reaped
        (
            [entry(202, group=900), entry(203, group=900), entry(204, group=900, state="Z")],
            [("process", 202, TERM), ("process", 203, TERM)],
        ),
        # the group of a foreign child is shared with it
        ([entry(202, group=300)], [("process", 202, TERM)]),
        ([entry(301, parent=300, group=301)], []),
    ],
)
def test_whom_a_signal_reaches_that_left_the_group(
    monkeypatch: pytest.MonkeyPatch, escaped: list[Stat], sent: list[tuple[str, int, int]]
) -> None:
    """Never anybody who is not part of the tree."""
    tree = Tree(monkeypatch, 300)
    foreign = entry(300, parent=ME, group=300)
    tree.found = by_pid(MAIN_ENTRY, entry(201), foreign, OTHER, *escaped)
    tree.process.signal_tree(TERM)
    assert tree.sent == [("group", MAIN, TERM), *sent]


@pytest.mark.parametrize("kind", ["gone", "refusing"])
def test_group_that_cannot_be_signalled_does_not_spare_the_others(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    tree = Tree(monkeypatch)
    tree.found = by_pid(MAIN_ENTRY, entry(202, group=202), entry(203, group=203))
    getattr(tree, kind).update({MAIN, 202})
    tree.process.signal_tree(TERM)
    assert {whom for to, whom, _ in tree.sent if to == "group"} == {MAIN, 202, 203}


def test_proc_that_cannot_be_read_spares_the_escaped_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill is repeated."""
    tree = Tree(monkeypatch)
    monkeypatch.setattr(process_tree, "processes", raising(OSError(24, "Too many open files")))
    tree.process.signal_tree(KILL)
    assert tree.sent == [("group", MAIN, KILL)]


def test_refusals_are_told_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a SIGKILL only: a process may ignore the other signals as well. What ended meanwhile refuses nothing."""
    tree = Tree(monkeypatch)
    tree.found = by_pid(MAIN_ENTRY, entry(202), entry(203), entry(204, group=204), OTHER)
    tree.refusing, tree.gone = {202, 204, 900}, {203}
    tree.process.signal_tree(TERM)
    assert tree.process.refused() == []
    tree.process.signal_tree(KILL)
    assert tree.process.refused() == [202, 204]
    tree.process.signal_tree(KILL)
    assert tree.process.refused() == []
    tree.refusing.add(203)
    tree.gone.clear()
    tree.process.signal_tree(KILL)
    assert tree.process.refused() == [203]


def raising(error: Exception) -> Callable[[], Mapping[int, Stat]]:
    def call() -> Mapping[int, Stat]:
        raise error

    return call


# -- when nothing is left -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kernel", "hidden", "left", "empty"),
    [
        (None, True, False, [], False),  # the main process lives
        (0, True, False, [entry(201)], True),  # the kernel's word counts
        (0, True, True, [], True),
        (0, False, False, [], True),  # what lives is not part of it
        (0, False, False, [entry(201)], False),
        (0, False, False, [entry(250, parent=ME, group=250)], False),
        (0, False, True, [], False),  # what /proc does not show may live
    ],
)
def test_empty(
    monkeypatch: pytest.MonkeyPatch, code: int | None, kernel: bool, hidden: bool, left: list[Stat], empty: bool
) -> None:
    tree = Tree(monkeypatch, some_hidden=hidden)
    tree.code, tree.found = code, by_pid(MAIN_ENTRY, OTHER, *left)
    monkeypatch.setattr(process_tree, "nothing_lives", lambda: kernel)
    assert tree.process.empty() is empty


def scans(monkeypatch: pytest.MonkeyPatch, *found: list[Stat]) -> tuple[Tree, list[int]]:
    """A tree that each scan shows otherwise, the last one for ever; and the pids that were reaped."""
    tree, left, reaped = Tree(monkeypatch), list(found), list[int]()
    tree.code = 0

    def waitpid(pid: int, _options: int) -> None:
        reaped.append(pid)
        raise ChildProcessError

    def scan() -> dict[int, Stat]:
        return by_pid(MAIN_ENTRY, *(left.pop(0) if len(left) > 1 else left[0]))

    monkeypatch.setattr(process_tree, "nothing_lives", lambda: False)
    monkeypatch.setattr(process_tree, "processes", scan)
    monkeypatch.setattr(os, "waitpid", waitpid)
    return tree, reaped


def test_zombies_need_another_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they forked last may have been missed. They are reaped."""
    zombies = [entry(201, state="Z"), entry(202, state="Z")]
    tree, reaped = scans(monkeypatch, zombies, zombies[:1], [])
    assert tree.process.empty()
    assert reaped == [201, 202, 201]


def test_child_of_a_zombie_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, reaped = scans(monkeypatch, [entry(201, state="Z")], [entry(202)])
    assert not tree.process.empty()
    assert reaped == [201]


def test_zombie_beside_one_that_lives_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not asked for how it ended."""
    tree, reaped = scans(monkeypatch, [entry(201, state="Z"), entry(202)])
    assert not tree.process.empty()
    assert reaped == []


def test_zombies_without_end_are_not_taken_for_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor scanned for ever."""
    tree, reaped = scans(monkeypatch, [entry(201, state="Z")])
    assert not tree.process.empty()
    assert 1 < len(reaped) < 1000


def test_proc_that_cannot_be_read_shows_no_empty_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, _ = scans(monkeypatch, [])
    monkeypatch.setattr(process_tree, "processes", raising(OSError(24, "Too many open files")))
    assert not tree.process.empty()


def test_child_that_lives_is_seen_by_the_kernel(child: Callable[..., Child]) -> None:
    child("exec sleep 100")
    assert not nothing_lives()


def test_another_thread_proves_nothing() -> None:
    """The kernel is asked for the children of the thread that asks: only the first one has orphans."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(nothing_lives()))
    thread.start()
    thread.join()
    assert answers == [False]


# -- orphans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "kept", "reaped"),
    [
        ([], {1}, []),
        ([201, 202], {1}, [201, 202]),
        ([201, 202, 203], {202}, [201]),  # the rest is reaped once that one is
        ([201], {None, 201}, []),
    ],
)
@pytest.mark.parametrize("others", [True, False])
def test_orphans_that_have_ended_are_reaped(
    monkeypatch: pytest.MonkeyPatch, ended: list[int], kept: set[int | None], reaped: list[int], others: bool
) -> None:
    """The children in `kept` are not. Their results are read later; `others`: there are children that live."""
    left, done = list(ended), list[int]()

    def waitid(_kind: int, _id: int, options: int) -> Any:
        assert options & os.WNOWAIT
        if not left and not others:
            raise ChildProcessError
        return SimpleNamespace(si_pid=left[0]) if left else None

    def waitpid(pid: int, options: int) -> None:
        assert options & os.WNOHANG
        done.append(pid)
        left.remove(pid)

    monkeypatch.setattr(os, "waitid", waitid)
    monkeypatch.setattr(os, "waitpid", waitpid)
    reap_orphans(kept)
    assert done == reaped
