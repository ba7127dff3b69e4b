"""Which run each process below conchd belongs to."""

import os
import random

import pytest

from conch.core.orphans import Orphans
from conch.core.procfs import Stat, descendants

ME = os.getpid()


@pytest.mark.parametrize("seed", range(20))
def test_trees_of_all_runs_at_once_are_those_of_each(seed: int) -> None:
    """Main processes, orphans known by their run, processes in a run's group and strangers, with descendants of all."""
    chance = random.Random(seed)
    mains = {pid: f"run{pid}" for pid in range(1_000_001, 1_000_006)}
    orphans = Orphans(set(mains.values()), mains, lambda: None)
    scan = {pid: Stat(pid, "S", ME, pid, 1, 1) for pid in mains}
    for pid in range(1_000_010, 1_000_060):
        parent = chance.choice((ME, 1, *scan))
        group = chance.choice((pid, *mains, *scan))
        scan[pid] = Stat(pid, chance.choice("SZ"), parent, group, 1, 1)
        orphans._run_of_orphan[pid, 1] = chance.choice((None, *mains.values()))
    trees = orphans.trees(scan)
    for run in mains.values():
        alone = descendants(ME, scan, lambda entry, run=run: orphans.excluded(entry, run))  # type: ignore[misc]
        assert sorted(entry.pid for entry in trees[run]) == sorted(entry.pid for entry in alone)
    assert set(trees) == set(mains.values())
