"""The terminal: lent to the child's process group while it runs, so that editors and shells work under conch."""

import os
import signal
import termios

from conch.hints import Any


class Terminal:
    """Conch's controlling terminal, if it is both input and output; lent only while conch is in the foreground."""

    def __init__(self) -> None:
        self._saved: list[Any] | None = None
        try:
            self.ours = os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) >= 0
        except OSError:
            self.ours = False  # a terminal that is not our controlling one

    def lend(self, group: int) -> bool:
        """Make the group the foreground group if the terminal is conch's to lend; tell whether it was."""
        try:
            if not self.in_foreground():
                return False
            self._saved = self._saved or termios.tcgetattr(0)
            os.tcsetpgrp(0, group)
        except (OSError, termios.error):
            return False  # the terminal hung up, or the group has ended
        return True

    def take_back(self, group: int, *, restore: bool = False) -> None:
        """Become the foreground group again if `group` is it; `restore` undoes the modes that a killed child left."""
        if not self.ours:
            return
        try:
            if os.tcgetpgrp(0) == group:
                os.tcsetpgrp(0, os.getpgrp())
                if restore and self._saved is not None:
                    termios.tcsetattr(0, termios.TCSADRAIN, self._saved)
        except (OSError, termios.error):
            pass  # the terminal hung up

    def in_foreground(self) -> bool:
        """Whether conch's group is the foreground group of its terminal."""
        try:
            return self.ours and os.tcgetpgrp(0) == os.getpgrp()
        except OSError:
            return False  # the terminal hung up

    @staticmethod
    def stop_ourselves() -> None:
        """Stop conch's whole job, as Ctrl-Z would; returns when it is continued, or at once if nobody could do that."""
        os.killpg(0, signal.SIGTSTP)
