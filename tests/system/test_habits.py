"""Habits from other tools: common options in front, help in all its spellings, and what was meant by a mistake."""

import shlex

import pytest

from tests.support.conch import Bench

MISTAKES = [
    ("", "no command given: elect, sema, cron, conchd, ps, dev, completion"),
    ("cron", "conch cron: no command given: add, "),
    ("elct", "Did you mean conch elect?"),
    ("lock", "Did you mean conch elect?"),
    ("semaphore", "Did you mean conch sema?"),
    ("remove j", "Did you mean conch cron rm?"),
    ("cron list", "Did you mean conch cron ls?"),
    ("cron delete j", "Did you mean conch cron rm?"),
    ("cron remove j", "Did you mean conch cron rm?"),
    ("cron trigger j", "Did you mean conch cron run?"),
    ("cron disable j", "Did you mean conch cron pause?"),
    ("cron enable j", "Did you mean conch cron resume?"),
    ("cron status", "Did you mean conch cron ls --last?"),
    ("cron histroy", "Did you mean conch cron history?"),
    ("elect o --nb -- true", "Did you mean --nonblock?"),
    ("elect o --timeout 5s -- true", "Did you mean --wait?"),
    ("elect o --status", "Did you mean --who?"),
    ("elect o --lease 5s -- true", "Did you mean --ttl?"),
    ("elect o --kill-aftr 5s -- true", "Did you mean --kill-after?"),
    ("sema s --slots 3 -- true", "Did you mean --max?"),
    ("sema s --list", "Did you mean --who?"),
    ("sema s -n 2", "-n means --nonblock; for 2 slots write --max 2"),
    ("cron add j --cron x -- true", "Did you mean --schedule?"),
    ("elect web sleep 10", "stands after --: conch elect web -- sleep 10 "),
    ("elect web --ttl 5s sh -c true", "stands after --: conch elect web --ttl 5s -- sh -c true "),
    ("elect web -q --wait=3 echo 'a b'", "stands after --: conch elect web -q --wait=3 -- echo 'a b' "),
    ("cron next backup", "conch cron next --job backup"),
]


@pytest.mark.parametrize(("line", "answer"), MISTAKES)
def test_mistake_is_answered_with_what_was_meant(conch: Bench, line: str, answer: str) -> None:
    """In one line, with exit code 64."""
    done = conch.run(*shlex.split(line))
    assert done.returncode == 64
    assert answer in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("line", ["frobnicate", "cron frobnicate", "elect o --frobnicate -- true", "sema s --zzz"])
def test_what_nobody_can_tell_is_not_guessed(conch: Bench, line: str) -> None:
    """A wrong guess is worse than none."""
    done = conch.run(*shlex.split(line))
    assert done.returncode == 64
    assert "Did you mean" not in done.stderr


def test_common_options_before_the_command(conch: Bench) -> None:
    """As etcdctl takes them; what follows the command counts more."""
    endpoints = conch.endpoints
    env = {"CONCH_ENDPOINTS": "localhost:1"}
    for front in (["--endpoints", endpoints], [f"--endpoints={endpoints}"], ["-q", "--endpoints", endpoints, "-v"][:3]):
        done = conch.run(*front, "elect", "o", "--", "sh", "-c", "echo $CONCH_NAME", env=env)
        assert (done.returncode, done.stdout) == (0, "o\n"), done.stderr
    listed = conch.run("cron", "--endpoints", endpoints, "ls", env=env)
    assert listed.returncode == 0, listed.stderr
    wins = conch.run("--endpoints", "localhost:1", "elect", "o", "--who", "--endpoints", endpoints)
    assert wins.returncode == 1, wins.stderr
    held = conch.run("--contain", "tree", "--endpoints", endpoints, "sema", "s", "--max", "1", "--", "true", env=env)
    assert held.returncode == 0, held.stderr


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("--ttl 5s elect o -- true", "No such option: --ttl"),
        ("--endpoints", "--endpoints"),
        ("--endpoints a:99999 elect o -- true", "'a:99999'"),
        ("--quiet=1 elect o -- true", "--quiet"),
    ],
)
def test_other_options_in_front_are_refused(conch: Bench, line: str, refusal: str) -> None:
    """One line, as behind the command."""
    done = conch.run(*shlex.split(line))
    assert done.returncode == 64
    assert refusal in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("line", ["-V", "version", "--version"])
def test_version(conch: Bench, line: str) -> None:
    done = conch.run(line)
    assert done.returncode == 0
    assert done.stdout.startswith("conch ")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("help", "conch help TOPIC"),
        ("help elect", "Usage: conch elect NAME [OPTIONS] [-- CMD...]"),
        ("help cron add", "Usage: conch cron add NAME"),
        ("help exit codes", "70             the hold was lost"),
        ("help exit-codes", "Exit codes"),
        ("help environment", "CONCH_ENDPOINTS"),
        ("help schedules", "fri#2"),
        ("help durations", "300ms"),
        ("elect --help", "conch elect web --restart -- ./server"),
        ("sema --help", "CONCH_ENDPOINTS"),
    ],
)
def test_help(conch: Bench, line: str, shown: str) -> None:
    """Of commands and of topics."""
    done = conch.run(*shlex.split(line))
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
