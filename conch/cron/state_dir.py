"""conchd's state directory: private to its user, used by one conchd at a time, and bound to one machine.

conchd neither follows nor writes to anything that another user could have put there: a link, a foreign file. It
detects a copied directory (a disk image, `cp -a`) by its id file, which says where it was written.
"""

import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Callable, Mapping

from conch.core.origin import Origin
from conch.errors import EXIT_NOT_ACQUIRED, BadInput, ConchError
from conch.limits import cannot
from conch.static_typing import Any

_ID = "id"
# A killed conchd may need some time to end its runs; its successor waits this long for the lock.
_LOCK_S = 5.0
# The files that we keep in a state directory, and those that a file system may put there.
_OURS = re.compile(r"id|id\.new|lock|outputs|lost\+found|[0-9]+\.wal.*")
_LONGEST_ID = 4096

Log = Callable[..., None]


def state_dir(explicit: str | None) -> str:
    """Return the absolute path of the state directory; create it if it does not exist, readable only by us.

    Raises `BadInput` if it is no directory or contains foreign files, `ConchError` if others could have written to it.
    """
    path = explicit or os.environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd sets a list
    if not path:
        base = os.environ.get("XDG_STATE_HOME") or ""
        if not base.startswith("/"):
            home = os.path.expanduser("~")
            if not home.startswith("/"):
                raise BadInput("cannot choose a state directory: there is no home directory; set --state-dir")
            base = os.path.join(home, ".local", "state")
        path = os.path.join(base, "conch")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _secure(folder, path)
        finally:
            os.close(folder)
    except (OSError, ValueError) as error:
        text = f"--state-dir: cannot use {path}: {getattr(error, 'strerror', None) or error}"
        raise cannot(text, error) from None
    return os.path.abspath(path)


def _secure(folder: int, path: str) -> None:
    """Close the directory to other users, then check its contents, which nobody else can change any more."""
    found = os.fstat(folder)
    _check_owner(found, path)
    if found.st_mode & 0o077:
        if any(not _OURS.fullmatch(name) for name in os.listdir(folder)):
            raise BadInput(f"--state-dir: {path} contains other files, and is open to other users")
        os.fchmod(folder, 0o700)
    for name in os.listdir(folder):
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue  # another conchd still works in it: the lock comes next
        inner = os.path.join(path, name)
        if stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink > 1):
            raise _refused(f"{inner} is a link: nothing in a state directory may lead elsewhere")
        if name == "lost+found":
            continue  # it belongs to the file system
        if _OURS.fullmatch(name) and not stat.S_ISREG(status.st_mode):
            raise _refused(f"{inner} is not a regular file")
        _check_owner(status, inner)


def _check_owner(found: os.stat_result, path: str) -> None:
    if found.st_uid != os.geteuid():
        raise _refused(f"{path} belongs to the user {found.st_uid}, and we are {os.geteuid()}")
    if found.st_mode & 0o022:
        raise _refused(f"{path} can be written by other users (chmod go-w)")


def _refused(why: str) -> ConchError:
    return ConchError(f"--state-dir: refused: {why}")


def lock(path: str) -> int:
    """Lock the state directory against any other conchd; the keeper holds the lock too, until all runs have ended."""
    name = os.path.join(path, "lock")
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise cannot(f"--state-dir: cannot write {name}: {error.strerror}", error) from None
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConchError(
                    f"another conchd uses {path}: give each its own --state-dir", code=EXIT_NOT_ACQUIRED
                ) from None
            time.sleep(0.1)
        else:
            return fd


def identify(path: str, prefix: str, here: Origin, log: Log) -> tuple[str, bool]:
    """Return the id of this state directory, created at its first use, and whether it is a copy of another directory.

    The id file says on which machine and as which inode it was written, and so reveals a copy, which gets a new id.
    The directory serves one prefix: `OSError` if it serves another one, or if it cannot be read or written.
    """
    known = _read(path)
    if known is not None and known.get("prefix") not in (None, prefix):
        raise OSError(errno.EINVAL, f"it is the state of a conchd with --prefix {known['prefix']}")
    if known is None or known.get("prefix") is None:
        return _write(path, prefix, here), False
    if "inode" not in known:
        return _write(path, prefix, here, known["id"]), False  # an earlier release wrote it
    why = _copied(path, known, here)
    if not why:
        return known["id"], False
    log("warning", "state-copied", dir=path, msg=f"this state directory is a copy ({why}): it gets an id of its own")
    return _write(path, prefix, here), True


def _copied(path: str, known: Mapping[str, Any], here: Origin) -> str:
    """Return why this directory is not the one in which its id was written; empty if it is."""
    written_on = Origin(str(known.get("machine", "")), str(known.get("hardware", "")), "", "", 0, 0)
    if not written_on.same_machine(here):
        return f"it was made on another machine: {written_on}; this is {here}"
    inode = os.stat(os.path.join(path, _ID), follow_symlinks=False).st_ino
    return "" if inode == known["inode"] else "its files were written anew"


def _read(path: str) -> dict[str, Any] | None:
    """Read the id file; None if there is none, or only an incomplete one."""
    try:
        fd = os.open(os.path.join(path, _ID), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with open(fd, encoding="utf-8", errors="replace") as file:
        text = file.read(_LONGEST_ID)
    words = text.split()
    if len(words) == 2 and not text.startswith("{"):
        return {"id": words[0], "prefix": words[1]}
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(known, dict) and all(isinstance(known.get(name), str) for name in ("id", "prefix"))
    return known if valid and isinstance(known.get("inode", 0), int) else None


def _write(path: str, prefix: str, here: Origin, known: str | None = None) -> str:
    """Write the id file durably and return the id: the known one, or a new one."""
    state_id = known or os.urandom(16).hex()
    name = os.path.join(path, _ID)
    temporary = f"{name}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w") as file:
        data = {"id": state_id, "prefix": prefix, "machine": here.machine, "hardware": here.hardware}
        json.dump({**data, "inode": os.fstat(fd).st_ino}, file)
        file.write("\n")
        file.flush()
        os.fsync(fd)
    os.replace(temporary, name)
    return state_id
