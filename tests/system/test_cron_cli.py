"""`conch cron` and the start of `conchd`: what they reject, write and print."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from conch.cli.keyfile import read_key
from conch.cron.job import parse
from tests.support.conch import CONCH, Bench, log_lines, wait_for
from tests.support.cron import Fleet
from tests.support.etcdctl import etcdctl
from tests.support.proxy import Proxy
from tests.support.terminal import Terminal

DEAD = {"CONCH_ENDPOINTS": "127.0.0.1:1", "CONCH_DIAL_TIMEOUT": "1s"}
RUN = ["--", "true"]
HOURLY = ["--schedule", "@hourly"]
RFC3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)"
LS = ["name", "schedule", "tz", "cmd", "paused", "next_tick"]
LAST = ["last_tick", "node", "exit", "state", "duration_s"]
HISTORY = ["name", "tick", "tick_unix", "state", "exit", "node", "started", "duration_s", "attempt", "reason"]
HISTORY += ["cpu_s", "max_rss_kb"]
TICK = int(time.time()) // 3600 * 3600 - 86400


def job_key(bench: Bench, name: str = "j") -> str:
    return f"{bench.prefix}/cron/job/{name}"


def signing_key(bench: Bench) -> bytes:
    """Return the key that signs jobs under the bench's prefix."""
    key = read_key(key_file(bench), bench.prefix)
    assert key is not None
    return key


def put(bench: Bench, kind: str, *path: object, value: Any) -> None:
    """Write a key of cron straight to etcd."""
    text = value if isinstance(value, str | bytes) else json.dumps(value)
    bench.etcd.put("/".join((bench.prefix, "cron", kind, *map(str, path))), text)


def raw(bench: Bench, name: str = "j") -> dict[str, Any]:
    """Return a job's value."""
    value, _ = bench.etcd.get(job_key(bench, name))
    found = json.loads(value)
    assert isinstance(found, dict)
    return found


def mod_revision(bench: Bench, name: str = "j") -> int:
    _, meta = bench.etcd.get(job_key(bench, name))
    return int(meta.mod_revision)


def ok(bench: Bench, *arguments: str, **how: Any) -> str:
    """Run a cron command that must succeed; return its stdout."""
    done = bench.run("cron", *arguments, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(bench: Bench, *arguments: str, code: int = 64, says: str = "", **how: Any) -> str:
    """Run a command that must end with this code and one line on stderr; return the line."""
    done = bench.run(*arguments, **how)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(says, done.stderr), done.stderr
    return done.stderr


def key_file(bench: Bench, name: str = "key", text: str = "0123456789abcdef\n", mode: int = 0o600) -> str:
    path = bench.file(name)
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def result(node: str = "n", state: str = "ok", **more: Any) -> dict[str, Any]:
    return {"node": node, "state": state, "exit": 0, "started": "2026-01-01T00:00:01Z", "duration": 1.5, **more}


CLAIM = {"host": "c", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "conchd", "tick": 1, "run": "r"}


@pytest.fixture
def bench(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Conch on the test run's etcd; keys left under its prefix are removed.

    There, a conchd seems to be alive, so that no command warns of there being none; the test does not see its key.
    """
    node, keys = f"{fleet.bench.prefix}/node/alive", fleet.bench.keys
    fleet.bench.etcd.put(node, "{}")
    monkeypatch.setattr(fleet.bench, "keys", lambda: [key for key in keys() if key != node])
    yield fleet.bench
    fleet.bench.etcd.delete(node)


# -- add ------------------------------------------------------------------------------------------------------


def test_add_prints_the_next_three_ticks_in_the_jobs_zone(bench: Bench) -> None:
    """Nothing else is on stdout, and the host's zone does not matter."""
    flags = ["--schedule", "30 4 * * *", "--tz", "Europe/Berlin"]
    out = ok(bench, "add", "j", *flags, *RUN, env={"TZ": "Asia/Tokyo"})
    ticks = [datetime.fromisoformat(line) for line in out.splitlines()]
    assert len(ticks) == 3
    assert all(re.fullmatch(RFC3339, line) for line in out.splitlines())
    for tick in ticks:
        assert (tick.hour, tick.minute) == (4, 30)
        assert tick.utcoffset() == tick.astimezone(ZoneInfo("Europe/Berlin")).utcoffset()
    assert datetime.now(UTC) < ticks[0] < datetime.now(UTC) + timedelta(hours=25)
    assert [tick.date() - ticks[0].date() for tick in ticks] == [timedelta(days=day) for day in range(3)]
    assert bench.keys() == [job_key(bench)]


def test_add_writes_all_that_was_given(bench: Bench) -> None:
    """The value is one line of JSON; the command is unchanged, even where it is not UTF-8."""
    command = ["printf", "%s", "--", "a b", "", "\udcff", "--tz", "ä"]
    flags = [
        "--tz",
        "Europe/Paris",
        "--run-ttl",
        "1m30s",
        "--kill-after",
        "0",
        "--overlap",
        "allow",
        "--retries",
        "2",
        "--retry-delay",
        "1s",
    ]
    more = ["--start-deadline", "5m", "--sema", "s:3", "--env", "A=b=c", "--env", "E=", "--cwd", "/tmp", "--paused"]
    ok(bench, "add", "j", *HOURLY, *flags, *more, "--", *command, env={"CONCH_HOST": "here"})
    value, meta = bench.etcd.get(job_key(bench))
    assert b"\n" not in value
    job = parse("j", value)
    assert list(job.cmd) == command
    assert (job.tz, job.run_ttl_s, job.kill_after_s, job.overlap) == ("Europe/Paris", 90, 0, "allow")
    assert (job.retries, job.retry_delay_s, job.start_deadline_s, job.semaphore) == (2, 1, 300, ("s", 3))
    assert (job.env, job.cwd, job.paused) == ({"A": "b=c", "E": ""}, "/tmp", True)
    assert job.raw["added_by"].endswith("@here")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", job.raw["added_at"])
    assert meta.lease_id == 0


BAD_ADD: list[tuple[list[str], str]] = [
    ([], "NAME"),
    (["j", *RUN], "--schedule"),
    (["j", *HOURLY], "no command"),
    (["j", *HOURLY, "--"], "no command"),
    (["j", *HOURLY, "true"], "stands after --"),
    (["j", *HOURLY, "sh", "-c", "true"], "stands after --"),
    (["j", *HOURLY, "--", ""], "command"),
    (["", *HOURLY, *RUN], "bad name"),
    (["a/b", *HOURLY, *RUN], "bad name"),
    (["..", *HOURLY, *RUN], "bad name"),
    (["j k", *HOURLY, *RUN], "bad name"),
    (["x" * 129, *HOURLY, *RUN], "bad name"),
    (["j", "k", *HOURLY, *RUN], "k"),
    (["j", *HOURLY, "--nosuch", *RUN], "--nosuch"),
    (["j", "--schedule", "", *RUN], "schedule"),
    (["j", "--schedule", "junk", *RUN], "'junk'"),
    (["j", "--schedule", "* * * *", *RUN], "five"),
    (["j", "--schedule", "61 * * * *", *RUN], "minute"),
    (["j", "--schedule", "0 0 31 2 *", *RUN], "never"),
    (["j", "--schedule", "@reboot", *RUN], "reboot"),
    (["j", "--schedule", "@every 0s", *RUN], "every"),
    (["j", "--schedule", "@every 1.5s", *RUN], "whole seconds"),
    (["j", "--schedule", "* * * * *\n", *RUN], "schedule"),
    (["j", *HOURLY, "--tz", "Nowhere/Land", *RUN], "Nowhere/Land"),
    (["j", *HOURLY, "--tz", "", *RUN], "zone"),
    (["j", *HOURLY, "--tz", "/etc/localtime", *RUN], "zone"),
    (["j", *HOURLY, "--run-ttl", "0", *RUN], "--run-ttl"),
    (["j", *HOURLY, "--run-ttl", "25h", *RUN], "run.ttl"),
    (["j", *HOURLY, "--run-ttl", "x", *RUN], "--run-ttl"),
    (["j", *HOURLY, "--kill-after", "-1s", *RUN], "--kill-after"),
    (["j", *HOURLY, "--kill-after", "25h", *RUN], "kill.after"),
    (["j", *HOURLY, "--overlap", "maybe", *RUN], "--overlap"),
    (["j", *HOURLY, "--retries", "-1", *RUN], "--retries"),
    (["j", *HOURLY, "--retries", "1001", *RUN], "--retries"),
    (["j", *HOURLY, "--retries", "2", "--run-ttl", "9h", *RUN], "24 h"),
    (["j", *HOURLY, "--retry-delay", "nan", *RUN], "--retry-delay"),
    (["j", *HOURLY, "--start-deadline", "0", *RUN], "--start-deadline"),
    (["j", *HOURLY, "--start-deadline", "25h", *RUN], "start.deadline"),
    (["j", *HOURLY, "--sema", "s", *RUN], "sema"),
    (["j", *HOURLY, "--sema", "s:0", *RUN], "sema"),
    (["j", *HOURLY, "--sema", "a/b:1", *RUN], "bad name"),
    (["j", *HOURLY, "--env", "A", *RUN], "env"),
    (["j", *HOURLY, "--env", "=x", *RUN], "env"),
    (["j", *HOURLY, "--env", "A-B=x", *RUN], "env"),
    (["j", *HOURLY, "--cwd", "relative", *RUN], "cwd"),
    (["j", *HOURLY, "--cwd", "", *RUN], "cwd"),
    (["j", *HOURLY, "--job-key-file", "/no/such", *RUN], "/no/such"),
    (["j", *HOURLY, "--endpoints", "a:99999", *RUN], "a:99999"),
    (["j", *HOURLY, "--", "true", "x" * 33000], "too large"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD_ADD, ids=[str(at) for at in range(len(BAD_ADD))])
def test_bad_input_is_refused_by_add_before_it_writes(bench: Bench, arguments: list[str], says: str) -> None:
    """It prints one line, exits 64 and writes no key; it does not even need an etcd."""
    refused(bench, "cron", "add", *arguments, says=says)
    assert bench.keys() == []
    refused(bench, "cron", "add", *arguments, says=says, env=DEAD)


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "j", *HOURLY, *RUN],
        ["rm", "j"],
        ["show", "j"],
        ["pause", "j"],
        ["resume", "j"],
        ["run", "j"],
        ["ls"],
        ["ls", "--last", "--json"],
        ["history", "j"],
        ["next", "--job", "j"],
    ],
    ids=" ".join,
)
def test_etcd_out_of_reach_exits_69(conch: Bench, arguments: list[str]) -> None:
    """One line names the endpoint, soon after the dial timeout."""
    began = time.monotonic()
    refused(conch, "cron", *arguments, code=69, says="127.0.0.1:1", env=DEAD)
    assert time.monotonic() - began < 5


def test_add_replaces_the_whole_job_and_says_so(bench: Bench) -> None:
    """Fields that only the first job had are gone, but it stays paused; --quiet logs nothing."""
    first = bench.run("cron", "add", "j", *HOURLY, "--tz", "Asia/Tokyo", "--retries", "3", "--paused", "--", "a")
    assert "job-added" in first.stderr
    assert "job-replaced" not in first.stderr
    second = bench.run("cron", "add", "j", "--schedule", "@daily", "--", "b")
    assert (first.returncode, second.returncode) == (0, 0)
    assert [(line["event"], line.get("msg")) for line in log_lines(second.stderr)] == [
        ("job-changed", "schedule: @hourly → @daily"),
        ("job-changed", "tz: Asia/Tokyo → UTC"),
        ("job-changed", "cmd: a → b"),
        ("job-changed", "retries: 3 → 0"),
        ("job-replaced", None),
    ]
    found = raw(bench)
    assert (found["schedule"], found["tz"], found["retries"], found["paused"]) == ("@daily", "UTC", 0, True)
    assert found["cmd"] == ["b"]
    for env, flags in (({}, ["--quiet"]), ({"CONCH_QUIET": "1"}, [])):
        third = bench.run("cron", "add", "j", *HOURLY, *flags, *RUN, env=env)
        assert (third.returncode, third.stderr) == (0, "")
        assert third.stdout.count("\n") == 3
    assert bench.keys() == [job_key(bench)]


def test_add_of_an_identical_job_writes_nothing_and_says_so(bench: Bench) -> None:
    """The host, omitted defaults, and whether it is paused or signed make no difference."""
    flags = ["--schedule", "@hourly", "--tz", "Asia/Tokyo", "--run-ttl", "90s", "--sema", "s:2", "--env", "A=1"]
    path = key_file(bench)
    for key in ([], ["--job-key-file", path]):
        ok(bench, "add", "j", *flags, *key, *RUN)
        for command in ("resume", "pause"):
            ok(bench, command, "j", *key)
            rev = mod_revision(bench)
            for host in ("a", "b"):
                done = bench.run("cron", "add", "j", *flags, *key, *RUN, env={"CONCH_HOST": host})
                assert done.returncode == 0, done.stderr
                assert [line["event"] for line in log_lines(done.stderr)] == ["job-unchanged"]
                assert done.stdout.count("\n") == 3
            assert mod_revision(bench) == rev
    put(bench, "job", "bare", value={"schedule": "@hourly", "cmd": ["true"]})
    rev = mod_revision(bench, "bare")
    assert "job-unchanged" in bench.run("cron", "add", "bare", *HOURLY, *RUN).stderr
    assert mod_revision(bench, "bare") == rev


def test_add_logs_what_it_changes_but_no_values_of_variables(bench: Bench) -> None:
    """It logs each changed field, unknown ones too; --paused pauses; a dropped signature is logged."""
    ok(bench, "add", "j", *HOURLY, "--env", "A=one", "--env", "B=two", "--job-key-file", key_file(bench), *RUN)
    put(bench, "job", "j", value={**raw(bench), "from_later": [1]})
    done = bench.run("cron", "add", "j", *HOURLY, "--paused", "--cwd", "/", "--env", "A=six", "--env", "C=ten", *RUN)
    assert [(line["event"], line.get("msg")) for line in log_lines(done.stderr)] == [
        ("job-changed", "env: C added, B removed, A changed"),
        ("job-changed", "cwd: - → /"),
        ("job-changed", "paused: false → true"),
        ("job-changed", "from_later: [1] → -"),
        ("signature-dropped", "the job was signed and no longer is"),
        ("job-replaced", None),
    ]
    for value in ("one", "two", "six", "ten"):
        assert value not in done.stderr
    assert raw(bench)["paused"] is True


def test_add_replaces_an_unreadable_job(bench: Bench) -> None:
    """It logs that; the new job is paused if the old value says so."""
    for value, paused in (("junk", False), ('{"paused": true, "cmd": 5}', True)):
        put(bench, "job", "j", value=value)
        done = bench.run("cron", "add", "j", *HOURLY, *RUN)
        assert [line["event"] for line in log_lines(done.stderr)] == ["job-replaced"]
        assert raw(bench)["paused"] is paused


def test_add_whose_answer_was_lost_says_what_it_did(bench: Bench) -> None:
    """The second try finds the job of the first and still logs added or replaced, not unchanged."""
    proxy = Proxy(bench.endpoints)
    env = {"CONCH_ENDPOINTS": proxy.endpoint, "CONCH_TRANSPORT": "grpc"}
    for flags, word in (([], "job-added"), (["--tz", "Asia/Tokyo"], "job-replaced")):
        fault = proxy.fault("Txn", "reset", skip=1)  # the first one reads
        done = bench.run("cron", "add", "j", *HOURLY, *flags, *RUN, env=env)
        assert fault.hit.is_set()
        assert [line["event"] for line in log_lines(done.stderr)][-1] == word
    proxy.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nosuch"], "nosuch"),
        (["rm"], "NAME"),
        (["rm", "a/b"], "bad name"),
        (["rm", "j", "--nosuch"], "--nosuch"),
        (["show", ""], "bad name"),
        (["show", "j", "a/b"], "bad name"),
        (["pause", ".."], "bad name"),
        (["resume", "j", "--json"], "--json"),
        (["run", "a b"], "bad name"),
        (["ls", "x"], "x"),
        (["history", "j", "-n", "0"], "-n"),
        (["history", "j", "-n", "1001"], "-n"),
        (["history"], "NAME"),
        (["next"], "expression"),
        (["next", "@daily", "--job", "j"], "expression"),
        (["next", "@daily", "-n", "x"], "-n"),
        (["next", "@daily", "-n", "0"], "-n"),
        (["next", "@daily", "--tz", "Nowhere"], "Nowhere"),
        (["next", "@daily", "--tz", ""], "zone"),
        (["next", "@daily", "--after", "yesterday"], "yesterday"),
        (["next", "@daily", "--after", "2026-01-01T00:00:00"], "RFC 3339"),
        (["next", "@daily", "--after", "2026-01-01"], "RFC 3339"),
        (["next", "@daily", "--after", ""], "RFC 3339"),
        (["next", "junk"], "junk"),
        (["next", "0 0 30 2 *"], "never"),
        (["next", "H * * * *"], "H needs a job name"),
        (["next", "* * * * *", "*"], r"\*"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else None,
)
def test_bad_input_of_the_other_commands(conch: Bench, arguments: list[str], says: str) -> None:
    """They print one line and exit 64 before they call etcd."""
    refused(conch, "cron", *arguments, says=says, env=DEAD)


# -- rm, show, pause, resume ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["rm", "show", "pause", "resume", "run", "history"])
def test_unknown_job_exits_1(conch: Bench, command: str) -> None:
    """One line names the job."""
    refused(conch, "cron", command, "nosuch", code=1, says="no job nosuch")
    assert conch.keys() == []


def test_next_of_an_unknown_job_exits_1(conch: Bench) -> None:
    """One line names the job."""
    refused(conch, "cron", "next", "--job", "nosuch", code=1, says="no job nosuch")


def test_rm_removes_job_and_floor_and_no_other(bench: Bench) -> None:
    """A job whose name begins the same and the history stay; it says what it did."""
    for name in ("j", "j2"):
        ok(bench, "add", name, *HOURLY, *RUN)
        put(bench, "floor", name, value="5")
        put(bench, "result", name, TICK, value=result())
    done = bench.run("cron", "rm", "j")
    assert (done.returncode, done.stdout) == (0, "")
    assert [(line["event"], line["job"]) for line in log_lines(done.stderr)] == [("job-removed", "j")]
    left = ["floor/j2", "job/j2", f"result/j/{TICK}", f"result/j2/{TICK}"]
    assert bench.keys() == [f"{bench.prefix}/cron/{key}" for key in left]
    refused(bench, "cron", "rm", "j", code=1, says="no job j")


def test_rm_of_a_job_that_cannot_be_read(bench: Bench) -> None:
    """`rm` deletes it like any other."""
    put(bench, "job", "j", value="junk")
    ok(bench, "rm", "j")
    assert bench.keys() == []


def test_show_as_text_and_json(bench: Bench) -> None:
    """Both show every field, unknown ones too; JSON is one line with the revision."""
    ok(bench, "add", "j", *HOURLY, "--env", "A=b c", "--", "echo", "a b", "\x1b[31m")
    put(bench, "job", "j", value={**raw(bench), "from_later": [1]})
    lines = ok(bench, "show", "j").splitlines()
    assert lines[0] == "name: j"
    assert "schedule: @hourly" in lines
    assert "env: 'A=b c'" in lines
    assert "cmd: echo 'a b' '\\x1b[31m'" in lines
    assert "from_later: [1]" in lines
    (shown,) = bench.jsons(ok(bench, "show", "j", "--json"))
    assert shown == {"name": "j", **raw(bench), "rev": mod_revision(bench)}


def test_show_of_a_job_that_cannot_be_read(bench: Bench) -> None:
    """It exits 69 and names the key."""
    put(bench, "job", "j", value='{"schedule": "@daily"}')
    refused(bench, "cron", "show", "j", code=69, says=f"{job_key(bench)}.*cmd")


def test_pause_and_resume(bench: Bench) -> None:
    """They are idempotent, say what they did, change nothing else, and write only to make a change."""
    ok(bench, "add", "j", *HOURLY, *RUN)
    before = {**raw(bench), "from_later": {"x": None}, "run_ttl": 7}
    del before["change_id"]
    put(bench, "job", "j", value=before)
    rev = mod_revision(bench)
    for command, paused in (("resume", False), ("pause", True), ("pause", True), ("resume", False), ("resume", False)):
        changed = raw(bench).get("paused", False) != paused
        done = bench.run("cron", command, "j")
        assert (done.returncode, done.stdout) == (0, "")
        event = f"job-{command}{'' if command.endswith('e') else 'e'}d" if changed else "job-unchanged"
        assert [line["event"] for line in log_lines(done.stderr)] == [event]
        edit = ("changed_at", "changed_by", "change_id")
        found = raw(bench)
        assert {field: value for field, value in found.items() if field not in edit} == {**before, "paused": paused}
        assert (mod_revision(bench) > rev) is changed
        rev = mod_revision(bench)


def test_pause_of_a_signed_job_needs_the_key(bench: Bench) -> None:
    """With the key it signs again; the key file may come from the environment."""
    path = key_file(bench)
    ok(bench, "add", "j", *HOURLY, "--job-key-file", path, *RUN)
    assert parse("j", bench.etcd.get(job_key(bench))[0]).is_signed_by(signing_key(bench))
    rev = mod_revision(bench)
    refused(bench, "cron", "pause", "j", code=1, says="signed")
    assert mod_revision(bench) == rev
    ok(bench, "pause", "j", "--job-key-file", path)
    ok(bench, "resume", "j", env={"CONCH_JOB_KEY_FILE": path})
    job = parse("j", bench.etcd.get(job_key(bench))[0])
    assert job.is_signed_by(signing_key(bench))
    assert not job.paused


@pytest.mark.parametrize("sig", ["kept", "none"])
def test_pause_and_resume_do_not_sign_what_others_wrote(bench: Bench, sig: str) -> None:
    """Otherwise anyone who may write to etcd could have the owner sign their command."""
    path = key_file(bench)
    ok(bench, "add", "j", *HOURLY, "--job-key-file", path, *RUN)
    forged = {**raw(bench), "cmd": ["evil"], "paused": True}
    if sig == "none":
        del forged["sig"]
    put(bench, "job", "j", value=forged)
    for command in ("resume", "pause"):
        bench.run("cron", command, "j", "--job-key-file", path)
        assert not parse("j", bench.etcd.get(job_key(bench))[0]).is_signed_by(signing_key(bench))


def test_add_without_the_key_over_a_signed_job_is_not_signed(bench: Bench) -> None:
    """The old signature is removed."""
    ok(bench, "add", "j", *HOURLY, "--job-key-file", key_file(bench), *RUN)
    ok(bench, "add", "j", *HOURLY, *RUN)
    assert "sig" not in raw(bench)


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [(None, 0, "No such file"), ("0123456789abcdef", 0o644, "chmod"), ("  0123456789abcde\n", 0o600, "16 bytes")],
    ids=["missing", "world-readable", "short"],
)
@pytest.mark.parametrize("command", [["cron", "add", "j", *HOURLY], ["cron", "pause", "j"], ["conchd"]], ids=" ".join)
def test_bad_key_files(conch: Bench, command: list[str], text: str | None, mode: int, says: str) -> None:
    """One line names the file, and the exit code is 64, before etcd is called."""
    path = conch.file("key")
    if text is not None:
        key_file(conch, text=text, mode=mode)
    child = RUN if "add" in command else []
    refused(conch, *command, "--job-key-file", str(path), *child, says=f"{path}.*{says}|{says}.*{path}", env=DEAD)


# -- run ------------------------------------------------------------------------------------------------------


def granted(bench: Bench) -> list[int]:
    """Return the granted TTLs of all leases in this etcd."""
    lines = etcdctl("--endpoints", bench.endpoints, "lease", "list").splitlines()[1:]
    return [bench.etcd.get_lease_info(int(line, 16)).grantedTTL for line in lines if line]


def test_run_that_is_impossible_leaves_nothing_in_etcd(own_fleet: Fleet) -> None:
    """No conchd, none that takes ticks, or no free second: exit 1, one line, no key, no lease."""
    bench = own_fleet.bench
    ok(bench, "add", "j", *HOURLY, *RUN)
    ok(bench, "add", "full", "--schedule", "@every 1s", *RUN)
    jobs = [job_key(bench, "full"), job_key(bench, "j")]
    refused(bench, "cron", "run", "j", code=1, says="no conchd")
    assert (bench.keys(), granted(bench)) == (jobs, [])
    node = f"{bench.prefix}/node/h"
    bench.etcd.put(node, '{"draining": true}')
    refused(bench, "cron", "run", "j", code=1, says="no conchd")
    bench.etcd.put(node, "{}")
    refused(bench, "cron", "run", "full", code=1, says="every second")
    assert (bench.keys(), granted(bench)) == ([*jobs, node], [])
    bench.etcd.delete(node)


def test_run_is_claimed_once_and_has_one_result(fleet: Fleet) -> None:
    """A paused job runs too, and each of several simultaneous requests has its own tick."""
    bench = fleet.bench
    fleet.add("j", "@yearly", "--paused", "--overlap", "allow", command="echo $CONCH_TICK >> ran")
    ok(bench, "add", "k", "--schedule", "@yearly", "--overlap", "allow", "--cwd", str(bench.folder), "--", "true")
    put(bench, "job", "j", value={**raw(bench), "cwd": str(bench.folder)})
    fleet.start("a")
    fleet.start("b")
    asked = [bench.start("cron", "run", "j") for _ in range(4)]
    assert [one.wait() for one in asked] == [0] * 4
    for one in asked:
        assert re.fullmatch(RFC3339 + "\n", one.out)
        assert one.err == ""
    ticks = sorted(fleet.unix(one.out.strip()) for one in asked)
    assert len(set(ticks)) == 4
    assert abs(ticks[0] - time.time()) < 10
    results = fleet.results("j", 4)
    assert sorted(results) == sorted(fleet.ticks("fire", "j")) == ticks
    assert {one["state"] for one in results.values()} == {"ok"}
    assert sorted(int(line) for line in bench.read("ran", 4).split()) == ticks
    wait_for(lambda: not bench.etcd.get(f"{bench.prefix}/cron/now/j/{ticks[-1]}")[0], "the request is gone")
    assert [one["tick_unix"] for one in fleet.history("j")] == ticks[::-1]
    (shown,) = (one for one in bench.jsons(ok(bench, "ls", "--last", "--json")) if one["name"] == "j")
    assert (shown["paused"], shown["next_tick"], shown["state"], shown["exit"]) == (True, None, "ok", 0)
    tick = fleet.run_now("k")
    assert fleet.result("k", tick)["state"] == "ok"


def test_run_takes_no_tick_of_the_schedule(fleet: Fleet) -> None:
    """It takes a second soon that the schedule does not use."""
    fleet.start("a")
    fleet.add("j", "@every 2s")
    for number in range(3):
        tick = fleet.run_now("j")
        assert tick % 2 == 1
        assert tick - time.time() < 2 * number + 3
        assert fleet.result("j", tick)["state"] in ("ok", "skipped")


# -- ls -------------------------------------------------------------------------------------------------------


def test_ls_of_nothing(conch: Bench) -> None:
    """It prints nothing."""
    for flags in ([], ["--last"], ["--json"]):
        done = conch.run("cron", "ls", *flags)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ls_as_text_and_json(bench: Bench) -> None:
    """Jobs are sorted by name and have exactly the documented fields; times are RFC 3339 without a terminal."""
    for name, flags in (("b", []), ("a", ["--paused"]), ("a-b", ["--tz", "Asia/Tokyo"]), ("B", [])):
        ok(bench, "add", name, "--schedule", "0 5 * * *", *flags, "--", "echo", "x y")
    shown = list(bench.jsons(ok(bench, "ls", "--json")))
    assert [list(one) for one in shown] == [LS] * 4
    assert [one["name"] for one in shown] == ["B", "a", "a-b", "b"]
    assert [one["paused"] for one in shown] == [False, True, False, False]
    assert shown[0]["next_tick"].endswith("T05:00:00Z")
    assert shown[1]["next_tick"] is None
    assert shown[2]["next_tick"].endswith("T20:00:00Z")
    assert shown[3]["cmd"] == ["echo", "x y"]
    head, *lines = ok(bench, "ls").splitlines()
    assert head.split() == ["NAME", "SCHEDULE", "TZ", "NEXT", "COMMAND"]
    assert [line.split()[0] for line in lines] == ["B", "a", "a-b", "b"]
    assert re.search(rf"  UTC +{RFC3339} +echo 'x y'$", lines[0])
    assert "  paused  " in lines[1]


def test_ls_last(bench: Bench) -> None:
    """It shows each job's newest tick, with a result or only claimed; nothing for a job that never ran."""
    for name in ("claimed", "never", "ran"):
        ok(bench, "add", name, *HOURLY, *RUN)
    put(bench, "result", "ran", TICK, value=result())
    put(bench, "result", "ran", TICK + 60, value=result(node="m", state="failed", exit=3))
    put(bench, "result", "claimed", TICK, value=result())
    put(bench, "fire", "claimed", TICK + 60, value=CLAIM)
    shown = {one["name"]: one for one in bench.jsons(ok(bench, "ls", "--last", "--json"))}
    assert all(list(one) == LS + LAST for one in shown.values())
    at = datetime.fromtimestamp(TICK + 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert [shown["ran"][field] for field in LAST] == [at, "m", 3, "failed", 1.5]
    assert [shown["claimed"][field] for field in LAST] == [at, "c", None, "claimed", None]
    assert [shown["never"][field] for field in LAST] == [None] * 5
    head, *lines = ok(bench, "ls", "--last").splitlines()
    assert head.split() == ["NAME", "SCHEDULE", "TZ", "NEXT", "LAST", "STATE", "EXIT", "NODE", "TOOK", "COMMAND"]
    assert re.search(rf"{at} +claimed +- +c +- +true$", lines[0])
    assert re.search(r" - +- +- +- +- +true$", lines[1])
    assert re.search(rf"{at} +failed +3 +m +1\.5s +true$", lines[2])


BROKEN = {
    "broken-json": "junk",
    "broken-type": "[]",
    "broken-field": '{"schedule": "@daily", "cmd": "true"}',
    "broken-schedule": '{"schedule": "@dialy", "cmd": ["true"]}',
    "broken-number": '{"schedule": "@daily", "cmd": ["true"], "run_ttl": 1%s}' % ("0" * 400),
    "bad name": '{"schedule": "@daily", "cmd": ["true"]}',
    "deep/er": '{"schedule": "@daily", "cmd": ["true"]}',
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_ls_with_a_broken_job(bench: Bench, name: str) -> None:
    """A warning names its key, the other jobs are shown, and the exit code is 0."""
    ok(bench, "add", "a", *HOURLY, *RUN)
    ok(bench, "add", "z", *HOURLY, *RUN)
    put(bench, "job", name, value=BROKEN[name])
    done = bench.run("cron", "ls", "--json", "--last", "--quiet")
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in bench.jsons(done.stdout)] == ["a", "z"]
    assert done.stderr.count("\n") == 1
    assert "level=warning" in done.stderr
    assert job_key(bench, name) in done.stderr


# -- next -----------------------------------------------------------------------------------------------------

BERLIN = ["--tz", "Europe/Berlin"]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["30 2 * * *", *BERLIN, "--after", "2026-03-28T12:00:00Z", "-n", "2"],
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
        ),
        (
            ["*/30 * * * *", *BERLIN, "--after", "2026-03-29T01:45:00+01:00", "-n", "2"],
            ["2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"],
        ),
        (
            ["30 2 * * *", *BERLIN, "--after", "2026-10-24T12:00:00Z", "-n", "2"],
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        ),
        (
            ["*/30 * * * *", *BERLIN, "--after", "2026-10-25T02:15:00+02:00", "-n", "4"],
            [f"2026-10-25T{at}" for at in ("02:30:00+02:00", "02:00:00+01:00", "02:30:00+01:00", "03:00:00+01:00")],
        ),
        (
            ["@daily", "--after", "2026-01-01T00:00:00Z", "-n", "2"],
            ["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"],
        ),
        (["@daily", "--after", "2025-12-31T23:59:59.5z", "-n", "1"], ["2026-01-01T00:00:00Z"]),
        (["@every 90s", "--after", "1970-01-01T00:00:00Z", "-n", "1"], ["1970-01-01T00:01:30Z"]),
        (["0 0 29 2 *", "--after", "2026-01-01T01:00:00+01:00", "-n", "1"], ["2028-02-29T00:00:00Z"]),
        (["0 9 * * mon", "--tz", "Asia/Kolkata", "--after", "2026-01-01T00:00:00Z", "-n", "1"],
         ["2026-01-05T09:00:00+05:30"]),
    ],
    ids=lambda one: one[0] if len(one[0]) < 15 else None,
)  # fmt: skip
def test_next_of_an_expression(conch: Bench, arguments: list[str], lines: list[str]) -> None:
    """It needs no etcd and ignores the host's zone; JSON has the same instants."""
    env = {**DEAD, "TZ": "America/New_York"}
    assert ok(conch, "next", *arguments, env=env).splitlines() == lines
    shown = list(conch.jsons(ok(conch, "next", *arguments, "--json", env=env)))
    assert [one["tick_unix"] for one in shown] == [int(datetime.fromisoformat(line).timestamp()) for line in lines]
    assert [Fleet.unix(one["tick"]) for one in shown] == [one["tick_unix"] for one in shown]


def test_next_shows_five_from_now(conch: Bench) -> None:
    """This is the default."""
    before = datetime.now(UTC)
    ticks = [datetime.fromisoformat(line) for line in ok(conch, "next", "* * * * *", env=DEAD).splitlines()]
    assert len(ticks) == 5
    assert before < ticks[0] <= before + timedelta(seconds=70)
    assert {after - tick for tick, after in pairwise(ticks)} == {timedelta(minutes=1)}


def test_next_of_a_job(bench: Bench) -> None:
    """It uses the job's zone or a given one and hashes by the job's name; a paused job has ticks, too."""
    ok(bench, "add", "j", "--schedule", "H 5 * * *", "--tz", "Asia/Tokyo", "--paused", *RUN)
    after = ["--after", "2026-01-01T00:00:00Z", "-n", "1"]
    (line,) = ok(bench, "next", "--job", "j", *after).splitlines()
    assert re.fullmatch(r"2026-01-02T05:\d\d:00\+09:00", line)
    assert ok(bench, "next", "--job", "j", *after, env={"TZ": "Europe/Berlin"}).splitlines() == [line]
    (other,) = ok(bench, "next", "--job", "j", "--tz", "UTC", *after).splitlines()
    assert other == line[:10].replace("-02", "-01") + line[10:19] + "Z"


# -- history --------------------------------------------------------------------------------------------------


def test_history_of_a_job_that_never_ran(bench: Bench) -> None:
    """It is empty, which is no error."""
    ok(bench, "add", "j", *HOURLY, *RUN)
    for flags in ([], ["--json"]):
        done = bench.run("cron", "history", "j", *flags)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_history_rows(bench: Bench) -> None:
    """Newest first, the documented fields, at most -n rows; claimed ticks and removed jobs are included."""
    for at in range(25):
        put(bench, "result", "j", TICK + at, value=result(attempt=2, reason="because", cpu_s=0.25, max_rss_kb=9000))
        put(bench, "fire", "j", TICK + at, value=CLAIM)
    put(bench, "fire", "j", TICK + 25, value=CLAIM)
    put(bench, "result", "j2", TICK + 99, value=result())
    shown = list(bench.jsons(ok(bench, "history", "j", "-n", "1000", "--json")))
    assert [list(one) for one in shown] == [HISTORY] * 26
    assert [one["tick_unix"] for one in shown] == list(range(TICK + 25, TICK - 1, -1))
    assert all(Fleet.unix(one["tick"]) == one["tick_unix"] for one in shown)
    newest, second = shown[:2]
    assert {name: value for name, value in newest.items() if value is not None} == {
        "name": "j",
        "tick": newest["tick"],
        "tick_unix": TICK + 25,
        "state": "claimed",
        "node": "c",
    }
    assert [second[field] for field in HISTORY[3:]] == [
        *("ok", 0, "n", "2026-01-01T00:00:01Z", 1.5, 2, "because", 0.25, 9000)
    ]
    assert list(bench.jsons(ok(bench, "history", "j", "--json"))) == shown[:20]
    assert list(bench.jsons(ok(bench, "history", "j", "-n", "2", "--json"))) == shown[:2]
    head, *lines = ok(bench, "history", "j", "-n", "2").splitlines()
    assert head.split() == ["TICK", "STATE", "EXIT", "NODE", "STARTED", "TOOK", "ATTEMPT", "REASON"]
    assert lines[0].split() == [newest["tick"], "claimed", "-", "c", "-", "-", "-"]
    assert lines[1].split() == [second["tick"], "ok", "0", "n", "2026-01-01T00:00:01Z", "1.5s", "2", "because"]


BAD_RESULTS = ["junk", "[]", "{}", '{"state": "ok"}', '{"state": 1, "node": "n"}', "\xff"]


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_history_with_broken_results(bench: Bench, flags: list[str]) -> None:
    """A warning names each key, the other result is shown, and the exit code is 0."""
    for at, value in enumerate(BAD_RESULTS):
        put(bench, "result", "j", TICK + at, value=value)
    put(bench, "result", "j", "x", value=result())
    put(bench, "fire", "j", TICK + 99, value="junk")
    put(bench, "result", "j", TICK + 100, value=result())
    done = bench.run("cron", "history", "j", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == (1 if flags else 2)
    keys = [*(f"result/j/{TICK + at}" for at in range(len(BAD_RESULTS))), "result/j/x", f"fire/j/{TICK + 99}"]
    assert done.stderr.count("level=warning") == done.stderr.count("\n") == len(keys)
    for key in keys:
        assert f"{bench.prefix}/cron/{key}" in done.stderr


@pytest.mark.parametrize("oddness", ["junk", "a name", "many"])
def test_newest_tick_that_can_be_read_is_shown(bench: Bench, oddness: str) -> None:
    """Each unreadable newer result is named once, and the older ticks are shown with their state."""
    bad = {"junk": [f"result/j/{TICK + 9}"], "a name": ["result/j/x"], "many": []}[oddness]
    bad = bad or [f"{kind}/j/{TICK + at}" for at in range(20, 50) for kind in ("fire", "result")]
    ok(bench, "add", "j", *HOURLY, *RUN)
    for at in range(5):
        put(bench, "fire", "j", TICK + at, value=CLAIM)
        put(bench, "result", "j", TICK + at, value=result(state="failed"))
    for key in bad:
        put(bench, key, value="junk")
    named = {f"{bench.prefix}/cron/{key}" for key in bad if key.startswith("result")}
    for limit in (1, 3, 1000):
        done = bench.run("cron", "history", "j", "-n", str(limit), "--json")
        shown = list(bench.jsons(done.stdout))
        assert [one["tick_unix"] for one in shown] == [TICK + at for at in range(4, max(4 - limit, -1), -1)]
        assert {one["state"] for one in shown} == {"failed"}
        assert sorted(line["key"] for line in log_lines(done.stderr)) == sorted(named)
    done = bench.run("cron", "ls", "--last", "--json")
    (last,) = bench.jsons(done.stdout)
    assert (Fleet.unix(last["last_tick"]), last["state"]) == (TICK + 4, "failed")
    assert named <= {line["key"] for line in log_lines(done.stderr)}
    assert len(log_lines(done.stderr)) == len(named)


@pytest.mark.parametrize(
    "value", [pytest.param("1" + "0" * 400, id="huge"), "NaN", "1e400", "true", '"x"', "null", "[]"]
)
@pytest.mark.parametrize("command", [["history", "j"], ["ls", "--last"]], ids=" ".join)
def test_odd_duration_of_a_result(bench: Bench, command: list[str], value: str) -> None:
    """It is shown as missing, without a traceback, and without NaN in JSON."""
    ok(bench, "add", "j", *HOURLY, *RUN)
    text = json.dumps(result()).replace("1.5", value)
    put(bench, "result", "j", TICK, value=text)
    assert "ok" in ok(bench, *command)
    (shown,) = ok(bench, *command, "--json").splitlines()

    def never(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    assert json.loads(shown, parse_constant=never)["duration_s"] is None


# -- terminals and pipes --------------------------------------------------------------------------------------


@pytest.fixture
def terminal(bench: Bench) -> Iterator[Terminal]:
    """A shell on a terminal."""
    terminal = Terminal(bench.environment, str(bench.folder))
    terminal.wait("$ ")
    yield terminal
    terminal.close()


def test_times_on_a_terminal(bench: Bench, terminal: Terminal) -> None:
    """They are relative on a terminal and RFC 3339 in a pipe."""
    now = datetime.now(UTC)
    soon, later = now + timedelta(minutes=10, seconds=20), now + timedelta(days=5)
    ok(bench, "add", "soon", "--schedule", f"{soon.minute} {soon.hour} {soon.day} {soon.month} *", *RUN)
    ok(bench, "add", "later", "--schedule", f"0 0 {later.day} {later.month} *", *RUN)
    put(bench, "result", "soon", int(now.timestamp()) - 7200, value=result())
    terminal.line(f"{CONCH} cron ls --last; echo code=$?")
    terminal.wait("code=0")
    assert re.search(r" soon .* \(in (9|10) min\) +2 h ago +ok ", " " + terminal.text.replace("\n", "\n ")), (
        terminal.text
    )
    assert re.search(r" \(in [45] days\) ", terminal.text)
    assert not re.search(RFC3339, terminal.text)
    terminal.line(f"{CONCH} cron history soon; echo second=$?")
    terminal.wait("second=0")
    assert re.search(r"2 h ago +ok ", terminal.text.partition("history soon")[2])
    terminal.line(f"{CONCH} cron ls --last | cat; echo third=$?")
    terminal.wait("third=0")
    assert len(re.findall(RFC3339, terminal.text.partition("| cat")[2])) == 3


OUTPUTS = [
    f"add j --schedule @hourly {' '.join(RUN)}",
    "show k",
    "show k --json",
    "ls",
    "ls --json",
    "history k",
    "next @hourly",
]


@pytest.mark.parametrize("how", [">&-", "> /dev/full"])
@pytest.mark.parametrize("command", OUTPUTS)
def test_output_that_cannot_be_written_exits_74(bench: Bench, command: str, how: str) -> None:
    """One line on stderr says so, without a traceback."""
    ok(bench, "add", "k", *HOURLY, *RUN)
    put(bench, "result", "k", TICK, value=result())
    done = subprocess.run(
        ["sh", "-c", f"exec {CONCH} cron {command.replace(' --', ' --quiet --', 1)} {how}"],
        env=bench.environment,
        check=False,
        timeout=30,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 74, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "stdout" in done.stderr


@pytest.mark.parametrize("command", ["ls --json", "next @hourly"])
def test_closed_pipe_ends_it_silently(bench: Bench, command: str) -> None:
    """The exit code is that of SIGPIPE."""
    ok(bench, "add", "k", *HOURLY, *RUN)
    read, write = os.pipe()
    os.close(read)
    done = bench.run("cron", *command.split(), stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


# -- the start of conchd --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--status-addr", "x"], {}, "'x'"),
        (["--status-addr", ""], {}, "--status-addr"),
        (["--status-addr", ":80"], {}, "':80'"),
        (["--status-addr", "h:"], {}, "'h:'"),
        (["--status-addr", "h:65536"], {}, "65536"),
        (["--status-addr", "1" * 5000], {}, "--status-addr"),
        ([], {"CONCH_STATUS_ADDR": "h:x"}, "'h:x'"),
        (["--state-dir", "/dev/null"], {}, "--state-dir.*/dev/null"),
        (["--state-dir", "/dev/null/x"], {}, "--state-dir.*/dev/null/x"),
        (["--state-dir", "/proc/x"], {}, "--state-dir.*/proc/x"),
        ([], {"HOME": "nowhere"}, "state"),
        (["--run-as", "no-such-user"], {}, "no-such-user"),
        (["--run-as", ""], {}, "--run-as"),
        (["--ttl", "1s"], {}, "--ttl"),
        (["--ttl", "2.5"], {}, "--ttl"),
        ([], {"CONCH_TTL": "x"}, "'x'"),
        (["--max-runs", "0"], {}, "--max-runs"),
        (["--max-runs", "x"], {}, "--max-runs"),
        (["--max-runs", "100000"], {}, "--max-runs"),
        (["--drain", "-1"], {}, "--drain"),
        ([], {"CONCH_HOST": "a/b"}, "CONCH_HOST"),
        (["--endpoints", "a:x"], {}, "a:x"),
        (["extra"], {}, "extra"),
        (["--nosuch"], {}, "--nosuch"),
    ],
)
def test_mistakes_at_the_start_of_conchd(conch: Bench, arguments: list[str], env: dict[str, str], says: str) -> None:
    """It prints one line and exits 64 before it calls etcd."""
    refused(conch, "conchd", *arguments, says=says, env={"XDG_STATE_HOME": "", **DEAD, **env})


def test_state_directory_that_is_in_use(fleet: Fleet) -> None:
    """A second conchd waits some seconds for the first to end, then exits 75; the first continues."""
    first = fleet.start("a")
    began = time.monotonic()
    second = fleet.bench.run(
        "conchd", "--quiet", "--state-dir", str(fleet.state("a")), env={"CONCH_HOST": "b"}, timeout=20
    )
    assert second.returncode == 75
    assert 4 < time.monotonic() - began < 8
    assert second.stderr.count("\n") == 1
    assert str(fleet.state("a")) in second.stderr
    fleet.add("j", "@yearly")
    assert fleet.result("j", fleet.run_now("j"))["node"] == "a"
    assert first.process.poll() is None


def test_state_directory_is_free_after_the_first_has_ended(fleet: Fleet) -> None:
    """A successor waits for that and starts."""
    first = fleet.start("a")
    second = fleet.start("a", ready=False)
    fleet.daemons["first"] = first
    first.signal(signal.SIGTERM)
    assert first.wait() in (0, 143)
    second.wait_event("registered")


def test_signal_while_waiting_for_the_state_directory(fleet: Fleet) -> None:
    """It ends conchd immediately."""
    fleet.start("a")
    second = fleet.bench.start("conchd", "--state-dir", str(fleet.state("a")), env={"CONCH_HOST": "b"})

    def has_opened_the_lock() -> bool:
        lock = str(fleet.state("a") / "lock")
        return any(os.path.realpath(fd) == lock for fd in Path(f"/proc/{second.pid}/fd").iterdir())

    wait_for(has_opened_the_lock, "the lock is open")
    second.signal(signal.SIGTERM)
    assert second.wait(3) == 128 + signal.SIGTERM


def plain(text: str) -> list[str]:
    """Return the lines that are no log lines."""
    return [line for line in text.splitlines() if not line.startswith("ts=")]


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections and sends nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(20)
        yield server


def test_conchd_without_etcd_exits_69(conch: Bench) -> None:
    """It prints one line with the endpoint soon after the dial timeout."""
    endpoint, began = "127.0.0.1:1", time.monotonic()
    done = conch.run("conchd", "--state-dir", str(conch.folder / "s"), "--endpoints", endpoint, "--dial-timeout", "1s")
    assert (done.returncode, done.stdout) == (69, "")
    assert time.monotonic() - began < 4
    (line,) = plain(done.stderr)
    assert endpoint in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_conchd_dials(conch: Bench, silent: socket.socket, number: int) -> None:
    """conchd exits 128 + n immediately."""
    endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
    daemon = conch.start(
        "conchd", "--state-dir", str(conch.folder / "s"), "--endpoints", endpoint, "--dial-timeout", "60s"
    )
    connection, _ = silent.accept()
    daemon.signal(number)
    assert daemon.wait(5) == 128 + number
    connection.close()
    assert plain(daemon.err) == []


@pytest.mark.parametrize(
    ("flags", "env", "place"),
    [
        (["--state-dir", "{}/flag"], {"CONCH_STATE_DIR": "{}/conch", "STATE_DIRECTORY": "{}/systemd"}, "flag"),
        ([], {"CONCH_STATE_DIR": "{}/conch", "STATE_DIRECTORY": "{}/systemd"}, "conch"),
        ([], {"CONCH_STATE_DIR": "", "STATE_DIRECTORY": "{}/systemd", "XDG_STATE_HOME": "{}/xdg"}, "systemd"),
        ([], {"STATE_DIRECTORY": "{}/one:{}/two"}, "one"),
        ([], {"STATE_DIRECTORY": "", "XDG_STATE_HOME": "{}/xdg", "HOME": "{}/home"}, "xdg/conch"),
        ([], {"XDG_STATE_HOME": "relative", "HOME": "{}/home"}, "home/.local/state/conch"),
        ([], {"XDG_STATE_HOME": "", "HOME": "{}/home"}, "home/.local/state/conch"),
    ],
)
def test_where_the_state_is(conch: Bench, flags: list[str], env: dict[str, str], place: str) -> None:
    """In this order: the flag, conch's variable, systemd's, XDG's, the home directory; always private."""
    at = str(conch.folder)
    done = conch.run(
        "conchd",
        *(flag.format(at) for flag in flags),
        env={**DEAD, "CONCH_DIAL_TIMEOUT": "0.2s", **{name: text.replace("{}", at) for name, text in env.items()}},
    )
    assert done.returncode == 69, done.stderr
    made = [path.parent for path in conch.folder.rglob("lock")]
    assert made == [conch.folder / place]
    assert made[0].stat().st_mode & 0o7777 == 0o700


def test_state_directory_with_a_colon_in_its_name(conch: Bench) -> None:
    """Only systemd's variable is a list."""
    conch.run("conchd", "--state-dir", str(conch.folder / "a:b"), env={**DEAD, "CONCH_DIAL_TIMEOUT": "0.2s"})
    assert [path.parent for path in conch.folder.rglob("lock")] == [conch.folder / "a:b"]
