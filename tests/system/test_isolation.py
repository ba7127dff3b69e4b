"""The environment is for the command: conch itself ignores it and passes it on unchanged."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.conch import CONCH, Bench
from tests.support.cron import Fleet

# The variables that conch itself adds.
_OURS = re.compile(r"CONCH_(NAME|REV|LEASE|HOLD_KEY|TREE)=")
_PYTHON = {
    "PYTHONHOME": "/nonexistent",
    "PYTHONWARNINGS": "error",
    "PYTHONDEVMODE": "1",
    "PYTHONVERBOSE": "1",
    "PYTHONINSPECT": "1",
    "PYTHONOPTIMIZE": "2",
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture
def trap(tmp_path: Path) -> dict[str, str]:
    """Variables that stop a Python that obeys them from starting, or run foreign code in it."""
    folder = tmp_path / "app"
    folder.mkdir()
    for name in ("enum", "os", "sitecustomize", "json", "conch"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'caught')!r}, 'w')\nraise SystemExit(3)\n")
    return {**_PYTHON, "PYTHONPATH": str(folder)}


def bare(conch: Bench) -> dict[str, str]:
    """Return only the variables that say where etcd is; no locale either."""
    return {name: value for name, value in conch.environment.items() if name.startswith("CONCH_")}


def lines(text: str) -> set[str]:
    return {line for line in text.split("\0") if line and not _OURS.match(line)}


@pytest.mark.parametrize(
    "command", [("--version",), ("elect", "o", "--who"), ("cron", "ls"), ("cron", "next", "@daily")]
)
def test_python_variables_do_not_reach_conch(conch: Bench, trap: dict[str, str], command: tuple[str, ...]) -> None:
    """A broken one does not stop conch from starting, and no code of theirs runs."""
    plain = conch.run(*command)
    done = conch.run(*command, env=trap)
    assert (done.returncode, done.stdout, done.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    assert not conch.file("caught").exists()


def test_hold_with_python_variables(conch: Bench, trap: dict[str, str]) -> None:
    """Both of conch's processes ignore them; hooks and the command get all of them."""
    show = "env -0 > hook"
    done = conch.run("elect", "o", "--on-acquire", show, "--", "env", "-0", env=trap)
    assert done.returncode == 0, done.stderr
    assert not conch.file("caught").exists()
    for shown in (done.stdout, conch.file("hook").read_text()):
        assert {f"{name}={value}" for name, value in trap.items()} <= lines(shown)


def test_command_has_exactly_the_environment_of_conch(conch: Bench) -> None:
    """This is so without a locale, too, where Python sets one for itself."""
    environment = {**bare(conch), "odd.name": "x", "LEER": "", "K": "a=b\nc"}
    command = [CONCH, "elect", "o", "--quiet", "--on-acquire", "/usr/bin/env -0 > hook", "--", "/usr/bin/env", "-0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=conch.folder)
    assert lines(done.stdout) == {f"{name}={value}" for name, value in environment.items()}
    assert "LC_CTYPE" not in conch.file("hook").read_text()


def test_run_of_conchd_has_exactly_its_environment(conch: Bench, fleet: Fleet) -> None:
    """Only variables that describe the run are added."""
    environment = {**bare(conch), "CONCH_HOST": "a", "PATH": "/usr/bin:/bin", "PYTHONPATH": "/app"}
    daemon = subprocess.Popen(
        [CONCH, "conchd", "--quiet", "--state-dir", str(conch.file("state"))], env=environment, cwd=conch.folder
    )
    try:
        fleet.add(
            "j",
            "@yearly",
            command=f"env -0 > {conch.file('seen')}.new; mv {conch.file('seen')}.new {conch.file('seen')}",
        )
        fleet.result("j", fleet.run_now("j"))
        seen = lines(conch.file("seen").read_text())
        extra = {
            line for line in seen if not line.startswith(("CONCH_TICK=", "CONCH_ATTEMPT=", "PWD=", "OLDPWD=", "_="))
        }
        assert extra == {f"{name}={value}" for name, value in environment.items()}
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(20) == 0


def test_dev_passes_the_environment_on(conch: Bench, trap: dict[str, str]) -> None:
    """It adds only where its etcd is."""
    environment = {"PATH": os.environ["PATH"], **trap}
    done = subprocess.run(
        [CONCH, "dev", "--", "env", "-0"], env=environment, capture_output=True, text=True, check=True
    )
    shown = {line for line in lines(done.stdout) if not line.startswith(("CONCH_", "ETCDCTL_", "PATH="))}
    assert shown == {f"{name}={value}" for name, value in trap.items()}
    assert not conch.file("caught").exists()


def test_module_isolates_itself(conch: Bench, trap: dict[str, str]) -> None:
    """It cannot control what Python loads before it."""
    for name in ("os", "sitecustomize", "conch"):
        (Path(trap["PYTHONPATH"]) / f"{name}.py").unlink()
    kept = {name: value for name, value in trap.items() if name in ("PYTHONPATH", "PYTHONDEVMODE")}
    command = [sys.executable, "-m", "conch", "elect", "o", "--quiet", "--", "env", "-0"]
    done = subprocess.run(command, env={**conch.environment, **kept}, capture_output=True, text=True, check=True)
    assert {f"{name}={value}" for name, value in kept.items()} <= lines(done.stdout)
    assert not conch.file("caught").exists()
    assert done.stderr == ""


@pytest.mark.parametrize("writable", [True, False])
def test_command_completes_its_first_line(conch: Bench, trap: dict[str, str], writable: bool) -> None:
    """An installer may drop the interpreter's flags; conch adds them, or runs itself again if it may not write."""
    folder = conch.file("bin")
    folder.mkdir()
    installed = folder / "conch"
    rest = Path(CONCH).read_bytes().partition(b"\n")[2]
    installed.write_bytes(f"#!{sys.executable}\n".encode() + rest)
    installed.chmod(0o755)
    if not writable:
        shutil.chown(installed, 12345)
    kept = {"PYTHONPATH": trap["PYTHONPATH"], "PYTHONDEVMODE": "1"}
    for name in ("os", "sitecustomize"):
        (Path(trap["PYTHONPATH"]) / f"{name}.py").unlink()
    for _ in range(2):
        done = subprocess.run(
            [installed, "elect", "o", "--quiet", "--", "env", "-0"],
            env={**conch.environment, **kept},
            capture_output=True,
            text=True,
            check=True,
        )
        assert {f"{name}={value}" for name, value in kept.items()} <= lines(done.stdout)
        assert "LC_CTYPE" not in done.stdout or "LC_CTYPE" in os.environ
        assert not conch.file("caught").exists()
    first = installed.read_bytes().partition(b"\n")[0].decode()
    assert first == f"#!{sys.executable}" + (" -I" if writable else "")
    assert [path.name for path in folder.iterdir()] == ["conch"]


def test_sockets_and_watchdog_of_conch_reach_the_command(conch: Bench) -> None:
    """What a service manager gave conch by its pid is passed on; what it gave another process stays unchanged."""
    show = "echo $$ $LISTEN_PID $WATCHDOG_PID ${LISTEN_PIDFDID-none} $LISTEN_FDS; cat <&3"
    conch.file("input").write_text("from 3\n")
    own = "exec 3< input; export LISTEN_PID=$$ WATCHDOG_PID=$$ LISTEN_FDS=1 LISTEN_PIDFDID=7; "
    hook = "echo $LISTEN_PID >> hook"
    done = subprocess.run(
        ["sh", "-c", f"echo $$; {own} exec {CONCH} elect o --quiet --on-acquire '{hook}' -- sh -c '{show}'"],
        env=conch.environment,
        cwd=conch.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    supervisor, shown, read = done.stdout.splitlines()
    pid = shown.split()[0]
    assert shown.split() == [pid, pid, pid, "none", "1"]
    assert (read, conch.read("hook").strip()) == ("from 3", supervisor)
    other = conch.run("elect", "o", "--quiet", "--", "sh", "-c", "echo $LISTEN_PID", env={"LISTEN_PID": "77"})
    assert other.stdout == "77\n"
