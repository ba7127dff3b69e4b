"""Hosts on which conch cannot control what it runs, so it reports this and runs nothing; and hosts where it can."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.conch import CONCH, Bench, alive, log_lines, wait_for
from tests.support.users import as_user, folder_with_way_to_root

# Each changes the host in a mount namespace of its own.
_NO_PROC = "umount -l /proc"
_NO_NULL = "mount -t tmpfs none /dev"
_HIDDEN = "mount -t proc -o hidepid=invisible proc /proc"


def on_host(conch: Bench, odd: str, command: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell command in its own namespaces, after `odd` has changed them."""
    return subprocess.run(
        ["unshare", "-m", *flags, "sh", "-c", f"{odd}; {command}"],
        env=conch.environment,
        cwd=conch.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def open_folder(conch: Bench) -> Iterator[Path]:
    with folder_with_way_to_root(conch.mark) as folder:
        yield folder


@pytest.mark.parametrize("command", ["elect o -- touch ran", "sema s --max 1 -- touch ran", "conchd --state-dir state"])
@pytest.mark.parametrize(
    ("odd", "why"), [(_NO_PROC, "/proc is not mounted"), (_NO_NULL, "cannot open /dev/null"), ("", "another process")]
)
def test_host_without_what_conch_needs(conch: Bench, odd: str, why: str, command: str) -> None:
    """One line and 69, before etcd is called; a /proc of another PID namespace is as bad as none."""
    flags = () if odd else ("-p", "-f")
    done = on_host(conch, odd or "true", f"{CONCH} {command} --endpoints 127.0.0.1:1; exit $?", *flags)
    assert done.returncode == 69
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert why in done.stderr
    assert not conch.file("ran").exists()


@pytest.mark.parametrize("odd", [_NO_PROC, _NO_NULL])
def test_queries_need_neither_proc_nor_null(conch: Bench, odd: str) -> None:
    """They run no command."""
    assert on_host(conch, odd, f"{CONCH} elect o --who; exit $?").returncode == 1
    done = on_host(conch, odd, f"{CONCH} cron ls 0<&- 1<&-; exit $?")
    assert "Traceback" not in done.stderr


def test_first_process_of_a_namespace_with_its_own_proc(conch: Bench) -> None:
    """As PID 1, conch sees what its command left running, and ends it."""
    command = f"exec {CONCH} elect o --kill-after 300ms -- sh -c 'setsid sleep 1000 & echo started'"
    done = on_host(conch, "true", command, "-p", "-f", "--mount-proc")
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert conch.keys() == []


def test_first_process_of_a_namespace_exits_with_a_code_for_the_signal(conch: Bench) -> None:
    """The kernel does not let PID 1 die of its own signal, so conch exits 128 + n."""
    command = f"exec {CONCH} elect o --quiet -- sh -c 'kill -TERM $$'"
    assert on_host(conch, "true", command, "-p", "-f", "--mount-proc").returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("hook", ["", "--on-acquire true --on-lose true"])
def test_plain_user_where_other_users_processes_are_hidden(conch: Bench, hook: str) -> None:
    """conch sees the user's processes; the kernel confirms that nothing else is left."""
    command = " ".join(
        as_user(f"{CONCH} elect o --kill-after 300ms {hook} -- sh -c 'setsid sleep 1000 & echo started'")
    )
    done = on_host(conch, _HIDDEN, command)
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert conch.keys() == []


def test_hidden_leftover_of_another_user_keeps_the_hold(conch: Bench, open_folder: Path) -> None:
    """conch can neither see nor kill it, but nobody else gets the hold while it lives."""
    left = f"setsid {open_folder}/root --reuid 0 sh -c 'echo $$ > {open_folder}/pid; exec sleep 1000' &"
    script = open_folder / "command"
    script.write_text(f"{left} while ! test -s {open_folder}/pid; do sleep 0.05; done")
    command = " ".join(as_user(f"{CONCH} elect o --kill-after 100ms -- sh {script}"))
    with conch.file("err").open("wb") as err:
        holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"{_HIDDEN}; exec {command}"],
            env=conch.environment,
            stderr=err,
            cwd=open_folder,
        )
    try:
        pid = int(wait_for(lambda: _text(open_folder / "pid"), "the leftover"))
        waiter = conch.queue("o", command="echo mine")
        wait_for(lambda: "kill-sent" in conch.file("err").read_text(), "a kill in vain")
        assert alive(pid)
        assert waiter.out == ""
        os.kill(pid, signal.SIGKILL)
        assert holder.wait(20) == 0
        assert waiter.wait() == 0
    finally:
        holder.kill()
        holder.wait()


def test_refused_kill_is_logged_once_with_its_pid(conch: Bench, open_folder: Path) -> None:
    """The command became another user's; the hold is kept until somebody else kills it."""
    command = " ".join(as_user(f"{CONCH} elect o --kill-after 100ms -- {open_folder}/root --reuid 0 sleep 1000"))
    with conch.file("err").open("wb") as err:
        holder = subprocess.Popen(["sh", "-c", f"exec {command}"], env=conch.environment, stderr=err, cwd=open_folder)

    def events(name: str) -> list[dict[str, str]]:
        return [line for line in log_lines(conch.file("err").read_text()) if line["event"] == name]

    try:
        wait_for(lambda: events("child-start"), "the start")
        pid = int(events("child-start")[0]["pid"])
        wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the command")
        holder.send_signal(signal.SIGTERM)
        wait_for(lambda: events("kill-refused"), "the warning")
        assert [event["pid"] for event in events("kill-refused")] == [str(pid)]
        assert len(conch.keys()) == 1
        os.kill(pid, signal.SIGKILL)
        assert holder.wait(20) == -signal.SIGKILL
        assert len(events("kill-refused")) == 1
    finally:
        holder.kill()
        holder.wait()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
