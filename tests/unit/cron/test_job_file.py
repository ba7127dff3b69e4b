"""Jobs in TOML files, and what is said of those that are wrong."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.cron.definition import build
from conch.cron.job_export import table_of
from conch.cron.job_file import read_file, read_files
from conch.errors import BadInput

JOB = '[job.j]\nschedule = "@daily"\ncmd = ["true"]\n'


def test_keys_are_the_flags_names() -> None:
    """With `-` or `_`; durations are texts or seconds, lists may be one text, instants dates or texts."""
    file = read_file(
        "f",
        b"""
set = "web"
[job."a.b"]
schedule = ["@daily", "@hourly"]
tz = "Europe/Berlin"
cmd = ["sh", "-c", "x"]
run-ttl = "1m30s"
kill_after = 0
retry-delay = 0.5
retries = 2
env = ["A=1=2", "B="]
on = "gpu"
env-file = ["/a", "/b"]
each = true
expires = 2099-01-01T01:00:00+01:00
paused = true
paused-until = "2098-12-31T00:00:00Z"
paused-reason = "x"
[job.c]
schedule = "@daily"
cmd = ["c"]
set = "other"
[job.c.env]
X = "y"
""",
    )
    assert file.set == "web"
    assert file.jobs["a.b"].fields == {
        "set": "web",
        "schedule": ["@daily", "@hourly"],
        "tz": "Europe/Berlin",
        "cmd": ["sh", "-c", "x"],
        "run_ttl": 90.0,
        "kill_after": 0.0,
        "retry_delay": 0.5,
        "retries": 2,
        "env": {"A": "1=2", "B": ""},
        "on": ["gpu"],
        "env_file": ["/a", "/b"],
        "each": True,
        "expires": "2099-01-01T00:00:00Z",
        "paused": True,
        "paused_until": "2098-12-31T00:00:00Z",
        "paused_reason": "x",
    }
    assert file.jobs["c"].fields == {"set": "other", "schedule": ["@daily"], "cmd": ["c"], "env": {"X": "y"}}


# What follows the three lines of a good job, and what is said of it. The line is the fourth unless it is said.
BAD_LINES: list[tuple[str, str]] = [
    ("shedule = 1", "unknown key 'shedule': did you mean schedule?"),
    ("Schedule = 1", "unknown key 'Schedule': did you mean schedule?"),
    ("timeout = 5", "unknown key 'timeout': did you mean run-ttl?"),
    ("command = 5", "unknown key 'command': did you mean cmd?"),
    ("time_zone = 5", "unknown key 'time_zone': did you mean tz?"),
    ("enviroment = {}", "unknown key 'enviroment': did you mean env?"),
    ("retrys = 5", "unknown key 'retrys': did you mean retries?"),
    ("hosts = 5", "unknown key 'hosts': did you mean on?"),
    ("zzzzzz = 5", "unknown key 'zzzzzz'"),
    ('"" = 5', "unknown key ''"),
    ('"run ttl" = 5', "unknown key 'run ttl': did you mean run-ttl?"),
    ("run-ttl = 5\nrun_ttl = 5", ":5: job j: run_ttl and run-ttl are the same key"),
    ("run-ttl = 5\nrun-ttl = 5", ":5: Cannot overwrite a value"),
    ("run-ttl = 0", "run_ttl: must be more than 0"),
    ("run-ttl = -1", "run-ttl: -1 is not a duration"),
    ("run-ttl = nan", "run-ttl: nan is not a duration"),
    ("run-ttl = inf", "run-ttl: inf is not a duration"),
    ("run-ttl = true", 'run-ttl: must be a duration such as "10m"'),
    ("run-ttl = []", "run-ttl: must be a duration"),
    ('run-ttl = "5 min"', "run-ttl: '5 min' is not a duration"),
    ('run-ttl = "25h"', "run_ttl: must be more than 0 and at most 24 h"),
    (f"run-ttl = 1{'0' * 400}", "run_ttl: must be more than 0 and at most 24 h"),
    ("kill-after = 86401", "kill_after: must be 0 or more, and at most 24 h"),
    ('start-deadline = ""', "start-deadline: '' is not a duration"),
    ("retries = -1", "retries: must be a whole number from 0 to 1000"),
    ("retries = 1001", "retries: must be a whole number"),
    ("retries = 1.0", "retries: must be a whole number"),
    ('retries = "1"', "retries: must be a whole number"),
    ("retries = 200", ":1: job j: run-ttl, retries and retry-delay together are more than 24 h"),
    ('overlap = "maybe"', "overlap: 'maybe' is none of forbid, allow, replace"),
    ("overlap = 1", "overlap: must be a text"),
    ('keep-output = "no"', "keep_output: 'no' is none of"),
    ('tz = "Nowhere/Land"', "unknown time zone 'Nowhere/Land'"),
    ("tz = 1", "tz: must be a text"),
    ('sema = "s"', "sema: 's' is not NAME:N"),
    ('sema = "a/b:1"', ":1: job j: bad name 'a/b'"),
    ('cwd = "x"', "cwd: 'x' is not an absolute path"),
    ('env = ["A"]', "env: 'A' is not NAME=VALUE"),
    ('env = {A-B = "x"}', "env: 'A-B' is not a name"),
    ("env = {A = 1}", "env: must be a table of texts"),
    ('env = "A=1"', "env: must be a table of texts"),
    ('env = {A = "\\u0000"}', "env: 'A' is not a name, or a NUL"),
    ('on = ["a b"]', ":1: job j: bad tag 'a b'"),
    ("on = [1]", "on: must be a text, or a list of texts"),
    ("each = 1", "each: must be true or false"),
    ('paused = "yes"', "paused: must be true or false"),
    ('paused-reason = "x"', "paused-reason needs paused = true"),
    ("paused = false\npaused-until = 2099-01-01T00:00:00Z", ":5: job j: paused-until needs paused = true"),
    ('expires = "tomorrow"', "expires: must be an instant with its offset"),
    ("expires = 2099-01-01", "expires: must be an instant"),
    ("expires = 2099-01-01T00:00:00", "expires: must be an instant"),
    ("expires = 07:00:00", "expires: must be an instant"),
    ('ping = "ftp://h"', "ping: 'ftp://h' is not a URL"),
    ("ping = 1", "ping: must be a text"),
    ('on-failure = " "', "on_failure: the command is empty"),
    ('env-file = "x"', "env_file: 'x' is not an absolute path"),
    ("note = 1", "note: must be a text"),
    ('set = "a b"', "set: bad name 'a b'"),
    ('keep = ["env."]', "keep: 'env.' is neither a field of a job nor env.NAME"),
    ('keep = ["a.b"]', "keep: 'a.b' is neither"),
    ('keep = ["paused"]', "keep: 'paused' is neither"),
    ('keep = ["cmd"]', "keep names cmd, which the file sets"),
    ("keep = 5", "keep: must be a text, or a list of texts"),
    ("tz = ", ":4: Invalid value"),
    ('tz = "x', ":4: Illegal character"),
    ("[job.j]", ":4: Cannot declare ('job', 'j') twice"),
    ("[job.k]", ":4: job k: schedule is missing"),
    ('[job.k]\nschedule = "@daily"', ":4: job k: cmd is missing"),
    ('[job.k]\ncmd = ["x"]\nschedule = 5', ":6: job k: schedule: must be a text"),
    ('[job.k]\ncmd = ["x"]\nschedule = []', ":6: job k: schedule: must be a text, or a list"),
    ('[job.k]\ncmd = ["x"]\nschedule = "junk"', ":6: job k: bad schedule 'junk'"),
    ('[job.k]\ncmd = ["x"]\nschedule = "0 0 30 2 *"', ":6: job k: bad schedule '0 0 30 2 *': it will never fire"),
    ('[job.k]\ncmd = ["x"]\nschedule = "*/90 * * * *"', ":6: job k: bad schedule.*write @every 90m"),
    ('[job.k]\nschedule = "@daily"\ncmd = "echo a"', ':6: job k: cmd: must be a list, cmd = ["sh", "-c", "…"]'),
    ('[job.k]\nschedule = "@daily"\ncmd = []', ":6: job k: cmd: must be a list of texts"),
    ('[job.k]\nschedule = "@daily"\ncmd = [""]', ":6: job k: cmd: the command is empty"),
    ('[job.k]\nschedule = "@daily"\ncmd = ["x", 1]', ":6: job k: cmd: must be a text, or a list of texts"),
    ('[job."a b"]', ":4: bad name 'a b'"),
    ('[job.""]', ":4: bad name ''"),
    ("[jobs.k]", ":4: unknown key 'jobs': jobs are tables such as [job.backup]"),
    ("[other]", ":4: unknown key 'other': known: set, job"),
]


@pytest.mark.parametrize(("lines", "says"), BAD_LINES, ids=[lines.replace("\n", " ")[:40] for lines, _ in BAD_LINES])
def test_wrong_line_is_refused_with_its_number(lines: str, says: str) -> None:
    """In one line, which begins with the file."""
    with pytest.raises(BadInput) as refusal:
        read_file("jobs.toml", f"{JOB}{lines}\n".encode())
    text = str(refusal.value)
    assert "\n" not in text
    expected = says if says.startswith(":") else f":4: job j: {says}"
    pattern = ".*".join(re.escape(part) for part in expected.split(".*"))
    assert re.match(f"jobs\\.toml{pattern}", text), text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"set = 5", "jobs.toml:1: set: must be a text"),
        (b'set = "a/b"', "jobs.toml:1: set: bad name 'a/b'"),
        (b"\n\n\xff = 1", "jobs.toml:3: not UTF-8"),
        (b"job = 5", "jobs.toml:1: job: jobs are tables"),
        (b"[[job]]", "jobs.toml:1: job: jobs are tables"),
        (b"job.j = 5", "jobs.toml:1: job j: must be a table"),
        (b'schedule = "@daily"', "jobs.toml:1: unknown key 'schedule': jobs are tables such as [job.backup]"),
        (b"a" * 100, "jobs.toml:"),
        (b"x = " + b"[" * 100_000, "jobs.toml:"),
        (b"x = 1" + b"0" * 10_000, "jobs.toml:"),
        (b"\0", "jobs.toml:1: "),
    ],
)
def test_file_that_is_none_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)) as refusal:
        read_file("jobs.toml", content)
    assert "\n" not in str(refusal.value)


def test_job_that_is_in_two_files_is_refused() -> None:
    """With both places."""
    with pytest.raises(BadInput, match=re.escape("b.toml:2: job j is in a.toml:1, too")):
        read_files([("a.toml", JOB.encode()), ("b.toml", f"\n{JOB}".encode())])


def test_empty_file_has_no_jobs() -> None:
    """A byte order mark and other line ends are fine."""
    assert read_file("f", b"").jobs == {}
    assert read_file("f", b'\xef\xbb\xbfset = "x"\r\n' + JOB.replace("\n", "\r\n").encode()).set == "x"


def refusal_of(content: bytes) -> str:
    """Return why a file is refused; "f:" if it is not. What is read can be built."""
    try:
        file = read_file("f", content)
    except BadInput as error:
        return str(error)
    for name, job in file.jobs.items():
        build(name, job.fields)
    return "f:"


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_content_is_read_or_refused(content: bytes) -> None:
    assert refusal_of(content).startswith("f:")
    assert refusal_of(JOB.encode() + content).startswith("f:")


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=9).map(ascii),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["A", "b"]), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(["tz", "run_ttl", "retries", "env", "on", "cwd", "note", "paused"]), VALUES))
def test_any_values_are_read_or_refused(fields: dict[str, Any]) -> None:
    """What is read can be built."""
    try:
        text = table_of("j", {"schedule": "@daily", "cmd": ["x"], **fields})
    except (TypeError, ValueError):
        return  # TOML has no such value
    assert refusal_of(text.encode()).startswith("f:")
