"""A shell on a terminal of its own; tests type and read as a person would."""

import os
import select
import subprocess
from collections.abc import Mapping

from tests.support.conch import wait_for

_SHELLS = {"bash": ["bash", "--norc", "--noprofile", "-i"], "dash": ["dash", "-i"], "zsh": ["zsh", "-f", "-i"]}


class Terminal:
    """An interactive shell (bash) with job control on a pseudo-terminal."""

    def __init__(self, environment: Mapping[str, str], folder: str, shell: str = "bash") -> None:
        self._fd, theirs = os.openpty()
        # no fork here: gRPC, which the tests' own client uses, does not always survive one
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", *_SHELLS[shell]],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={**environment, "PS1": "$ ", "TERM": "xterm", "HISTFILE": ""},
        )
        os.close(theirs)
        self.pid = self._shell.pid
        self.text = ""

    def read(self) -> str:
        """Return everything printed so far."""
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
        """Wait until a text was printed so many times."""
        try:
            wait_for(lambda: self.read().count(text) >= count, f"{text!r} on the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}; there is:\n{self.text}") from None

    def hang_up(self) -> None:
        """Close the terminal, as closing a window or a connection does."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def foreground(self) -> int:
        """Return the foreground process group."""
        return os.tcgetpgrp(self._fd)

    def close(self) -> None:
        """Hang up and end the shell."""
        self.hang_up()
        try:
            self._shell.wait(5)
        except subprocess.TimeoutExpired:
            self._shell.kill()
            self._shell.wait()
