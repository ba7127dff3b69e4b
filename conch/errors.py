"""The errors that end conch, and the exit codes of the contract."""

EXIT_NO = 1
EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_LOST = 70
EXIT_NOT_ACQUIRED = 75
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_SIGNAL = 128


class ConchError(Exception):
    """What a user, a network or etcd can cause: one line for stderr and an exit code."""

    code = EXIT_UNAVAILABLE

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class CannotWrite(ConchError):
    """Our stdout takes nothing any more; as sysexits names it, an I/O error."""

    code = 74


class ReaderGone(CannotWrite):
    """Nobody reads our stdout any more: end silently, as a process does that SIGPIPE killed."""

    code = EXIT_SIGNAL + 13


class BadInput(ConchError):
    """The user's input is wrong; nothing was sent to etcd."""

    code = EXIT_USAGE


class EndedBySignal(Exception):
    """A signal is the end, the command's or conch's own: all is given back, and conch is to die of it, too."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number}")
        self.number = number
