"""Jobs as files in a real etcd: apply, export, import."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conch.cron.job import parse
from tests.support.conch import Bench, log_lines
from tests.support.cron import Fleet
from tests.support.proxy import Proxy
from tests.system.test_cron_cli import key_file, ok, put, raw, refused, signing_key

DEAD = {"CONCH_ENDPOINTS": "127.0.0.1:1", "CONCH_DIAL_TIMEOUT": "1s"}
CRONTABS = Path(__file__).parents[1] / "support" / "crontabs"


@pytest.fixture
def bench(fleet: Fleet) -> Bench:
    """Conch on the test run's etcd; keys left under its prefix are removed."""
    return fleet.bench


def table(name: str, *lines: str, command: str = "true") -> str:
    return "\n".join([f'[job."{name}"]', 'schedule = "@hourly"', f'cmd = ["{command}"]', *lines, ""])


def write(bench: Bench, name: str, *tables: str, set_name: str | None = "web") -> str:
    """Write a file of jobs and return its path, relative to where conch runs."""
    head = "" if set_name is None else f'set = "{set_name}"\n'
    bench.file(name).write_text(head + "".join(tables))
    return name


def apply(bench: Bench, *arguments: str, **how: Any) -> list[str]:
    return ok(bench, "apply", *arguments, **how).splitlines()


def values(bench: Bench) -> dict[str, tuple[bytes, int]]:
    """Return each job's value and mod-revision."""
    found = bench.etcd.get_prefix(f"{bench.prefix}/cron/job/")
    return {meta.key.decode().rpartition("/")[2]: (value, meta.mod_revision) for value, meta in found}


def events(done: "subprocess.CompletedProcess[str]") -> list[str]:
    return [line["event"] for line in log_lines(done.stderr)]


# -- apply ----------------------------------------------------------------------------------------------------


def test_apply_shows_and_does_what_differs(bench: Bench) -> None:
    """It adds, changes, and with --prune removes, in one transaction; unchanged jobs are not written."""
    first = write(bench, "a.toml", table("a"), table("b"))
    second = write(bench, "b.toml", table("c"))
    assert apply(bench, "--dry-run", first, second) == ["+ a", "+ b", "+ c"]
    assert values(bench) == {}
    assert apply(bench, first, second) == ["+ a", "+ b", "+ c"]
    before = values(bench)
    assert len({revision for _, revision in before.values()}) == 1
    assert raw(bench, "a")["set"] == "web"
    assert apply(bench, first, second) == ["= a", "= b", "= c"]
    assert values(bench) == before

    write(bench, "a.toml", table("a", 'tz = "Asia/Tokyo"', "retries = 3"), table("d"))
    put(bench, "job", "other", value={"schedule": "@daily", "cmd": ["x"], "set": "db"})
    put(bench, "job", "alone", value={"schedule": "@daily", "cmd": ["x"]})
    shown = ["~ a (tz, retries)", "    tz: UTC → Asia/Tokyo", "    retries: 0 → 3", "+ d", "= c", "- b"]
    assert apply(bench, "--prune", "--dry-run", first, second) == shown
    assert set(values(bench)) == {"a", "b", "c", "other", "alone"}
    assert apply(bench, "--prune", first, second) == shown
    after = values(bench)
    assert set(after) == {"a", "c", "d", "other", "alone"}
    assert after["c"] == before["c"]
    assert apply(bench, "--prune", first, second) == ["= a", "= d", "= c"]


def test_apply_counts_in_its_last_line(bench: Bench) -> None:
    """For CI; --dry-run exits 0."""
    path = write(bench, "a.toml", table("a"), table("b"))
    done = bench.run("cron", "apply", path)
    (line,) = [line for line in log_lines(done.stderr) if line["event"] == "applied"]
    assert (line["added"], "unchanged" in line) == ("2", False)
    done = bench.run("cron", "apply", "--dry-run", "-", input=bench.file(path).read_text())
    assert done.returncode == 0
    (line,) = log_lines(done.stderr)
    assert (line["unchanged"], line["dry_run"]) == ("2", "true")
    assert done.stdout == "= a\n= b\n"


def test_apply_keeps_a_pause_that_somebody_made(bench: Bench) -> None:
    """CI does not resume what a person paused."""
    path = write(bench, "a.toml", table("a"))
    apply(bench, path)
    ok(bench, "pause", "a", "--until", "2h", "--reason", "look into it")
    assert apply(bench, path) == ["= a"]
    write(bench, "a.toml", table("a", "retries = 1"))
    assert apply(bench, path) == ["~ a (retries)", "    retries: 0 → 1"]
    assert (raw(bench, "a")["paused"], raw(bench, "a")["paused_reason"]) == (True, "look into it")
    write(bench, "a.toml", table("a", "retries = 1", "paused = false"))
    assert apply(bench, path)[0].startswith("~ a (paused")
    assert "paused_until" not in raw(bench, "a")


BAD_CALLS: list[tuple[list[str], str]] = [
    ([], "FILE"),
    (["nosuch.toml"], "cannot read nosuch.toml: No such file"),
    (["."], r"cannot read \.: Is a directory"),
    (["good.toml", "good.toml"], "named twice"),
    (["good.toml", "./good.toml"], r"\./good.toml:2: job good is in good.toml:2, too"),
    (["good.toml", "bad.toml"], "bad.toml:1: job x: cmd is missing"),
    (["bad.toml", "good.toml", "--dry-run"], "cmd is missing"),
    (["nameless.toml", "--prune"], "nameless.toml: --prune needs the name of a set"),
    (["good.toml", "nameless.toml", "--prune"], "nameless.toml: --prune needs"),
    (["good.toml", "--nosuch"], "--nosuch"),
    (["good.toml", "--job-key-file", "/no/such"], "/no/such"),
    (["good.toml", "--prefix", "x"], "prefix"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD_CALLS, ids=[" ".join(call) or "-" for call, _ in BAD_CALLS])
def test_bad_calls_of_apply_write_nothing(bench: Bench, arguments: list[str], says: str) -> None:
    """One line and 64, before etcd is asked; the good file beside the bad one is not applied either."""
    write(bench, "good.toml", table("good"))
    write(bench, "nameless.toml", table("nameless"), set_name=None)
    bench.file("bad.toml").write_text('[job.x]\nschedule = "@daily"\n')
    refused(bench, "cron", "apply", *arguments, says=says)
    assert bench.keys() == []
    refused(bench, "cron", "apply", *arguments, says=says, env=DEAD)


def test_one_job_that_is_refused_stops_all(bench: Bench) -> None:
    """A signed one without the key, one of another set, a secret that is not there: exit 1, nothing written."""
    path = key_file(bench)
    ok(bench, "add", "signed", "--schedule", "@hourly", "--job-key-file", path, "--", "true")
    put(bench, "job", "theirs", value={"schedule": "@daily", "cmd": ["x"], "set": "db"})
    before = values(bench)
    for tables, says in (
        ([table("a"), table("signed")], "job signed is signed"),
        ([table("a"), table("theirs")], "job theirs is of the set db"),
        ([table("a"), table("k", 'keep = ["env.TOKEN"]')], r"job k keeps env\.TOKEN"),
    ):
        refused(bench, "cron", "apply", write(bench, "f.toml", *tables), code=1, says=says)
        assert values(bench) == before
    write(bench, "f.toml", table("a"), table("signed"), set_name=None)
    assert apply(bench, "f.toml", "--job-key-file", path) == ["+ a", "= signed"]
    assert parse("a", values(bench)["a"][0]).is_signed_by(signing_key(bench))
    write(bench, "f.toml", table("a"), table("signed", "retries = 1"), set_name=None)
    assert apply(bench, "f.toml", "--job-key-file", path)[:2] == ["= a", "~ signed (retries)"]
    assert parse("signed", values(bench)["signed"][0]).is_signed_by(signing_key(bench))
    put(bench, "job", "a", value={**raw(bench, "a"), "sig": "00"})
    assert apply(bench, "f.toml", "--job-key-file", path)[0] == "~ a (signature)"
    refused(bench, "cron", "apply", "f.toml", code=1, says="is signed")


def test_apply_whose_answer_was_lost_says_what_it_did(bench: Bench) -> None:
    """The transaction was made: all are added, and none is written twice."""
    proxy = Proxy(bench.endpoints)
    path = write(bench, "f.toml", *(table(f"j{at}") for at in range(5)))
    fault = proxy.fault("Txn", "reset", skip=1)  # the first one reads
    shown = apply(bench, path, env={"CONCH_ENDPOINTS": proxy.endpoint, "CONCH_TRANSPORT": "grpc"})
    proxy.close()
    assert fault.hit.is_set()
    assert shown == [f"+ j{at}" for at in range(5)]
    assert len({revision for _, revision in values(bench).values()}) == 1


def test_apply_that_fails_says_how_far_it_came(bench: Bench) -> None:
    """Of three batches the second gets no answer: 69, and the first is there as a whole."""
    proxy = Proxy(bench.endpoints)
    path = write(bench, "f.toml", *(table(f"j{at:03d}") for at in range(130)))
    # three transactions read, the fourth writes, and every one after it is lost
    proxy.fault("Txn", "drop", skip=4, times=100)
    env = {"CONCH_ENDPOINTS": proxy.endpoint, "CONCH_TRANSPORT": "grpc", "CONCH_COMMAND_TIMEOUT": "2s"}
    done = bench.run("cron", "apply", path, env=env)
    proxy.close()
    assert done.returncode == 69, done.stderr
    assert done.stdout.splitlines() == [f"+ j{at:03d}" for at in range(60)]
    assert "of 130 jobs 60 are done, 60 may be, 10 are not" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(values(bench)) in (60, 120)
    assert apply(bench, path)[:60] == [f"= j{at:03d}" for at in range(60)]


def test_many_jobs_go_in_batches(bench: Bench) -> None:
    """130 jobs are three transactions; the jobs of one have one revision."""
    path = write(bench, "f.toml", *(table(f"j{at:03d}") for at in range(130)))
    assert apply(bench, path) == [f"+ j{at:03d}" for at in range(130)]
    revisions = [revision for _, (_, revision) in sorted(values(bench).items())]
    assert [revisions.count(revision) for revision in dict.fromkeys(revisions)] == [60, 60, 10]
    assert set(apply(bench, path)) == {f"= j{at:03d}" for at in range(130)}
    write(bench, "f.toml")
    assert apply(bench, "--prune", path) == [f"- j{at:03d}" for at in range(130)]
    assert bench.keys() == []


def test_large_jobs_fit_into_requests(bench: Bench) -> None:
    """60 jobs of 30 KiB are more than etcd takes at once."""
    path = write(bench, "f.toml", *(table(f"j{at:02d}", f'note = "{"x" * 30000}"') for at in range(60)))
    assert len(apply(bench, path)) == 60
    assert len(values(bench)) == 60
    assert apply(bench, path)[0] == "= j00"


# -- export ---------------------------------------------------------------------------------------------------


def test_apply_of_an_export_changes_nothing(bench: Bench) -> None:
    """Also with sets, secrets, signatures, and fields and texts that TOML cannot say."""
    path = key_file(bench)
    flags = ["--schedule", "H 3 * * *", "--job-key-file", path]
    ok(bench, "add", "odd", *flags, "--env", "TOKEN=t0k3n", "--env", "A=b", "--", "printf", "\udcff")
    ok(bench, "add", "plain", *flags, "--set", "web", "--on", "gpu", "--retries", "2", "--", "sh", "-c", "a | b\n")
    ok(bench, "add", "p", *flags, "--set", "db", "--", "x")
    ok(bench, "pause", "p", "--until", "2h", "--reason", "ä\n", "--job-key-file", path)
    before = values(bench)
    done = bench.run("cron", "export")
    assert done.returncode == 0
    assert "t0k3n" not in done.stdout
    lines = [line for line in log_lines(done.stderr) if line["event"] == "left-out"]
    assert [(line["job"], line["msg"]) for line in lines] == [("odd", "only in etcd: env.TOKEN, cmd")]
    assert apply(bench, "-", "--job-key-file", path, input=done.stdout) == ["= odd", "= p", "= plain"]
    assert values(bench) == before
    assert "t0k3n" in ok(bench, "export", "odd", "--reveal")
    assert ok(bench, "export", "plain").startswith('set = "web"\n\n[job.plain]\n')


def test_export_names_what_is_missing(bench: Bench) -> None:
    """An unknown job is 1, one that cannot be read 69; the others are printed."""
    ok(bench, "add", "j", "--schedule", "@daily", "--", "x")
    put(bench, "job", "broken", value="junk")
    done = bench.run("cron", "export", "j", "nosuch", "nor")
    assert (done.returncode, done.stdout.count("[job.")) == (1, 1)
    assert "there are no jobs nosuch, nor" in done.stderr
    done = bench.run("cron", "export")
    assert (done.returncode, done.stdout.count("[job.")) == (69, 1)
    assert "1 of 2 jobs cannot be read" in done.stderr
    assert bench.run("cron", "export", env={"CONCH_PREFIX": f"{bench.prefix}/none"}).stdout == ""


# -- import ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CRONTABS.iterdir()), ids=lambda path: path.name)
def test_import_of_a_crontab_applies(bench: Bench, path: Path) -> None:
    """It needs no etcd; the second time nothing changes."""
    system = ["--system"] if path.name.startswith("debian") else []
    done = bench.run("cron", "import", str(path), *system, env=DEAD)
    assert done.returncode == 0, done.stderr
    shown = apply(bench, "-", input=done.stdout)
    assert shown
    assert all(line.startswith("+ ") for line in shown)
    assert all(line.startswith("= ") for line in apply(bench, "-", input=done.stdout))
    assert (
        bench.run("cron", "import", "-", *system, input=path.read_text(), env=DEAD).stdout.splitlines()[1:]
        == (done.stdout.splitlines()[1:])
    )


def test_import_warns_of_what_is_otherwise(bench: Bench) -> None:
    """Users, zones, and what conch does not do; each is one line."""
    done = bench.run("cron", "import", "-", "--system", input="MAILTO=x\n@reboot root y\n@daily www-data z\n")
    assert events(done) == ["not-imported", "not-imported", "users", "zone"]
    done = bench.run("cron", "import", "-", "--tz", "Asia/Tokyo", input="@daily z\n")
    assert (done.stderr, 'tz = "Asia/Tokyo"' in done.stdout) == ("", True)


@pytest.mark.parametrize(
    ("arguments", "text", "says"),
    [
        ([], "", "CRONTAB"),
        (["nosuch"], "", "cannot read nosuch"),
        (["-", "--tz", "Nowhere"], "", "unknown time zone 'Nowhere'"),
        (["-", "--tz", ""], "", "unknown time zone"),
        (["-"], "junk\n", "stdin:1: neither"),
        (["-", "--system"], "@daily root\n", "stdin:1: neither|no command"),
        (["-", "x"], "", "x"),
    ],
)
def test_bad_calls_of_import(bench: Bench, arguments: list[str], text: str, says: str) -> None:
    refused(bench, "cron", "import", *arguments, input=text, says=says)


def test_value_of_an_applied_job_is_as_that_of_an_added_one(bench: Bench) -> None:
    """Both come from one path: the same fields in the same order."""
    ok(bench, "add", "j", "--schedule", "@hourly", "--", "true")
    added = raw(bench)
    ok(bench, "rm", "j")
    apply(bench, write(bench, "f.toml", table("j"), set_name=None))
    own = ("added_at", "change_id")
    assert list(raw(bench)) == list(added)
    assert {**raw(bench), **dict.fromkeys(own)} == {**added, **dict.fromkeys(own)}
    assert json.loads(values(bench)["j"][0]) == raw(bench)
