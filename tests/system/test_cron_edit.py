"""`cron set`, and what `rm`, `pause`, `resume` and `show` do with several jobs."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from conch.cron.job import parse
from tests.support.conch import Bench, log_lines
from tests.support.cron import Fleet
from tests.system.test_cron_cli import job_key, key_file, mod_revision, ok, put, raw, refused, signing_key

HOURLY = ["--schedule", "@hourly"]
RUN = ["--", "true"]
DEAD = {"CONCH_ENDPOINTS": "127.0.0.1:1", "CONCH_DIAL_TIMEOUT": "1s"}
OWN = ("added_at", "added_by", "changed_at", "changed_by", "change_id")


@pytest.fixture
def bench(fleet: Fleet) -> Bench:
    """Conch on the test run's etcd; keys left under its prefix are removed."""
    return fleet.bench


def fields(bench: Bench, name: str = "j") -> dict[str, Any]:
    """Return a job's fields without who wrote it and when."""
    return {field: value for field, value in raw(bench, name).items() if field not in OWN}


def said(bench: Bench, *arguments: str, code: int = 0, **how: Any) -> list[tuple[str, str | None, str | None]]:
    """Run a cron command; return event, job and text of each line that it logs."""
    done = bench.run("cron", *arguments, **how)
    assert done.returncode == code, done.stderr
    return [(line["event"], line.get("job"), line.get("msg")) for line in log_lines(done.stderr)]


# -- set ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--tz", "Asia/Tokyo"], {"tz": "Asia/Tokyo"}),
        (["--tz", ""], {"tz": None}),
        (["--schedule", "@daily"], {"schedule": "@daily"}),
        (["--retries", "0", "--cwd", ""], {"retries": 0, "cwd": None}),
        (["--run-ttl", "1m", "--kill-after", ""], {"run_ttl": 60, "kill_after": None}),
        (["--env", "B=2"], {"env": {"A": "1", "B": "2"}}),
        (["--env", "A="], {"env": {"A": ""}}),
        (["--env", "A", "--env", "C=3"], {"env": {"C": "3"}}),
        (["--env", "A", "--env", "NOSUCH"], {"env": {}}),
        (["--env", "", "--env", "D=4"], {"env": {"D": "4"}}),
        (["--note", "new", "--sema", ""], {"note": "new", "sema": None}),
        (["--set", "web"], {"set": "web"}),
        (["--", "sh", "-c", "x"], {"cmd": ["sh", "-c", "x"]}),
        (["--paused"], {"paused": True}),
        (["--expires", "2099-01-01T01:00:00+01:00"], {"expires": "2099-01-01T00:00:00Z"}),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else None,
)
def test_set_changes_what_is_named_and_nothing_else(
    bench: Bench, arguments: list[str], changed: dict[str, Any]
) -> None:
    """An empty value takes a field away; the same again writes nothing."""
    flags = ["--tz", "Europe/Berlin", "--retries", "3", "--cwd", "/", "--sema", "s:1", "--note", "old", "--env", "A=1"]
    ok(bench, "add", "j", *HOURLY, *flags, *RUN)
    put(bench, "job", "j", value={**raw(bench), "from_later": [1]})
    before, added = fields(bench), raw(bench)["added_at"]
    ok(bench, "set", "j", *arguments)
    after = {field: value for field, value in fields(bench).items() if field != "needs"}
    if "schedule" in changed or "expires" in changed:
        after["schedule"] = changed.get("schedule", "@hourly")
    assert after == {field: value for field, value in {**before, **changed}.items() if value is not None}
    assert raw(bench)["added_at"] == added
    revision = mod_revision(bench)
    assert ("job-unchanged", "j", None) in said(bench, "set", "j", *arguments)
    assert mod_revision(bench) == revision


def test_set_of_lists_and_flags(bench: Bench) -> None:
    """Lists are replaced as a whole; `--no-each` and `--no-paused` take flags away."""
    ok(bench, "add", "j", *HOURLY, "--on", "a", "--on", "b", "--env-file", "/x", "--each", "--paused", *RUN)
    ok(bench, "pause", "j", "--until", "1h", "--reason", "r")
    ok(bench, "set", "j", "--on", "c", "--no-each", "--no-paused", "--schedule", "@daily", "--schedule", "@weekly")
    job = parse("j", bench.etcd.get(job_key(bench))[0])
    assert (job.on, job.each, job.paused, job.paused_until) == (("c",), False, False, None)
    assert (job.schedules, job.env_files) == (("@daily", "@weekly"), ("/x",))
    assert "paused_reason" not in raw(bench)
    ok(bench, "set", "j", "--on", "", "--env-file", "", "--schedule", "@daily")
    assert "needs" not in raw(bench)


BAD_SET: list[tuple[list[str], str]] = [
    ([], "NAME"),
    (["j"], "nothing to change"),
    (["j", "--"], "no command"),
    (["j", "k", "--tz", "UTC"], "k"),
    (["j", "--nosuch", "x"], "--nosuch"),
    (["a/b", "--tz", "UTC"], "bad name"),
    (["j", "--schedule", ""], "needs a --schedule"),
    (["j", "--schedule", "junk"], "junk"),
    (["j", "--schedule", "*/90 * * * *"], "@every 90m"),
    (["j", "--schedule", "0 0 30 2 *"], "never"),
    (["j", "--tz", "Nowhere"], "Nowhere"),
    (["j", "--run-ttl", "0"], "--run-ttl"),
    (["j", "--run-ttl", "25h"], "run_ttl"),
    (["j", "--retries", "x"], "--retries"),
    (["j", "--retries", "1001"], "--retries"),
    (["j", "--overlap", "maybe"], "--overlap"),
    (["j", "--keep-output", "x"], "--keep-output"),
    (["j", "--sema", "s"], "sema"),
    (["j", "--env", "A-B=1"], "env"),
    (["j", "--cwd", "x"], "cwd"),
    (["j", "--on", "a b"], "--on"),
    (["j", "--expires", "tomorrow"], "--expires"),
    (["j", "--ping", "x"], "ping"),
    (["j", "--on-failure", " "], "on_failure"),
    (["j", "--env-file", "x"], "env_file"),
    (["j", "--set", "a b"], "--set"),
    (["j", "--each", "--no-each"], "contradict"),
    (["j", "--paused", "--no-paused"], "contradict"),
    (["j", "--tz", "UTC", "--job-key-file", "/no/such"], "/no/such"),
    (["j", "--", ""], "command"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD_SET, ids=[" ".join(call) or "-" for call, _ in BAD_SET])
def test_bad_input_of_set_writes_nothing(bench: Bench, arguments: list[str], says: str) -> None:
    """One line and 64, before etcd is asked."""
    put(bench, "job", "j", value={"schedule": "@daily", "cmd": ["x"]})
    revision = mod_revision(bench)
    refused(bench, "cron", "set", *arguments, says=says)
    assert (bench.keys(), mod_revision(bench)) == ([job_key(bench)], revision)
    refused(bench, "cron", "set", *arguments, says=says, env=DEAD)


def test_set_that_makes_a_job_impossible_writes_nothing(bench: Bench) -> None:
    """What is wrong depends on the rest of the job."""
    ok(bench, "add", "j", *HOURLY, "--retries", "2", *RUN)
    revision = mod_revision(bench)
    refused(bench, "cron", "set", "j", "--run-ttl", "9h", says="24 h")
    put(bench, "job", "broken", value="junk")
    refused(bench, "cron", "set", "broken", "--tz", "UTC", code=69, says="broken")
    refused(bench, "cron", "set", "nosuch", "--tz", "UTC", code=1, says="no job nosuch")
    assert mod_revision(bench) == revision


def test_set_of_a_signed_job_needs_the_key(bench: Bench) -> None:
    """It signs again, and never what others wrote."""
    path = key_file(bench)
    ok(bench, "add", "j", *HOURLY, "--job-key-file", path, *RUN)
    refused(bench, "cron", "set", "j", "--retries", "1", code=1, says="signed: give --job-key-file")
    ok(bench, "set", "j", "--retries", "1", "--job-key-file", path)
    assert parse("j", bench.etcd.get(job_key(bench))[0]).is_signed_by(signing_key(bench))
    put(bench, "job", "j", value={**raw(bench), "cmd": ["evil"]})
    refused(bench, "cron", "set", "j", "--retries", "2", "--job-key-file", path, code=1, says="not by this key")


# -- add ------------------------------------------------------------------------------------------------------


def test_of_several_adds_at_the_same_time_only_the_first_has_added_it(bench: Bench) -> None:
    """They are the same to the byte: user, host and second, too."""
    started = [bench.start("cron", "add", "j", *HOURLY, *RUN) for _ in range(6)]
    assert [one.wait() for one in started] == [0] * 6
    found = [line["event"] for one in started for line in log_lines(one.err) if line["event"] != "nowhere"]
    assert sorted(found) == ["job-added"] + ["job-unchanged"] * 5


def test_command_of_one_word_gets_a_hint(bench: Bench) -> None:
    """It is written nevertheless."""
    assert said(bench, "add", "j", *HOURLY, "--", "echo a | b")[:2] == [
        ("command-hint", "j", "did you mean: -- sh -c 'echo a | b'?"),
        ("job-added", "j", None),
    ]
    assert raw(bench)["cmd"] == ["echo a | b"]


def test_add_keeps_a_pause_with_its_end(bench: Bench) -> None:
    """A deployment does not make it endless."""
    ok(bench, "add", "j", *HOURLY, *RUN)
    ok(bench, "pause", "j", "--until", "1h", "--reason", "r")
    before = fields(bench)
    ok(bench, "add", "j", *HOURLY, "--retries", "1", *RUN)
    assert fields(bench) == {**before, "retries": 1}
    revision = mod_revision(bench)
    ok(bench, "add", "j", *HOURLY, "--retries", "1", *RUN)
    assert mod_revision(bench) == revision


# -- several jobs ---------------------------------------------------------------------------------------------


def test_several_jobs_are_paused_resumed_shown_and_removed(bench: Bench) -> None:
    """In one transaction; each is said; those that do not exist are named at the end."""
    for name in ("a", "b", "c"):
        ok(bench, "add", name, *HOURLY, *RUN)
    assert said(bench, "pause", "a", "b", "a") == [("job-paused", "a", None), ("job-paused", "b", None)]
    assert mod_revision(bench, "a") == mod_revision(bench, "b")
    assert said(bench, "pause", "--all") == [
        ("job-unchanged", "a", None),
        ("job-unchanged", "b", None),
        ("job-paused", "c", None),
    ]
    shown = ok(bench, "show", "a", "b").split("\n\n")
    assert [text.splitlines()[0] for text in shown] == ["name: a", "name: b"]
    assert [one["name"] for one in bench.jsons(ok(bench, "show", "c", "a", "--json"))] == ["c", "a"]
    done = bench.run("cron", "resume", "x", "a", "y")
    assert (done.returncode, [line["event"] for line in log_lines(done.stderr)][:1]) == (1, ["job-resumed"])
    assert "there are no jobs x, y" in done.stderr
    assert (raw(bench, "a")["paused"], raw(bench, "b")["paused"]) == (False, True)
    done = bench.run("cron", "rm", "a", "x", "b")
    assert (done.returncode, done.stderr.count("job-removed"), "no job x" in done.stderr) == (1, 2, True)
    assert bench.keys() == [job_key(bench, "c")]


def test_pause_until_and_why(bench: Bench) -> None:
    """RFC 3339 in UTC; a pause gets a new end, none is endless; resume clears both."""
    ok(bench, "add", "j", *HOURLY, *RUN)
    began = int(time.time())
    ok(bench, "pause", "j", "--until", "2h", "--reason", "broken disk")
    until = datetime.strptime(raw(bench)["paused_until"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    assert began + 7200 <= until <= time.time() + 7200
    done = bench.run("cron", "pause", "j", "--until", "2099-01-01T01:00:00+01:00")
    (line,) = log_lines(done.stderr)
    assert (line["event"], line["until"], line["reason"]) == ("job-paused", "2099-01-01T00:00:00Z", "broken disk")
    ok(bench, "pause", "j")
    assert (raw(bench).get("paused_until"), raw(bench)["paused_reason"]) == (None, "broken disk")
    ok(bench, "pause", "j", "--until", "1h", "--reason", "")
    ok(bench, "resume", "j")
    assert {"paused_until", "paused_reason"}.isdisjoint(raw(bench))
    assert raw(bench)["paused"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pause"], "either names or --all"),
        (["resume"], "either names or --all"),
        (["pause", "j", "--all"], "either names or --all"),
        (["pause", "j", "--until", "yesterday"], "neither a duration"),
        (["pause", "j", "--until", ""], "neither a duration"),
        (["pause", "j", "--until", "0"], "not in the future"),
        (["pause", "j", "--until", "2020-01-01T00:00:00Z"], "not in the future"),
        (["pause", "j", "--until", "2099-01-01"], "neither a duration"),
        (["pause", "j", "--until", "2099-01-01T00:00:00"], "neither a duration"),
        (["pause", "j", "a/b"], "bad name"),
        (["resume", "j", "--until", "1h"], "--until"),
        (["rm"], "NAME"),
        (["rm", "j", ".."], "bad name"),
        (["rm", "--all"], "--all"),
        (["show"], "NAME"),
        (["export", "a b"], "bad name"),
        (["export", "--all"], "--all"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else None,
)
def test_bad_input_for_several_jobs(conch: Bench, arguments: list[str], says: str) -> None:
    refused(conch, "cron", *arguments, says=says, env=DEAD)


def test_signed_and_broken_jobs_among_several_are_left_alone(bench: Bench) -> None:
    """The others are paused; the first reason is told."""
    ok(bench, "add", "s", *HOURLY, "--job-key-file", key_file(bench), *RUN)
    ok(bench, "add", "z", *HOURLY, *RUN)
    put(bench, "job", "broken", value="junk")
    done = bench.run("cron", "pause", "--all")
    assert (done.returncode, raw(bench, "z")["paused"], raw(bench, "s")["paused"]) == (1, True, False)
    assert "job broken cannot be read" in done.stderr
    assert "and 1 more job" in done.stderr


# -- secrets --------------------------------------------------------------------------------------------------


def test_show_masks_secrets_unless_revealed(bench: Bench) -> None:
    """Variables by their names, URLs by their credentials; no change of a job shows them either."""
    flags = ["--env", "API_KEY=s3cr3t", "--env", "LANG=C", "--ping", "https://u:s3cr3t@h/x"]
    lines = said(bench, "add", "j", *HOURLY, *flags, *RUN)
    lines += said(bench, "set", "j", "--ping", "https://u:s3cr3t@h/y", "--env", "API_KEY=s3cr3t2")
    assert "s3cr3t" not in str(lines)
    for form in ([], ["--json"]):
        shown = ok(bench, "show", "j", *form)
        assert "s3cr3t" not in shown
        assert "LANG" in shown
        assert ok(bench, "show", "j", "--reveal", *form).count("s3cr3t") == 2


# -- nobody runs it -------------------------------------------------------------------------------------------


def test_commands_warn_where_no_conchd_is_alive(bench: Bench) -> None:
    """add, set, resume and ls do, and not for a job that has no ticks to come; with a live one none does."""
    warning = ("nowhere", "j", "no conchd is alive")
    calls = (["add", "j", *HOURLY, *RUN], ["set", "j", "--retries", "1"], ["resume", "j"], ["ls"])
    for call in calls:
        assert warning in said(bench, *call)
    ok(bench, "pause", "j")
    assert said(bench, "ls") == []
    bench.etcd.put(f"{bench.prefix}/node/h", "{}")
    for call in calls:
        assert warning not in said(bench, *call)
    bench.etcd.put(f"{bench.prefix}/node/h", '{"draining": true}')
    assert ("nowhere", "j", "host h is draining") in said(bench, "ls")
    bench.etcd.delete(f"{bench.prefix}/node/h")
