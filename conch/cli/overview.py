"""What `conch --version` and `conch --help` print where nothing is odd, as Click would; loading it takes far longer."""

import os
import sys

from conch import __version__

HELP = """\
Usage: conch [OPTIONS] COMMAND [ARGS]...

  Run a command while holding something in etcd.

Options:
  -V, --version  Show the version and exit.
  -h, --help     Show this message and exit.

Commands:
  elect       Run CMD only while conch leads the office NAME.
  sema        Run CMD only while conch holds one of N slots of the semaphore
              NAME.
  cron        Schedule commands: each tick runs on exactly one of the hosts
              that run `conch conchd`.
  conchd      Run the ticks of the schedules in etcd, each on exactly one of
              the hosts that run conchd.
  ps          Show what runs under conch on this host.
  dev         Run CMD with a real etcd on free loopback ports.
  completion  Print the code that completes command lines of conch in a shell."""
# Click breaks the lines for a narrower terminal, and uses no more of a wider one.
_COLUMNS = 80


def plain_answer(words: list[str]) -> str | None:
    """Return what to print for these words alone; None leaves them to the parsers."""
    if sys.stdout is None:
        return None
    if words in (["--version"], ["-V"], ["version"]):
        return f"conch {__version__}"
    if words in (["--help"], ["-h"]) and _columns() >= _COLUMNS:
        return HELP
    return None


def _columns() -> int:
    """Return the width of the terminal as Click finds it, 0 if that is not plain."""
    if "COLUMNS" in os.environ:
        return 0
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ is not None else 0
    except OSError:
        return _COLUMNS  # no terminal
