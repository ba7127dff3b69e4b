"""The etcd binaries that the tests can run on."""

import functools
import subprocess
import sys
from pathlib import Path

from conch.dev import find_etcd

_BUILD = Path(__file__).parents[2] / "tools" / "etcd-releases"
_BUILD_S = 600


@functools.cache
def release(line: str, program: str = "etcd") -> str:
    """Return the path of `etcd` or `etcdctl` of a release line ("3.6"), and build the pinned patch if it is missing.

    "3.4" means the system's, "wheel" the 3.5.1 that the `dev` extra installs.
    """
    if line == "3.4":
        return f"/usr/bin/{program}"
    if line == "wheel":
        return str(Path(sys.executable).parent / program)
    done = subprocess.run([str(_BUILD), line], capture_output=True, text=True, check=False, timeout=_BUILD_S)
    assert done.returncode == 0, done.stderr
    return f"{done.stdout.strip()}/{program}"


@functools.cache
def running() -> tuple[int, ...]:
    """Return the version of the etcd that the tests run on, such as (3, 6, 16): that of the binary on PATH."""
    text = subprocess.run([find_etcd(), "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    return tuple(int(part) for part in text.split()[2].partition("-")[0].split("."))


def newest_etcd() -> str:
    """Return a binary that has the options that 3.4 lacks."""
    return release("3.7")
