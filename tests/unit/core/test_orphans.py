"""Which run an orphan belongs to: by its environment, and what one look at it does not yet say."""

import os
import random
from typing import Any

import pytest

from conch.core import clock, procfs
from conch.core.orphans import SCAN_PAUSE_S, Orphans, reap_zombie
from conch.core.procfs import Stat, descendants

ME, KEEPER = 100, 101
MAIN, ORPHAN = 200, 300


def entry(pid: int, *, parent: int = ME, group: int = 0, state: str = "S", start: int = 5) -> Stat:
    return Stat(pid, state, parent, group or pid, 1, start)


class Bed:
    """The orphans of a conchd with the runs `a` and `b`; `environments` has the run ids that processes show."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *before: Stat) -> None:
        self.time = 1000.0
        self.environments: dict[int, list[str] | None] = {}
        self.asked: list[int] = []
        self.reaped: list[int] = []
        self.runs = {"a", "b"}
        self.run_of_pid = {MAIN: "a"}
        monkeypatch.setattr(os, "getpid", lambda: ME)
        monkeypatch.setattr(os, "waitpid", self._waitpid)
        monkeypatch.setattr(clock, "now", lambda: self.time)
        monkeypatch.setattr(procfs, "processes", lambda: {found.pid: found for found in before})
        monkeypatch.setattr(procfs, "run_ids_of", self._run_ids_of)
        self.orphans = Orphans(self.runs, self.run_of_pid, lambda: KEEPER)

    def _run_ids_of(self, pid: int) -> list[str] | None:
        self.asked.append(pid)
        return self.environments[pid]

    def _waitpid(self, pid: int, _options: int) -> tuple[int, int]:
        self.reaped.append(pid)
        raise ChildProcessError

    def scan(self, *found: Stat, after_s: float = 0.0) -> bool:
        self.time += after_s
        return self.orphans.attribute({one.pid: one for one in found})

    def run_of(self, one: Stat) -> str | None:
        """The one run that does not exclude it."""
        owners = [run for run in ("a", "b") if not self.orphans.excluded(one, run)]
        assert len(owners) <= 1
        return owners[0] if owners else None


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    return Bed(monkeypatch)


@pytest.mark.parametrize(
    ("run_ids", "owner"),
    [
        (["a"], "a"),
        (["b"], "b"),
        (["outer", "b"], "b"),  # a conchd within a run of another one
        (["b", "a"], "b"),
        (["over"], None),
        ([], None),
    ],
)
def test_orphan_belongs_to_the_run_in_its_environment(bed: Bed, run_ids: list[str], owner: str | None) -> None:
    bed.environments[ORPHAN] = run_ids
    assert bed.scan(entry(ORPHAN))
    assert bed.run_of(entry(ORPHAN)) == owner


@pytest.mark.parametrize(
    ("one", "owner"),
    [
        (entry(MAIN), "a"),
        (entry(MAIN, group=ME), "a"),  # just forked
        (entry(ORPHAN, group=MAIN), "a"),  # it is in a run's group still
        (entry(ORPHAN, parent=MAIN), "any"),  # no child of ours: its ancestor says what it belongs to
        (entry(KEEPER), None),
    ],
    ids=["main process", "without its group", "in its group", "no child of ours", "keeper"],
)
def test_what_needs_no_look_at_its_environment(bed: Bed, one: Stat, owner: str | None) -> None:
    assert bed.scan(one)
    assert bed.asked == []
    if owner == "any":
        assert not bed.orphans.excluded(one, "a")
        assert not bed.orphans.excluded(one, "b")
    else:
        assert bed.run_of(one) == owner


def test_child_from_before_is_no_run_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `job & exec conchd …`; a later process of that pid is another one."""
    bed = Bed(monkeypatch, entry(ORPHAN, start=5), entry(ORPHAN + 1, parent=ORPHAN))
    bed.environments = {ORPHAN: ["a"], ORPHAN + 1: ["a"]}
    assert bed.scan(entry(ORPHAN, start=5), entry(ORPHAN + 1))
    assert bed.asked == []
    assert bed.run_of(entry(ORPHAN, start=5)) is None
    assert bed.scan(entry(ORPHAN, start=6))
    assert bed.run_of(entry(ORPHAN, start=6)) == "a"


def test_owner_is_remembered(bed: Bed) -> None:
    """A process may wipe its environment later. Of another one with its pid nothing is known."""
    bed.environments[ORPHAN] = ["a"]
    bed.scan(entry(ORPHAN))
    bed.environments[ORPHAN] = None
    assert bed.scan(entry(ORPHAN))
    assert bed.asked == [ORPHAN]
    assert bed.run_of(entry(ORPHAN)) == "a"
    assert bed.run_of(entry(ORPHAN, start=6)) is None
    bed.scan()
    assert bed.run_of(entry(ORPHAN)) is None


def test_orphan_of_no_run_is_looked_at_again(bed: Bed) -> None:
    """It may be in exec, between two environments."""
    bed.environments[ORPHAN] = []
    assert bed.scan(entry(ORPHAN))
    bed.environments[ORPHAN] = ["b"]
    assert bed.scan(entry(ORPHAN))
    assert bed.run_of(entry(ORPHAN)) == "b"


def test_zombie_makes_the_scan_unclear(bed: Bed) -> None:
    """What it forked last may be missing in this scan. It is reaped."""
    bed.environments[ORPHAN] = ["a"]
    assert not bed.scan(entry(ORPHAN + 1, state="Z"), entry(ORPHAN))
    assert bed.reaped == [ORPHAN + 1]
    assert bed.run_of(entry(ORPHAN)) == "a"  # the others are attributed all the same
    assert bed.scan(entry(ORPHAN))


@pytest.mark.parametrize(
    ("after_s", "clear"), [(0.0, False), (SCAN_PAUSE_S / 2, False), (SCAN_PAUSE_S * 1.01, True), (5.0, True)]
)
def test_process_without_an_environment(bed: Bed, after_s: float, clear: bool) -> None:
    """Just in exec it shows none for an instant; one that shows none for longer has wiped it, and is no run's."""
    bed.environments[ORPHAN] = None
    assert not bed.scan(entry(ORPHAN))
    assert bed.scan(entry(ORPHAN), after_s=after_s) is clear
    assert bed.run_of(entry(ORPHAN)) is None


def test_pause_begins_anew_for_another_process_of_that_pid(bed: Bed) -> None:
    bed.environments[ORPHAN] = None
    bed.scan(entry(ORPHAN, start=5))
    assert not bed.scan(entry(ORPHAN, start=6), after_s=1.0)
    assert bed.scan(entry(ORPHAN, start=6), after_s=1.0)


def test_one_unclear_process_is_enough(bed: Bed) -> None:
    """Whatever comes after it in the scan."""
    bed.environments.update({ORPHAN: None, ORPHAN + 1: ["a"], ORPHAN + 2: None})
    bed.scan(entry(ORPHAN + 2))
    assert not bed.scan(entry(ORPHAN), entry(ORPHAN + 1), entry(ORPHAN + 2), after_s=1.0)


def test_runs_that_begin_and_end_are_known_at_once(bed: Bed) -> None:
    """The caller's own collections are read."""
    bed.environments[ORPHAN] = ["c"]
    bed.runs.add("c")
    bed.run_of_pid[MAIN + 1] = "c"
    bed.scan(entry(ORPHAN))
    assert not bed.orphans.excluded(entry(ORPHAN), "c")
    assert not bed.orphans.excluded(entry(MAIN + 1), "c")
    del bed.run_of_pid[MAIN + 1]
    assert bed.orphans.excluded(entry(MAIN + 1), "c")


def test_proc_that_cannot_be_read_is_told(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller must not take anything for clear."""

    def full(pid: int) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(procfs, "run_ids_of", full)
    with pytest.raises(OSError, match="Too many open files"):
        bed.scan(entry(ORPHAN))


def test_zombie_that_is_reaped_already_is_none() -> None:
    """Or that is another process's child."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    reap_zombie(entry(pid))
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    reap_zombie(entry(pid))


@pytest.mark.parametrize("seed", range(20))
def test_trees_of_all_runs_at_once_are_those_of_each(seed: int) -> None:
    """Main processes, orphans known by their run, processes in a run's group and strangers, with descendants of all."""
    here, chance = os.getpid(), random.Random(seed)
    mains = {pid: f"run{pid}" for pid in range(1_000_001, 1_000_006)}
    orphans = Orphans(set(mains.values()), mains, lambda: None)
    scan = {pid: Stat(pid, "S", here, pid, 1, 1) for pid in mains}
    for pid in range(1_000_010, 1_000_060):
        parent = chance.choice((here, 1, *scan))
        group = chance.choice((pid, *mains, *scan))
        scan[pid] = Stat(pid, chance.choice("SZ"), parent, group, 1, 1)
        orphans._run_of_orphan[pid, 1] = chance.choice((None, *mains.values()))
    trees = orphans.trees(scan)
    for run in mains.values():
        alone = descendants(here, scan, lambda entry, run=run: orphans.excluded(entry, run))  # type: ignore[misc]
        assert sorted(entry.pid for entry in trees[run]) == sorted(entry.pid for entry in alone)
    assert set(trees) == set(mains.values())
