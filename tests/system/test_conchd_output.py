"""Runs under conchd: their output, their environment, their exit codes, and that no process of them is left."""

import os
import pwd
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from conch.times import rfc3339
from tests.support.conch import CONCH, Bench, Wrapper, alive, wait_for
from tests.support.cron import Fleet
from tests.support.terminal import Terminal

NEVER = "@yearly"  # only `cron run` asks for ticks
MB = 1_000_000


class Reader:
    """Reads a pipe to its end in a thread of its own, and keeps a limited number of bytes."""

    def __init__(self, most: int = 1 << 30) -> None:
        out, self.end = os.pipe()
        self._most = most
        self.drops = 0  # how often lines were dropped
        self._got = bytearray()
        self.thread = threading.Thread(target=self._read, args=(out,), daemon=True)
        self.thread.start()

    def _read(self, out: int) -> None:
        with os.fdopen(out, "rb", buffering=0) as file:
            while data := file.read(1 << 20):
                self.drops += data.count(b"lines were dropped")
                self._got += data[: self._most - len(self._got)]

    @property
    def lines(self) -> list[str]:
        """Return the complete lines read so far."""
        return bytes(self._got).decode("utf-8", "replace").split("\n")[:-1]

    def rest(self) -> list[str]:
        """Wait until the other end is closed and return all lines."""
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.lines


def attach(fleet: Fleet, host: str, number: int, fd: int, *flags: str, **how: Any) -> Wrapper:
    """Start a daemon with one of its outputs, or (0) both, on a pipe end, which is closed here."""
    bench = fleet.bench
    environment = {**bench.environment, "CONCH_HOST": host, **how.pop("env", {})}
    daemon = Wrapper.__new__(Wrapper)
    daemon.out_path = bench.folder / f"o-{host}"
    daemon.err_path = bench.folder / f"e-{host}"
    with daemon.out_path.open("wb") as out, daemon.err_path.open("wb") as err:
        daemon.process = subprocess.Popen(
            [CONCH, "conchd", "--state-dir", str(fleet.state(host)), *flags],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out if number == 2 else fd,
            stderr=err if number == 1 else fd,
            cwd=bench.folder,
            **how,
        )
    os.close(fd)
    bench.wrappers.append(daemon)
    fleet.daemons[host] = daemon
    if number == 1:
        daemon.wait_event("registered")
    return daemon


def once(fleet: Fleet, name: str, *flags: str, command: str = "true") -> dict[str, Any]:
    """Add a job, run it now and return its result."""
    fleet.add(name, NEVER, *flags, command=command)
    return fleet.result(name, fleet.run_now(name))


def rss(pid: int) -> int:
    """Return the memory of a process and its keeper in bytes."""
    process = psutil.Process(pid)
    found = process.memory_info().rss
    for child in process.children():
        try:
            if "conchd" in child.cmdline():
                found += child.memory_info().rss
        except psutil.Error:
            continue  # a run's process that just ended
    return int(found)


# -- output -----------------------------------------------------------------------------------------------


def test_output_comes_under_the_name_of_job_and_tick(fleet: Fleet) -> None:
    """Stdout goes to conchd's stdout, stderr to its stderr, line by line during the run; an unfinished last one too."""
    daemon = fleet.start("a")
    fleet.add(
        "j", NEVER, command="echo out; echo err >&2; while [ ! -e go ]; do sleep 0.02; done; printf 'a\\rb\\n\\nend'"
    )
    tick = fleet.run_now("j")
    name = f"j {rfc3339(tick)}: "
    wait_for(lambda: daemon.out == f"{name}out\n", "the first line while it runs")
    wait_for(lambda: f"{name}err\n" in daemon.err, "the line on stderr")
    fleet.bench.file("go").touch()
    fleet.result("j", tick)
    wait_for(lambda: daemon.out.endswith("end\n"), "the last line")
    assert daemon.out_path.read_bytes().decode() == f"{name}out\n{name}a\rb\n{name}\n{name}end\n"
    assert "out\n" not in daemon.err


def test_output_of_several_runs_is_never_mixed_within_a_line(fleet: Fleet) -> None:
    """Six jobs print at the same time to a pipe that is read; no line is torn, lost or out of order."""
    reader = Reader()
    daemon = attach(fleet, "a", 1, reader.end)
    names = [f"j{i}" for i in range(6)]
    for i, name in enumerate(names):
        letter = "abcdef"[i]
        fleet.add(
            name,
            NEVER,
            command=f"i=0; while [ $i -lt 800 ]; do printf %s{letter * 40} $i; "
            f"printf '{letter * 40}\\n'; i=$((i+1)); done",
        )
    ticks = {name: fleet.run_now(name) for name in names}
    for name in names:
        assert fleet.result(name, ticks[name])["state"] == "ok"
    daemon.signal(signal.SIGTERM)
    daemon.wait()
    seen: Counter[str] = Counter()
    for line in reader.rest():
        found = re.fullmatch(r"(j(\d)) (\S+): (\d+)([a-f])\5{79}", line)
        assert found, line
        name = found[1]
        assert found[3] == rfc3339(ticks[name])
        assert "abcdef"[int(found[2])] == found[5]
        assert int(found[4]) == seen[name], "in order and none lost"
        seen[name] += 1
    assert seen == Counter(dict.fromkeys(names, 800))


def test_output_that_is_read_is_not_dropped(fleet: Fleet) -> None:
    """A reader that keeps up gets every line of a burst, as `seq` or `ls` print it."""
    reader = Reader()
    daemon = attach(fleet, "a", 1, reader.end)
    assert once(fleet, "burst", command="seq 1 30000")["state"] == "ok"
    daemon.signal(signal.SIGTERM)
    daemon.wait()
    lines = reader.rest()
    assert [line for line in lines if "were dropped" in line] == []
    assert [line.rpartition(" ")[2] for line in lines] == [str(i) for i in range(1, 30001)]


def test_long_lines_are_cut_and_keep_the_name(fleet: Fleet) -> None:
    """Each is at most 4 KiB, NUL bytes included."""
    daemon = fleet.start("a")
    fleet.add("long", NEVER, command="head -c 100000 /dev/zero | tr '\\0' x; echo; printf '\\000z\\n'")
    tick = fleet.run_now("long")
    fleet.result("long", tick)
    name = f"long {rfc3339(tick)}: ".encode()
    wait_for(lambda: daemon.out_path.read_bytes().endswith(b"\0z\n"), "the last line")
    lines = daemon.out_path.read_bytes().split(b"\n")[:-1]
    assert all(line.startswith(name) and len(line) < 4096 for line in lines)
    assert b"".join(line.removeprefix(name) for line in lines) == b"x" * 100000 + b"\0z"


@pytest.mark.parametrize("number", [1, 2])
def test_reader_that_does_not_read_blocks_nothing(fleet: Fleet, number: int) -> None:
    """A run writes 50 MB and ends; conchd stays small, and other jobs' ticks and results continue."""
    out, end = os.pipe()
    try:
        daemon = attach(fleet, "a", number, end)
        fleet.add("beat", "@every 1s")
        fleet.results("beat", 1)
        redirect = "" if number == 1 else " >&2"
        fleet.add("flood", NEVER, command=f"yes 0123456789012345678901234567890123456789 | head -c {50 * MB}{redirect}")
        tick = fleet.run_now("flood")
        most = 0

        def watched() -> bool:
            nonlocal most
            most = max(most, rss(daemon.pid))
            return fleet.value("result", "flood", tick) is not None

        wait_for(watched, "the end of the flood", 60)
        result = fleet.result("flood", tick)
        assert (result["state"], result["exit"]) == ("ok", 0)
        assert most < 150 * MB
        before = len(fleet.ticks("result", "beat"))
        fleet.results("beat", before + 2)
        assert not [one for one in fleet.ticks("result", "beat").values() if one["state"] != "ok"]
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
    finally:
        os.close(out)


def test_run_that_prints_without_end_can_be_ended(fleet: Fleet) -> None:
    """Its time limit is enforced, and meanwhile other jobs run."""
    out, end = os.pipe()
    try:
        attach(fleet, "a", 1, end)
        fleet.add("endless", NEVER, "--run-ttl", "4s", "--kill-after", "1s", command="trap '' TERM; exec yes")
        tick = fleet.run_now("endless")
        assert once(fleet, "other")["state"] == "ok"
        assert fleet.value("result", "endless", tick) is None
        assert fleet.result("endless", tick)["state"] == "timeout"
    finally:
        os.close(out)


def test_runs_that_print_without_end_delay_nothing(fleet: Fleet) -> None:
    """Ten of them on both outputs: of another job's 20 ticks 20 run, health is told, a time limit is kept.

    They are slowed by their pipes: conchd takes little of a core, and drops nothing.
    """
    reader = Reader(4 * MB)
    daemon = attach(fleet, "a", 0, reader.end, "--status-addr", "0", "--drain", "1s")
    status = wait_for(lambda: [line for line in reader.lines if "event=status" in line], "the address")
    address = re.findall(r"addr=(\S+)", status[0])[0]
    names = [f"noisy{i}" for i in range(10)]
    for name in names:
        fleet.add(name, NEVER, "--kill-after", "1s", command="yes & yes >&2")
    fleet.add("limited", NEVER, "--run-ttl", "3s", "--kill-after", "1s", command="yes & yes >&2")
    fleet.add("beat", "@every 1s", "--start-deadline", "5s")
    fleet.results("beat", 1)
    ticks = {name: fleet.run_now(name) for name in names}
    wait_for(lambda: all(fleet.value("fire", name, tick) for name, tick in ticks.items()), "noise")
    tick = fleet.run_now("limited")
    clocks = psutil.Process(daemon.pid)
    used, since, first = sum(clocks.cpu_times()[:2]), time.monotonic(), int(time.time()) + 2
    wait_for(lambda: address_answers(address) and time.time() > first + 21, "20 ticks", 60)
    assert sum(clocks.cpu_times()[:2]) - used < 0.5 * (time.monotonic() - since)
    done = fleet.ticks("result", "beat")
    assert [done.get(one, {}).get("state") for one in range(first, first + 20)] == ["ok"] * 20
    assert fleet.result("limited", tick)["state"] == "timeout"
    assert not any(fleet.ticks("result", name) for name in names), "they still run"
    assert not reader.drops
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


def address_answers(address: str) -> bool:
    """Whether a daemon reports that it is healthy; fail if it reports that it is not."""
    time.sleep(0.2)
    with urllib.request.urlopen(f"http://{address}/healthz", timeout=5) as answer:
        return bool(answer.read())


def test_last_line_of_a_noisy_run_is_passed_on(fleet: Fleet) -> None:
    """A reader that keeps up first gets everything that the run printed."""
    reader = Reader()
    daemon = attach(fleet, "a", 1, reader.end)
    assert once(fleet, "j", command="yes €€€ | head -n 500000; echo end")["state"] == "ok"
    daemon.signal(signal.SIGTERM)
    daemon.wait()
    lines = [line.partition("Z: ")[2] for line in reader.rest()]
    assert lines[-1] == "end"
    assert Counter(lines) == {"€€€": 500_000, "end": 1}


@pytest.mark.parametrize("number", [1, 2])
def test_reader_that_is_gone_does_no_harm(fleet: Fleet, number: int) -> None:
    """The output is a broken pipe, or was closed from the start."""
    out, end = os.pipe()
    os.close(out)
    daemon = attach(fleet, "a", number, end)
    for name in ("x", "y"):
        result = once(fleet, name, command="echo out; echo err >&2; seq 1 1000; exit 3")
        assert (result["state"], result["exit"]) == ("failed", 3)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


def test_outputs_that_are_closed_do_no_harm(fleet: Fleet) -> None:
    """With >&- 2>&- a run's output is discarded and never ends up in another file."""
    bench = fleet.bench
    state = fleet.state("a")
    state.mkdir()
    daemon = bench.start("conchd", "--state-dir", str(state), env={"CONCH_HOST": "a"}, preexec_fn=close_outputs)
    fleet.daemons["a"] = daemon
    fleet.add("x", NEVER, "--keep-output", "never", command="echo outout; echo errerr >&2; exit 3")

    def asked() -> int | None:
        done = bench.run("cron", "run", "x")
        return fleet.unix(done.stdout.strip()) if done.returncode == 0 else None

    tick = wait_for(asked, "a live daemon")
    assert tick is not None
    assert fleet.result("x", tick)["exit"] == 3
    assert not [path for path in state.rglob("*") if path.is_file() and b"outout" in path.read_bytes()]
    assert daemon.process.poll() is None


def close_outputs() -> None:
    os.close(1)
    os.close(2)


# -- what a run gets --------------------------------------------------------------------------------------


def test_environment_of_a_run(fleet: Fleet) -> None:
    """The variables of the contract are set, passwords are not; the job's own variables are added."""
    fleet.start(
        "a",
        env={
            "CONCH_PASSWORD": "geheim",
            "ETCDCTL_PASSWORD": "geheim",
            "ETCDCTL_USER": "",
            "OTHER": "kept",
            "MINE": "conchd",
        },
    )
    result = once(
        fleet, "j", "--env", "MINE=job", "--env", "X=a=b c", "--retries", "1", "--retry-delay", "100ms",
        command="env -0 > env$CONCH_ATTEMPT; test $CONCH_ATTEMPT = 2",
    )  # fmt: skip
    assert (result["state"], result["attempt"]) == ("ok", 2)
    (tick,) = fleet.ticks("result", "j")
    trees = set()
    for attempt in (1, 2):
        text = fleet.bench.file(f"env{attempt}").read_text()
        found = dict(entry.split("=", 1) for entry in text.split("\0") if entry)
        assert found["CONCH_NAME"] == "j"
        assert found["CONCH_TICK"] == str(tick)
        assert found["CONCH_ATTEMPT"] == str(attempt)
        assert int(found["CONCH_REV"]) > 0
        assert int(found["CONCH_LEASE"], 16) > 0
        assert found["CONCH_HOLD_KEY"].startswith(fleet.bench.prefix + "/cron/")
        assert found["CONCH_TREE"]
        assert (found["MINE"], found["X"], found["OTHER"]) == ("job", "a=b c", "kept")
        assert not {"CONCH_PASSWORD", "ETCDCTL_PASSWORD"} & set(found)
        assert "geheim" not in text
        trees.add(found["CONCH_TREE"])
    assert len(trees) == 1, "one run, one id: its keeper looks for it"


@pytest.mark.parametrize("variable", ["CONCH_USER", "ETCDCTL_USER"])
def test_password_in_the_users_name_is_not_handed_on(fleet: Fleet, variable: str) -> None:
    """Only the user's name is set; an etcd without authentication ignores the login."""
    daemon = fleet.start("a", env={variable: "me:ge:heim"}, ready=False)
    wait_for(lambda: daemon.events("registered") or daemon.process.poll() is not None, "ready or refused")
    if daemon.process.poll() is not None:
        pytest.skip("etcd without authentication refuses logins here")
    once(fleet, "j", command="env > env")
    text = fleet.bench.read("env")
    assert f"{variable}=me\n" in text
    assert "heim" not in text


def test_fencing_token_is_the_revision_of_the_key(fleet: Fleet) -> None:
    """CONCH_REV is the create-revision of CONCH_HOLD_KEY, whose lease is CONCH_LEASE, for every kind of run."""
    fleet.start("a")
    for name, flags in (
        ("forbid", ()),
        ("allow", ("--overlap", "allow")),
        ("sema", ("--overlap", "allow", "--sema", "s:2")),
    ):
        fleet.add(
            name,
            NEVER,
            *flags,
            command=f"echo $CONCH_REV $CONCH_LEASE $CONCH_HOLD_KEY > {name}; while [ ! -e go ]; do sleep 0.02; done",
        )
        tick = fleet.run_now(name)
        rev, lease, key = fleet.bench.read(name).split()
        _, meta = fleet.bench.etcd.get(key)
        assert meta is not None, (name, key)
        assert meta.create_revision == int(rev), name
        fleet.bench.file("go").touch()
        fleet.result(name, tick)
        fleet.bench.file("go").unlink()
        assert int(lease, 16) > 0


def test_stdin_of_a_run_is_empty(fleet: Fleet) -> None:
    """It reads end of file immediately, whatever conchd's own stdin is."""
    ours, theirs = os.pipe()
    fleet.start("a", stdin=ours)
    os.close(ours)
    assert once(fleet, "j", command="cat | wc -c")["state"] == "ok"
    os.close(theirs)


def test_descriptors_of_conchd_are_not_inherited(fleet: Fleet) -> None:
    """A run has only the descriptors 0, 1 and 2."""
    fleet.start("a")
    once(fleet, "j", command="ls /proc/self/fd > fds")
    assert fleet.bench.read("fds", 4).split() == ["0", "1", "2", "3"] or fleet.bench.read("fds", 3).split()[:3] == [
        "0", "1", "2",
    ]  # fmt: skip  # 3 belongs to the listing itself
    assert len(fleet.bench.read("fds").split()) <= 4


@pytest.mark.parametrize("slow", [False, True])
def test_exit_codes(fleet: Fleet, slow: bool) -> None:
    """It is the run's own or 128+n; 126 if the command is not executable, 127 if it is missing, each with a reason."""
    if slow:
        flags: tuple[str, ...] = ("--overlap", "allow")
    else:
        flags = ()
    fleet.start("a")
    bench = fleet.bench
    text = bench.file("text")
    text.write_text("no program")
    text.chmod(0o644)
    broken = bench.file("broken")
    broken.write_text("#!/does/not/exist\n")
    broken.chmod(0o755)
    cases: dict[str, tuple[list[str], str, int]] = {
        "zero": (["true"], "ok", 0),
        "three": (["sh", "-c", "exit 3"], "failed", 3),
        "term": (["sh", "-c", "kill -TERM $$"], "failed", 143),
        "kill": (["sh", "-c", "kill -KILL $$"], "failed", 137),
        "denied": ([str(text)], "failed", 126),
        "folder": (["/tmp"], "failed", 126),
        "missing": (["/does/not/exist"], "failed", 127),
        "not-on-path": (["conch-test-no-such-command"], "failed", 127),
        "interpreter": ([str(broken)], "failed", 127),
    }
    for name, (command, _, _) in cases.items():
        done = bench.run("cron", "add", name, "--schedule", NEVER, *flags, "--", *command)
        assert done.returncode == 0, done.stderr
    ticks = {name: fleet.run_now(name) for name in cases}
    found = {name: fleet.result(name, tick) for name, tick in ticks.items()}
    assert {name: (one["state"], one["exit"]) for name, one in found.items()} == {
        name: (state, code) for name, (_, state, code) in cases.items()
    }
    for name in ("denied", "missing", "not-on-path", "interpreter"):
        assert found[name]["reason"], name


def test_working_directory(fleet: Fleet) -> None:
    """A run starts in `--cwd`; a missing folder is a failure with a reason; relative commands are found there."""
    bench = fleet.bench
    fleet.start("a")
    folder = bench.file("folder")
    folder.mkdir()
    script = folder / "script"
    script.write_text("#!/bin/sh\npwd > where\n")
    script.chmod(0o755)
    assert once(fleet, "there", "--cwd", str(folder), command="pwd > here")["state"] == "ok"
    assert bench.read("folder/here").strip() == str(folder)
    result = once(fleet, "missing", "--cwd", str(bench.file("missing")))
    assert (result["state"], result["exit"]) == ("failed", 126)
    assert "missing" in result["reason"]
    done = bench.run("cron", "add", "relative", "--schedule", NEVER, "--cwd", str(folder), "--", "./script")
    assert done.returncode == 0, done.stderr
    assert fleet.result("relative", fleet.run_now("relative"))["exit"] == 0
    assert bench.read("folder/where").strip() == str(folder)


# -- nothing is left --------------------------------------------------------------------------------------

STUBBORN = "trap '' TERM; echo $$ >> pids; while :; do sleep 0.05; done"


@pytest.mark.parametrize("form", ["auto", "tree"])
def test_leftovers_are_gone_before_the_result_is_written(fleet: Fleet, form: str) -> None:
    """They are in the background, in own sessions, orphaned, and ignore SIGTERM; the other run's processes live on."""
    bench = fleet.bench
    fleet.start("a", "--contain", form)
    bench.file("stubborn").write_text(STUBBORN)
    outside = (
        "echo $$ >> outside; exec setsid -w sh -c 'echo $$ >> outside; (setsid sleep 1000 & echo $! >> outside); wait; "
    )
    fleet.add("other", NEVER, "--overlap", "allow", command=outside + "sleep 1000'")
    fleet.run_now("other")
    others = bench.pids("outside", 3)
    fleet.add(
        "j",
        NEVER,
        "--kill-after",
        "1s",
        command="sleep 1000 & echo $! >> pids; sh stubborn & setsid sh stubborn & "
        "(setsid sh -c 'setsid sh stubborn & exit' &) ; "
        "while [ $(wc -l < pids) -lt 4 ]; do sleep 0.02; done; exit 5",
    )
    tick = fleet.run_now("j")
    pids = bench.pids("pids", 4)
    result: dict[str, Any] | None = None

    def ended() -> bool:
        nonlocal result
        result = fleet.value("result", "j", tick)
        if result is None:
            return False
        assert not [pid for pid in pids if alive(pid)], "a result before the end"
        return True

    wait_for(ended, "the result")
    assert result is not None
    assert (result["state"], result["exit"]) == ("failed", 5)
    assert all(alive(pid) for pid in set(others))


def test_process_that_holds_the_pipe_does_not_delay_the_result(fleet: Fleet) -> None:
    """A process outside the run, here the test, holds the pipe: the run ends when its own processes have ended."""
    daemon = fleet.start("a")
    fleet.add("j", NEVER, command="echo $$ > pid; while [ ! -e has ]; do sleep 0.01; done; echo last; exit 4")
    tick = fleet.run_now("j")
    (pid,) = fleet.bench.pids("pid", 1)
    held = [os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY) for fd in (1, 2)]
    try:
        fleet.bench.file("has").touch()
        assert fleet.result("j", tick, 10)["exit"] == 4
        wait_for(lambda: "last\n" in daemon.out, "its last words")
        assert once(fleet, "k")["state"] == "ok"
    finally:
        for fd in held:
            os.close(fd)


def test_no_descriptor_and_no_zombie_is_left(fleet: Fleet) -> None:
    """After twenty runs that left orphans, conchd has the same descriptors and children as before."""
    daemon = fleet.start("a")
    keeper = daemon.keeper()
    once(fleet, "first", command="(sleep 0 &) ; true")

    def settled() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{daemon.pid}/fd")), len(psutil.Process(daemon.pid).children(recursive=True))

    wait_for(lambda: settled()[1] == 1, "the keeper alone")
    before = settled()
    names = [f"j{i}" for i in range(20)]
    for name in names[:10]:
        fleet.add(name, NEVER, command="(setsid sleep 0.1 &) ; echo x; exit 1")
    ticks = [(name, fleet.run_now(name)) for name in names[:10] * 2]
    for name, tick in ticks:
        fleet.result(name, tick)
    try:
        wait_for(lambda: settled() == before, f"as before: {before}", 10)
    except AssertionError as error:
        below = [(child.pid, child.status()) for child in psutil.Process(daemon.pid).children(recursive=True)]
        fds = {fd: os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{daemon.pid}/fd")}
        raise AssertionError(f"{error}, but: {below} {fds}") from None
    assert alive(keeper)


# -- rights -----------------------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder where any user may write, outside pytest's own folder, which others cannot enter."""
    with tempfile.TemporaryDirectory(prefix="conch-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@needs_root
def test_run_as(fleet: Fleet, public: Path) -> None:
    """Uid, gid, groups and environment are the user's; no part of conchd's own remains."""
    nobody = pwd.getpwnam("nobody")
    folder = public
    daemon = fleet.start("a", "--run-as", "nobody")
    result = once(
        fleet, "j", "--cwd", str(folder),
        command="id -u > id; id -g >> id; id -G >> id; echo $HOME $USER $LOGNAME > home; "
                "grep Uid /proc/self/status > uids; cat /proc/self/status > status; echo done > ready",
    )  # fmt: skip
    assert (result["state"], result["reason"]) == ("ok", "")
    uid, gid, groups = (folder / "id").read_text().splitlines()
    assert (uid, gid) == (str(nobody.pw_uid), str(nobody.pw_gid))
    assert set(groups.split()) == {str(n) for n in os.getgrouplist("nobody", nobody.pw_gid)}
    assert (folder / "home").read_text().split() == [nobody.pw_dir, "nobody", "nobody"]
    assert set((folder / "uids").read_text().split()[1:]) == {uid}
    assert re.search(r"^CapEff:\s*0+$", (folder / "status").read_text(), re.M)
    assert not daemon.events("running-as-root")


@needs_root
@pytest.mark.parametrize("given", [{}, {"LANG": "de_DE.UTF-8", "TZ": "Europe/Berlin"}])
def test_run_as_has_the_users_environment_and_nothing_of_ours(fleet: Fleet, given: dict[str, str]) -> None:
    """The environment has the user's minimum, the job's variables and conch's, and none of conchd's own settings."""
    ours = {"LANG": "", "TZ": "", "SECRET": "geheim", "LC_ALL": "C", "CONCH_PASSWORD": "geheim", "PATH": "/root:/bin"}
    reader = Reader()
    environment = {**ours, "CONCH_TREE": "outer", **given}
    daemon = attach(fleet, "a", 1, reader.end, "--run-as", "nobody", env=environment)
    done = fleet.bench.run("cron", "add", "j", "--schedule", NEVER, "--env", "MINE=a b", "--", "/usr/bin/env", "-0")
    assert done.returncode == 0, done.stderr
    assert fleet.result("j", fleet.run_now("j"))["state"] == "ok"
    daemon.signal(signal.SIGTERM)
    daemon.wait()
    (text,) = reader.rest()
    found = dict(entry.split("=", 1) for entry in text.partition("Z: ")[2].split("\0") if entry)
    nobody = pwd.getpwnam("nobody")
    own = {name: found.pop(name) for name in sorted(found) if name.startswith("CONCH_")}
    assert set(own) == {f"CONCH_{name}" for name in ("NAME", "TICK", "ATTEMPT", "TREE", "REV", "LEASE", "HOLD_KEY")}
    assert own["CONCH_TREE"].startswith("outer,"), "an outer conch finds it all the same"
    assert found == {
        **{"HOME": nobody.pw_dir, "USER": "nobody", "LOGNAME": "nobody", "SHELL": nobody.pw_shell, "MINE": "a b"},
        **{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "", "TZ": "", **given},
    }


@needs_root
def test_run_as_leaves_no_open_file_of_ours(fleet: Fleet, public: Path) -> None:
    """Another user's run does not get the descriptors that conchd inherited; a run of conchd's own user does."""
    secret = fleet.bench.file("secret")
    secret.write_text("geheim")
    secret.chmod(0o600)
    with secret.open() as file:
        fleet.start("a", "--run-as", "nobody", pass_fds=(file.fileno(),))
        result = once(
            fleet,
            "j",
            "--cwd",
            str(public),
            command=f"ls -l /proc/self/fd > got; cat /proc/self/fd/{file.fileno()} >> got; true",
        )
    assert result["state"] == "ok"
    got = (public / "got").read_text()
    assert "geheim" not in got
    assert str(secret) not in got


@pytest.mark.parametrize("flags", [(), pytest.param(("--run-as", "nobody"), marks=needs_root)])
def test_outputs_can_be_opened_by_name(fleet: Fleet, flags: tuple[str, ...]) -> None:
    """`tee /dev/stderr` works, also for another user."""
    daemon = fleet.start("a", *flags)
    result = once(
        fleet,
        "j",
        "--cwd",
        "/",
        command="echo one | tee /dev/stderr; echo two > /dev/stdout; echo three >> /dev/stderr",
    )
    assert (result["state"], result["exit"]) == ("ok", 0)
    wait_for(lambda: "three\n" in daemon.err, "the last line")
    assert [line.rpartition(" ")[2] for line in daemon.out.splitlines()] == ["one", "two"]
    assert [line.rpartition(" ")[2] for line in daemon.err.splitlines() if line.startswith("j ")] == ["one", "three"]


@pytest.mark.parametrize("flags", ["", pytest.param("--run-as nobody", marks=needs_root)])
def test_run_has_neither_terminal_nor_session_of_conchd(fleet: Fleet, public: Path, flags: str) -> None:
    """A run cannot open the terminal that conchd was started on; it leads a session and group of its own."""
    bench = fleet.bench
    terminal = Terminal({**bench.environment, "CONCH_HOST": "a"}, str(bench.folder))
    try:
        terminal.wait("$ ")
        terminal.line(f"{CONCH} conchd --state-dir {fleet.state('a')} --drain 20s {flags}")
        terminal.wait("registered")
        fleet.add(
            "j", NEVER, "--cwd", str(public), command="cut -d' ' -f1,5,6,7 /proc/$$/stat > ids; "
            "(: < /dev/tty) 2> error; echo $? > code; echo > ready; while [ ! -e go ]; do sleep 0.05; done",
        )  # fmt: skip
        tick = fleet.run_now("j")
        wait_for((public / "ready").exists, "the run")
        pid, group, session, tty = (public / "ids").read_text().split()
        assert pid == group == session
        assert tty == "0"
        assert (public / "code").read_text() != "0\n"
        assert "No such device or address" in (public / "error").read_text()
        terminal.type("\x03")  # goes to conchd, which waits for the run
        terminal.wait("event=draining")
        (public / "go").touch()
        assert fleet.result("j", tick)["state"] == "ok"
        terminal.line("echo en''ded=$?")
        terminal.wait("ended=")
    finally:
        terminal.close()


@needs_root
def test_run_as_another_dies_with_conchd(fleet: Fleet, public: Path) -> None:
    """SIGKILL of conchd: the kernel clears the parent-death signal when rights change, so conch sets it again."""
    folder = public
    daemon = fleet.start("a", "--run-as", "nobody")
    fleet.add(
        "j", NEVER, "--cwd", str(folder), command="setsid sleep 1000 & echo $! > pids; echo $$ >> pids; exec sleep 1000"
    )
    fleet.run_now("j")
    pids = fleet.bench.pids(str(folder / "pids"), 2)
    assert psutil.Process(pids[1]).uids().real == pwd.getpwnam("nobody").pw_uid
    daemon.kill()
    wait_for(lambda: not [pid for pid in pids if alive(pid)], "the end of the run")


@needs_root
def test_run_as_another_is_ended_with_its_leftovers(fleet: Fleet, public: Path) -> None:
    """Signals reach it, and its descendants outside the group."""
    folder = public
    fleet.start("a", "--run-as", "nobody")
    (folder / "stubborn").write_text(STUBBORN)
    result = once(
        fleet, "j", "--cwd", str(folder), "--run-ttl", "1s", "--kill-after", "1s",
        command="setsid sh stubborn & sh stubborn & exec sh stubborn",
    )  # fmt: skip
    assert (result["state"], result["exit"]) == ("timeout", 137)
    assert not [pid for pid in fleet.bench.pids(str(folder / "pids"), 3) if alive(pid)]


def test_run_as_needs_a_user_and_root(conch: Bench) -> None:
    """conchd exits 64 and starts nothing."""
    done = conch.run("conchd", "--state-dir", "s", "--run-as", "no-such-user")
    assert (done.returncode, done.stderr.count("\n")) == (64, 1)
    if os.geteuid() != 0:
        assert conch.run("conchd", "--state-dir", "s", "--run-as", "root").returncode == 64


def test_root_is_warned_about(fleet: Fleet) -> None:
    """Anybody who may write jobs could run commands as root."""
    daemon = fleet.start("a")
    assert bool(daemon.events("running-as-root")) == (os.geteuid() == 0)
