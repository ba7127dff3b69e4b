"""A program that leaves its run in every way it can and goes on living; tests start it under conch.

`escape.py FOLDER HOW END`: lets something escape, then waits for ever or exits with the code END. What escaped writes a
line to the file `beats` in the folder again and again, with the time on the clock of conch's deadlines, and lines
`TERM` for each SIGTERM, which does not end it. It runs without any variable, unless it is `tagged`.
"""

import os
import signal
import sys
import time
from pathlib import Path

NOBODY = 65534


def main(folder: str, how: str, end: str) -> None:
    beats = f"{folder}/beats"
    _escape(folder, how)
    while not os.path.exists(beats):
        time.sleep(0.01)
    if end == "stays":
        signal.pause()
    sys.exit(int(end))


def _escape(folder: str, how: str) -> None:
    """Fork twice, with a session between, and run this file again as what escaped."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    if how.startswith("moved"):
        _move()
    environment = dict(os.environ) if how == "moved, tagged" else {}
    os.execve(sys.executable, [sys.executable, "-I", __file__, folder, how], environment)


def _move() -> None:
    """Move to a cgroup of our own, beside that of the run."""
    (own,) = (line[3:].strip() for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::")
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    (point,) = (fields[4] for fields in mounts if "cgroup2" in fields)
    beside = Path(point + own).parent / "beside"
    beside.mkdir(exist_ok=True)
    (beside / "cgroup.procs").write_text("0")


def live(folder: str, how: str) -> None:
    """Be what escaped."""
    beats = os.open(f"{folder}/beats", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(what: str) -> None:
        os.write(beats, f"{what} {os.getpid()} {time.clock_gettime(time.CLOCK_BOOTTIME)}\n".encode())

    signal.signal(signal.SIGTERM, lambda *_: note("TERM"))
    own = Path("/proc/self/cgroup").read_text().replace("\n", ";")
    Path(f"{folder}/cgroup.new").write_text(own + "\n")
    os.rename(f"{folder}/cgroup.new", f"{folder}/cgroup")
    if how == "another user":
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    while True:
        note("beat")
        if how == "chain":
            if os.fork():
                time.sleep(0.0005)
                os._exit(0)
            os.setsid()
        else:
            time.sleep(0.005)


if __name__ == "__main__":
    (live if len(sys.argv) == 3 else main)(*sys.argv[1:])
