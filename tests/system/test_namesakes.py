"""Two conchd of one name: copies of a machine or a state directory, or one host before and after a reboot."""

import json
import os
import shutil
import signal
import uuid
from pathlib import Path

import pytest

from conch.core.origin import Origin, origin, origin_of
from tests.support.conch import CONCH, Bench, Wrapper, alive, throughout, wait_for
from tests.support.cron import Fleet
from tests.support.host import Host

LONG = "echo $$ >> runs; exec sleep 1000"


class Elsewhere:
    """Starts conchd with other machine and boot ids, as if on another machine or after a reboot."""

    def __init__(self, folder: Path, *, machine: bool) -> None:
        self._binds = []
        for name, path, there in (
            ("boot", "/proc/sys/kernel/random/boot_id", True),
            ("machine", "/etc/machine-id", machine),
        ):
            if there and os.path.exists(path):
                own = folder / f"{name}-{uuid.uuid4().hex}"
                text = str(uuid.uuid4())
                own.write_text((text if name == "boot" else text.replace("-", "")) + "\n")
                self._binds.append(f"mount --bind {own} {path}")

    @property
    def program(self) -> list[str]:
        return ["unshare", "-m", "sh", "-c", f'{" && ".join(self._binds)} && exec "$@"', "sh", CONCH]


def copy_state(fleet: Fleet, to: str, *, as_an_image: bool = False) -> Path:
    """Copy the state of host a. A disk image also has the same inodes, which the id file names."""
    copy = fleet.state(to)
    shutil.copytree(fleet.state("a"), copy)
    copy.chmod(0o700)
    if as_an_image:
        name = copy / "id"
        name.write_text(json.dumps({**json.loads(name.read_text()), "inode": name.stat().st_ino}))
    return copy


def start_namesake(fleet: Fleet, copy: Path, **how: object) -> Wrapper:
    return fleet.bench.start("conchd", "--state-dir", str(copy), "--ttl", "3s", env={"CONCH_HOST": "a"}, **how)


def kill_both(daemon: Wrapper) -> None:
    """SIGKILL the supervisor and its keeper, so that neither releases anything."""
    keeper = daemon.keeper()
    os.kill(keeper, signal.SIGSTOP)
    daemon.signal(signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    daemon.process.wait()


def in_flight(fleet: Fleet, overlap: str) -> tuple[Wrapper, int, int]:
    """Start a daemon with a run; return the daemon, the tick and the run's process."""
    daemon = fleet.start("a", "--ttl", "3s")
    fleet.add("j", "@yearly", "--overlap", overlap, command=LONG)
    tick = fleet.run_now("j")
    return daemon, tick, int(fleet.bench.read("runs").split()[0])


@pytest.mark.parametrize("overlap", ["forbid", "allow"])
@pytest.mark.parametrize("where", ["here", "another boot", "another machine"])
def test_copy_of_a_living_host_takes_nothing_from_it(fleet: Fleet, where: str, overlap: str) -> None:
    """No lease is revoked, no run killed, no result `lost`; the copy names the original and waits until it ends."""
    daemon, tick, pid = in_flight(fleet, overlap)
    copy = copy_state(fleet, "copy", as_an_image=where == "another boot")
    elsewhere = Elsewhere(fleet.bench.folder, machine=where == "another machine")
    how = {} if where == "here" else {"program": elsewhere.program}
    before = fleet.registration("a")
    namesake = start_namesake(fleet, copy, **how)
    line = namesake.wait_event("name-taken")
    assert f"pid {daemon.pid}" in line["by"]
    assert f"pid {namesake.pid}" in line["here"]
    assert "boot" in line["by"]
    if where != "another boot":  # nothing on the disk distinguishes this case from a reboot
        assert namesake.events("state-copied")
        assert namesake.wait_event("runs-left")["runs"] == "1"
        assert json.loads((copy / "id").read_text())["id"] != json.loads((fleet.state("a") / "id").read_text())["id"]

    def undisturbed() -> None:
        assert fleet.registration("a") == before
        assert alive(pid)
        assert fleet.value("result", "j", tick) is None
        assert (fleet.value("run", "j") is not None) == (overlap == "forbid")

    throughout(5.0, undisturbed)  # longer than a lease, and than the delay before the next try
    assert len(namesake.events("name-taken")) == 1
    assert not daemon.events("registration-lost", "name-taken")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert fleet.result("j", tick)["state"] == "killed"
    namesake.wait_event("registered")
    throughout(1.0, lambda: None)
    assert fleet.result("j", tick)["state"] == "killed", "it is the original that concluded it"


def test_run_of_a_living_boot_under_another_name_is_not_lost(fleet: Fleet) -> None:
    """A copied disk image gets a new name but keeps its machine ids: only the original records the result."""
    daemon, tick, pid = in_flight(fleet, "allow")
    copy = copy_state(fleet, "copy", as_an_image=True)
    renamed = fleet.bench.start(
        "conchd",
        "--state-dir",
        str(copy),
        "--ttl",
        "2s",
        env={"CONCH_HOST": "b"},
        program=Elsewhere(fleet.bench.folder, machine=False).program,
    )
    renamed.wait_event("registered")

    def undisturbed() -> None:
        assert alive(pid)
        assert fleet.value("result", "j", tick) is None

    throughout(6.0, undisturbed)  # longer than it waits for dead hosts
    for one in (daemon, renamed):  # the original registers again, the copy checks again which hosts live
        count = len(one.events("registered"))
        os.kill(one.keeper(), signal.SIGKILL)
        one.wait_event("registered", count + 1)
    throughout(2.0, undisturbed)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert fleet.result("j", tick)["state"] == "killed"


def test_machine_that_was_resumed_from_a_snapshot_of_the_originals_memory(conch: Bench, tmp_path: Path) -> None:
    """Boot, pid and state are the same in both: neither takes over the other's registration."""
    one = Host(conch, "a", tmp_path / "one")
    one.wait_event("registered")
    two = Host(conch, "a", tmp_path / "two")
    two.wait_event("name-taken")
    throughout(3.0, lambda: None)
    assert not one.events("registration-lost")
    assert not two.events("registered")
    one.close()
    two.wait_event("registered")
    two.close()


@pytest.mark.parametrize("overlap", ["forbid", "allow"])
def test_rebooted_host_waits_for_its_old_lease(fleet: Fleet, overlap: str) -> None:
    """It may be a copy whose original lives: only when the old lease has expired is the run `lost`."""
    daemon, tick, pid = in_flight(fleet, overlap)
    before = fleet.registration("a")
    kill_both(daemon)
    again = start_namesake(fleet, fleet.state("a"), program=Elsewhere(fleet.bench.folder, machine=False).program)
    again.wait_event("name-taken")
    throughout(1.0, lambda: None)
    ended = fleet.value("result", "j", tick)
    assert ended is None or fleet.registration("a") != before
    again.wait_event("registered")
    assert not again.events("state-copied", "runs-left")
    assert fleet.result("j", tick)["state"] == "lost"
    wait_for(lambda: fleet.value("run", "j") is None, "the run key is gone")
    wait_for(lambda: not alive(pid), "the run is gone")


def test_crashed_daemon_is_succeeded_at_once(fleet: Fleet) -> None:
    """The lock of the state directory, the boot id, the pid and its start time prove that it is dead."""
    daemon = fleet.start("a", "--ttl", "60s")
    kill_both(daemon)
    fleet.start("a", "--ttl", "60s")
    assert not fleet.daemons["a"].events("name-taken")


def test_keeper_that_died_is_succeeded_at_once(fleet: Fleet) -> None:
    """The registration belongs to the same conchd, although nothing ran under it."""
    daemon = fleet.start("a", "--ttl", "60s")
    for count in (2, 3):
        os.kill(daemon.keeper(), signal.SIGKILL)
        daemon.wait_event("registered", count)
    assert not daemon.events("name-taken")


def test_state_directory_of_the_release_before_is_taken_up(fleet: Fleet) -> None:
    """Its id file has fewer fields; the directory is no copy and keeps its id."""
    state = fleet.state("a")
    state.mkdir(mode=0o700)
    (state / "id").write_text(f"0123456789abcdef {fleet.bench.prefix}\n")
    (state / "id").chmod(0o600)
    daemon = fleet.start("a")
    assert json.loads((state / "id").read_text())["id"] == "0123456789abcdef"
    assert not daemon.events("state-copied")
    node = fleet.node("a")
    assert node is not None
    assert node["state"] == "0123456789abcdef"


def test_moved_or_restored_directory_is_a_new_one(fleet: Fleet) -> None:
    """Results of ended runs are still delivered; unfinished runs are left to their owner."""
    daemon, tick, _ = in_flight(fleet, "allow")
    kill_both(daemon)
    copy = copy_state(fleet, "b")
    second = fleet.bench.start("conchd", "--state-dir", str(copy), env={"CONCH_HOST": "b"})
    second.wait_event("registered")
    assert second.events("state-copied")
    throughout(1.0, lambda: None)
    assert fleet.value("result", "j", tick) is None
    fleet.start("a", "--ttl", "3s")
    assert fleet.result("j", tick)["state"] == "lost"


HERE = origin(os.getpid())


def changed(**fields: object) -> Origin:
    found = origin_of({**HERE.fields(), **fields})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("who", "dead"),
    [
        (HERE, False),
        (changed(start=HERE.start - 1), True),  # another process has its pid now
        (changed(pid=2**22 + 1), True),
        (changed(pid=2**22 + 1, boot="other"), False),
        (changed(pid=2**22 + 1, namespace="pid:[1]"), False),
        (changed(pid=2**22 + 1, machine="other", hardware="other"), HERE.machine == HERE.hardware == ""),
        (changed(pid=2**22 + 1, machine=""), True),
        (changed(pid=2**22 + 1, boot=""), False),
    ],
)
def test_only_what_is_of_this_boot_can_be_proved_dead(who: Origin, dead: bool) -> None:
    """It must be of this boot and no longer running."""
    assert who.proved_dead(HERE) is dead


def test_hardware_tells_machines_apart_and_else_their_ids() -> None:
    """Where /etc is read-only, the machine id may change at each boot."""
    known = changed(machine="m", hardware="h")
    assert known.same_machine(changed(machine="n", hardware="h"))
    assert not known.same_machine(changed(machine="m", hardware="i"))
    assert not known.same_machine(changed(machine="n", hardware=""))
    assert known.same_machine(changed(machine="", hardware=""))


@pytest.mark.parametrize("junk", [None, 5, [], "x", {}, {**HERE.fields(), "pid": "1"}, {**HERE.fields(), "start": -1}])
def test_junk_is_no_origin(junk: object) -> None:
    """Anybody may write a registration."""
    assert origin_of(junk) is None
    assert origin_of(HERE.fields()) == HERE
