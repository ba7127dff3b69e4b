"""conchd's state directory: ours alone, for one conchd at a time, and of one machine.

What others could have put there is not followed and not written to: a link, a file of another user. A directory that
was copied, with a disk image or by hand, is noticed by what its id file says of where it was written.
"""

import errno
import fcntl
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Mapping

from conch.core.origin import Origin
from conch.errors import EXIT_NOT_ACQUIRED, BadInput, ConchError
from conch.limits import cannot
from conch.static_typing import Any

_ID = "id"
# A conchd that was killed may need a moment to end what it ran; its successor waits for that.
_LOCK_S = 5.0
# What we keep in a state directory, and what systemd or a file system may have put there.
_OURS = re.compile(r"id|id\.new|lock|lost\+found|[0-9]+\.wal.*")
_LONGEST_ID = 4096

Tell = Callable[..., None]


def state_dir(given: str | None) -> str:
    """The absolute path of the state directory, made if it is not there, for our eyes only.

    Raises `BadInput` if it is no directory or has other things in it, `ConchError` if others could have written to it.
    """
    path = given or os.environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd gives a list
    if not path:
        base = os.environ.get("XDG_STATE_HOME") or ""
        if not base.startswith("/"):
            home = os.path.expanduser("~")
            if not home.startswith("/"):
                raise BadInput("no place for the state: there is no home directory, give --state-dir")
            base = os.path.join(home, ".local", "state")
        path = os.path.join(base, "conch")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _make_ours(folder, path)
        finally:
            os.close(folder)
    except (OSError, ValueError) as error:
        text = f"--state-dir: cannot use {path}: {getattr(error, 'strerror', None) or error}"
        raise cannot(text, error) from None
    return os.path.abspath(path)


def _make_ours(folder: int, path: str) -> None:
    """Shut it to other users, then look at what is in it: from then on nobody else can change that."""
    found = os.fstat(folder)
    _check_owner(found, path)
    if found.st_mode & 0o077:
        if any(not _OURS.fullmatch(name) for name in os.listdir(folder)):
            raise BadInput(f"--state-dir: {path} has other things in it, and is open to other users")
        os.fchmod(folder, 0o700)
    for name in os.listdir(folder):
        try:
            one = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue  # another conchd is still at work in it: the lock is next
        inner = os.path.join(path, name)
        if stat.S_ISLNK(one.st_mode) or (stat.S_ISREG(one.st_mode) and one.st_nlink > 1):
            raise _refused(f"{inner} is a link: nothing in a state directory may lead elsewhere")
        if name == "lost+found":
            continue  # the file system's
        if _OURS.fullmatch(name) and not stat.S_ISREG(one.st_mode):
            raise _refused(f"{inner} is no file")
        _check_owner(one, inner)


def _check_owner(found: os.stat_result, path: str) -> None:
    if found.st_uid != os.geteuid():
        raise _refused(f"{path} belongs to the user {found.st_uid}, and we are {os.geteuid()}")
    if found.st_mode & 0o022:
        raise _refused(f"{path} can be written by other users (chmod go-w)")


def _refused(why: str) -> ConchError:
    return ConchError(f"--state-dir: refused: {why}")


def lock(path: str) -> int:
    """Keep any other conchd out of the state directory; the keeper holds the lock too, until all has ended."""
    name = os.path.join(path, "lock")
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise cannot(f"--state-dir: cannot write {name}: {error.strerror}", error) from None
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ConchError(
                    f"another conchd uses {path}: give each its own --state-dir", code=EXIT_NOT_ACQUIRED
                ) from None
            time.sleep(0.1)
        else:
            return fd


def identify(path: str, prefix: str, here: Origin, tell: Tell) -> tuple[str, bool]:
    """The id of this state directory, made at its first use, and whether the directory is a copy of another.

    A copy is told by its id file, which says on which machine and as which inode it was written; it gets an id of its
    own. The directory serves one prefix: `OSError` if it is another's, or if it cannot be read or written.
    """
    known = _read(path)
    if known is not None and known.get("prefix") not in (None, prefix):
        raise OSError(errno.EINVAL, f"it is the state of a conchd with --prefix {known['prefix']}")
    if known is None or known.get("prefix") is None:
        return _write(path, prefix, here), False
    if "inode" not in known:
        return _write(path, prefix, here, known["id"]), False  # of an earlier release
    why = _copied(path, known, here)
    if not why:
        return known["id"], False
    tell("warning", "state-copied", dir=path, msg=f"this state directory is a copy ({why}): it gets an id of its own")
    return _write(path, prefix, here), True


def _copied(path: str, known: Mapping[str, Any], here: Origin) -> str:
    """Why this directory is not where its id was written; empty if it is."""
    made_on = Origin(str(known.get("machine", "")), str(known.get("hardware", "")), "", "", 0, 0)
    if not made_on.same_machine(here):
        return f"it was made on another machine: {made_on}; this is {here}"
    inode = os.stat(os.path.join(path, _ID), follow_symlinks=False).st_ino
    return "" if inode == known["inode"] else "its files were written anew"


def _read(path: str) -> dict[str, Any] | None:
    """What the id file says; None if there is none, or none that was ever whole."""
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
    fine = isinstance(known, dict) and all(isinstance(known.get(name), str) for name in ("id", "prefix"))
    return known if fine and isinstance(known.get("inode", 0), int) else None


def _write(path: str, prefix: str, here: Origin, known: str | None = None) -> str:
    """Make the id file, durably, and return the id: this one, or a new one."""
    text = known or uuid.uuid4().hex
    name = os.path.join(path, _ID)
    temporary = f"{name}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w") as file:
        data = {"id": text, "prefix": prefix, "machine": here.machine, "hardware": here.hardware}
        json.dump({**data, "inode": os.fstat(fd).st_ino}, file)
        file.write("\n")
        file.flush()
        os.fsync(fd)
    os.replace(temporary, name)
    return text
