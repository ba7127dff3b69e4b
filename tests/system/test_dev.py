"""`conch dev`: a real etcd while a command runs, and nothing left afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conch.dev import Cluster, EtcdFailed
from tests.support.conch import CONCH, Bench, alive, children, marked, wait_for
from tests.support.etcdbin import release

RELEASES = ("3.4", "3.5.1", "3.5", "3.6", "3.7")


def binary(line: str) -> Path:
    """Return the etcd of a release; 3.5.1 is the one of conch's extra."""
    return Path(sys.executable).parent / "etcd" if line == "3.5.1" else Path(release(line))


def etcds(mark: str) -> list[int]:
    """Return the members that run for a test."""
    return [pid for pid in marked(mark) if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"etcd")]


@pytest.fixture
def dev(conch: Bench, tmp_path: Path) -> Bench:
    """Conch with its own folder for temporary files."""
    (tmp_path / "tmp").mkdir()
    return conch


def temporary(dev: Bench) -> dict[str, str]:
    return {"TMPDIR": str(dev.file("tmp"))}


@pytest.mark.parametrize("members", [1, 3])
def test_dev_runs_the_command_with_a_real_etcd(dev: Bench, members: int) -> None:
    """Both variables are set, every member answers, conch exits with the command's code, and nothing is left.

    If the kernel leaves room below its ephemeral ports, the members' ports are there.
    """
    script = "echo $CONCH_ENDPOINTS $ETCDCTL_ENDPOINTS; etcdctl put a b >&2 && etcdctl get a --print-value-only; exit 5"
    done = dev.run("dev", "--members", str(members), "--", "sh", "-c", script, env=temporary(dev))
    assert done.returncode == 5, done.stderr
    first, second = done.stdout.splitlines()
    ours, etcdctls = first.split()
    assert ours == etcdctls
    assert len(set(ours.split(","))) == members
    handed_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert handed_out <= 20_000 or all(int(one.rpartition(":")[2]) < handed_out for one in ours.split(","))
    assert second == "b"
    assert etcds(dev.mark) == []
    assert list(dev.file("tmp").iterdir()) == []


def of_release(dev: Bench, line: str) -> dict[str, str]:
    """Return an environment in which this release comes first on PATH."""
    return {**temporary(dev), "PATH": f"{binary(line).parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("line", "members"), [*((line, n) for line in RELEASES for n in (1, 3)), (RELEASES[-1], 5)])
def test_dev_starts_every_release(dev: Bench, line: str, members: int) -> None:
    """Each member is of the release on PATH and accepts writes; nothing is left."""
    script = (
        "for one in $(echo $CONCH_ENDPOINTS | tr , ' '); do ETCDCTL_ENDPOINTS=$one etcdctl put a $one >&2 || exit 9; "
    )
    script += "curl -sf http://$one/version; echo; done"
    done = dev.run("dev", "--members", str(members), "--", "sh", "-c", script, env=of_release(dev, line))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == members
    # etcdctl 3.6 and later complain about each ETCDCTL_ variable that they do not know
    assert "unrecognized environment variable" not in done.stderr
    assert all(f'"etcdserver":"{line}.' in one or f'"etcdserver":"{line}"' in one for one in lines), lines
    assert etcds(dev.mark) == []
    assert list(dev.file("tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ("3.5.1", "3.4", "cluster cannot be downgraded (current version: 3.4."),
        ("3.6", "3.5.1", "invalid downgrade; server version is lower than determined cluster version"),
        ("3.6", "3.5", "invalid downgrade; server version is lower than determined cluster version"),
        ("3.7", "3.6", 'version "3.7.0" is not supported'),
        ("3.5", "3.7", "execute job failed: unmarshal should never fail"),
    ],
)
def test_data_that_a_release_cannot_read_is_reported_in_its_words(dev: Bench, first: str, then: str, said: str) -> None:
    """In whatever format the release logs it, conch prints one line without the stack and exits 69."""
    data = ["dev", "--data-dir", str(dev.file("data")), "--"]
    assert dev.run(*data, "etcdctl", "put", "a", "b", env=of_release(dev, first)).returncode == 0
    done = dev.run(*data, "true", env=of_release(dev, then))
    assert done.returncode == 69
    (line,) = done.stderr.splitlines()
    assert said in line
    assert "stacktrace" not in line
    assert '"level"' not in line


@pytest.mark.parametrize("line", RELEASES)
def test_option_that_etcd_does_not_know_is_reported(line: str) -> None:
    """The error is reported, not the last line of the help that follows it."""
    with (
        pytest.raises(EtcdFailed, match="flag provided but not defined: -nonsense$"),
        Cluster(binary=str(binary(line)), arguments=["--nonsense"]),
    ):
        pass


def test_etcd_that_is_killed_at_its_start_is_reported(dev: Bench) -> None:
    """It printed nothing, so conch names the signal."""
    folder = dev.file("bin")
    folder.mkdir()
    (folder / "etcd").write_text("#!/bin/sh\nkill -KILL $$\n")
    (folder / "etcd").chmod(0o755)
    done = dev.run("dev", "--", "/bin/true", env={**temporary(dev), "PATH": f"{folder}:{os.environ['PATH']}"})
    assert done.returncode == 69
    assert done.stderr.endswith("etcd did not start: killed by SIGKILL\n")


def test_dev_runs_elect_as_in_the_readme(dev: Bench) -> None:
    """A new user runs this command first."""
    done = dev.run(
        "dev",
        "--",
        CONCH,
        "elect",
        "demo",
        "--",
        "sh",
        "-c",
        "echo leader of $CONCH_NAME at $CONCH_REV",
        env=temporary(dev),
    )
    assert done.returncode == 0
    assert done.stdout.startswith("leader of demo at ")


def test_data_lasts_with_data_dir_only(dev: Bench) -> None:
    """A second start finds what the first wrote."""
    data = str(dev.file("data"))
    assert dev.run("dev", "--data-dir", data, "--", "etcdctl", "put", "a", "kept").returncode == 0
    done = dev.run("dev", "--data-dir", data, "--", "etcdctl", "get", "a", "--print-value-only")
    assert done.stdout == "kept\n"
    assert etcds(dev.mark) == []


def test_data_of_several_members_lasts_too(dev: Bench) -> None:
    """Members know each other by their ports, so these are kept, too; another number of members is refused."""
    data = str(dev.file("data"))
    assert dev.run("dev", "--members", "3", "--data-dir", data, "--", "etcdctl", "put", "a", "kept").returncode == 0
    done = dev.run("dev", "--members", "3", "--data-dir", data, "--", "etcdctl", "get", "a", "--print-value-only")
    assert done.stdout == "kept\n", done.stderr
    done = dev.run("dev", "--data-dir", data, "--", "true")
    assert done.returncode == 69
    assert "holds a cluster of 3, not of 1" in done.stderr


def test_data_dir_in_use_is_reported(dev: Bench) -> None:
    """The second `conch dev` exits 69."""
    data = str(dev.file("data"))
    first = dev.start("dev", "--data-dir", data)
    wait_for(lambda: first.out, "ready")
    done = dev.run("dev", "--data-dir", data, "--", "true")
    assert done.returncode == 69
    assert "in use by another" in done.stderr
    first.signal(signal.SIGTERM)
    first.wait()


@pytest.mark.parametrize("command", [[], ["--", "sh", "-c", "echo up; read x"]], ids=["alone", "command"])
def test_death_of_a_member_is_reported(dev: Bench, command: list[str]) -> None:
    """Without a command conch exits 69; with one, it waits for the command and exits with its code."""
    wrapper = dev.start("dev", *command, env=temporary(dev), stdin=-1)
    wait_for(lambda: wrapper.out.endswith("\n"), "ready")
    (etcd,) = etcds(dev.mark)
    os.kill(etcd, signal.SIGKILL)
    wait_for(lambda: not alive(etcd), "the member's end")
    assert wrapper.process.stdin is not None
    wrapper.process.stdin.close()
    assert wrapper.wait() == (1 if command else 69)
    assert "has ended: killed by SIGKILL" in wrapper.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("command", [[], ["--", "sh", "-c", "echo up; exec sleep 1000"]], ids=["alone", "command"])
def test_dev_stops_every_member_however_it_ends(dev: Bench, command: list[str], number: int) -> None:
    """Even after SIGKILL the members, the command and the data are gone."""
    wrapper = dev.start("dev", "--members", "3", *command, env=temporary(dev))
    wait_for(lambda: wrapper.out.endswith("\n"), "dev is ready")
    assert len(etcds(dev.mark)) == 3
    if not command:
        assert wrapper.out.startswith("export CONCH_ENDPOINTS=127.0.0.1:")
    wrapper.signal(number)
    assert wrapper.wait() == 128 + number
    wait_for(lambda: not marked(dev.mark), "everything has ended")
    wait_for(lambda: not list(dev.file("tmp").iterdir()), "the data is removed")


def test_signal_while_dev_starts_leaves_nothing(dev: Bench) -> None:
    """The signal comes before the members are ready."""
    wrapper = dev.start("dev", "--members", "5", "--", "true", env=temporary(dev))
    wait_for(lambda: etcds(dev.mark), "a member")
    wrapper.signal(signal.SIGTERM)
    assert wrapper.wait() == 128 + signal.SIGTERM
    wait_for(lambda: not marked(dev.mark), "everything has ended")
    assert list(dev.file("tmp").iterdir()) == []


def test_dev_without_etcd_says_how_to_get_one(dev: Bench, tmp_path: Path) -> None:
    """It prints one line and exits 69."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    script = "import sys, conch.cli.main as m; sys.executable = '/nowhere/python'; m.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "dev", "--", "/bin/true"],
        env={**dev.environment, "PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 69
    assert "apt-get install etcd-server" in done.stderr
    assert "conch[dev]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_dev_with_a_broken_etcd_shows_its_last_line(dev: Bench) -> None:
    """It exits 69 and leaves no temporary files."""
    folder = dev.file("bin")
    folder.mkdir()
    (folder / "etcd").write_text("#!/bin/sh\necho no way\nexit 1\n")
    (folder / "etcd").chmod(0o755)
    done = dev.run("dev", "--", "/bin/true", env={**temporary(dev), "PATH": f"{folder}:{os.environ['PATH']}"})
    assert done.returncode == 69
    assert "no way" in done.stderr
    assert list(dev.file("tmp").iterdir()) == []


def test_impossible_data_dir_is_reported(dev: Bench) -> None:
    """One line names --data-dir."""
    dev.file("file").write_text("")
    done = dev.run("dev", "--data-dir", str(dev.file("file") / "data"), "--", "true")
    assert done.returncode == 69
    assert "--data-dir" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_missing_command_is_reported(dev: Bench) -> None:
    """conch exits 127."""
    assert dev.run("dev", "--", "/no/such/tool").returncode == 127


def test_signals_are_forwarded_to_the_command(dev: Bench) -> None:
    """`conch dev` waits for the command and exits with its code."""
    wrapper = dev.start("dev", "--", "sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.02; done")
    wait_for(lambda: "up" in wrapper.out, "the command")
    assert any(alive(pid) for pid in children(wrapper.pid))
    wrapper.signal(signal.SIGTERM)
    assert wrapper.wait() == 9
