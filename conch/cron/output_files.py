"""Private files with the tails of output that commands of `--on-failure` read, removed after them and after a crash."""

import os
import stat
import tempfile
from collections.abc import Collection
from dataclasses import dataclass

# Where the name of our directory is kept, so that the next start finds it.
_RECORD = "outputs"
_START = "conch-"
NO_FILE = os.devnull


@dataclass(slots=True)
class _Folder:
    path: str
    fd: int


class OutputFiles:
    """A directory for temporary files, made when the first is needed. All its methods may block.

    The directory belongs to us, and each file to the user of the runs, who alone may read it. The state directory has
    the name of it: whatever was left by a crash is removed at the next start.
    """

    def __init__(self, state_dir: str, state_id: str, owner: tuple[int, int] | None) -> None:
        """`owner` is the user and the group that runs get, None if they are ours."""
        self._record = os.path.join(state_dir, _RECORD)
        self._start = f"{_START}{state_id[:16]}-"
        self._owner = owner
        self._folder: _Folder | None = None

    def earlier(self) -> set[str]:
        """Open the directory that an earlier conchd left, if there is one; return the runs that have files in it."""
        try:
            with open(self._record, encoding="utf-8", errors="surrogateescape") as file:
                self._folder = self._open(file.read(4096))
            return set(os.listdir(self._folder.fd))
        except (OSError, ValueError):
            return set()  # it is gone, or what is there is not ours

    def keep(self, live: Collection[str]) -> None:
        """Remove what an earlier conchd left, but for the files of these runs, which an earlier keeper has begun."""
        for name in self.earlier() if self._folder is None else os.listdir(self._folder.fd):
            if name not in live:
                self.remove(name)
        if not live:
            self.close()

    def _open(self, path: str) -> _Folder:
        """Open a directory that we made. Raises `OSError` if it is another's."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(fd)
        foreign = found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o066
        if foreign or not os.path.basename(path).startswith(self._start):
            os.close(fd)
            raise PermissionError(path)
        return _Folder(path, fd)

    def _make(self) -> _Folder:
        path = os.path.join(tempfile.gettempdir(), f"{self._start}{os.urandom(8).hex()}")
        # first the record: a directory without one would stay for ever
        fd = os.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(path)
            file.flush()
            os.fsync(fd)
        os.mkdir(path, 0o700)
        if self._owner is not None:
            os.chmod(path, 0o711)  # noqa: S103 - the user of the runs opens files in it by their names
        return self._open(path)

    def write(self, run: str, text: str) -> str:
        """Write a file for this run and return its path. Raises `OSError`."""
        if self._folder is not None and not os.fstat(self._folder.fd).st_nlink:
            self.close()  # somebody cleaned up
        if self._folder is None:
            self._folder = self._make()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(run, flags, 0o600, dir_fd=self._folder.fd)
        try:
            with open(fd, "wb") as file:
                file.write(text.encode("utf-8", "replace"))
                if self._owner is not None:
                    os.fchown(fd, *self._owner)
        except OSError:
            self.remove(run)
            raise
        return os.path.join(self._folder.path, run)

    def remove(self, run: str) -> None:
        """Remove the file of this run, if there is one."""
        if self._folder is None:
            return
        try:
            os.unlink(run, dir_fd=self._folder.fd)
        except OSError:
            pass  # what cannot be removed now is removed at the next start

    def close(self) -> None:
        """Remove the directory, if nothing is in it."""
        folder, self._folder = self._folder, None
        if folder is None:
            return
        try:
            os.rmdir(folder.path)
            os.unlink(self._record)
        except OSError:
            pass
        os.close(folder.fd)
