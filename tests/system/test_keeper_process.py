"""The keeper that is forked before the command line is read leaves nothing behind, whatever happens next."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import CONCH, Bench, alive, wait_for
from tests.support.etcdctl import etcdctl

HEAD = """
import os
from conch.core import keeper_process
from conch.keeper.main import keep_when_told
keeper_process.fork_early(keep_when_told)
print(keeper_process.early_pid(), flush=True)
"""


@pytest.mark.parametrize("then", ["os._exit(0)", "os.kill(os.getpid(), 9)", "keeper_process.discard_early()"])
def test_early_keeper_ends_when_it_is_not_needed(tmp_path: Path, then: str) -> None:
    """Its parent exits, is killed, or discards it."""
    done = subprocess.run([sys.executable, "-c", HEAD + then], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    wait_for(lambda: not alive(pid), "it is gone", 5)
    assert "Traceback" not in done.stderr


def test_thread_that_forks_keepers_never_asks_for_pythons_lock(tmp_path: Path) -> None:
    """A child that was forked meanwhile would wait for it. The threads of a keeper do ask each other."""
    text = """
import os, sys
from conch.core import keeper_process
show = lambda *_: print(sys.getswitchinterval() > 100, file=sys.stderr, flush=True)
pid, _ = keeper_process.fork_keeper(show)
os.waitpid(pid, 0)
show()
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["False", "True"]


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
    """The bench checks that no process is left."""
    assert conch.run(*arguments).returncode == code


def test_keeper_gets_all_of_the_command_line(conch: Bench, tmp_path: Path) -> None:
    """Everything passes through the channel: odd bytes, long lists, passwords that are never shown."""
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


NO_TIMER = """
import errno, os, sys, threading
from conch.cli.main import main
from conch.core import linux
from conch.keeper.acquirer import Acquirer

supervisor, granted = os.getpid(), threading.Event()
make, enter = linux.Timer.__init__, Acquirer._enter_queue

def make_or_not(timer):
    if os.getpid() == supervisor:
        return make(timer)
    granted.wait(10)
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

def enter_and_tell(*arguments):
    granted.set()
    return enter(*arguments)

linux.Timer.__init__, Acquirer._enter_queue = make_or_not, enter_and_tell
sys.argv[0] = "conch"
main()
"""


def test_keeper_that_lacks_a_descriptor_revokes_its_lease(own: OwnEtcd) -> None:
    """It has a lease when the system refuses it a descriptor: the lease is revoked, and nobody holds."""
    done = subprocess.run(
        [sys.executable, "-c", NO_TIMER, "elect", "o", "--quiet", "--", "true"],
        env=own.bench.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 69, done.stderr
    assert "Traceback" not in done.stderr
    assert "conch: cannot start the process that talks to etcd: Too many open files\n" in done.stderr
    assert "0 leases" in etcdctl("--endpoints", own.member.endpoint, "lease", "list")
