"""Where runs get their cgroups: found once, when conch starts, or the reason why they get none."""

import os

from conch.core.cgroup import Cgroup, path_of
from conch.errors import ConchError
from conch.log import Log

AUTO, CGROUP, TREE = "auto", "cgroup", "tree"
MODES = (AUTO, CGROUP, TREE)
_MOUNT_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


class Containment:
    """What holds the processes of runs: a cgroup each (`form` is "cgroup") or nothing but their ancestry ("tree").

    `reason` says why the form is "tree", unless that was asked for. Its methods are for one thread.
    """

    def __init__(self, mode: str, parent: str | None, reason: str = "", log: Log | None = None) -> None:
        """The cgroups are made below the directory `parent`; without one there are none."""
        self._mode = mode
        self._parent = parent
        self._log = log
        self.reason = reason

    @property
    def form(self) -> str:
        """How runs are contained, as logged: "cgroup", or "tree" also if the latest run could have no cgroup."""
        return TREE if self._parent is None or self.reason else CGROUP

    @property
    def parent(self) -> str:
        """The directory of the cgroup below which runs get theirs; empty if they get none."""
        return self._parent or ""

    def open(self, run_id: str) -> Cgroup | None:
        """Make the cgroup of a run; None if it gets none. `OSError` if none can be had and one is required.

        With `auto`, a run whose cgroup cannot be made (their number is limited, say) gets none, and a warning says so.
        """
        if self._parent is None:
            return None
        try:
            cgroup = Cgroup.create(path_of(self._parent, run_id), required=self._mode == CGROUP)
        except OSError as error:
            why = _why("cannot make its cgroup", error)
            if self._mode == CGROUP:
                raise OSError(error.errno, why) from None
            self.warn(why)
            return None
        self.reason = ""
        return cgroup

    def warn(self, reason: str) -> None:
        """Log why a run has no cgroup; the same reason once, until a run has one again."""
        if self._log is not None and reason != self.reason:
            self._log("warning", "uncontained", reason=reason)
        self.reason = reason


def find(mode: str, log: Log | None = None) -> Containment:
    """Find out whether runs can have cgroups, by making one. `ConchError` if they are asked for and cannot be had."""
    if mode == TREE:
        return Containment(mode, None)
    parent, reason = None, "no mounted cgroup v2 shows our cgroup"
    try:
        candidates = own_directories()
    except OSError as error:
        candidates, reason = [], _why("cannot find our cgroup", error)
    for candidate in candidates:
        found = _why_not(candidate)
        if found is None:
            parent = candidate
            break
        reason = found
    if parent is None and mode == CGROUP:
        raise ConchError(f"cannot run anything in a cgroup of its own: {reason} (--contain=auto runs it without one)")
    return Containment(mode, parent, "" if parent is not None else reason, log)


def own_directories(cgroups: str = "/proc/self/cgroup", mounts: str = "/proc/self/mountinfo") -> list[str]:
    """Return the directories of our cgroup of version 2, one for each mount that shows it. `OSError` if unreadable."""
    with open(cgroups, encoding="utf-8", errors="surrogateescape") as file:
        own = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), None)
    if own is None:
        return []
    with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
        found = (_directory(line, own) for line in file if " - cgroup2 " in line)
        return [directory for directory in found if directory is not None]


def _directory(mount: str, own: str) -> str | None:
    """Return the directory at which this mount shows our cgroup, if it does."""
    root, point = (_unescape(field) for field in mount.split()[3:5])
    if root != "/":
        if own != root and not own.startswith(f"{root}/"):
            return None
        own = own[len(root) :]
    if ".." in own.split("/"):
        return None  # it lies outside of our cgroup namespace
    return f"{point.rstrip('/')}/{own.strip('/')}".rstrip("/")


def _unescape(field: str) -> str:
    for escape, character in _MOUNT_ESCAPES.items():
        field = field.replace(escape, character)
    return field


def _why_not(parent: str) -> str | None:
    """Return why no run can have a cgroup below this one, None if it can."""
    try:
        probe = Cgroup.create(path_of(parent, os.urandom(8).hex()))
    except OSError as error:
        return _why("cannot make a cgroup", error)
    try:
        with open(f"{probe.path}/cgroup.type", encoding="utf-8") as file:
            kind = file.read().strip()
        if kind != "domain":
            return f"our cgroup is threaded ({kind})"
        if not any(os.access(f"{probe.path}/cgroup.{name}", os.W_OK) for name in ("kill", "freeze")):
            return "this kernel can neither kill nor freeze a cgroup"
        for folder in (parent, probe.path):  # the kernel asks for both when a process moves
            if not os.access(f"{folder}/cgroup.procs", os.W_OK):
                return "we may not move a process within our cgroup"
    except OSError as error:
        return _why("cannot use a cgroup", error)
    finally:
        probe.remove()
    return None


def _why(what: str, error: OSError) -> str:
    return f"{what}: {error.strerror or error}"
