"""`--who`, `--watch`, `--assert`: read-only queries about an office."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import CONCH, Bench, wait_for

HOST = os.uname().nodename


def test_who_on_a_vacant_office_prints_nothing_and_exits_1(conch: Bench) -> None:
    """It does the same with --json."""
    for flags in ([], ["--json"]):
        done = conch.run("elect", "o", "--who", *flags)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_who_names_the_holder_and_not_the_waiters(conch: Bench) -> None:
    """It prints one line; JSON has more fields."""
    first = conch.hold("o")
    conch.queue("o")
    rev = first.wait_event("acquired")["rev"]
    done = conch.run("elect", "o", "--who")
    assert done.returncode == 0
    pattern = rf"o {re.escape(HOST)} pid={first.pid} since=\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ rev={rev}\n"
    assert re.fullmatch(pattern, done.stdout)
    (shown,) = conch.jsons(conch.run("elect", "o", "--who", "--json").stdout)
    assert shown.pop("started") == shown.pop("since")
    assert shown == {
        "office": "o",
        "host": HOST,
        "pid": first.pid,
        "cmd": "sh -c exec sleep 1000",
        "rev": int(rev),
        "lease": f"{first.lease():x}",
    }


def test_watch_shows_the_present_state_and_each_change(conch: Bench) -> None:
    """The office is vacant, held, handed over, and vacant again."""
    watcher = conch.start("elect", "o", "--watch")
    wait_for(lambda: watcher.out == "o -\n", "vacant")
    first = conch.hold("o", command="read x; exit 0", stdin=-1)
    wait_for(lambda: f"pid={first.pid} " in watcher.out, "the first")
    second = conch.queue("o")
    assert first.process.stdin is not None
    first.process.stdin.close()
    wait_for(lambda: f"pid={second.pid} " in watcher.out, "the second")
    second.signal(signal.SIGTERM)
    wait_for(lambda: watcher.out.endswith("o -\n") and watcher.out.count("\n") == 4, "vacant again")
    watcher.signal(signal.SIGINT)
    assert watcher.wait() == 130


def test_watch_shows_each_change_of_a_fast_sequence(conch: Bench) -> None:
    """The keys are written to etcd faster than anyone could poll."""
    watcher = conch.start("elect", "o", "--watch", "--json")
    wait_for(lambda: "vacant" in watcher.out, "the first line")
    value = '{"host": "h", "pid": %d, "started": "s", "cmd": "c"}'
    for i in range(50):
        conch.etcd.put(f"{conch.prefix}/elect/o/{i:x}", value % i)
        conch.etcd.delete(f"{conch.prefix}/elect/o/{i:x}")
    wait_for(lambda: watcher.out.count("\n") >= 101, "all changes")
    pids = [shown.get("pid") for shown in conch.jsons(watcher.out)]
    assert pids == [None] + [pid for i in range(50) for pid in (i, None)]
    watcher.signal(signal.SIGTERM)
    assert watcher.wait() == 128 + signal.SIGTERM


def test_watch_logs_an_outage_and_its_end(own: OwnEtcd) -> None:
    """What it shows during the outage may be outdated."""
    watcher = own.bench.start("elect", "o", "--watch")
    wait_for(lambda: watcher.out == "o -\n", "the first line")
    own.cluster.kill(own.member)
    watcher.wait_event("watch-interrupted")
    own.cluster.restart(own.member)
    watcher.wait_event("watch-resumed")
    holder = own.bench.hold("o")
    wait_for(lambda: f"pid={holder.pid} " in watcher.out, "the change")
    assert len(watcher.events("watch-interrupted")) == 1


def test_assert_answers_whether_this_host_leads(conch: Bench) -> None:
    """It exits 0 if it does and 1 if not, or if its token is too old."""
    assert conch.run("elect", "o", "--assert").returncode == 1
    wrapper = conch.hold("o")
    rev = int(wrapper.wait_event("acquired")["rev"])
    assert conch.run("elect", "o", "--assert").returncode == 0
    assert conch.run("elect", "o", "--assert", "--min-rev", str(rev)).returncode == 0
    done = conch.run("elect", "o", "--assert", "--min-rev", str(rev + 1), "--json")
    assert done.returncode == 1
    assert list(conch.jsons(done.stdout)) == [{"held": False, "rev": rev, "host": HOST}]
    done = conch.run("elect", "o", "--assert", "--json", env={"CONCH_HOST": "elsewhere"})
    assert done.returncode == 1
    assert list(conch.jsons(conch.run("elect", "x", "--assert", "--json").stdout)) == [
        {"held": False, "rev": None, "host": None}
    ]


def test_queries_write_no_key(conch: Bench) -> None:
    """No key appears under our prefix."""
    watcher = conch.start("elect", "o", "--watch")
    wait_for(lambda: watcher.out, "the first line")
    conch.run("elect", "o", "--who")
    conch.run("elect", "o", "--assert")
    assert conch.keys() == []
    watcher.signal(signal.SIGTERM)


@pytest.mark.parametrize("value", ["junk", "[]", '{"host": 1}', '{"host": "h", "pid": "x", "started": "", "cmd": ""}'])
def test_unreadable_holder_is_reported_by_its_key(conch: Bench, value: str) -> None:
    """conch exits 69: the office counts neither as vacant nor as another's."""
    key = f"{conch.prefix}/elect/o/1"
    conch.etcd.put(key, value)
    for flag in ("--who", "--assert"):
        done = conch.run("elect", "o", flag)
        assert (done.returncode, done.stdout) == (69, "")
        assert key in done.stderr
    conch.etcd.delete(key)


def test_host_with_control_characters_does_not_reach_the_terminal(conch: Bench) -> None:
    """Other people write these values."""
    conch.etcd.put(f"{conch.prefix}/elect/o/1", '{"host": "a\\u001b[31m\\nb", "pid": 1, "started": "s", "cmd": "c"}')
    out = conch.run("elect", "o", "--who").stdout
    assert out.count("\n") == 1
    assert "\x1b" not in out
    conch.etcd.delete(f"{conch.prefix}/elect/o/1")


def test_host_in_letters_that_the_terminal_does_not_have(conch: Bench) -> None:
    """They are escaped; there is no traceback."""
    conch.etcd.put(f"{conch.prefix}/elect/o/1", '{"host": "h\\u00e9", "pid": 1, "started": "s", "cmd": "c"}')
    ascii_only = [sys.executable, "-I", "-X", "utf8=0", CONCH, "elect", "o", "--who"]
    done = subprocess.run(
        ascii_only, env={**conch.environment, "LC_ALL": "C"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("o h\\xe9 pid=1 ")
    conch.etcd.delete(f"{conch.prefix}/elect/o/1")


def test_closed_pipe_ends_the_watch_quietly(conch: Bench) -> None:
    """The exit code is that of SIGPIPE, and stderr is empty."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [CONCH, "elect", "o", "--watch"], env=conch.environment, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert os.read(read, 100) == b"o -\n"
    os.close(read)
    conch.etcd.put(f"{conch.prefix}/elect/o/1", '{"host": "h", "pid": 1, "started": "s", "cmd": "c"}')
    _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (128 + signal.SIGPIPE, b"")
    conch.etcd.delete(f"{conch.prefix}/elect/o/1")
