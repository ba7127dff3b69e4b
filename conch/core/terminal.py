"""The terminal: lent to the child's process group while it runs, so that editors and shells work under conch."""

import os
import signal
import termios

from conch.hints import Any


class Terminal:
    """Conch's controlling terminal, whichever descriptors are it; lent only while conch is in the foreground."""

    def __init__(self) -> None:
        self._saved: list[Any] | None = None
        self._fd = _open_controlling_terminal()
        # Where only one end of a pipeline is the terminal, its other members may read from it, too (`… | less`). There
        # the child gets the terminal when it asks for it: the kernel then stops it with SIGTTIN or SIGTTOU.
        self.lent_at_once = all(_is_controlling_terminal(fd) for fd in (0, 1))

    @property
    def ours(self) -> bool:
        """Whether there is one."""
        return self._fd is not None

    def foreground(self) -> int | None:
        """The foreground process group; None without a terminal, or once it has hung up."""
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
        """Make the group the foreground group if the terminal is conch's to lend; tell whether it was."""
        if self._fd is None or not self.in_foreground():
            return False
        try:
            self._saved = self._saved or termios.tcgetattr(self._fd)
            os.tcsetpgrp(self._fd, group)
        except (OSError, termios.error):
            return False  # the terminal hung up, or the group has ended
        return True

    def take_back(self, group: int, *, restore: bool = False) -> None:
        """Become the foreground group again if `group` is it; `restore` undoes the modes that a killed child left."""
        if self._fd is None or self.foreground() != group:
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # which a background group gets for this
        try:
            os.tcsetpgrp(self._fd, os.getpgrp())
            if restore and self._saved is not None:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
        except (OSError, termios.error):
            pass  # the terminal hung up
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @staticmethod
    def stop_ourselves() -> None:
        """Stop conch's whole job, as Ctrl-Z would; returns when it is continued, or at once if nobody could do that."""
        noted = signal.getsignal(signal.SIGTSTP)
        if noted != signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.killpg(0, signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, noted)

    @staticmethod
    def signal_others(number: int) -> None:
        """Signal the others of conch's group, as the keyboard would have, had conch not lent the terminal."""
        noted = signal.signal(number, signal.SIG_IGN)
        os.killpg(0, number)
        signal.signal(number, noted)


def _is_controlling_terminal(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) >= 0
    except OSError:
        return False  # no terminal, or not our controlling one


def _open_controlling_terminal() -> int | None:
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        # a sandbox may have the terminal on a descriptor and no /dev/tty
        return next((os.dup(fd) for fd in range(3) if _is_controlling_terminal(fd)), None)
