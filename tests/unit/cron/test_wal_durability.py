"""The write-ahead log after power loss and kills, and shared by threads: what was promised is there."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conch.cron.wal import Record, Wal
from tests.support.wal import FIRST_TWO, SEGMENT, Opener, failing, files, fresh, seqs, three_records


class Disk:
    """What a machine that loses power would find: of a file what was last synced, of a folder its names then."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.files: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.failures = 0
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self.sync)

    def sync(self, fd: int) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise OSError(errno.EIO, "no sync")
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path == self.folder:
            self.names = {child.name: child.stat().st_ino for child in path.iterdir()}
        elif path.parent == self.folder:
            self.files[os.fstat(fd).st_ino] = path.read_bytes()

    def after_power_loss(self, parent: Path) -> Path:
        return fresh(parent, {name: self.files.get(inode, b"") for name, inode in self.names.items()})


def test_power_loss_after_any_append_loses_nothing_that_was_promised(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and folder are synced before append returns, over rotations, truncations, failures and restarts."""
    folder = fresh(tmp_path, {})
    disk = Disk(folder, monkeypatch)
    wal = opened(folder, segment_bytes=200)
    promised: dict[int, bytes] = {}
    truncated = 0
    for i in range(60):
        if i % 7 == 3:
            disk.failures = i % 3 + 1
        data = b"%d" % i * 10
        try:
            promised[wal.append(data)] = data
        except OSError:
            pass
        disk.failures = 0
        if i % 10 == 5:
            truncated = max(promised) - 3
            wal.truncate(truncated)
        if i % 20 == 11:
            wal = opened(folder, segment_bytes=200)
        restarted = opened(disk.after_power_loss(tmp_path))
        found = {record.seq: record.data for record in restarted.replay()}
        assert restarted.damage == ""
        assert {k: v for k, v in promised.items() if k > truncated} == {k: v for k, v in found.items() if k > truncated}
        assert found.items() <= promised.items()
        assert restarted.next_seq > max(promised)


def test_clean_close_makes_the_truncation_durable(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that not even a later power loss shows the records again."""
    folder = fresh(tmp_path, {})
    disk = Disk(folder, monkeypatch)
    wal = opened(folder)
    for _ in range(3):
        wal.append(b"x")
    wal.truncate(2)
    assert seqs(opened(disk.after_power_loss(tmp_path))) == [1, 2, 3]
    wal.close()
    assert seqs(opened(disk.after_power_loss(tmp_path))) == [3]


def test_what_a_killed_process_had_not_synced_is_durable_before_it_is_shown(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the kernel's memory, so replay shows it: then it may not go away any more."""
    data, _ = three_records(opened, tmp_path / "original")
    folder = fresh(tmp_path, {SEGMENT: data})
    disk = Disk(folder, monkeypatch)
    assert seqs(opened(folder)) == [1, 2, 3]
    assert seqs(opened(disk.after_power_loss(tmp_path))) == [1, 2, 3]


def test_power_loss_after_damage_was_put_aside_loses_nothing(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is kept nor what people may want to see."""
    data, _ = three_records(opened, tmp_path / "original")
    folder = fresh(tmp_path, {SEGMENT: data[:-1] + b"X"})
    disk = Disk(folder, monkeypatch)
    wal = opened(folder)
    found = disk.after_power_loss(tmp_path)
    assert [path.read_bytes() for path in files(found, "*.damaged")] == [data[:-1] + b"X"]
    restarted = opened(found)
    assert (list(restarted.replay()), restarted.damage) == (FIRST_TWO, "")
    assert restarted.next_seq == wal.next_seq > 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_process_leaves_all_that_it_had_promised(tmp_path: Path, seed: int) -> None:
    """SIGKILL at a random moment, several times on the same log; every number it printed is in the replay."""
    luck = random.Random(seed)
    script = """
import sys, threading
from conch.cron.wal import Wal
wal = Wal(sys.argv[1], segment_bytes=2000)
assert not wal.damage, wal.damage
def work():
    while True:
        sys.stdout.write(f"{wal.append(b'x' * 200)}\\n")
        sys.stdout.flush()
for _ in range(3):
    threading.Thread(target=work).start()
"""
    printed: list[int] = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(luck.randrange(1, 150))]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        assert child.returncode == -signal.SIGKILL
        printed += [int(line) for line in lines if line.endswith(b"\n")]
        wal = Wal(str(tmp_path))
        found = seqs(wal)
        wal.close()
        assert wal.damage == ""
        assert set(printed) <= set(found)
        assert len(set(printed)) == len(printed)
        assert found == sorted(set(found))
        assert wal.next_seq > max(found)


def test_threads_share_syncs_and_each_gets_its_own_number(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads with 50 appends each: all are there, in fewer syncs than records."""
    wal = opened(segment_bytes=3000)
    syncs: list[int] = []
    real = os.fdatasync

    def counted(fd: int) -> None:
        syncs.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    got: list[tuple[int, bytes]] = []

    def work(name: int) -> None:
        for i in range(50):
            data = b"%d-%d" % (name, i)
            got.append((wal.append(data), data))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seq for seq, _ in got) == list(range(1, 401))
    assert [Record(seq, data) for seq, data in sorted(got)] == list(wal.replay()) == list(opened().replay())
    assert 0 < len(syncs) < 400


@pytest.mark.parametrize("fails", [False, True], ids=["good sync", "failed sync"])
def test_all_who_came_during_a_sync_share_the_next_one(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """One more for all seven; if it fails, it fails for all of them, and for none before."""
    wal = opened()
    entered, go_on = threading.Event(), threading.Event()
    syncs: list[int] = []
    real = os.fdatasync

    def gated(fd: int) -> None:
        syncs.append(fd)
        if len(syncs) == 1:
            entered.set()
            go_on.wait()
        elif len(syncs) == 2 and fails:
            raise OSError(errno.EIO, "no sync")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", gated)
    outcomes: list[int | None] = []

    def work() -> None:
        try:
            outcomes.append(wal.append(b"x"))
        except OSError:
            outcomes.append(None)

    threads = [threading.Thread(target=work) for _ in range(8)]
    threads[0].start()
    entered.wait()
    for thread in threads[1:]:
        thread.start()
    while len(wal._queue) < 7:
        threading.Event().wait(0.001)
    # Nobody shows or removes what is not durable yet, and both can be asked for meanwhile.
    wal.truncate(100)
    assert seqs(wal) == []
    go_on.set()
    for thread in threads:
        thread.join()
    kept = [1] if fails else list(range(1, 9))
    assert sorted(seq for seq in outcomes if seq is not None) == kept
    assert len(outcomes) == 8
    assert len(syncs) == (3 if fails else 2)  # the third is of the new segment
    assert seqs(wal) == seqs(opened()) == kept
    assert wal.append(b"later") == 9


def test_close_waits_for_appends_under_way(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end as they would have."""
    wal = opened()
    entered, go_on = threading.Event(), threading.Event()
    real = os.fdatasync

    def gated(fd: int) -> None:
        entered.set()
        go_on.wait()
        real(fd)

    monkeypatch.setattr(os, "fdatasync", gated)
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(wal.append(b"x"))) for _ in range(3)]
    threads[0].start()
    entered.wait()
    for thread in threads[1:]:
        thread.start()
    while len(wal._queue) < 2:
        threading.Event().wait(0.001)
    closer = threading.Thread(target=wal.close)
    closer.start()
    go_on.set()
    for thread in [*threads, closer]:
        thread.join()
    assert sorted(got) == [1, 2, 3]
    assert seqs(opened()) == [1, 2, 3]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append"] * 4 + ["truncate", "restart", "kill"]),
        st.integers(0, 120),
        st.sampled_from(["", "", "", "pwrite", "half", "fdatasync", "ftruncate", "roll", "unlink"]),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_life_of_a_log(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, str]]) -> None:
    """Appends on a failing disk, truncations, restarts and kills: always exactly what was promised and not removed."""
    folder = tmp_path_factory.mktemp("life")
    wals = [Wal(str(folder), segment_bytes=150)]
    promised: dict[int, bytes] = {}
    highest = removed = 0
    real = os.pwrite
    for step, amount, fault in steps:
        wal = wals[-1]
        if step == "append":
            with pytest.MonkeyPatch.context() as patch:
                if fault in ("fdatasync", "ftruncate"):
                    failing(patch, "fdatasync", 1)
                if fault in ("half", "ftruncate"):
                    half = amount // 2
                    failing(patch, "pwrite", 1, errno.ENOSPC, lambda fd, data, at, n=half: real(fd, data[:n], at))
                if fault == "ftruncate":
                    failing(patch, "ftruncate", 1)
                if fault in ("pwrite", "roll"):
                    failing(patch, "pwrite", 2 if fault == "roll" else 1)
                if fault == "unlink":
                    failing(patch, "fdatasync", 2)
                    failing(patch, "unlink", 5)
                expected = wal.next_seq
                data = bytes([amount]) * amount
                try:
                    seq = wal.append(data)
                except OSError:
                    assert fault
                else:
                    assert seq >= expected
                    assert fault or seq == expected
                    assert seq > highest
                    promised[seq] = data
                    highest = seq
        elif step == "truncate":
            wal.truncate(amount // 4)
            removed = max(removed, min(amount // 4, highest))
        else:
            if step == "restart":
                wal.close()
            wals.append(Wal(str(folder), segment_bytes=150))
            wal = wals[-1]
        assert {r.seq: r.data for r in wal.replay()} == {k: v for k, v in promised.items() if k > removed}
        assert wal.damage == ""
        assert wal.next_seq > highest
    for wal in wals:
        wal.close()
