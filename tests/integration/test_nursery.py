"""The keeper that is forked before the command line is read leaves nothing behind, however that goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.conch import CONCH, Bench, alive, wait_for

HEAD = """
import os
from conch.core import nursery
from conch.keeper.main import keep_when_told
nursery.fork_early(keep_when_told)
print(nursery.early_pid(), flush=True)
"""


@pytest.mark.parametrize("then", ["os._exit(0)", "os.kill(os.getpid(), 9)", "nursery.discard_early()"])
def test_early_keeper_ends_with_whoever_has_no_job_for_it(tmp_path: Path, then: str) -> None:
    """Killed, ended, or told so."""
    done = subprocess.run([sys.executable, "-c", HEAD + then], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    wait_for(lambda: not alive(pid), "it is gone", 5)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("elect", "o", "--bogus", "--", "true"), 64),
        (("elect", "o", "--", "no-such-command-here"), 127),
        (("sema", "o", "--max", "0", "--", "true"), 64),
        (("elect", "o", "--help", "--", "true"), 0),
    ],
)
def test_command_line_without_a_hold_leaves_no_keeper(conch: Bench, arguments: tuple[str, ...], code: int) -> None:
    """The bench looks for processes that are left."""
    assert conch.run(*arguments).returncode == code


def test_keeper_knows_what_the_command_line_says(conch: Bench, tmp_path: Path) -> None:
    """All of it goes over the link: odd bytes, long lists, passwords that are never shown."""
    endpoints = ",".join([conch.endpoints, *(f"127.0.0.1:{port}" for port in range(1, 40))])
    done = subprocess.run(
        [CONCH, "elect", "o", "--endpoints", endpoints, "--user", "u:p", "--", "printf", b"\xff\xfe"],
        env=conch.environment,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"\xff\xfe"
