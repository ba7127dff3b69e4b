"""The module `signal` without its enumerations: they cost more at import than all that conch needs of it.

It is the part of it that is written in C. Its signals and dispositions are plain numbers.
"""

from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal as signal
else:
    try:
        import _signal as signal
    except ImportError:  # nobody promises this name
        import signal


def let_ctrl_c_kill() -> None:
    """Let SIGINT kill the process without a traceback; commands that handle it install their own handler."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def name_of(number: int) -> str:
    """Return a signal's name; of several, the first one in the alphabet."""
    names = [name for name, value in vars(signal).items() if value == number and name.startswith("SIG")]
    return min((name for name in names if not name.startswith("SIG_")), default=str(number))
