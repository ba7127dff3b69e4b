"""What a run prints: kept in its result, shown by `logs` and `run --wait`; runs that are ended by `kill`."""

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import conch
from tests.support.conch import alive, wait_for
from tests.support.cron import Fleet

_MUCH = r"head -c 20000000 /dev/zero | tr '\0' x; printf '\377\303\251\n\033[31mred'; exit 1"
UNTIL_GO = "while [ ! -e go ]; do sleep 0.05; done"


def kept(fleet: Fleet, name: str, command: str, *flags: str) -> Any:
    """Run a job once; return what its result keeps."""
    fleet.add(name, "@yearly", *flags, command=command)
    return fleet.result(name, fleet.run_now(name)).get("output")


@pytest.mark.parametrize(
    ("flags", "code", "is_kept"),
    [
        ([], 0, False),
        ([], 3, True),
        (["--keep-output", "always"], 0, True),
        (["--keep-output", "never"], 3, False),
    ],
)
def test_output_is_kept_as_the_job_says(fleet: Fleet, flags: list[str], code: int, is_kept: bool) -> None:
    """By default when the run failed; stdout and stderr together."""
    fleet.start("a")
    output = kept(fleet, "j", f"echo out; echo err >&2; exit {code}", *flags)
    if not is_kept:
        assert output is None
    else:
        assert sorted(output.splitlines()) == ["err", "out"]


def test_only_the_end_is_kept_and_it_is_text(fleet: Fleet) -> None:
    """The last 4 KiB, valid UTF-8, whatever was printed; conchd's memory does not grow with it."""
    daemon = fleet.start("a")
    output = kept(
        fleet, "j", "head -c 20000000 /dev/zero | tr '\\0' x; printf '\\377\\303\\251\\n\\033[31mred'; exit 1"
    )
    assert len(output.encode()) <= 4096
    assert output.endswith("x\ufffdé\n\x1b[31mred")
    shown = fleet.bench.run("cron", "logs", "j")
    assert shown.stdout.endswith("\\x1b[31mred\n")
    assert daemon.process.poll() is None


def test_host_may_forbid_it(fleet: Fleet) -> None:
    """`--no-output` counts more than the job."""
    fleet.start("a", "--no-output")
    assert kept(fleet, "j", "echo secret; exit 1", "--keep-output", "always") is None


def test_all_attempts_together(fleet: Fleet) -> None:
    """Output and times are those of the run; `attempt` is the last one's number."""
    fleet.start("a")
    began = time.time()
    fleet.add(
        "j", "@yearly", "--retries", "2", "--retry-delay", "1s", command="echo $CONCH_ATTEMPT; [ $CONCH_ATTEMPT = 9 ]"
    )
    result = fleet.result("j", fleet.run_now("j"))
    assert result["output"] == "1\n2\n3\n"
    assert result["attempt"] == 3
    assert 2.0 <= result["duration"] < time.time() - began + 0.1
    assert fleet.unix(result["started"]) - began < 2


def test_output_survives_the_death_of_the_keeper(fleet: Fleet) -> None:
    """The supervisor keeps it until it is recorded."""
    daemon = fleet.start("a")
    fleet.add("j", "@yearly", "--overlap", "allow", command=f"{UNTIL_GO}; echo kept; exit 1")
    tick = fleet.run_now("j")
    keeper = daemon.keeper()
    os.kill(keeper, signal.SIGSTOP)
    fleet.bench.file("go").touch()
    daemon.wait_event("run-end")
    os.kill(keeper, signal.SIGKILL)
    assert fleet.result("j", tick)["output"] == "kept\n"


def test_logs_shows_the_newest(fleet: Fleet) -> None:
    """One by default; several with a line above each; as JSON; of one tick. Nothing kept is exit 1."""
    fleet.start("a")
    fleet.add("j", "@yearly", command="echo $CONCH_TICK; exit 2")
    ticks = []
    for _ in range(3):
        ticks.append(fleet.run_now("j"))
        fleet.result("j", ticks[-1])
    run = fleet.bench.run
    assert run("cron", "logs", "j").stdout == f"{ticks[2]}\n"
    lines = run("cron", "logs", "j", "--last", "2").stdout.splitlines()
    assert [line for line in lines if line.isdigit()] == [str(ticks[1]), str(ticks[2])]
    assert lines[0].startswith("==> ")
    assert lines[0].endswith("failed 2 on a <==")
    assert run("cron", "logs", "j", "--tick", str(ticks[0])).stdout == f"{ticks[0]}\n"
    (found,) = fleet.bench.jsons(run("cron", "logs", "j", "--json").stdout)
    assert (found["tick_unix"], found["state"], found["exit"], found["node"]) == (ticks[2], "failed", 2, "a")
    fleet.add("quiet", "@yearly")
    for arguments in (["quiet"], ["none"], ["j", "--tick", "1700000000"]):
        done = run("cron", "logs", *arguments)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [("echo hi", 0, "hi\n"), ("echo bad >&2; exit 7", 7, "bad\n"), ("kill -TERM $$", 143, ""), ("true", 0, "")],
)
def test_run_waits_and_ends_as_the_run(fleet: Fleet, command: str, code: int, output: str) -> None:
    """With the end of its output, of a good run, too, and its exit code."""
    fleet.start("a")
    fleet.add("j", "@yearly", command=command)
    wait_for(lambda: fleet.node("a"), "the registration")
    done = fleet.bench.run("cron", "run", "j", "--wait")
    assert (done.returncode, done.stdout) == (code, output), done.stderr


def test_run_that_is_waited_for_may_be_skipped_or_time_out(fleet: Fleet) -> None:
    """75 and 124; a line says why."""
    fleet.start("a")
    fleet.add("j", "@yearly", command=UNTIL_GO)
    tick = fleet.run_now("j")
    done = fleet.bench.run("cron", "run", "j", "--wait")
    assert done.returncode == 75
    assert "state=skipped" in done.stderr
    fleet.bench.file("go").touch()
    fleet.result("j", tick)
    fleet.add("slow", "@yearly", "--run-ttl", "1s", command="trap 'exit 0' TERM; sleep 60 & wait")
    done = fleet.bench.run("cron", "run", "slow", "--wait")
    assert (done.returncode, "state=timeout" in done.stderr) == (124, True), done.stderr


def test_variables_for_one_run(fleet: Fleet) -> None:
    """They add to the job's, and the next run does not have them."""
    fleet.start("a")
    fleet.add("j", "@yearly", "--env", "A=1", "--env", "B=1", command="echo $A$B$C")
    wait_for(lambda: fleet.node("a"), "the registration")
    run = fleet.bench.run
    assert run("cron", "run", "j", "--wait", "--env", "B=2", "--env", "C=3").stdout == "123\n"
    assert run("cron", "run", "j", "--wait").stdout == "11\n"
    refused = run("cron", "run", "j", "--env", "A B=2")
    assert (refused.returncode, refused.stderr.count("\n")) == (64, 1)


def test_variables_do_not_get_into_signed_runs(fleet: Fleet) -> None:
    """Neither by the command nor by a request that somebody writes: this host runs only what is signed."""
    key = fleet.bench.file("key")
    key.write_text("0123456789abcdef")
    key.chmod(0o600)
    fleet.start("a", "--job-key-file", str(key))
    fleet.add("j", "@yearly", "--job-key-file", str(key), command="echo $EVIL > evil")
    done = fleet.bench.run("cron", "run", "j", "--env", "EVIL=1")
    assert done.returncode == 1
    assert "is signed" in done.stderr
    lease = fleet.bench.etcd.lease(60)
    number = int(time.time())
    fleet.bench.etcd.put(f"{fleet.bench.prefix}/cron/now/j/{number}", '{"env": {"EVIL": "1"}}', lease)
    tick = fleet.claimed("j", f"{lease.id:x}")
    result = fleet.result("j", tick)
    assert (result["state"], "not signed" in result["reason"]) == ("skipped", True)
    assert not fleet.bench.file("evil").exists()


def test_kill_ends_a_run_for_good(fleet: Fleet) -> None:
    """SIGTERM, SIGKILL after its kill-after, no retry; the result says who asked; nothing is left behind."""
    fleet.start("a")
    stubborn = "trap '' TERM; echo $$ > pid; while :; do sleep 0.1; done"
    fleet.add("j", "@yearly", "--kill-after", "1s", "--retries", "3", "--retry-delay", "0s", command=stubborn)
    tick = fleet.run_now("j")
    pid = int(fleet.bench.read("pid"))
    done = fleet.bench.run("cron", "kill", "j")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("on a: killed\n")
    result = fleet.result("j", tick)
    assert (result["state"], result["attempt"]) == ("killed", 1)
    assert result["reason"].startswith("killed by ")
    assert not alive(pid)
    wait_for(lambda: not list(fleet.bench.etcd.get_prefix(f"{fleet.bench.prefix}/cron/kill/")), "no request is left")
    again = fleet.bench.run("cron", "kill", "j")
    assert (again.returncode, "no run of j is alive" in again.stderr) == (1, True)


def test_kill_during_a_retry_delay(fleet: Fleet) -> None:
    """The run is alive between two attempts, too."""
    daemon = fleet.start("a")
    fleet.add("j", "@yearly", "--retries", "3", "--retry-delay", "60s", command="exit 1")
    tick = fleet.run_now("j")
    daemon.wait_event("retry")
    done = fleet.bench.run("cron", "kill", "j", "--tick", str(tick))
    assert done.returncode == 0, done.stderr
    assert fleet.result("j", tick)["state"] == "killed"


def test_kill_of_a_run_whose_host_is_stopped_gets_no_answer(fleet: Fleet) -> None:
    """75, and the request is withdrawn."""
    daemon = fleet.start("a")
    fleet.add("j", "@yearly", "--overlap", "allow", "--kill-after", "0s", command=UNTIL_GO)
    fleet.run_now("j")
    keeper = daemon.keeper()
    os.kill(keeper, signal.SIGSTOP)
    try:
        done = fleet.bench.run("cron", "kill", "j", timeout=90)
        assert done.returncode in (69, 75), done.stderr
        assert "conchd on a" in done.stderr
    finally:
        os.kill(keeper, signal.SIGCONT)
        fleet.bench.file("go").touch()


def test_env_file_is_read_on_the_host(fleet: Fleet) -> None:
    """When each attempt starts; the job's own variables count more, conchd's less; nothing of it is in etcd."""
    path = fleet.bench.file("env")
    path.write_text("SECRET=s3cr3t\nA=file\nB=file\nCONCH_NAME=x\n")
    fleet.start("a", env={"A": "host"})
    flags = ["--env-file", str(path), "--env-file", f"-{path}.none", "--env", "B=job", "--keep-output", "always"]
    assert kept(fleet, "j", "echo $SECRET $A $B $CONCH_NAME $CONCH_TICK", *flags).split()[:4] == [
        *("s3cr3t", "file", "job", "j")
    ]
    values = [value for value, _ in fleet.bench.etcd.get_prefix(f"{fleet.bench.prefix}/cron/job/")]
    assert not any(b"s3cr3t" in value for value in values)


def test_missing_env_file_fails_the_run(fleet: Fleet) -> None:
    """The command does not run, and the result says why."""
    fleet.start("a")
    fleet.add("j", "@yearly", "--env-file", "/no/such/file", command="touch ran")
    result = fleet.result("j", fleet.run_now("j"))
    assert (result["state"], result["reason"]) == ("failed", "cannot read /no/such/file: No such file or directory")
    assert not fleet.bench.file("ran").exists()


def test_run_and_kill_of_a_job_on_every_host(fleet: Fleet) -> None:
    """`run --wait` waits for all, with the code of the first that did not end well; `kill` ends all."""
    for host in ("a", "b"):
        fleet.start(host, env={"WHERE": host})
    wait_for(lambda: fleet.node("a") and fleet.node("b"), "two hosts")
    fleet.add("j", "@yearly", "--each", command="echo on $WHERE; [ $WHERE = a ] || exit 4")
    done = fleet.bench.run("cron", "run", "j", "--wait")
    assert done.returncode == 4, done.stderr
    assert sorted(done.stdout.splitlines()) == ["on a", "on b"]
    fleet.add("k", "@yearly", "--each", command="sleep 60")
    fleet.run_now("k")
    done = fleet.bench.run("cron", "kill", "k")
    assert done.returncode == 0, done.stderr
    assert sorted(line.split(" on ")[1] for line in done.stdout.splitlines()) == ["a: killed", "b: killed"]


def test_add_refuses_a_job_that_has_expired(fleet: Fleet) -> None:
    """As any schedule that will never fire."""
    expired = ["--expires", "2020-01-01T00:00:00Z"]
    done = fleet.bench.run("cron", "add", "j", "--schedule", "@daily", *expired, "--", "true")
    assert (done.returncode, "never fire" in done.stderr) == (64, True), done.stderr
    assert fleet.value("job", "j") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_env_file_of_a_user_who_cannot_read_conch(fleet: Fleet, tmp_path: Path) -> None:
    """Conch may be installed where only root may read: the run reads its files, and needs nothing of conch's own."""
    private = tmp_path / "private"
    shutil.copytree(Path(conch.__file__).parent, private / "conch")
    private.chmod(0o700)
    with tempfile.TemporaryDirectory(prefix="conch-test-") as public:
        Path(public).chmod(0o755)
        path = Path(public, "env")
        path.write_text("A=file\n")
        program = [sys.executable, "-m", "conch"]
        fleet.start("a", "--run-as", "nobody", env={"PYTHONPATH": str(private)}, program=program)
        output = kept(fleet, "j", "echo $A", "--env-file", str(path), "--cwd", "/", "--keep-output", "always")
    assert output == "file\n"
