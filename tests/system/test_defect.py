"""A defect planted into a copy of conch: exit code 71 and one line that asks for a report, in both processes."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import conch as package
from tests.support.conch import Bench, alive, wait_for

SOURCE = Path(package.__file__).parent
# Start like the installed script, or like `python -m conch`, but import the copy.
SCRIPT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from conch.cli.main import main; main()"
MODULE = "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('conch', run_name='__main__')"
DEFECT = 'raise KeyError("odd\\nword é")'
LINE = r"conch: a defect of conch \(.+\): please report it, with what CONCH_DEBUG=1 shows"

Planted = Callable[[str, str, str], list[str]]


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """Return a function that inserts code before a line of a copy of conch and returns the copy's command line."""

    def plant(file: str, line: str, defect: str) -> list[str]:
        copy = tmp_path / "copy"
        shutil.copytree(SOURCE, copy / "conch", ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / "conch" / file
        text = path.read_text()
        (found,) = re.findall(rf"^ *{re.escape(line)}.*$", text, re.MULTILINE)
        indent = " " * (len(found) - len(found.lstrip()))
        path.write_text(text.replace(found, "\n".join([*(indent + one for one in defect.split("\n")), found])))
        return [sys.executable, "-c", SCRIPT, str(copy)]

    return plant


def run(conch: Bench, program: list[str], *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*program, *arguments],
        env={**conch.environment, **env},
        cwd=conch.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def lines(text: str) -> list[str]:
    """Return the lines that are no log lines."""
    return [line for line in text.splitlines() if not line.startswith("ts=")]


COMMANDS = [
    ("cli/elect.py", "found = read_queue(", ("elect", "o", "--who")),
    ("cli/elect.py", 'if values["as_json"] or values["min_rev"]', ("elect", "o", "--", "true")),
    ("cli/sema.py", "ranks: dict[int, int]", ("sema", "s", "--who")),
    ("cli/cron_show.py", "with_last, as_json = line.values", ("cron", "ls")),
    ("cli/cron_next.py", "expression, name = values[", ("cron", "next", "@daily")),
    ("cli/conchd.py", "identity = myself([", ("conchd", "--state-dir", "s")),
    ("core/daemon_loop.py", "supervisor = self._supervisor", ("conchd", "--state-dir", "s")),
    ("core/wrapper_loop.py", "supervisor.begin()", ("elect", "o", "--", "true")),
    ("cli/dev.py", "environment = host.environment()", ("dev", "--", "true")),
    ("cli/click_adapter.py", "result = root.main(", ("elect", "--help")),
]


@pytest.mark.parametrize(("file", "line", "command"), COMMANDS, ids=[f"{c[0]}-{c[2][0]}" for c in COMMANDS])
def test_defect_in_a_command(conch: Bench, planted: Planted, file: str, line: str, command: tuple[str, ...]) -> None:
    """It exits 71 with one line on stderr and nothing on stdout; no keeper is left."""
    done = run(conch, planted(file, line, DEFECT), *command)
    assert (done.returncode, done.stdout) == (71, ""), done.stderr
    (said,) = [line for line in lines(done.stderr) if "running-as-root" not in line]
    assert re.fullmatch(LINE, said), said
    assert r"KeyError: 'odd\\nword \xe9'" in said
    assert Path(file).name in said


@pytest.mark.parametrize(
    ("file", "line", "defect"),
    [
        ("cli/exit.py", "import os", "import conch.none_of_ours"),
        ("cli/elect.py", "_QUERIES = (", "import conch.none_of_ours"),
        ("cli/elect.py", "common = settings(line)", "def again() -> None:\n    again()\nagain()"),
        ("cli/elect.py", "common = settings(line)", "raise SystemExit(0)"),
        ("cli/elect.py", "common = settings(line)", "os = __import__('os'); os.close(99)"),
        ("etcd/dial.py", "found.extend(socket.getaddrinfo(", DEFECT),
    ],
    ids=["import-at-the-end", "import", "recursion", "exit", "bad-descriptor", "thread"],
)
@pytest.mark.parametrize("start", [SCRIPT, MODULE], ids=["script", "module"])
def test_defects_of_every_kind(conch: Bench, planted: Planted, file: str, line: str, defect: str, start: str) -> None:
    """A missing module, a recursion, a misplaced exit, a bad descriptor or another thread's error: all exit 71."""
    program = planted(file, line, defect)
    program[2] = start
    by_name = conch.endpoints.replace("127.0.0.1", "localhost")
    done = run(conch, program, "elect", "o", "--who", CONCH_ENDPOINTS=by_name, CONCH_TRANSPORT="http")
    assert done.returncode == 71, done.stderr
    (said,) = lines(done.stderr)
    assert re.fullmatch(LINE, said), said


def test_traceback_of_a_defect_is_shown_on_request(conch: Bench, planted: Planted) -> None:
    """CONCH_DEBUG=1 shows it, for the keeper too."""
    program = planted("keeper/acquirer.py", "session = self._start_session()", DEFECT)
    done = run(conch, program, "elect", "o", "--", "true", CONCH_DEBUG="1")
    assert done.returncode == 71
    assert "Traceback" in done.stderr
    assert "in _try_to_hold" in done.stderr
    assert "Traceback" not in run(conch, program, "elect", "o", "--", "true").stderr


KEEPERS = [
    ("keeper/acquirer.py", "session = self._start_session()", DEFECT),
    ("keeper/acquirer.py", "place = self._enter_queue(queue, session)", DEFECT),  # it has a lease by then
    ("keeper/acquirer.py", "import os", "import conch.none_of_ours"),
    ("keeper/main.py", "watchdog = Watchdog(channel)", DEFECT),
    ("keeper/watchdog.py", "timer.arm(self._next_kill_at())", DEFECT),
]


@pytest.mark.parametrize(("file", "line", "defect"), KEEPERS, ids=[f"{k[0]}-{at}" for at, k in enumerate(KEEPERS)])
def test_defect_of_a_keeper_in_the_queue(conch: Bench, planted: Planted, file: str, line: str, defect: str) -> None:
    """The keeper is replaced once, then conch exits 71; each process prints at most one line."""
    done = run(conch, planted(file, line, defect), "elect", "o", "--ttl", "2s", "--", "touch", "ran")
    assert done.returncode == 71, done.stderr
    said = lines(done.stderr)
    assert "Traceback" not in done.stderr
    assert said[-1] == "conch: the process that talks to etcd died twice"
    assert all(re.fullmatch(LINE, one) for one in said[:-1])
    assert len(said) in (2, 3)
    assert not conch.file("ran").exists()
    wait_for(lambda: not conch.keys(), "what the keepers had expires")


def test_defect_of_a_keeper_while_something_runs(conch: Bench, planted: Planted) -> None:
    """The hold is lost with the keeper: the command is ended, conch exits 70, and one line asks for a report."""
    program = planted("keeper/session.py", "answer = store.keep_alive(", DEFECT)
    done = run(conch, program, "elect", "o", "--ttl", "2s", "--", "sh", "-c", "echo $$; exec sleep 100")
    assert done.returncode == 70, done.stderr
    assert not alive(int(done.stdout))
    (said,) = lines(done.stderr)
    assert re.fullmatch(LINE, said), said


@pytest.mark.parametrize("line", ["new.adopt(begin.live", "watchdog = Watchdog(channel)"])
def test_defect_of_conchds_keeper_at_the_start(conch: Bench, planted: Planted, line: str) -> None:
    """It would never work, so conchd exits 71, which a service manager sees."""
    done = run(conch, planted("cron/daemon.py", line, DEFECT), "conchd", "--state-dir", "s")
    assert done.returncode == 71, done.stderr
    said, last = lines(done.stderr)
    assert re.fullmatch(LINE, said)
    assert last == "conch: the process that talks to etcd died at its start"
