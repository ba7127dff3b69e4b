"""Real cgroups (v2) for tests: a place of a test's own, and what lives in it."""

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conch.core.cgroup import PREFIX
from conch.core.containment import find
from tests.support.conch import CONCH, wait_for

_FOUND = find("auto")
# Runs what follows its first argument, in the cgroup that this names.
_ENTER = 'echo 0 > "$1/cgroup.procs" && shift && exec "$@"'


class Place:
    """A cgroup below that of the tests, in which conch and other programs are started."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def enter(self, *program: str) -> list[str]:
        """Return the command line that runs a program in here."""
        return ["sh", "-c", _ENTER, "sh", str(self.path), *program]

    @property
    def conch(self) -> list[str]:
        """The command line that runs the installed conch in here, its runs in cgroups of their own."""
        return self.enter("env", "CONCH_CONTAIN=cgroup", CONCH)

    def limit(self, descendants: int) -> None:
        """Set how many cgroups there may be below this one."""
        (self.path / "cgroup.max.descendants").write_text(f"{descendants}")

    def runs(self) -> list[str]:
        """Return the cgroups of runs in here, wherever they lie, as paths below this one."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob(f"{PREFIX}*"))

    def run(self) -> Path:
        """Wait for the cgroup of the only run in here and return it."""
        return self.path / wait_for(self.runs, f"a run in {self.path}")[0]

    def remove(self) -> None:
        """Kill whatever lives in here and remove it all."""
        if self.path.exists():
            (self.path / "cgroup.kill").write_text("1")
            wait_for(lambda: not populated(self.path), f"{self.path} is empty")
            for folder in sorted((path for path in self.path.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            self.path.rmdir()


def populated(path: Path) -> bool:
    """Whether a process lives in a cgroup or below it."""
    return "populated 1" in (path / "cgroup.events").read_text()


@contextmanager
def new_place() -> Iterator[Place]:
    """A place for as long as a test takes; the test is skipped if there can be none."""
    if not _FOUND.parent:
        pytest.skip(f"no cgroup for tests: {_FOUND.reason}")
    place = Place(Path(_FOUND.parent) / f"t-{secrets.token_hex(8)}")
    place.path.mkdir()
    try:
        yield place
    finally:
        place.remove()


@contextmanager
def place_of_conch() -> Iterator[Place]:
    """A place in which conch is started, and leaves nothing."""
    with new_place() as place:
        yield place
        wait_for(lambda: not populated(place.path), "nothing lives any more")
        wait_for(lambda: not place.runs(), "no cgroup of a run is left")


@contextmanager
def sleeper(path: Path, *, group: bool = False, command: str = "exec sleep 1000") -> Iterator["subprocess.Popen[str]"]:
    """A shell command that runs in a cgroup, in a process group of its own if asked; it is reaped at the end."""
    process = subprocess.Popen(
        ["sh", "-c", _ENTER, "sh", str(path), "sh", "-c", f"echo; {command}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0 if group else None,
    )
    assert process.stdout is not None
    process.stdout.readline()  # it has entered
    try:
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
