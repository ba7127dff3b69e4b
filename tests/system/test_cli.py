"""The command line: what it rejects, where values come from, what it prints."""

import os
import re
import subprocess
import sys

import pytest

import conch as package
from tests.support.conch import Bench
from tests.support.fronts import unmet

RUN = ["--", "true"]

BAD: list[tuple[list[str], str]] = [
    ([], "no command given"),
    (["nosuch"], "nosuch"),
    (["--nosuch"], "--nosuch"),
    (["elect"], "NAME"),
    (["elect", "o"], "no command"),
    (["elect", "o", "--"], "no command"),
    (["elect", "o", "true"], "stands after --"),
    (["elect", "o", "p", *RUN], "p"),
    (["elect", "o", "sh", "-c", "true"], "stands after --"),
    (["elect", "", *RUN], "bad name"),
    (["elect", "a/b", *RUN], "bad name 'a/b'"),
    (["elect", "..", *RUN], "bad name"),
    (["elect", "a\nb", *RUN], "bad name"),
    (["elect", "ä", *RUN], "bad name"),
    (["elect", "x" * 129, *RUN], "bad name"),
    (["elect", "o", "--nosuch", *RUN], "--nosuch"),
    (["elect", "o", "--ttl", "1s", *RUN], "--ttl.*at least 2s"),
    (["elect", "o", "--ttl", "2.5", *RUN], "--ttl.*whole seconds"),
    (["elect", "o", "--ttl", "-5", *RUN], "--ttl"),
    (["elect", "o", "--ttl", "nan", *RUN], "--ttl.*'nan'"),
    (["elect", "o", "--ttl", "inf", *RUN], "--ttl"),
    (["elect", "o", "--ttl", *RUN], "--ttl"),
    (["elect", "o", "--wait", "junk", *RUN], "--wait.*'junk'"),
    (["elect", "o", "--wait", "", *RUN], "--wait"),
    (["elect", "o", "--wait", "-1s", *RUN], "--wait"),
    (["elect", "o", "--wait", "5s", "-n", *RUN], "exclude"),
    (["elect", "o", "--kill-after", "x", *RUN], "--kill-after"),
    (["elect", "o", "-E", "256", *RUN], "-E|conflict-exit-code"),
    (["elect", "o", "-E", "-1", *RUN], "-E|conflict-exit-code"),
    (["elect", "o", "-E", "x", *RUN], "-E|conflict-exit-code"),
    (["elect", "o", "--hook-timeout", "0", *RUN], "--hook-timeout"),
    (["elect", "o", "--restart", "-n", *RUN], "--restart"),
    (["elect", "o", "--restart", "--wait", "5s", *RUN], "--restart"),
    (["elect", "o", "--restart", "--restart-min", "0", *RUN], "--restart-min"),
    (["elect", "o", "--restart", "--restart-min", "9s", "--restart-max", "1s", *RUN], "--restart-min"),
    (["elect", "o", "--endpoints", "a:99999", *RUN], "'a:99999'"),
    (["elect", "o", "--endpoints", "", *RUN], "endpoint"),
    (["elect", "o", "--endpoints", "http://a/b", *RUN], "'http://a/b'"),
    (["elect", "o", "--endpoints", "http://a,https://b", *RUN], "mixed"),
    (["elect", "o", "--dial-timeout", "0", *RUN], "--dial-timeout"),
    (["elect", "o", "--command-timeout", "x", *RUN], "--command-timeout"),
    (["elect", "o", "--cacert", "/no/such", *RUN], "--cacert.*/no/such"),
    (["elect", "o", "--cert", "/dev/null", *RUN], "--cert and --key"),
    (["elect", "o", "--user", ":x", *RUN], "--user"),
    (["elect", "o", "--user", "u", *RUN], "no password"),
    (["elect", "o", "--password-file", "/dev/null", *RUN], "--user"),
    (["elect", "o", "--user", "u", "--password-file", "/no/such", *RUN], "/no/such"),
    (["elect", "o", "--prefix", "x", *RUN], "'x' is not a prefix"),
    (["elect", "o", "--prefix", "/a b", *RUN], "prefix"),
    (["elect", "o", "--prefix", "/", *RUN], "prefix"),
    (["elect", "o", "--log-format", "xml", *RUN], "--log-format"),
    (["elect", "o", "--who", "--watch"], "exclude"),
    (["elect", "o", "--who", *RUN], "takes no command"),
    (["elect", "o", "--assert", *RUN], "takes no command"),
    (["elect", "o", "--who", "--min-rev", "5"], "--min-rev"),
    (["elect", "o", "--assert", "--min-rev", "-5"], "--min-rev"),
    (["elect", "o", "--who", "--ttl", "5s"], "--ttl does not go with --who"),
    (["elect", "o", "--watch", "--restart"], "--restart does not go with --watch"),
    (["elect", "o", "--json", *RUN], "--json"),
    (["sema", "s", *RUN], "--max is missing"),
    (["sema", "s", "--max", "0", *RUN], "--max"),
    (["sema", "s", "--max", "-1", *RUN], "--max"),
    (["sema", "s", "--max", "1001", *RUN], "--max"),
    (["sema", "s", "--max", "x", *RUN], "--max"),
    (["sema", "s", "--max", "2.0", *RUN], "--max"),
    (["sema", "s", "--max", "", *RUN], "--max"),
    (["sema", "s", "--max", "2"], "no command"),
    (["sema", "s", "--max", "2", "--restart", *RUN], "--restart"),
    (["sema", "a b", "--max", "2", *RUN], "bad name"),
    (["sema", "s", "--max", "2", "--json", *RUN], "--json"),
    (["sema", "s", "--who", "--spread"], "--spread does not go with --who"),
    (["sema", "s", "--who", *RUN], "takes no command"),
    (["sema", "s", "--max", "2", "--ttl", "1", *RUN], "--ttl"),
    (["dev", "--members", "2", *RUN], "--members"),
    (["dev", "--"], "no command"),
    (["dev", "true"], "stands after --"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_prints_one_clear_line_and_exits_64(conch: Bench, arguments: list[str], message: str) -> None:
    """conch exits before it connects to the endpoint."""
    with unmet() as endpoint:
        done = conch.run(*arguments, env={"CONCH_ENDPOINTS": endpoint})
    assert done.returncode == 64, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert all(c.isprintable() for c in done.stderr.rstrip("\n"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CONCH_ENDPOINTS", "a:b"),
        ("ETCDCTL_ENDPOINTS", "a:b"),
        ("CONCH_DIAL_TIMEOUT", "x"),
        ("ETCDCTL_COMMAND_TIMEOUT", "x"),
        ("CONCH_PREFIX", "x"),
        ("CONCH_QUIET", "maybe"),
        ("CONCH_LOG_FORMAT", "xml"),
        ("ETCDCTL_CACERT", "/no/such"),
    ],
)
def test_bad_environment_exits_64_too(conch: Bench, variable: str, value: str) -> None:
    """One line on stderr names the bad value."""
    env = {"CONCH_ENDPOINTS": "", variable: value}
    done = conch.run("elect", "o", *RUN, env=env)
    assert done.returncode == 64
    assert len(done.stderr.splitlines()) == 1
    assert value in done.stderr


def test_empty_variable_counts_as_not_set(conch: Bench) -> None:
    """This is true of CONCH_... and ETCDCTL_... variables."""
    names = ["DIAL_TIMEOUT", "COMMAND_TIMEOUT", "CACERT", "CERT", "KEY", "USER", "PASSWORD_FILE", "QUIET", "LOG_FORMAT"]
    env = {f"{start}_{name}": "" for name in names for start in ("CONCH", "ETCDCTL")}
    done = conch.run("elect", "o", *RUN, env={**env, "CONCH_ENDPOINTS": "", "ETCDCTL_ENDPOINTS": conch.endpoints})
    assert done.returncode == 0, done.stderr


def test_flag_beats_conch_variable_beats_etcdctl_variable(conch: Bench) -> None:
    """The endpoint that conch calls shows which value it took."""
    dead, deader = "127.0.0.1:1", "127.0.0.1:2"
    env = {"CONCH_ENDPOINTS": conch.endpoints, "ETCDCTL_ENDPOINTS": dead}
    assert conch.run("elect", "o", "--who", env=env).returncode == 1
    env = {"CONCH_ENDPOINTS": dead, "ETCDCTL_ENDPOINTS": deader, "CONCH_DIAL_TIMEOUT": "300ms"}
    done = conch.run("elect", "o", "--who", env=env)
    assert (done.returncode, dead in done.stderr) == (69, True)
    assert conch.run("elect", "o", "--who", "--endpoints", conch.endpoints, env=env).returncode == 1


def test_flags_and_name_come_in_any_order_before_the_command(conch: Bench) -> None:
    """All arguments after -- belong to the command."""
    done = conch.run("elect", "--ttl", "5s", "o", "--quiet", "--", "echo", "--ttl", "x", "--", "y")
    assert (done.returncode, done.stdout) == (0, "--ttl x -- y\n")


def test_two_prefixes_never_see_each_other(conch: Bench) -> None:
    """This includes prefixes of which one begins with the other."""
    conch.hold("o")
    for prefix in (f"{conch.prefix}/other", f"{conch.prefix}x", conch.prefix[:-1]):
        assert conch.run("elect", "o", "--prefix", prefix, "-n", "--", "true").returncode == 0


def test_one_name_that_begins_with_another_is_another_office(conch: Bench) -> None:
    """While db2 is held, db is free."""
    conch.hold("db2")
    assert conch.run("elect", "db", "-n", "--", "true").returncode == 0


@pytest.mark.parametrize("start", [["conch"], [sys.executable, "-m", "conch"]])
def test_version_and_help(conch: Bench, start: list[str]) -> None:
    """`conch` and `python -m conch` print the same; help names the documented commands and flags."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"

    def show(*arguments: str) -> str:
        return subprocess.run(
            [*start, *arguments], env={**conch.environment, "PATH": path}, capture_output=True, text=True, check=True
        ).stdout

    assert show("--version") == f"conch {package.__version__}\n"
    overview = show("--help")
    assert {"elect", "sema", "dev"} <= set(overview.split())
    text = show("elect", "--help")
    for flag in [
        "--endpoints",
        "--dial-timeout",
        "--command-timeout",
        "--cacert",
        "--cert",
        "--key",
        "--user",
        "--password-file",
        "--prefix",
        "--quiet",
        "--log-format",
        "--ttl",
        "--wait",
        "-n",
        "--nonblock",
        "-E",
        "--conflict-exit-code",
        "--kill-after",
        "--on-acquire",
        "--on-lose",
        "--hook-timeout",
        "--restart",
        "--restart-min",
        "--restart-max",
        "--restart-stable",
        "--who",
        "--watch",
        "--assert",
        "--min-rev",
        "--json",
    ]:
        assert flag in text, flag
    text = show("sema", "--help")
    for flag in [
        "--max",
        "--spread",
        "--who",
        "--json",
        "--ttl",
        "--wait",
        "-n",
        "-E",
        "--kill-after",
        "--on-acquire",
        "--on-lose",
        "--hook-timeout",
    ]:
        assert flag in text, flag
    assert "--data-dir" in show("dev", "--help")


@pytest.mark.parametrize("how", [">&-", "> /dev/full"])
@pytest.mark.parametrize("look", ["elect o --who", "elect o --watch", "elect o --assert --json"])
def test_query_that_cannot_be_written_exits_74(conch: Bench, look: str, how: str) -> None:
    """It does not exit 1, which would mean that the office is vacant."""
    from tests.support.conch import CONCH

    conch.hold("o")
    done = subprocess.run(
        ["sh", "-c", f"{CONCH} {look} {how}"], env=conch.environment, check=False, timeout=30, stderr=subprocess.PIPE
    )
    assert done.returncode == 74
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_do_no_harm(conch: Bench, closed: str) -> None:
    """The command runs, and conch exits with its code."""
    from tests.support.conch import CONCH

    done = subprocess.run(
        ["sh", "-c", f"{CONCH} elect o -- sh -c 'echo x > ran; exit 4' {closed}"],
        env=conch.environment, cwd=conch.folder, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 4
    assert conch.read("ran") == "x\n"


def test_odd_bytes_in_arguments_and_environment_reach_the_child(conch: Bench) -> None:
    """They need not be UTF-8, because file names need not be."""
    from tests.support.conch import CONCH

    done = subprocess.run(
        [CONCH.encode(), b"elect", b"o", b"--quiet", b"--", b"sh", b"-c", b'printf %s "$1$ODD"', b"x", b"a\xff\xfe"],
        env={**{k.encode(): v.encode() for k, v in conch.environment.items()}, b"ODD": b"\x80"},
        capture_output=True, check=True, timeout=30,
    )  # fmt: skip
    assert done.stdout == b"a\xff\xfe\x80"


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_that_cannot_be_written_exits_74(conch: Bench, flag: str) -> None:
    """conch prints one line on stderr."""
    with open("/dev/full", "w") as full:
        done = conch.run(flag, stdout=full)
    assert done.returncode == 74
    assert len(done.stderr.splitlines()) == 1


def test_full_stdout_is_reported(conch: Bench) -> None:
    """conch prints one line on stderr and exits with neither 0 nor 1."""
    conch.hold("o")
    with open("/dev/full", "w") as full:
        done = conch.run("elect", "o", "--who", stdout=full)
    assert done.returncode not in (0, 1)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["elect o -- true", "sema s --max 2 --spread -- true", "elect o --assert"])
@pytest.mark.parametrize("host", ["a/b", "a b", "a\n"])
def test_bad_host_name_is_rejected(conch: Bench, command: str, host: str) -> None:
    """CONCH_HOST appears in keys and in lines that scripts read, so conch rejects a bad one."""
    done = conch.run(*command.split(), env={"CONCH_HOST": host})
    assert done.returncode == 64
    assert "CONCH_HOST" in done.stderr


def test_quiet_and_verbose_as_people_type_them(conch: Bench) -> None:
    """`-q` prints nothing about a successful run, `-v` logs each renewal; a flag overrides the opposite variable."""
    assert conch.run("elect", "o", "-q", "--", "true", env={"CONCH_VERBOSE": "1"}).stderr == ""
    assert conch.run("elect", "o", "-qn", "--", "true").stderr == ""
    assert conch.run("cron", "ls", "-q").returncode == 0
    assert conch.run("cron", "next", "@daily", "-n", "2").stdout.count("\n") == 2
    loud = conch.hold("o", "-v", "--ttl", "2s", env={"CONCH_QUIET": "1"})
    assert float(loud.wait_event("confirmed")["left_s"]) <= 2
    usual = conch.hold("p", "--ttl", "2s")
    loud.wait_event("confirmed", 8)
    assert not usual.events("confirmed")
