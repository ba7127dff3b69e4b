"""A shell on a terminal of its own, typed to and read like a person would."""

import os
import pty
import select
import signal
import time
from collections.abc import Mapping

from tests.support.conch import wait_for


class Terminal:
    """An interactive bash with job control on a pseudo-terminal."""

    def __init__(self, environment: Mapping[str, str], folder: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(
                "bash",
                ["bash", "--norc", "--noprofile", "-i"],
                {**environment, "PS1": "$ ", "TERM": "xterm", "HISTFILE": ""},
            )
        self.text = ""

    def read(self) -> str:
        """All that was printed until now."""
        while select.select([self._fd], [], [], 0)[0]:
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                break
            if not data:
                break
            self.text += data.decode("utf-8", "replace")
        return self.text

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._fd, text.encode())

    def line(self, text: str) -> None:
        """Type a line."""
        self.type(text + "\n")

    def wait(self, text: str, count: int = 1) -> None:
        """Return when a text was printed that often."""
        try:
            wait_for(lambda: self.read().count(text) >= count, f"{text!r} on the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}; there is:\n{self.text}") from None

    def foreground(self) -> int:
        """The foreground process group."""
        return os.tcgetpgrp(self._fd)

    def close(self) -> None:
        """Hang up and end the shell."""
        os.close(self._fd)
        until = time.monotonic() + 5
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                break
            time.sleep(0.01)
