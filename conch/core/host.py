"""What conch needs from the system before it may run anything, and the environment that it was started with."""

import os

from conch.static_typing import Any

_CAP_SYS_PTRACE = 1 << 19

_problem: list[str | None] = []  # once it was looked for


def environment() -> dict[str, str]:
    """Return exactly the variables that conch was started with: Python adds LC_CTYPE to its own if no locale is set."""
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return dict(os.environ)
    pairs = [entry.partition(b"=") for entry in entries if entry.find(b"=") > 0]  # exec accepts no empty names
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in reversed(pairs)}


def problem() -> str | None:
    """Return why conch cannot supervise commands on this system, in one line, None if it can. Checked once."""
    if not _problem:
        _problem.append(_find_problem())
    return _problem[0]


def _find_problem() -> str | None:
    try:
        os.close(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"cannot open {os.devnull}: {error.strerror}"
    try:
        shown = os.readlink("/proc/self")
        known = [line.split()[1:] for line in _status() if line.startswith("NSpid:")]
    except OSError as error:
        return f"/proc is not mounted ({error.strerror}): what a command leaves running could not be seen"
    # NSpid lists the pids of this process, from the namespace of this /proc down to our own
    if shown != str(os.getpid()) or any(numbers != [shown] for numbers in known):
        return (
            "/proc is that of another process namespace: what a command leaves running could not be seen "
            "(mount one of this namespace, as unshare --mount-proc does)"
        )
    return None


def hides_processes() -> bool:
    """Whether /proc is mounted so that it does not show us the processes of other users (hidepid)."""
    options = _proc_options()
    hidepid = options.get("hidepid", "0")
    if hidepid in ("0", "off"):
        return False
    if hidepid not in ("4", "ptraceable") and int(options.get("gid", "0")) in {os.getegid(), *os.getgroups()}:
        return False
    capabilities = next((int(line.split()[1], 16) for line in _status() if line.startswith("CapEff:")), 0)
    return not capabilities & _CAP_SYS_PTRACE


def _status() -> list[str]:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        return file.readlines()


def _proc_options() -> dict[str, Any]:
    """Return the options of the file system at /proc; if several are mounted there, of the last one."""
    found: dict[str, Any] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            mount, _, filesystem = line.partition(" - ")
            if mount.split()[4] == "/proc":
                pairs = (option.partition("=") for option in filesystem.split()[-1].split(","))
                found = {name: value for name, _, value in pairs}
    return found
