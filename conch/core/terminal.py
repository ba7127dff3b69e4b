"""The terminal: lent to the child's process group while it runs, so that editors and shells work under conch."""

import os
import termios

from conch.core import procfs
from conch.plain_signal import signal
from conch.static_typing import Any

WANTS_TERMINAL = "the command wants the terminal, which another job has: bring conch to the foreground"


class Terminal:
    """Conch's controlling terminal, on whichever descriptors; lent only while conch is in the foreground."""

    def __init__(self) -> None:
        self._saved: list[Any] | None = None
        self._fd = _open_controlling_terminal()
        # If only one end of a pipeline is the terminal, other commands in it may read from the terminal, too
        # (`… | less`). The child then gets it when it asks for it: the kernel stops it with SIGTTIN or SIGTTOU.
        self.lent_at_once = all(_is_controlling_terminal(fd) for fd in (0, 1))

    @property
    def ours(self) -> bool:
        """Whether conch has a controlling terminal."""
        return self._fd is not None

    def foreground(self) -> int | None:
        """Return the foreground process group, None without a terminal or once it has hung up."""
        try:
            return None if self._fd is None else os.tcgetpgrp(self._fd)
        except OSError:
            return None

    def in_foreground(self) -> bool:
        """Whether conch's group is the foreground group of its terminal."""
        return self.foreground() == os.getpgrp()

    def hung_up(self) -> bool:
        """Whether the terminal that conch was started on is gone."""
        return self.ours and self.foreground() is None

    def lend(self, group: int) -> bool:
        """Make `group` the foreground group if conch is in the foreground; return whether that worked."""
        if self._fd is None or not self.in_foreground():
            return False
        try:
            self._saved = self._saved or termios.tcgetattr(self._fd)
            os.tcsetpgrp(self._fd, group)
        except (OSError, termios.error):
            return False  # the terminal hung up, or the group has ended
        return True

    def take_back(self, group: int, *, restore: bool = False) -> None:
        """Become the foreground group again if `group`, or a group that is gone, is the foreground group now.

        `restore` also resets the terminal modes: a shell that was killed leaves the terminal to the group of its last
        job, and in modes of its own.
        """
        foreground = self.foreground()
        if self._fd is None or foreground is None or not (foreground == group or _is_gone(foreground)):
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # tcsetpgrp sends it to a background group
        try:
            os.tcsetpgrp(self._fd, os.getpgrp())
            if restore and self._saved is not None:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
        except (OSError, termios.error):
            pass  # the terminal hung up
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @staticmethod
    def stop_ourselves(number: int = signal.SIGTSTP) -> None:
        """Stop conch's whole job as this signal would; SIGTTIN and SIGTTOU show an outer conch what the child wants.

        Returns when the job is continued, or immediately if nobody could continue it.
        """
        noted = signal.getsignal(number)
        if number != signal.SIGSTOP and (number != signal.SIGTSTP or noted != signal.SIG_IGN):
            signal.signal(number, signal.SIG_DFL)
        os.killpg(0, number)
        if number != signal.SIGSTOP:
            signal.signal(number, noted)

    @staticmethod
    def signal_others(number: int) -> None:
        """Signal the rest of conch's group, as the keyboard would have if conch had not lent the terminal."""
        noted = signal.signal(number, signal.SIG_IGN)
        os.killpg(0, number)
        signal.signal(number, noted)


def _is_controlling_terminal(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) >= 0
    except OSError:
        return False  # no terminal, or not our controlling terminal


def _is_gone(group: int) -> bool:
    """Whether no process of a group lives; zombies may still wait to be reaped."""
    try:
        os.killpg(group, 0)
        return not any(entry.group == group and not entry.dead for entry in procfs.processes().values())
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it belongs to another user, or /proc cannot be read now


def _open_controlling_terminal() -> int | None:
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        # a sandbox may have the terminal on a descriptor and no /dev/tty
        return next((os.dup(fd) for fd in range(3) if _is_controlling_terminal(fd)), None)
