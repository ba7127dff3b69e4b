"""Outlives the process that started etcd, by a moment: stops the members and removes their folder.

Reads one pid a line from standard input until its end, which comes also when that process is killed.
"""

import os
import shutil
import signal
import sys


def main() -> None:
    """Wait for the end of input, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    members: list[int] = []
    for line in sys.stdin:
        try:
            members.append(os.pidfd_open(int(line)))
        except ProcessLookupError:
            pass  # it ended at once
    for member in members:
        try:
            signal.pidfd_send_signal(member, signal.SIGKILL)
        except ProcessLookupError:
            pass  # stopped properly
    for folder in sys.argv[1:]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
