"""Bad input of every kind: the right exit code, one clear line, no traceback, nothing written; conchd stays alive.

Cases in the tables of `test_cli`, `test_cron_cli`, `test_elect_look` and their neighbours are not repeated here.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support import conch as support
from tests.support.conch import CONCH, Bench, alive, wait_for
from tests.support.cron import Fleet
from tests.support.fronts import unmet

ODD = os.fsdecode(b"x\xff")  # an argument that is not UTF-8
RUN = ["--", "true"]
WHO = ["elect", "o", "--who"]
ELECT = ["elect", "o"]
SEMA = ["sema", "s", "--max", "2"]
ADD = ["cron", "add", "j", "--schedule", "@daily"]
DEAD = {"CONCH_ENDPOINTS": "127.0.0.1:1", "CONCH_DIAL_TIMEOUT": "300ms"}
TICK = int(time.time()) // 3600 * 3600 - 86400


@dataclass(frozen=True)
class Case:
    """A command line, its environment and files, and how it must end."""

    name: str
    command: list[str]
    says: str
    env: dict[str, str] = field(default_factory=dict)
    code: int = 64
    files: dict[str, bytes] = field(default_factory=dict)


def by_name(cases: list[Case]) -> pytest.MarkDecorator:
    """Parametrize a test over these cases; their names are the ids."""
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def check(done: "subprocess.CompletedProcess[str]", code: int, says: str) -> None:
    """Check the exit code, an empty stdout, and one printable line on stderr that matches `says`."""
    assert done.returncode == code, done.stderr
    assert not done.stdout
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert done.stderr[:-1].isprintable()


@pytest.fixture
def mine(conch: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Conch on the test run's etcd; afterwards the keys that the test wrote are deleted.

    A conchd seems to be alive, so that no command warns of there being none; the test does not see its key.
    """
    node, keys = f"{conch.prefix}/node/alive", conch.keys
    conch.etcd.put(node, "{}")
    monkeypatch.setattr(conch, "keys", lambda: [key for key in keys() if key != node])
    yield conch
    conch.etcd.delete_prefix(conch.prefix + "/")


# -- arguments, variables and files ---------------------------------------------------------------------------

FLAGS = [
    Case(f"{command[0]} {flag} {value!r:.12}", [*command, flag, value, *RUN], says)
    for command, flag, value, says in [
        (ELECT, "--ttl", "", "--ttl"),
        (ELECT, "--ttl", ODD, "--ttl"),
        (ELECT, "--ttl", "0", "--ttl.*at least 2s"),
        (ELECT, "--ttl", "1999ms", "--ttl"),
        (ELECT, "--ttl", "9" * 400, "--ttl.*too long"),
        (ELECT, "--wait", "1 s", "--wait.*'1 s'"),
        (ELECT, "--wait", "1e3", "--wait.*'1e3'"),
        (ELECT, "--wait", "٣", "--wait"),
        (ELECT, "--wait", "101y", "--wait"),
        (ELECT, "--wait", "nan", "--wait.*'nan'"),
        (ELECT, "--wait", "-inf", "--wait"),
        (ELECT, "--kill-after", "-5", "--kill-after"),
        (ELECT, "--kill-after", "1h-1s", "--kill-after"),
        (ELECT, "--hook-timeout", "never", "--hook-timeout.*'never'"),
        (ELECT, "--restart-min", "-1s", "--restart-min"),
        (ELECT, "--restart-max", "0", "--restart-max"),
        (ELECT, "--restart-max", "x", "--restart-max.*'x'"),
        (ELECT, "--restart-stable", "0s", "--restart-stable"),
        (ELECT, "--restart-stable", "inf", "--restart-stable"),
        (ELECT, "-E", "", "-E"),
        (ELECT, "-E", "9" * 5000, "-E"),
        (ELECT, "--dial-timeout", "-1", "--dial-timeout"),
        (ELECT, "--dial-timeout", "1_000", "--dial-timeout"),
        (ELECT, "--command-timeout", "0", "--command-timeout.*more than 0"),
        (ELECT, "--command-timeout", "0x5", "--command-timeout"),
        (ELECT, "--endpoints", ODD, "bad endpoint"),
        (ELECT, "--endpoints", ",, ,", "no endpoint"),
        (ELECT, "--endpoints", "a:2379,b:0", "'b:0'.*port"),
        (ELECT, "--endpoints", "::1", "brackets"),
        (ELECT, "--endpoints", "[::1", r"'\[::1'"),
        (ELECT, "--endpoints", "u:p@a:1", "endpoint"),
        (ELECT, "--endpoints", "a\n:1", "endpoint"),
        (ELECT, "--endpoints", "unix:///run/etcd", "host:port"),
        (ELECT, "--transport", "pigeon", "--transport.*'pigeon'"),
        (ELECT, "--log-format", "", "--log-format"),
        (ELECT, "--prefix", "", "prefix"),
        (ELECT, "--prefix", "///", "prefix"),
        (ELECT, "--prefix", "/conch/v1/elect", "keys of prefix /conch/v1"),
        (ADD, "--prefix", "/a/sema-host/b", "keys of prefix /a"),
        (ELECT, "--prefix", "/" + ODD, "prefix"),
        (ELECT, "--prefix", "/a\x1b[31m", "prefix"),
        (ELECT, "--user", "", "--user"),
        (ELECT, "--user", ODD + ":p", "UTF-8"),
        (ELECT, "--user", "u:", "no password"),
        (ELECT, "--cacert", "/etc", "--cacert.*/etc.*directory"),
        (ELECT, "--cert", "/no/such", "--cert.*/no/such"),
        (ELECT, "--key", "/dev/null", "--cert and --key"),
        (SEMA, "--max", "٣", "--max"),
        (SEMA, "--max", "+2", "--max"),
        (SEMA, "--max", "1" + "0" * 30, "--max"),
        (SEMA, "--ttl", "x", "--ttl.*'x'"),
        (SEMA, "--hook-timeout", "0", "--hook-timeout"),
        (ADD, "--schedule", "* * * * * *", "schedule|fields"),
        (ADD, "--schedule", "*/0 * * * *", "minute"),
        (ADD, "--schedule", "0 0 32 * *", "day"),
        (ADD, "--schedule", "0 0 * foo *", "month.*'foo'|'foo'"),
        (ADD, "--schedule", "0 24 * * *", "hour"),
        (ADD, "--schedule", "@every -1s", "@every"),
        (ADD, "--schedule", ODD, "ascii"),
        (ADD, "--schedule", "0 0 30 feb *", "never"),
        (ADD, "--tz", "../../etc/passwd", "zone"),
        (ADD, "--tz", ODD, "zone"),
        (ADD, "--run-ttl", "-1", "--run-ttl"),
        (ADD, "--retries", "1.5", "--retries"),
        (ADD, "--retry-delay", "25h", "retry.delay"),
        (ADD, "--start-deadline", "-1s", "--start-deadline"),
        (ADD, "--overlap", "", "--overlap"),
        (ADD, "--sema", "s:1001", "sema"),
        (ADD, "--sema", ":3", "name|sema"),
        (ADD, "--env", ODD + "=1", "env"),
        (ADD, "--env", "A B=1", "env"),
        (ADD, "--cwd", "~", "cwd"),
        (ADD, "--job-key-file", "/dev/null", "shorter than 16"),
        (ADD, "--job-key-file", "/", "directory"),
    ]
]

NAMES = [
    Case(f"name {kind} of {' '.join(command)}", [*command, name, *rest], "bad name")
    for kind, name in [
        ("odd bytes", ODD),
        ("escape", "a\x1b[31m"),
        ("dot", ".a"),
        ("wide digit", "９"),
        ("slash", "a/b"),
        ("long", "x" * 129),
    ]
    for command, rest in [
        (["elect", "--who"], []),
        (["sema", "--max", "1"], RUN),
        (["cron", "show"], []),
        (["cron", "history"], []),
        (["cron", "next", "--job"], []),
    ]
]

VARIABLES = [
    Case(f"{variable}={value!r:.12} {' '.join(command[:2])}", command, says, {variable: value})
    for variable, value, command, says in [
        ("CONCH_ENDPOINTS", ODD, WHO, "bad endpoint"),
        ("CONCH_ENDPOINTS", " , ", WHO, "no endpoint"),
        ("CONCH_DIAL_TIMEOUT", "-1", WHO, "--dial-timeout"),
        ("CONCH_DIAL_TIMEOUT", ODD, WHO, "--dial-timeout"),
        ("CONCH_COMMAND_TIMEOUT", "0", WHO, "--command-timeout"),
        ("ETCDCTL_DIAL_TIMEOUT", "soon", WHO, "'soon'"),
        ("CONCH_PREFIX", "/" + ODD, WHO, "prefix"),
        ("CONCH_PREFIX", " ", ["cron", "ls"], "prefix"),
        ("CONCH_PREFIX", "/a/cron/", ["conchd"], "keys of prefix /a"),
        ("CONCH_VERBOSE", ODD, WHO, "--verbose"),
        ("CONCH_QUIET", ODD, WHO, "--quiet"),
        ("CONCH_LOG_FORMAT", ODD, WHO, "--log-format"),
        ("CONCH_TRANSPORT", "h2", WHO, "'h2'"),
        ("CONCH_CACERT", "/" + ODD, WHO, "--cacert"),
        ("CONCH_CERT", "/no/such", WHO, "/no/such"),
        ("CONCH_KEY", "/dev/null", WHO, "--cert and --key"),
        ("ETCDCTL_KEY", "/no/such", WHO, "/no/such"),
        ("CONCH_USER", "u", WHO, "no password"),
        ("CONCH_USER", ":p", WHO, "--user"),
        ("CONCH_USER", ODD + ":p", WHO, "UTF-8"),
        ("ETCDCTL_USER", ODD + ":p", ["cron", "ls"], "UTF-8"),
        ("CONCH_PASSWORD_FILE", "/dev/null", WHO, "--user"),
        ("CONCH_HOST", ODD, [*ELECT, *RUN], "CONCH_HOST"),
        ("CONCH_HOST", "..", ["conchd"], "CONCH_HOST"),
        ("CONCH_HOST", "é", [*ADD, *RUN], "CONCH_HOST"),
        ("CONCH_JOB_KEY_FILE", "/no/such", [*ADD, *RUN], "/no/such"),
        ("CONCH_JOB_KEY_FILE", "/" + ODD, ["cron", "pause", "j"], "--job-key-file"),
        ("CONCH_STATE_DIR", "/proc/" + ODD, ["conchd"], "--state-dir"),
        ("STATE_DIRECTORY", "/dev/null/x", ["conchd"], "--state-dir.*/dev/null/x"),
        ("XDG_STATE_HOME", "/dev/null", ["conchd"], "--state-dir.*/dev/null"),
        ("CONCH_STATUS_ADDR", ODD, ["conchd"], "--status-addr"),
        ("CONCH_DRAIN", "x", ["conchd"], "--drain.*'x'"),
        ("CONCH_DRAIN", ODD, ["conchd"], "--drain"),
        ("CONCH_MAX_RUNS", "0", ["conchd"], "--max-runs"),
        ("CONCH_MAX_RUNS", "many", ["conchd"], "--max-runs.*'many'"),
        ("CONCH_TTL", ODD, ["conchd"], "--ttl"),
        ("CONCH_RUN_AS", ODD, ["conchd"], "--run-as"),
    ]
]

FILES = [
    Case(
        "password not UTF-8",
        [*WHO, "--user", "u", "--password-file", "f"],
        "--password-file.* f",
        files={"f": b"\xff\n"},
    ),
    Case(
        "password missing in its file",
        [*WHO, "--user", "u", "--password-file", "f"],
        "no password",
        files={"f": b"\nx\n"},
    ),
    Case("password file a directory", [*WHO, "--user", "u", "--password-file", "/"], "--password-file.*directory"),
    Case("password not UTF-8 in a variable", [*WHO, "--user", "u"], "UTF-8", {"CONCH_PASSWORD": ODD}),
    Case("CA that is none", [*WHO, "--cacert", "f"], "--cacert.* f", files={"f": b"no certificate\n"}),
    Case("CA that is bytes", [*WHO, "--cacert", "f"], "--cacert.* f", files={"f": bytes(range(256)) * 100}),
    Case("CA that is empty", [*WHO, "--cacert", "/dev/null"], "--cacert.*/dev/null"),
    Case("pair that is none", [*WHO, "--cert", "f", "--key", "f"], "--cert, --key: f", files={"f": b"x"}),
    Case("key file too short", ["conchd", "--job-key-file", "f"], "shorter than 16", files={"f": b"0123456789"}),
    Case("key file of blanks", ["conchd", "--job-key-file", "f"], "shorter than 16", files={"f": b" \n" * 100}),
    Case("state directory a file", ["conchd", "--state-dir", "f"], "--state-dir.*f", files={"f": b""}),
    Case("dev with a file for its data", ["dev", "--data-dir", "f", *RUN], "f", code=69, files={"f": b""}),
    Case("no subcommand of that name", [ODD], "No such command"),
    Case("flag of odd bytes", ["elect", "o", "--" + ODD, *RUN], "No such option"),
    Case("subcommand of cron of odd bytes", ["cron", ODD], "No such command"),
    Case("flag twice with the last one wrong", [*ELECT, "--ttl", "5s", "--ttl", "x", *RUN], "'x'"),
    Case("flag without a value", [*ELECT, "--endpoints"], "--endpoints"),
    Case("switch with a value", [*ELECT, "--quiet=yes", *RUN], "--quiet"),
    Case("quiet and verbose", [*ELECT, "-q", "-v", *RUN], "exclude each other"),
    Case("quiet and verbose, long", ["cron", "ls", "--quiet", "--verbose"], "exclude each other"),
    Case("quiet and verbose by variables", WHO, "exclude", {"CONCH_QUIET": "1", "CONCH_VERBOSE": "1"}),
    Case("token that is none", [*ELECT, "--assert", "--min-rev", "x"], "--min-rev.*'x'"),
    Case("token too large", [*ELECT, "--assert", "--min-rev", str(2**63)], "--min-rev"),
    Case("run-as of a stranger", ["conchd", "--run-as", "no such user"], "no such user"),
    Case("instant too late", ["cron", "next", "@daily", "--after", "10000-01-01T00:00:00Z"], "RFC 3339"),
    Case("instant of no calendar", ["cron", "next", "@daily", "--after", "2026-02-30T00:00:00Z"], "RFC 3339"),
]

COMMANDS = [
    Case("command empty", [*ELECT, "--", ""], "cannot run ''", code=127),
    Case("command unknown", [*SEMA, "--", "no-such-command"], "'no-such-command': not found", code=127),
    Case("command of odd bytes", [*ELECT, "--", ODD], r"'x\\udcff': not found", code=127),
    Case("command below a file", [*ELECT, "--", "/etc/passwd/x"], "/etc/passwd/x", code=127),
    Case("command with a long name", [*ELECT, "--", "x" * 1000], "not found", code=127),
    Case("command on no path", [*ELECT, "--", "sh"], "'sh': not found", {"PATH": "/nowhere"}, code=127),
    Case("command a directory", [*ELECT, "--", "/etc"], "'/etc': not executable", code=126),
    Case("command not executable", [*SEMA, "--", "./f"], "'./f': not executable", code=126, files={"f": b"true\n"}),
    Case("command of dev unknown", ["dev", "--", "no-such-command"], "not found", code=127),
]


@by_name([*FLAGS, *NAMES, *VARIABLES, *FILES, *COMMANDS])
def test_bad_arguments_variables_and_files(conch: Bench, case: Case) -> None:
    """conch prints one clear line and exits before it connects to the endpoint; it creates no file."""
    for name, data in case.files.items():
        conch.file(name).write_bytes(data)
        conch.file(name).chmod(0o600)
    before = sorted(path.name for path in conch.folder.iterdir())
    with unmet() as endpoint:
        scheme = "https://" if {"--cacert", "--cert"} & set(case.command) else ""
        env = {"CONCH_ENDPOINTS": scheme + endpoint, "CONCH_TRANSPORT": "", **case.env}
        check(conch.run(*case.command, env=env), case.code, case.says)
    assert sorted(path.name for path in conch.folder.iterdir()) == before


EMPTY = [
    *(f"CONCH_{name}" for name in ("HOST", "JOB_KEY_FILE", "TRANSPORT", "PREFIX", "PASSWORD", "USER", "PASSWORD_FILE")),
    *("ETCDCTL_PASSWORD", "ETCDCTL_USER", "ETCDCTL_CACERT", "CONCH_CERT", "CONCH_KEY", "ETCDCTL_DIAL_TIMEOUT", "TZ"),
]


@pytest.mark.parametrize("variable", EMPTY)
def test_empty_variable_is_ignored(conch: Bench, variable: str) -> None:
    """It counts as not set, both for `--who` and for a command that reads a job."""
    assert conch.run(*WHO, env={variable: ""}).returncode == 1
    done = conch.run("cron", "pause", "j", env={variable: ""})
    check(done, 1, "no job j")


# -- the environment of the process ---------------------------------------------------------------------------


def shell(bench: Bench, script: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of bash in which $conch is conch; redirections in it close descriptors."""
    return subprocess.run(
        ["bash", "-c", script],
        # measuring coverage needs descriptors and processes too, and gRPC aborts if it gets too few
        env={
            k: v
            for k, v in {**bench.environment, "CONCH_TRANSPORT": "http", "conch": CONCH, **env}.items()
            if not k.startswith("COVERAGE")
        },
        cwd=bench.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full 2>/dev/full"]


@pytest.mark.parametrize("how", CLOSED)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("elect a/b -- true", 64),
        ("sema s --max 1 -- sh -c 'exit 5'", 5),
        ("sema s --max 1 --transport grpc -- sh -c 'exit 5'", 5),
        ("cron show j", 1),
        ("cron add j --schedule x -- true", 64),
        ("conchd --ttl 1", 64),
    ],
    ids=["elect-usage", "sema", "sema-grpc", "show", "add", "conchd"],
)
def test_descriptors_that_are_closed_or_full(conch: Bench, command: str, code: int, how: str) -> None:
    """The exit code is the same as with open descriptors, and there is no traceback."""
    done = shell(conch, f"exec $conch {command} {how}")
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


QUERIES = ["sema s --who", "sema s --who --json", "elect o --who --json", "elect o --assert --json"]
FULL = [*((query, how) for query in QUERIES for how in (">&-", "> /dev/full")), ("sema --help", "> /dev/full")]


@pytest.mark.parametrize(("command", "how"), FULL)
def test_full_disk_on_stdout(mine: Bench, command: str, how: str) -> None:
    """conch exits 74 with one line on stderr, not with the code of the query."""
    for key in ("elect/o/1", "sema/s/2/1"):
        mine.etcd.put(f"{mine.prefix}/{key}", '{"host": "h", "pid": 1, "started": "s", "cmd": "c"}')
    done = shell(mine, f"exec $conch {command} {how}")
    check(done, 74, "stdout")


@pytest.mark.parametrize(
    ("command", "code"),
    [("elect o -- true", 0), ("sema s --max 1 --spread -- true", 0), ("elect o --who", 1), ("cron ls", 0)],
    ids=lambda one: str(one).replace(" ", "_"),
)
def test_no_home(conch: Bench, command: str, code: int) -> None:
    """No command needs a home directory."""
    done = shell(conch, f"unset HOME USER LOGNAME XDG_STATE_HOME; exec $conch {command}")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def as_other_user(*limits: str) -> str:
    """Return the shell prefix that runs a command as a uid without a passwd entry or other processes."""
    return " ".join(support.as_other_user(*limits)) + " "


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("elect o -- sh -c 'exit 6'", 6, ""),
        ("sema s --max 1 -- sh -c 'exit 6'", 6, ""),
        ("elect o --who", 1, ""),
        ("cron add j --schedule @daily -- true", 0, "job-added"),
        ("cron ls", 0, ""),
    ],
    ids=["elect", "sema", "who", "add", "ls"],
)
def test_uid_without_a_passwd_entry(mine: Bench, command: str, code: int, says: str) -> None:
    """No command needs a user name; the job's `added_by` has the uid."""
    done = shell(mine, f"unset HOME USER LOGNAME LNAME USERNAME; exec {as_other_user()} $conch {command}")
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if "add" in command and os.geteuid() == 0:
        value, _ = mine.etcd.get(f"{mine.prefix}/cron/job/j")
        assert json.loads(value)["added_by"].startswith(f"{100_000 + os.getpid()}@")


def test_conchd_of_a_uid_without_a_home(conch: Bench) -> None:
    """It exits 64 because it has no place for its state directory."""
    done = shell(conch, f"unset HOME USER XDG_STATE_HOME; exec {as_other_user()} $conch conchd", **DEAD)
    if os.geteuid() == 0:
        check(done, 64, "no home directory; set --state-dir")
    else:
        assert done.returncode in (64, 69)


SHORT = [
    (5, "elect o -- true"),
    (6, "elect o -- true"),
    (6, "sema s --max 1 -- true"),
    (7, "elect o -- true"),
    (8, "elect o -- true"),
    (12, "elect o -- true"),
    (5, "elect o --who"),
    (12, "cron ls"),
    (5, "conchd --state-dir s"),
    (6, "conchd --state-dir s"),
    (7, "conchd --state-dir s"),
    (8, "conchd --state-dir s"),
    (14, "dev -- true"),
]


@pytest.mark.parametrize(("limit", "command"), SHORT, ids=[f"{n}-{c.split(' -')[0]}" for n, c in SHORT])
def test_too_few_descriptors(conch: Bench, limit: int, command: str) -> None:
    """It works, or fails with 69 (126 if the child failed) and one line on stderr; no key is left."""
    done = shell(conch, f"ulimit -n {limit}; exec $conch {command}", **({} if "conchd" not in command else DEAD))
    assert "Traceback" not in done.stderr, done.stderr
    assert "stdout" not in done.stderr, done.stderr
    assert done.returncode in ((1, 69) if "--who" in command else (0, 69, 126)), done.stderr
    plain = [line for line in done.stderr.splitlines() if not line.startswith("ts=")]
    assert len(plain) == (done.returncode in (69, 126)), done.stderr
    assert conch.keys() == []


FORKS = [
    (1, "elect o -- true"),
    (2, "elect o -- true"),
    (3, "elect o -- true"),
    (4, "elect o -- true"),
    (5, "elect o -- true"),
    (1, "sema s --max 1 -- true"),
    (1, "dev -- true"),
    (1, "elect o --who"),
    (1, "cron ls"),
]


@pytest.mark.parametrize(("limit", "command"), FORKS, ids=[f"{n}-{c.split(' -')[0]}-{c[-4:]}" for n, c in FORKS])
def test_fork_that_fails(conch: Bench, limit: int, command: str) -> None:
    """Queries fork nothing and work. The others name the cause and exit 69, or 0, 70 or 126 if they got further."""
    # the limit counts all processes of a user; only the other user has few
    limits = f"--nproc={limit}" if os.geteuid() == 0 else "--nproc=1"
    done = shell(conch, f"exec {as_other_user(limits)} $conch {command}")
    assert "Traceback" not in done.stderr, done.stderr
    assert "stdout" not in done.stderr, done.stderr
    if "--who" in command or "cron" in command:
        assert (done.returncode, done.stderr) == (1 if "--who" in command else 0, "")
    else:
        # from 4 on conch may get the hold and lose it with its keeper, or run the command before it notices
        assert done.returncode in ((69,) if limit < 4 else (0, 69, 70, 126)), done.stderr
        assert done.returncode != 0 or "event=child-exit" in done.stderr, done.stderr
        lines = [line for line in done.stderr.splitlines() if not line.startswith("ts=")]
        assert lines
        assert all(re.search("unavailable|cannot start|died twice", line) for line in lines), lines
    wait_for(lambda: conch.keys() == [], "the lease that could not be revoked expires")


# -- values in etcd -------------------------------------------------------------------------------------------

GOOD = {"host": "h", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "c"}
JOB = {"schedule": "@yearly", "cmd": ["true"]}
RESULT = {"node": "n", "state": "ok", "exit": 0, "started": "2026-01-01T00:00:01Z", "duration": 1.5}
MEGABYTE = "x" * 1_000_000


def text(value: object) -> bytes:
    """Encode a value as JSON; return bytes unchanged."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


UNREADABLE: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("junk", b"{"),
    ("null", b"null"),
    ("number", b"1e400"),
    ("list", b"[{}]"),
    ("deep", b"[" * 100_000),
    ("not UTF-8", b'{"host": "\xff", "schedule": "\xff"}'),
    ("zeros", b"\0" * 100),
    ("two values", b"{} {}"),
    ("megabyte of junk", MEGABYTE.encode()),
    ("long number", b'{"pid": 1%s}' % (b"0" * 5000)),
]
HOLDERS = [
    *UNREADABLE,
    ("host a number", text({**GOOD, "host": 5})),
    ("pid a truth", text({**GOOD, "pid": True})),
    ("pid a fraction", text({**GOOD, "pid": 1.5})),
    ("no cmd", text({k: v for k, v in GOOD.items() if k != "cmd"})),
]


@pytest.mark.parametrize(("name", "value"), HOLDERS, ids=[name for name, _ in HOLDERS])
def test_manually_written_holder_that_is_unreadable(mine: Bench, name: str, value: bytes) -> None:
    """`elect` cannot know who holds the office and exits 69; `sema` shows the other holder. Both name the key once."""
    for key in ("elect/o/1", "sema/s/2/1"):
        mine.etcd.put(f"{mine.prefix}/{key}", value)
    mine.etcd.put(f"{mine.prefix}/sema/s/2/2", text(GOOD))
    for look in ("--who", "--assert"):
        done = mine.run("elect", "o", look)
        assert (done.returncode, done.stdout) == (69, "")
        warned, said = done.stderr.splitlines()
        assert f"key={mine.prefix}/elect/o/1" in warned
        assert "office o" in said
    done = mine.run("sema", "s", "--who")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert done.stdout.startswith("s/2 HELD h pid=1 ")
    assert done.stderr.count("\n") == 1
    assert f"key={mine.prefix}/sema/s/2/1" in done.stderr


SHOWN = [
    ("unknown fields", text({**GOOD, "later": {"x": [None]}})),
    ("megabyte", text({**GOOD, "later": MEGABYTE})),
    ("megabyte of cmd", text({**GOOD, "cmd": MEGABYTE})),
    ("large pid", text({**GOOD, "pid": 10**300})),
    ("negative pid", text({**GOOD, "pid": -1})),
    ("surrogate", text({**GOOD, "host": "\ud800", "cmd": "\udcff"})),
    ("lines", text({**GOOD, "host": "a\nb\u2028c\x00", "started": "\x1b[2J"})),
]


KEYS = ["not-hex", "odd é", "a/b", "x" * 1000]
READABLE = [*((name, value, "1") for name, value in SHOWN), *((key[:8], text(GOOD), key) for key in KEYS)]


@pytest.mark.parametrize(("name", "value", "key"), READABLE, ids=[name for name, _, _ in READABLE])
def test_manually_written_holder_that_can_be_read(mine: Bench, name: str, value: bytes, key: str) -> None:
    """Even without a lease or under an odd key it holds, and it is shown in one line."""
    mine.etcd.put(f"{mine.prefix}/elect/o/{key}", value)
    mine.etcd.put(f"{mine.prefix}/sema/s/2/{key}", value)
    for command in (["elect", "o", "--who"], ["sema", "s", "--who"]):
        for flags in ([], ["--json"]):
            done = mine.run(*command, *flags)
            assert (done.returncode, done.stderr) == (0, "")
            assert len(done.stdout.splitlines()) == 1
            assert done.stdout[:-1].isprintable()
            if flags:
                assert json.loads(done.stdout)["lease"] == "0"
    assert mine.run("elect", "o", "-n", "--quiet", "--", "true").returncode == 75


JOBS = [
    *UNREADABLE,
    ("cmd a text", text({**JOB, "cmd": "true"})),
    ("cmd empty", text({**JOB, "cmd": []})),
    ("cmd of numbers", text({**JOB, "cmd": ["true", 1]})),
    ("cmd with a zero byte", text({**JOB, "cmd": ["a\0b"]})),
    ("schedule a number", text({**JOB, "schedule": 5})),
    ("schedule that never fires", text({**JOB, "schedule": "0 0 30 2 *"})),
    ("zone unknown", text({**JOB, "tz": "Nowhere/Land"})),
    ("zone a list", text({**JOB, "tz": []})),
    ("run_ttl a text", text({**JOB, "run_ttl": "10m"})),
    ("run_ttl negative", text({**JOB, "run_ttl": -1})),
    ("run_ttl no number", b'{"schedule": "@daily", "cmd": ["true"], "run_ttl": NaN}'),
    ("retries a truth", text({**JOB, "retries": True})),
    ("env a list", text({**JOB, "env": ["A=b"]})),
    ("env of numbers", text({**JOB, "env": {"A": 1}})),
    ("overlap unknown", text({**JOB, "overlap": "maybe"})),
    ("sema without a number", text({**JOB, "sema": "s"})),
    ("cwd relative", text({**JOB, "cwd": "x"})),
    ("paused a text", text({**JOB, "paused": "no"})),
    ("megabyte", text({**JOB, "later": MEGABYTE})),
]


@pytest.mark.parametrize(("name", "value"), JOBS, ids=[name for name, _ in JOBS])
def test_manually_written_job_that_is_unreadable(mine: Bench, name: str, value: bytes) -> None:
    """`ls` shows the other job; `show` and `run` name the key and exit 69. Nothing is written."""
    key = f"{mine.prefix}/cron/job/j"
    mine.etcd.put(key, value)
    mine.etcd.put(f"{mine.prefix}/cron/job/z", text(JOB))
    before = mine.keys()
    done = mine.run("cron", "ls", "--json")
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in mine.jsons(done.stdout)] == ["z"]
    assert done.stderr.count("event=unreadable") == 1
    assert key in done.stderr
    for command in ("show", "run"):
        check(mine.run("cron", command, "j"), 69, re.escape(key))
    assert mine.keys() == before
    assert mine.etcd.get(key)[0] == value


ODD_TICKS = [
    ("fire", str(-TICK)),
    ("result", str(-TICK)),
    ("result", "-1"),
    ("result", "0"),
    ("result", f"{TICK}.5"),
    ("result", f"0{TICK}"),
    ("result", "9" * 30),
    ("result", f"{TICK}/x/y"),
    ("result", " "),
    ("fire", "é"),
    ("fire", "x" * 1000),
]


@pytest.mark.parametrize(("kind", "tick"), ODD_TICKS, ids=[f"{kind}-{tick:.14}" for kind, tick in ODD_TICKS])
@pytest.mark.parametrize("command", [["history", "j"], ["ls", "--last"]], ids=" ".join)
def test_manually_written_key_that_names_no_tick(mine: Bench, command: list[str], kind: str, tick: str) -> None:
    """Its value is not shown as a run, and one line names the key."""
    mine.etcd.put(f"{mine.prefix}/cron/job/j", text(JOB))
    key = f"{mine.prefix}/cron/{kind}/j/{tick}"
    mine.etcd.put(key, text(RESULT if kind == "result" else GOOD))
    done = mine.run("cron", *command, "--json")
    assert done.returncode == 0, done.stderr
    shown = list(mine.jsons(done.stdout))
    assert all(one.get("state") is None for one in shown)
    assert len(shown) == (command[0] == "ls")
    assert done.stderr.count("\n") == 1
    assert f"{key:.60}" in done.stderr or "key=" in done.stderr


RESULTS = [
    ("exit a text", {**RESULT, "exit": "0"}),
    ("exit large", {**RESULT, "exit": 10**300}),
    ("started a number", {**RESULT, "started": 5}),
    ("duration negative", {**RESULT, "duration": -5}),
    ("attempt a list", {**RESULT, "attempt": [1]}),
    ("reason an object", {**RESULT, "reason": {"a": "\x1b[31m\n"}}),
    ("state unknown", {**RESULT, "state": "\x1b[2Jnew\nstate"}),
    ("node of odd letters", {**RESULT, "node": "\ud800\n"}),
    ("unknown fields", {**RESULT, "later": MEGABYTE}),
]


@pytest.mark.parametrize(("name", "value"), RESULTS, ids=[name for name, _ in RESULTS])
def test_manually_written_result_with_odd_fields(mine: Bench, name: str, value: dict[str, Any]) -> None:
    """It is shown as one row and as one JSON object, and no escape sequence reaches the terminal."""
    mine.etcd.put(f"{mine.prefix}/cron/job/j", text(JOB))
    mine.etcd.put(f"{mine.prefix}/cron/result/j/{TICK}", text(value))
    for command in (["history", "j"], ["ls", "--last"]):
        done = mine.run("cron", *command)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 2
        assert all(line.isprintable() for line in done.stdout.splitlines())
        done = mine.run("cron", *command, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        (shown,) = mine.jsons(done.stdout)
        assert shown["duration_s"] in (None, 1.5)


@pytest.mark.parametrize("value", [b"", b"junk", b"[]", b"\xff", MEGABYTE.encode()], ids=lambda value: repr(value[:5]))
def test_manually_written_node_that_is_unreadable(mine: Bench, value: bytes) -> None:
    """An unreadable node causes no traceback: `cron run` is refused, or waits and withdraws its request at SIGTERM."""
    mine.etcd.put(f"{mine.prefix}/cron/job/j", text(JOB))
    mine.etcd.put(f"{mine.prefix}/node/odd name", value)
    before = mine.keys()
    asked = mine.start("cron", "run", "j")
    wait_for(lambda: asked.process.poll() is not None or mine.keys_below("cron/now/j/"), "its request, or its end")
    asked.process.terminate()
    assert asked.wait() in (1, 128 + 15), asked.err
    assert "Traceback" not in asked.err
    assert mine.keys() == before


def test_daemon_among_odd_values(fleet: Fleet) -> None:
    """With odd values before and after its start, conchd names each bad job, runs the good one and survives."""
    bench = fleet.bench
    odd: dict[str, bytes] = {f"cron/job/bad{at}": value for at, (_, value) in enumerate(JOBS)}
    odd |= {
        "cron/job/": text(JOB),
        "cron/job/é": text({**JOB, "schedule": "@every 1s"}),
        "cron/job/a/b": text({**JOB, "schedule": "@every 1s"}),
        "cron/job/" + "x" * 1000: text({**JOB, "schedule": "@every 1s"}),
    }
    for kind in ("fire", "result", "now"):
        for tick in ("", "x", "-5", str(-TICK), "9" * 30, f"{TICK}/x", f"{TICK}.5", str(TICK), str(TICK + 10**9)):
            odd[f"cron/{kind}/good/{tick}"] = b"\xff{"
            odd[f"cron/{kind}/nobody/{tick}"] = text({**GOOD, "tick": -5})
    for at, value in enumerate((b"", b"\xff", b"[]", b"-5", b"1e400", b"NaN", b'"5"', b"{}", MEGABYTE.encode())):
        odd[f"cron/run/none{at}"] = value
        odd[f"cron/floor/none{at}"] = value
        odd[f"cron/floor/good/{at}"] = value
        odd[f"node/none{at}"] = value
        odd[f"elect/o/{at}"] = value
        odd[f"sema/s/{at}/{at}"] = value
        odd[f"cron/nosuch/{at}"] = value
    odd |= {"cron": b"x", "cron/": b"x", "node/": b"{}", "node/a b": b"{}", "elect": b"x", "sema/": b"x"}
    try:
        for key, value in list(odd.items())[::2]:
            bench.etcd.put(f"{bench.prefix}/{key}", value)
        fleet.add("good", "@every 1s", "--overlap", "allow")
        daemon = fleet.start("a")
        keeper = daemon.keeper()
        for key, value in odd.items():
            bench.etcd.put(f"{bench.prefix}/{key}", value)

        def results() -> list[str]:
            return [
                meta.key.decode()
                for value, meta in bench.etcd.get_prefix(f"{bench.prefix}/cron/result/good/")
                if b'"state": "ok"' in value
            ]

        before = len(results())
        wait_for(lambda: len(results()) >= before + 3, "three more runs of the good job", 40)
        named = {line["key"] for line in daemon.events("unreadable")}
        jobs = {f"{bench.prefix}/{key}" for key in odd if key.startswith("cron/job/") and key.isascii()}
        assert {key for key in jobs if len(key) < 500 and key not in named} == set()
        assert len(daemon.events("unreadable")) < 4 * len(odd)
        assert "Traceback" not in daemon.err
        assert alive(daemon.pid)
        assert alive(keeper)
        assert not [key for key in bench.keys_below("cron/fire/") if "/fire/bad" in key or "/fire/x" in key]
        assert bench.run("cron", "ls").returncode == 0
        assert bench.run("cron", "history", "good").returncode == 0
    finally:
        for one in fleet.daemons.values():
            one.process.terminate()
        for one in fleet.daemons.values():
            one.wait()
        bench.etcd.delete_prefix(bench.prefix + "/")


def test_run_key_without_a_lease(fleet: Fleet) -> None:
    """A manually written run key counts as a live run: ticks are skipped until it is deleted."""
    bench = fleet.bench
    fleet.start("a")
    key = f"{bench.prefix}/cron/run/j"
    bench.etcd.put(key, text({**GOOD, "tick": -5}))
    fleet.add("j", "@every 1s")
    assert {one["state"] for one in fleet.results("j", 2).values()} == {"skipped"}
    bench.etcd.delete(key)
    wait_for(lambda: "ok" in {one["state"] for one in fleet.ticks("result", "j").values()}, "a run")


def test_request_without_a_lease(fleet: Fleet) -> None:
    """Manual requests for an impossible or distant tick or an unknown job are not run; a valid one still is."""
    bench = fleet.bench
    daemon = fleet.start("a")
    fleet.add("j", "@yearly")
    for tick in (TICK + 10**8, -TICK, 5, 10**30):
        bench.etcd.put(f"{bench.prefix}/cron/now/j/{tick}", b"\xff")
        bench.etcd.put(f"{bench.prefix}/cron/now/nobody/{tick}", b"{}")
    tick = fleet.run_now("j")
    assert fleet.result("j", tick)["state"] == "ok"
    assert set(fleet.ticks("fire", "j")) == {tick}
    assert alive(daemon.pid)
    assert "Traceback" not in daemon.err
